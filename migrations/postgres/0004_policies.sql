-- A tenant's policy sets: named, with immutable numbered versions. The one version in force is the organization's.

CREATE TABLE policy_sets (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_by UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (organization_id, name),
    UNIQUE (organization_id, id)
);

CREATE TABLE policy_versions (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL,
    policy_set_id UUID NOT NULL,
    number BIGINT NOT NULL,
    -- SHA-256 of `text`, hexadecimal.
    digest TEXT NOT NULL,
    text TEXT NOT NULL,
    note TEXT NOT NULL,
    created_by UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    UNIQUE (policy_set_id, number),
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, policy_set_id) REFERENCES policy_sets (organization_id, id) ON DELETE CASCADE
);

-- What is in force exists and is the organization's own.
ALTER TABLE organizations ADD CONSTRAINT organizations_policy_version
    FOREIGN KEY (id, policy_version_id) REFERENCES policy_versions (organization_id, id);

CREATE FUNCTION policy_versions_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a policy version never changes';
END $$;
CREATE TRIGGER policy_versions_immutable BEFORE UPDATE ON policy_versions
    FOR EACH ROW EXECUTE FUNCTION policy_versions_immutable();
