-- By which rules a version was validated, and what it was warned of: a version need not be validated again to be put in force
-- while the rules are the same. Those of earlier servers have none.
ALTER TABLE policy_versions ADD COLUMN rules TEXT NOT NULL DEFAULT '';
ALTER TABLE policy_versions ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]';

-- Policies of the version in force that could not be evaluated. Those of other versions go when another one is put in force.
CREATE TABLE policy_errors (
    organization_id UUID NOT NULL,
    version_id UUID NOT NULL,
    -- Of the policy, in its set.
    place BIGINT NOT NULL,
    policy TEXT NOT NULL,
    text_line BIGINT NOT NULL,
    text_column BIGINT NOT NULL,
    message TEXT NOT NULL,
    count BIGINT NOT NULL,
    last_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (organization_id, version_id, place),
    FOREIGN KEY (organization_id, version_id) REFERENCES policy_versions (organization_id, id) ON DELETE CASCADE
);
