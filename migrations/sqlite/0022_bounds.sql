-- Bytes of the agent's versions: for the organization's bound.
ALTER TABLE agents ADD COLUMN version_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE agents SET version_bytes =
    (SELECT COALESCE(SUM(OCTET_LENGTH(workflow)), 0) FROM agent_versions WHERE agent_versions.agent_id = agents.id)
WHERE EXISTS (SELECT 1 FROM agent_versions WHERE agent_versions.agent_id = agents.id);
CREATE INDEX agents_version_bytes ON agents (organization_id, version_bytes) WHERE version_bytes > 0;

-- Which sessions were ended long ago, for the sweep.
CREATE INDEX sessions_revoked ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;

-- SHA-256 of what all refresh tokens of the session have in common: one that was exchanged and forgotten is known by it.
ALTER TABLE sessions ADD COLUMN refresh_family BLOB;
CREATE INDEX sessions_refresh_family ON sessions (refresh_family) WHERE refresh_family IS NOT NULL;
-- Not so those of earlier versions of the server.
ALTER TABLE refresh_tokens ADD COLUMN in_family BOOLEAN NOT NULL DEFAULT FALSE;

-- Deployments that failed or were cancelled long ago, for the sweep.
CREATE INDEX deployments_never_active ON deployments (finished_at) WHERE activated_at IS NULL;
-- What was active in the same place before and after.
CREATE INDEX deployments_activated ON deployments (organization_id, agent_id, gateway_id, environment, activated_at)
    WHERE activated_at IS NOT NULL;

-- When it was done first since that migration: it is done again for some days.
ALTER TABLE data_migrations ADD COLUMN first_at TEXT;

-- Claims: what is due, with what decides whose turn it is, and whose worker is gone.
DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (run_at, organization_id, kind) WHERE state = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE state = 'running';
-- The last claim was to give the job up, and so was not counted as an attempt.
ALTER TABLE jobs ADD COLUMN exhausted BOOLEAN NOT NULL DEFAULT FALSE;
