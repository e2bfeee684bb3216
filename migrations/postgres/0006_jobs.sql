-- Background jobs and what they work on. The `jobs` table is the queue and the truth about it: who holds a job, until
-- when, how often it was tried. The fence grows with each claim; a worker writes only under the fence it claimed with.

CREATE TABLE jobs (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    payload JSONB NOT NULL,
    -- What policies are asked about: the deployment it works on.
    subject_id UUID NOT NULL,
    state TEXT NOT NULL,
    run_at TIMESTAMPTZ NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    max_attempts BIGINT NOT NULL,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    -- Whether an attempt may have reached the far side without its end being known.
    uncertain BOOLEAN NOT NULL DEFAULT FALSE,
    lease_owner TEXT,
    lease_until TIMESTAMPTZ,
    fence BIGINT NOT NULL DEFAULT 0,
    last_error TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    UNIQUE (organization_id, id)
);
CREATE INDEX jobs_queued ON jobs (run_at) WHERE state = 'queued';
CREATE INDEX jobs_running ON jobs (organization_id, lease_until) WHERE state = 'running';
CREATE INDEX jobs_subject ON jobs (subject_id);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE deployments (
    id UUID PRIMARY KEY,
    organization_id UUID NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    agent_id UUID NOT NULL,
    version_id UUID NOT NULL,
    version BIGINT NOT NULL,
    gateway_id UUID NOT NULL,
    environment TEXT NOT NULL,
    status TEXT NOT NULL,
    -- The job that is at it, or was last. Not a foreign key: finished jobs are removed after a while.
    job_id UUID NOT NULL,
    registration_id TEXT,
    endpoint TEXT,
    progress_percent BIGINT,
    progress_message TEXT,
    error TEXT,
    rollback_of UUID,
    -- The sequence of its last event.
    events BIGINT NOT NULL DEFAULT 0,
    created_by UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    activated_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, agent_id) REFERENCES agents (organization_id, id),
    FOREIGN KEY (organization_id, version_id) REFERENCES agent_versions (organization_id, id),
    FOREIGN KEY (organization_id, gateway_id) REFERENCES connections (organization_id, id)
);
CREATE INDEX deployments_agent ON deployments (organization_id, agent_id, id);
CREATE INDEX deployments_gateway ON deployments (organization_id, gateway_id, id);
CREATE INDEX deployments_status ON deployments (organization_id, status, id);

CREATE TABLE deployment_events (
    organization_id UUID NOT NULL,
    deployment_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    kind TEXT NOT NULL,
    occurred_at TIMESTAMPTZ NOT NULL,
    status TEXT NOT NULL,
    percent BIGINT,
    message TEXT,
    PRIMARY KEY (deployment_id, sequence),
    FOREIGN KEY (organization_id, deployment_id) REFERENCES deployments (organization_id, id) ON DELETE CASCADE
);
