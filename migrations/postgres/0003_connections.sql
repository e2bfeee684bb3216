-- Connections: what a tenant connects to through a plugin. Identity connections, gateways and audit sinks are one table.

CREATE TABLE connections (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    -- identity_provider, deployment_target or audit_sink.
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    plugin TEXT NOT NULL,
    -- Valid against the schema in the plugin's manifest.
    config JSONB NOT NULL,
    -- A JSON object of names and values, encrypted for this row alone.
    secrets BYTEA NOT NULL,
    -- The names alone, which may be shown.
    secret_names JSONB NOT NULL,
    -- For gateways.
    environment TEXT,
    labels JSONB NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (organization_id, id),
    UNIQUE (organization_id, kind, name)
);
CREATE INDEX connections_kind ON connections (organization_id, kind, id);
