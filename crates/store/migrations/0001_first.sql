-- The first schema. Common subset of SQLite and PostgreSQL: TEXT, BIGINT and BLOB only; times are
-- BIGINT microseconds since 1970 in UTC; JSON is TEXT; booleans are BIGINT 0 or 1.
-- The runner replaces the word BLOB by BYTEA on PostgreSQL; nothing else differs.

CREATE TABLE resources (
  key                TEXT NOT NULL PRIMARY KEY,
  id                 TEXT NOT NULL,
  type               TEXT NOT NULL,
  subscription       TEXT NOT NULL,
  resource_group     TEXT NOT NULL,
  parent_key         TEXT REFERENCES resources (key) ON DELETE RESTRICT,
  name               TEXT NOT NULL,
  location           TEXT NOT NULL,
  provisioning_state TEXT NOT NULL,
  generation         BIGINT NOT NULL,
  schema             BIGINT NOT NULL,
  doc                TEXT NOT NULL,
  created_at         BIGINT NOT NULL,
  updated_at         BIGINT NOT NULL
);
CREATE INDEX resources_by_parent ON resources (parent_key);
CREATE INDEX resources_by_group ON resources (subscription, resource_group, type);
CREATE INDEX resources_by_type ON resources (type);

CREATE TABLE links (
  from_key TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
  to_key   TEXT NOT NULL REFERENCES resources (key) ON DELETE RESTRICT,
  kind     TEXT NOT NULL,
  PRIMARY KEY (from_key, to_key, kind)
);
CREATE INDEX links_by_target ON links (to_key);

-- An operation outlives its resource (the end of a DELETE is polled), hence no foreign key.
CREATE TABLE operations (
  id           TEXT NOT NULL PRIMARY KEY,
  resource_key TEXT NOT NULL,
  resource_id  TEXT NOT NULL,
  kind         TEXT NOT NULL,
  family       TEXT NOT NULL,
  subscription TEXT NOT NULL,
  location     TEXT NOT NULL,
  status       TEXT NOT NULL,
  error        TEXT,
  result       TEXT,
  started_at   BIGINT NOT NULL,
  ended_at     BIGINT
);
CREATE INDEX operations_by_resource ON operations (resource_key, status);

CREATE TABLE jobs (
  id               TEXT NOT NULL PRIMARY KEY,
  kind             TEXT NOT NULL,
  payload          TEXT NOT NULL,
  operation_id     TEXT,
  resource_key     TEXT,
  state            TEXT NOT NULL,
  run_after        BIGINT NOT NULL,
  attempts         BIGINT NOT NULL,
  max_attempts     BIGINT NOT NULL,
  lease_owner      TEXT,
  lease_until      BIGINT,
  fence            BIGINT NOT NULL,
  cancel_requested BIGINT NOT NULL,
  progress         TEXT,
  error            TEXT,
  created_at       BIGINT NOT NULL,
  finished_at      BIGINT
);
CREATE INDEX jobs_by_state ON jobs (state, run_after);
CREATE INDEX jobs_by_operation ON jobs (operation_id);
CREATE INDEX jobs_by_resource ON jobs (resource_key);

CREATE TABLE run_logs (
  run_id TEXT NOT NULL,
  seq    BIGINT NOT NULL,
  at     BIGINT NOT NULL,
  chunk  BLOB NOT NULL,
  PRIMARY KEY (run_id, seq)
);

CREATE TABLE settings (
  key        TEXT NOT NULL PRIMARY KEY,
  value      BLOB NOT NULL,
  updated_at BIGINT NOT NULL
);

CREATE TABLE placements (
  version_key TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
  region      TEXT NOT NULL,
  manifest    TEXT NOT NULL,
  state       TEXT NOT NULL,
  bytes_moved BIGINT NOT NULL,
  progress    BIGINT NOT NULL,
  error       TEXT,
  updated_at  BIGINT NOT NULL,
  PRIMARY KEY (version_key, region)
);
