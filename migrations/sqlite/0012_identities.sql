-- Who is who at an identity provider is keyed by the provider too: the same subject of another issuer is another person.
-- A link has an id, so that it can be shown and removed.

CREATE TABLE identities (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    connection_id BLOB NOT NULL,
    -- The provider: OpenID Connect's issuer, or an OAuth 2 provider's token endpoint. Empty for a link of an earlier
    -- version until its next sign-in: it then is the one that the connection has had since.
    issuer TEXT NOT NULL,
    -- The provider's own name for the person: stable, never given to another.
    subject TEXT NOT NULL,
    user_id BLOB NOT NULL,
    created_at TEXT NOT NULL,
    last_sign_in_at TEXT NOT NULL,
    UNIQUE (connection_id, issuer, subject),
    FOREIGN KEY (organization_id, connection_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
INSERT INTO identities (id, organization_id, connection_id, issuer, subject, user_id, created_at, last_sign_in_at)
SELECT randomblob(16), a.organization_id, a.connection_id,
       CASE WHEN c.plugin = 'oidc' THEN coalesce(json_extract(c.config, '$.issuer'), '') ELSE '' END,
       a.subject, a.user_id, a.created_at, a.last_sign_in_at
FROM accounts a JOIN connections c ON c.organization_id = a.organization_id AND c.id = a.connection_id;
DROP TABLE accounts;
CREATE INDEX identities_user ON identities (organization_id, user_id, id);

-- When the person was first seen to use this address: by a password sign-in, or by a provider. An address that was only
-- typed in by an administrator is nobody's yet, and what happens to it elsewhere is not told here.
ALTER TABLE users ADD COLUMN confirmed_at TEXT;
UPDATE users SET confirmed_at = updated_at
WHERE EXISTS (SELECT 1 FROM sessions s WHERE s.organization_id = users.organization_id AND s.user_id = users.id)
   OR EXISTS (SELECT 1 FROM identities i WHERE i.organization_id = users.organization_id AND i.user_id = users.id);
