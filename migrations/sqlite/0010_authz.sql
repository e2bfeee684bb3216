-- By which rules a version was validated, and what it was warned of: a version need not be validated again to be put in force
-- while the rules are the same. Those of earlier servers have none.
ALTER TABLE policy_versions ADD COLUMN rules TEXT NOT NULL DEFAULT '';
ALTER TABLE policy_versions ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]';

-- Policies of the version in force that could not be evaluated. Those of other versions go when another one is put in force.
CREATE TABLE policy_errors (
    organization_id BLOB NOT NULL,
    version_id BLOB NOT NULL,
    -- Of the policy, in its set.
    place INTEGER NOT NULL,
    policy TEXT NOT NULL,
    text_line INTEGER NOT NULL,
    text_column INTEGER NOT NULL,
    message TEXT NOT NULL,
    count INTEGER NOT NULL,
    last_at TEXT NOT NULL,
    PRIMARY KEY (organization_id, version_id, place),
    FOREIGN KEY (organization_id, version_id) REFERENCES policy_versions (organization_id, id) ON DELETE CASCADE
);
