-- Canvases: the journal of operations, snapshots of it, and tickets for sockets that cannot send headers.

-- So that a canvas can refer to its agent with the organization carried along.
CREATE UNIQUE INDEX agents_canvas ON agents (organization_id, canvas_id);

-- Made with the first operation. The row is the lock that gives a canvas's operations their order.
CREATE TABLE canvases (
    id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    -- Of the last message stored.
    sequence INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (organization_id, id),
    FOREIGN KEY (organization_id, id) REFERENCES agents (organization_id, canvas_id) ON DELETE CASCADE
);

-- One row for each message. JSON is kept as text: it goes out again as it came in, and JSONB would refuse "\u0000".
CREATE TABLE canvas_ops (
    canvas_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    organization_id BLOB NOT NULL,
    -- `user/{id}`.
    actor TEXT NOT NULL,
    -- Whose `ref` it is: the name a client gives itself, or a digest of the message if it gives none.
    client TEXT NOT NULL,
    ref TEXT,
    ops TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (canvas_id, sequence),
    FOREIGN KEY (organization_id, canvas_id) REFERENCES canvases (organization_id, id) ON DELETE CASCADE
);

-- A row of its own: `canvases` is rewritten with every message.
CREATE TABLE canvas_snapshots (
    canvas_id BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    -- {"nodes":[…],"edges":[…]}
    graph TEXT NOT NULL,
    created_at TEXT NOT NULL,
    FOREIGN KEY (organization_id, canvas_id) REFERENCES canvases (organization_id, id) ON DELETE CASCADE
);

CREATE TABLE canvas_tickets (
    -- SHA-256 of the ticket.
    hash BLOB PRIMARY KEY,
    organization_id BLOB NOT NULL,
    canvas_id BLOB NOT NULL,
    user_id BLOB NOT NULL,
    -- The sign-in it was issued to: the socket ends with it.
    session_id BLOB,
    expires_at TEXT NOT NULL,
    FOREIGN KEY (organization_id, canvas_id) REFERENCES agents (organization_id, canvas_id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX canvas_tickets_expiry ON canvas_tickets (expires_at);
