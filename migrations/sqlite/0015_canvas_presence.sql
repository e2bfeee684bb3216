-- Canvas: what tells a repeated message from another one under the same `ref`, and presence between hosts without Redis.

-- Of the operations as they were sent; absent in older rows.
ALTER TABLE canvas_ops ADD COLUMN digest BLOB;

-- One row for each host and canvas while there is no Redis between hosts; swept some minutes after its last change.
CREATE TABLE canvas_presence (
    canvas_id BLOB NOT NULL,
    -- Names the host's process.
    host TEXT NOT NULL,
    organization_id BLOB NOT NULL,
    -- A JSON array.
    peers TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (canvas_id, host),
    FOREIGN KEY (organization_id, canvas_id) REFERENCES agents (organization_id, canvas_id) ON DELETE CASCADE
);
CREATE INDEX canvas_presence_age ON canvas_presence (updated_at);
