-- What a try to write writes, for as long as it takes: a row that is changed in place would need no space.
ALTER TABLE write_probe ADD COLUMN filler BLOB;

-- Bytes of the canvas's journal and snapshot: for the organization's bound.
ALTER TABLE canvases ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE canvases SET bytes =
    (SELECT COALESCE(SUM(OCTET_LENGTH(ops)), 0) FROM canvas_ops WHERE canvas_ops.canvas_id = canvases.id)
    + (SELECT COALESCE(MAX(OCTET_LENGTH(graph)), 0) FROM canvas_snapshots WHERE canvas_snapshots.canvas_id = canvases.id);
