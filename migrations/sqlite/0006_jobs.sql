-- Background jobs and what they work on. The `jobs` table is the queue and the truth about it: who holds a job, until
-- when, how often it was tried. The fence grows with each claim; a worker writes only under the fence it claimed with.

CREATE TABLE jobs (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    -- What policies are asked about: the deployment it works on.
    subject_id BLOB NOT NULL,
    state TEXT NOT NULL,
    run_at TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    -- Whether an attempt may have reached the far side without its end being known.
    uncertain BOOLEAN NOT NULL DEFAULT FALSE,
    lease_owner TEXT,
    lease_until TEXT,
    fence INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    finished_at TEXT,
    UNIQUE (organization_id, id)
);
CREATE INDEX jobs_queued ON jobs (run_at) WHERE state = 'queued';
CREATE INDEX jobs_running ON jobs (organization_id, lease_until) WHERE state = 'running';
CREATE INDEX jobs_subject ON jobs (subject_id);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE deployments (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    agent_id BLOB NOT NULL,
    version_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    gateway_id BLOB NOT NULL,
    environment TEXT NOT NULL,
    status TEXT NOT NULL,
    -- The job that is at it, or was last. Not a foreign key: finished jobs are removed after a while.
    job_id BLOB NOT NULL,
    registration_id TEXT,
    endpoint TEXT,
    progress_percent INTEGER,
    progress_message TEXT,
    error TEXT,
    rollback_of BLOB,
    -- The sequence of its last event.
    events INTEGER NOT NULL DEFAULT 0,
    created_by BLOB NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    activated_at TEXT,
    finished_at TEXT,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, agent_id) REFERENCES agents (organization_id, id),
    FOREIGN KEY (organization_id, version_id) REFERENCES agent_versions (organization_id, id),
    FOREIGN KEY (organization_id, gateway_id) REFERENCES connections (organization_id, id)
);
CREATE INDEX deployments_agent ON deployments (organization_id, agent_id, id);
CREATE INDEX deployments_gateway ON deployments (organization_id, gateway_id, id);
CREATE INDEX deployments_status ON deployments (organization_id, status, id);

CREATE TABLE deployment_events (
    organization_id BLOB NOT NULL,
    deployment_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    occurred_at TEXT NOT NULL,
    status TEXT NOT NULL,
    percent INTEGER,
    message TEXT,
    PRIMARY KEY (deployment_id, sequence),
    FOREIGN KEY (organization_id, deployment_id) REFERENCES deployments (organization_id, id) ON DELETE CASCADE
);
