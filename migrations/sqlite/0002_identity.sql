-- Sign-in: signing keys, sessions, refresh tokens. Nothing here can be used as it stands: secrets are kept as SHA-256.

-- Public keys of every host, so that each verifies the others' access tokens. Private keys stay in the data folders.
CREATE TABLE signing_keys (
    -- RFC 7638 thumbprint.
    kid TEXT PRIMARY KEY,
    -- RFC 7517, public members only.
    jwk TEXT NOT NULL,
    created_at TEXT NOT NULL,
    -- Moved on by the host that signs with it.
    expires_at TEXT NOT NULL
);

CREATE TABLE sessions (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id BLOB NOT NULL,
    -- `password` or `sso`.
    method TEXT NOT NULL,
    -- SHA-256 of the cookie's secret.
    cookie_hash BLOB NOT NULL UNIQUE,
    user_agent TEXT NOT NULL,
    created_at TEXT NOT NULL,
    -- To within minutes.
    last_seen_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    revoked_at TEXT,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX sessions_user ON sessions (organization_id, user_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE refresh_tokens (
    -- SHA-256 of the token's secret.
    hash BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    session_id BLOB NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    used_at TEXT,
    -- The token that followed is HMAC(token, salt): only who holds this one can find the next.
    salt BLOB,
    FOREIGN KEY (organization_id, session_id) REFERENCES sessions (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (organization_id, session_id);
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);
