-- Bytes of the agent's versions: for the organization's bound.
ALTER TABLE agents ADD COLUMN version_bytes BIGINT NOT NULL DEFAULT 0;
UPDATE agents SET version_bytes =
    (SELECT COALESCE(SUM(OCTET_LENGTH(workflow)), 0) FROM agent_versions WHERE agent_versions.agent_id = agents.id)
WHERE EXISTS (SELECT 1 FROM agent_versions WHERE agent_versions.agent_id = agents.id);
CREATE INDEX agents_version_bytes ON agents (organization_id, version_bytes) WHERE version_bytes > 0;
