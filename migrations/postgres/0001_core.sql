-- What everything hangs on: tenants, people, agents, and the audit chain.
-- Composite foreign keys carry the organization along, so that no row can refer to another tenant's.

CREATE TABLE organizations (
    id UUID PRIMARY KEY,
    name TEXT NOT NULL,
    -- The version of the tenant's policy set that is in force; its table comes later.
    policy_version_id UUID,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1
);

CREATE TABLE users (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    -- argon2id, PHC string; absent for people who only sign in elsewhere.
    password_hash TEXT,
    active BOOLEAN NOT NULL,
    platform_administrator BOOLEAN NOT NULL,
    attributes JSONB NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (organization_id, email),
    UNIQUE (organization_id, id)
);
CREATE INDEX users_email ON users (email);

CREATE TABLE workspaces (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (organization_id, name),
    UNIQUE (organization_id, id)
);

CREATE TABLE memberships (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id UUID NOT NULL,
    -- Absent: in the whole organization.
    workspace_id UUID,
    role TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, workspace_id) REFERENCES workspaces (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX memberships_user ON memberships (user_id);
CREATE INDEX memberships_organization ON memberships (organization_id, id);
CREATE UNIQUE INDEX memberships_once ON memberships (user_id, role, workspace_id) WHERE workspace_id IS NOT NULL;
CREATE UNIQUE INDEX memberships_once_everywhere ON memberships (user_id, role) WHERE workspace_id IS NULL;

CREATE TABLE agents (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    workspace_id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    labels JSONB NOT NULL,
    settings JSONB NOT NULL,
    canvas_id UUID NOT NULL UNIQUE,
    created_by UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, workspace_id) REFERENCES workspaces (organization_id, id)
);
CREATE INDEX agents_workspace ON agents (organization_id, workspace_id);

CREATE TABLE agent_versions (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL,
    agent_id UUID NOT NULL,
    number BIGINT NOT NULL,
    -- SHA-256 of `workflow`, hexadecimal.
    digest TEXT NOT NULL,
    -- The exact text that was digested: `kaizen.workflow.v1`.
    workflow TEXT NOT NULL,
    note TEXT NOT NULL,
    created_by UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    UNIQUE (agent_id, number),
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, agent_id) REFERENCES agents (organization_id, id) ON DELETE CASCADE
);

-- The audit chain: events are only ever added. `audit_heads` is the lock that gives them their order.
CREATE TABLE audit_heads (
    organization_id UUID PRIMARY KEY,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL
);

CREATE TABLE audit_events (
    organization_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    id UUID NOT NULL UNIQUE,
    occurred_at TIMESTAMPTZ NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    -- The exact text that was hashed.
    details TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (organization_id, sequence)
);

-- One answer for each Idempotency-Key, written with the change it answers.
CREATE TABLE idempotency_keys (
    organization_id UUID NOT NULL,
    user_id UUID NOT NULL,
    key TEXT NOT NULL,
    -- SHA-256 of method, path and body: another request under the same key is refused.
    request TEXT NOT NULL,
    status BIGINT NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (organization_id, user_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- The chain cannot fork or be edited through the server's own connection.
CREATE FUNCTION audit_advance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE audit_heads SET sequence = NEW.sequence, hash = NEW.hash
        WHERE organization_id = NEW.organization_id AND sequence = NEW.sequence - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'audit event % does not follow the head of its chain', NEW.sequence;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_advance AFTER INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION audit_advance();

CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit events are only ever added';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit_events FOR EACH ROW EXECUTE FUNCTION audit_append_only();
