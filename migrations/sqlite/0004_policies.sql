-- A tenant's policy sets: named, with immutable numbered versions. The one version in force is the organization's.

CREATE TABLE policy_sets (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    UNIQUE (organization_id, name),
    UNIQUE (organization_id, id)
);

CREATE TABLE policy_versions (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    policy_set_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    -- SHA-256 of `text`, hexadecimal.
    digest TEXT NOT NULL,
    text TEXT NOT NULL,
    note TEXT NOT NULL,
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (policy_set_id, number),
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, policy_set_id) REFERENCES policy_sets (organization_id, id) ON DELETE CASCADE
);

-- What is in force exists and is the organization's own. (A foreign key, which SQLite cannot add to a table that is there.)
CREATE TRIGGER organizations_policy_version BEFORE UPDATE OF policy_version_id ON organizations
WHEN NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM policy_versions WHERE organization_id = NEW.id AND id = NEW.policy_version_id
)
BEGIN
    SELECT RAISE(ABORT, 'no such policy version in this organization');
END;
CREATE TRIGGER policy_versions_in_force BEFORE DELETE ON policy_versions
WHEN EXISTS (SELECT 1 FROM organizations WHERE id = OLD.organization_id AND policy_version_id = OLD.id)
BEGIN
    SELECT RAISE(ABORT, 'this policy version is in force');
END;
CREATE TRIGGER policy_versions_immutable BEFORE UPDATE ON policy_versions
BEGIN
    SELECT RAISE(ABORT, 'a policy version never changes');
END;
