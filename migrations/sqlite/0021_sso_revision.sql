-- The connection's revision when the sign-in began: a code of one provider is not sent to another one. 0, which no connection has,
-- for those that are under way meanwhile: they have to be begun again.
ALTER TABLE sso_states ADD COLUMN connection_revision INTEGER NOT NULL DEFAULT 0;
