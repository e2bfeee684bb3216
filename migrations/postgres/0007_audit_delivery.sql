-- How far each audit sink has got. One host at a time delivers to a sink: the one that holds the lease.

CREATE TABLE audit_deliveries (
    organization_id UUID NOT NULL,
    sink_id UUID NOT NULL,
    -- The last event that the far side has stored.
    sequence BIGINT NOT NULL,
    -- Failures in a row.
    attempt BIGINT NOT NULL DEFAULT 0,
    next_at TIMESTAMPTZ NOT NULL,
    last_error TEXT,
    delivered_at TIMESTAMPTZ,
    lease_owner TEXT,
    lease_until TIMESTAMPTZ,
    fence BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, sink_id),
    FOREIGN KEY (organization_id, sink_id) REFERENCES connections (organization_id, id) ON DELETE CASCADE
);
CREATE INDEX audit_deliveries_next ON audit_deliveries (next_at);

-- Whoever makes a sink, its place in the chain is made with it: where the chain ends then.
CREATE FUNCTION audit_sink_begin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_deliveries (organization_id, sink_id, sequence, next_at)
        VALUES (NEW.organization_id, NEW.id,
                COALESCE((SELECT sequence FROM audit_heads WHERE organization_id = NEW.organization_id), 0), NEW.created_at);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_sink_begin AFTER INSERT ON connections FOR EACH ROW WHEN (NEW.kind = 'audit_sink')
    EXECUTE FUNCTION audit_sink_begin();

-- A corrected sink is tried at once.
CREATE FUNCTION audit_sink_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE audit_deliveries SET next_at = NEW.updated_at WHERE organization_id = NEW.organization_id AND sink_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_sink_again AFTER UPDATE ON connections FOR EACH ROW WHEN (NEW.kind = 'audit_sink')
    EXECUTE FUNCTION audit_sink_again();
