-- Signing in elsewhere: who is who at an identity provider, and sign-ins under way.

CREATE TABLE accounts (
    organization_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    -- The provider's own name for the person: stable, never given to another.
    subject TEXT NOT NULL,
    user_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    last_sign_in_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (connection_id, subject),
    FOREIGN KEY (organization_id, connection_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX accounts_user ON accounts (organization_id, user_id);

CREATE TABLE sso_states (
    -- SHA-256 of `state`.
    state_hash BYTEA PRIMARY KEY,
    -- SHA-256 of the browser's cookie, from which nonce and PKCE verifier are derived.
    browser_hash BYTEA NOT NULL,
    organization_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    return_to TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    FOREIGN KEY (organization_id, connection_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX sso_states_expiry ON sso_states (expires_at);
