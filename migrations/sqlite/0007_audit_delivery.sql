-- How far each audit sink has got. One host at a time delivers to a sink: the one that holds the lease.

CREATE TABLE audit_deliveries (
    organization_id BLOB NOT NULL,
    sink_id BLOB NOT NULL,
    -- The last event that the far side has stored.
    sequence INTEGER NOT NULL,
    -- Failures in a row.
    attempt INTEGER NOT NULL DEFAULT 0,
    next_at TEXT NOT NULL,
    last_error TEXT,
    delivered_at TEXT,
    lease_owner TEXT,
    lease_until TEXT,
    fence INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, sink_id),
    FOREIGN KEY (organization_id, sink_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX audit_deliveries_next ON audit_deliveries (next_at);

-- Whoever makes a sink, its place in the chain is made with it: where the chain ends then.
CREATE TRIGGER audit_sink_begin AFTER INSERT ON connections WHEN NEW.kind = 'audit_sink'
BEGIN
    INSERT INTO audit_deliveries (organization_id, sink_id, sequence, next_at)
        VALUES (NEW.organization_id, NEW.id,
                COALESCE((SELECT sequence FROM audit_heads WHERE organization_id = NEW.organization_id), 0), NEW.created_at);
END;

-- A corrected sink is tried at once.
CREATE TRIGGER audit_sink_again AFTER UPDATE ON connections WHEN NEW.kind = 'audit_sink'
BEGIN
    UPDATE audit_deliveries SET next_at = NEW.updated_at WHERE organization_id = NEW.organization_id AND sink_id = NEW.id;
END;
