-- The revision that an answer's ETag names, so that a repeated request is answered with the same one. Null: it had none.
ALTER TABLE idempotency_keys ADD COLUMN revision BIGINT;
