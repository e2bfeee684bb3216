-- What everything hangs on: tenants, people, agents, and the audit chain.
-- Composite foreign keys carry the organization along, so that no row can refer to another tenant's.

CREATE TABLE organizations (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    -- The version of the tenant's policy set that is in force; its table comes later.
    policy_version_id BLOB,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1
);

CREATE TABLE users (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    -- argon2id, PHC string; absent for people who only sign in elsewhere.
    password_hash TEXT,
    active BOOLEAN NOT NULL,
    platform_administrator BOOLEAN NOT NULL,
    attributes TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    UNIQUE (organization_id, email),
    UNIQUE (organization_id, id)
);
CREATE INDEX users_email ON users (email);

CREATE TABLE workspaces (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    UNIQUE (organization_id, name),
    UNIQUE (organization_id, id)
);

CREATE TABLE memberships (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id BLOB NOT NULL,
    -- Absent: in the whole organization.
    workspace_id BLOB,
    role TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, workspace_id) REFERENCES workspaces (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX memberships_user ON memberships (user_id);
CREATE INDEX memberships_organization ON memberships (organization_id, id);
CREATE UNIQUE INDEX memberships_once ON memberships (user_id, role, workspace_id) WHERE workspace_id IS NOT NULL;
CREATE UNIQUE INDEX memberships_once_everywhere ON memberships (user_id, role) WHERE workspace_id IS NULL;

CREATE TABLE agents (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    workspace_id BLOB NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    labels TEXT NOT NULL,
    settings TEXT NOT NULL,
    canvas_id BLOB NOT NULL UNIQUE,
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, workspace_id) REFERENCES workspaces (organization_id, id)
);
CREATE INDEX agents_workspace ON agents (organization_id, workspace_id);

CREATE TABLE agent_versions (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    agent_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    -- SHA-256 of `workflow`, hexadecimal.
    digest TEXT NOT NULL,
    -- The exact text that was digested: `kaizen.workflow.v1`.
    workflow TEXT NOT NULL,
    note TEXT NOT NULL,
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (agent_id, number),
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, agent_id) REFERENCES agents (organization_id, id) ON DELETE CASCADE
);

-- The audit chain: events are only ever added. `audit_heads` is the lock that gives them their order.
CREATE TABLE audit_heads (
    organization_id BLOB PRIMARY KEY,
    sequence INTEGER NOT NULL,
    hash TEXT NOT NULL
);

CREATE TABLE audit_events (
    organization_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    id BLOB NOT NULL UNIQUE,
    occurred_at TEXT NOT NULL,
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
    organization_id BLOB NOT NULL,
    user_id BLOB NOT NULL,
    key TEXT NOT NULL,
    -- SHA-256 of method, path and body: another request under the same key is refused.
    request TEXT NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (organization_id, user_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- The chain cannot fork or be edited through the server's own connection.
CREATE TRIGGER audit_follows BEFORE INSERT ON audit_events
WHEN NOT EXISTS (SELECT 1 FROM audit_heads WHERE organization_id = NEW.organization_id AND sequence = NEW.sequence - 1)
BEGIN
    SELECT RAISE(ABORT, 'audit event does not follow the head of its chain');
END;
CREATE TRIGGER audit_advance AFTER INSERT ON audit_events
BEGIN
    UPDATE audit_heads SET sequence = NEW.sequence, hash = NEW.hash WHERE organization_id = NEW.organization_id;
END;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are only ever added');
END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are only ever added');
END;
