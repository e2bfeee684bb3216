-- One row that `/readyz` writes while the database takes no changes, to learn when it does again.
CREATE TABLE write_probe (
    id BIGINT PRIMARY KEY,
    tries BIGINT NOT NULL
);

-- Counted when one more is added; swept by age.
CREATE INDEX jobs_waiting ON jobs (organization_id) WHERE state = 'queued';
CREATE INDEX deployments_finished ON deployments (finished_at) WHERE finished_at IS NOT NULL;
