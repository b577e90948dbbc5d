-- Blobs of storage accounts. The bytes lie in files ("objects") of the account's region; here is what they are.
-- Names are BLOB so that both engines order them by their bytes.

CREATE TABLE blob_containers (
  account    TEXT NOT NULL REFERENCES resources (key) ON DELETE RESTRICT,
  name       BLOB NOT NULL,
  doc        TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account, name)
);

CREATE TABLE blobs (
  account    TEXT NOT NULL,
  container  BLOB NOT NULL,
  name       BLOB NOT NULL,
  object     TEXT NOT NULL,
  doc        TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account, container, name),
  FOREIGN KEY (account, container) REFERENCES blob_containers (account, name) ON DELETE RESTRICT
);

-- Blocks that were put and are in no block list yet.
CREATE TABLE blob_blocks (
  account    TEXT NOT NULL,
  container  BLOB NOT NULL,
  name       BLOB NOT NULL,
  id         TEXT NOT NULL,
  object     TEXT NOT NULL,
  bytes      BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account, container, name, id),
  FOREIGN KEY (account, container) REFERENCES blob_containers (account, name) ON DELETE RESTRICT
);

-- What a blob that was put in blocks consists of; owner is blobs.object.
CREATE TABLE blob_parts (
  owner  TEXT NOT NULL,
  seq    BIGINT NOT NULL,
  id     TEXT NOT NULL,
  object TEXT NOT NULL,
  bytes  BIGINT NOT NULL,
  PRIMARY KEY (owner, seq)
);

-- Objects that no row above names: from before their file is made until a row names it, and again from when none does.
CREATE TABLE blob_garbage (
  object TEXT NOT NULL PRIMARY KEY,
  region TEXT NOT NULL,
  due    BIGINT NOT NULL
);
CREATE INDEX blob_garbage_by_due ON blob_garbage (due);
