-- Signing in elsewhere: who is who at an identity provider, and sign-ins under way.

CREATE TABLE accounts (
    organization_id BLOB NOT NULL,
    connection_id BLOB NOT NULL,
    -- The provider's own name for the person: stable, never given to another.
    subject TEXT NOT NULL,
    user_id BLOB NOT NULL,
    created_at TEXT NOT NULL,
    last_sign_in_at TEXT NOT NULL,
    PRIMARY KEY (connection_id, subject),
    FOREIGN KEY (organization_id, connection_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX accounts_user ON accounts (organization_id, user_id);

CREATE TABLE sso_states (
    -- SHA-256 of `state`.
    state_hash BLOB PRIMARY KEY,
    -- SHA-256 of the browser's cookie, from which nonce and PKCE verifier are derived.
    browser_hash BLOB NOT NULL,
    organization_id BLOB NOT NULL,
    connection_id BLOB NOT NULL,
    return_to TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    FOREIGN KEY (organization_id, connection_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX sso_states_expiry ON sso_states (expires_at);
