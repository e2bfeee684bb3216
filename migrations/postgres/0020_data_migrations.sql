-- What a migration leaves to the server, because SQL cannot do it.
CREATE TABLE data_migrations (
    name TEXT PRIMARY KEY,
    -- The last migration that had been applied when it was done.
    migration BIGINT NOT NULL
);
