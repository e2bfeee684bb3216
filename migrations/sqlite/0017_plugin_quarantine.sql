-- Components that nobody may call or install: by digest, so that the same bytes are known however they come again.
CREATE TABLE plugin_quarantine (
    -- SHA-256 of the component, hexadecimal. No reference: it stays where a version of that component is replaced.
    digest TEXT PRIMARY KEY,
    -- Shown to tenants whose connections would run it.
    reason TEXT NOT NULL,
    -- The platform administrator.
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL
);
