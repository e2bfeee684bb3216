-- Plugins: components by digest, versions of a plugin side by side, and which of them are in use.

-- Raised by every change of the tables below, in its transaction: hosts see by it that they have to look again, and
-- changes wait for each other on its one row.
CREATE TABLE plugin_generation (
    id SMALLINT PRIMARY KEY CHECK (id = 1),
    generation BIGINT NOT NULL
);
INSERT INTO plugin_generation (id, generation) VALUES (1, 0);

CREATE TABLE plugin_artifacts (
    -- SHA-256 of the component, hexadecimal.
    digest TEXT PRIMARY KEY,
    wasm BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE plugins (
    id UUID PRIMARY KEY,
    -- identity_provider, deployment_target or audit_sink.
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- What new connections use; none if nothing was activated yet, or it was disabled.
    active_version TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL DEFAULT 1,
    UNIQUE (kind, name)
);

CREATE TABLE plugin_versions (
    plugin_id UUID NOT NULL REFERENCES plugins (id) ON DELETE CASCADE,
    -- Semantic version, as in the manifest.
    version TEXT NOT NULL,
    -- What it is compatible with: 1 for 1.x.y, 0.2 for 0.2.x, 0.0.3 for itself alone.
    line TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES plugin_artifacts (digest),
    -- Bytes of the component.
    size BIGINT NOT NULL,
    -- bundled, uploaded or folder.
    origin TEXT NOT NULL,
    -- The Ed25519 key and signature it came with, if any, hexadecimal.
    signer TEXT,
    signature TEXT,
    -- JSON, as the API shows it; text, so that it comes back exactly as it was.
    manifest TEXT NOT NULL,
    -- Whether connections may use it: its capabilities were accepted.
    enabled BOOLEAN NOT NULL,
    -- The platform administrator who uploaded it.
    created_by UUID,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (plugin_id, version)
);
CREATE INDEX plugin_versions_digest ON plugin_versions (digest);

-- Of each line, the version that connections which follow it run.
CREATE TABLE plugin_lines (
    plugin_id UUID NOT NULL,
    line TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (plugin_id, line),
    FOREIGN KEY (plugin_id, version) REFERENCES plugin_versions (plugin_id, version) ON DELETE CASCADE
);

-- What was active before each activation, for the way back.
CREATE TABLE plugin_activations (
    plugin_id UUID NOT NULL,
    number BIGINT NOT NULL,
    version TEXT NOT NULL,
    previous TEXT NOT NULL,
    -- What the line of that version ran before, if anything.
    line_previous TEXT,
    PRIMARY KEY (plugin_id, number),
    FOREIGN KEY (plugin_id, version) REFERENCES plugin_versions (plugin_id, version) ON DELETE CASCADE,
    FOREIGN KEY (plugin_id, previous) REFERENCES plugin_versions (plugin_id, version) ON DELETE CASCADE,
    FOREIGN KEY (plugin_id, line_previous) REFERENCES plugin_versions (plugin_id, version) ON DELETE CASCADE
);

-- A connection runs the version it names, or else the active one of the line it follows.
ALTER TABLE connections ADD COLUMN plugin_version TEXT;
ALTER TABLE connections ADD COLUMN plugin_line TEXT;
CREATE INDEX connections_plugin ON connections (kind, plugin);
