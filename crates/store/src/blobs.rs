//! Tables `blob_*`: containers, blobs, blocks, and the objects that hold their bytes.
//!
//! An object (a file, made and removed by others) is at every moment either named by a row or in `blob_garbage`: it is
//! pending before its file is made, taken when a row names it, and dropped in the transaction that unnames it. So a
//! process that dies at any instant leaves nothing that nobody knows.

use chrono::{DateTime, Duration, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;

use crate::cells::Cells;
use crate::{StoreError, Tx};

/// Most rows of one page of a list.
const MAX_ROWS: u32 = 5001;

/// A blob's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlobKey {
    /// Key of the storage account.
    pub account: String,
    /// Name of the container.
    pub container: String,
    /// Name of the blob.
    pub name: String,
}

/// A container. `T` is the caller's data.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRow<T> {
    /// Its name.
    pub name: String,
    /// The caller's data.
    pub data: T,
    /// When it was made (database time).
    pub created_at: DateTime<Utc>,
}

/// A blob. `T` is the caller's data.
#[derive(Debug, Clone, PartialEq)]
pub struct BlobRow<T> {
    /// Its name.
    pub name: String,
    /// The object with its bytes, or the owner of its parts.
    pub object: String,
    /// The caller's data.
    pub data: T,
    /// When it was first made (database time).
    pub created_at: DateTime<Utc>,
}

/// A block: put, or part of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPart {
    /// The client's id of it, base64.
    pub id: String,
    /// The object with its bytes.
    pub object: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// Which names a page of a list has: those that begin with `prefix`, at or after `from`, at most `limit`.
#[derive(Debug, Clone, Default)]
pub struct BlobPage {
    /// What names begin with.
    pub prefix: String,
    /// First name in question, in the order of bytes.
    pub from: Vec<u8>,
    /// Most rows.
    pub limit: u32,
}

impl BlobPage {
    /// The least name, and what all names are below.
    fn bounds(&self) -> (Vec<u8>, Vec<u8>) {
        let prefix = self.prefix.as_bytes();
        let from = self.from.as_slice().max(prefix).to_vec();
        // UTF-8 has no byte 0xff: every name with the prefix is below prefix + 0xff.
        let mut below = prefix.to_vec();
        below.push(0xff);
        (from, below)
    }
}

impl Tx<'_> {
    // ---- containers ----

    /// Makes a container; `false` if there is one of this name.
    ///
    /// # Errors
    /// The database's own, also when there is no such account.
    pub async fn insert_container<T: Serialize + Sync>(
        &mut self,
        account: &str,
        name: &str,
        data: &T,
    ) -> Result<bool, StoreError> {
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "INSERT INTO blob_containers (account, name, doc, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(account.to_owned())
        .bind(name.as_bytes().to_vec())
        .bind(encode("blob_containers", data)?)
        .bind(now);
        Ok(self.execute("insert a container", query).await? > 0)
    }

    /// A container, if there is one of this name.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] if the row does not fit `T`; the database's own.
    pub async fn container<T: DeserializeOwned>(
        &mut self,
        account: &str,
        name: &str,
    ) -> Result<Option<ContainerRow<T>>, StoreError> {
        let query =
            sqlx::query("SELECT name, doc, created_at FROM blob_containers WHERE account = $1 AND name = $2")
                .bind(account.to_owned())
                .bind(name.as_bytes().to_vec());
        self.fetch_optional("read a container", query).await?.as_ref().map(container_row).transpose()
    }

    /// Writes a container's data; `false` if there is none of this name.
    ///
    /// # Errors
    /// The database's own.
    pub async fn update_container<T: Serialize + Sync>(
        &mut self,
        account: &str,
        name: &str,
        data: &T,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query("UPDATE blob_containers SET doc = $1 WHERE account = $2 AND name = $3")
            .bind(encode("blob_containers", data)?)
            .bind(account.to_owned())
            .bind(name.as_bytes().to_vec());
        Ok(self.execute("update a container", query).await? > 0)
    }

    /// A page of an account's containers, by name.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn containers<T: DeserializeOwned>(
        &mut self,
        account: &str,
        page: &BlobPage,
    ) -> Result<Vec<ContainerRow<T>>, StoreError> {
        let (from, below) = page.bounds();
        let query = sqlx::query(
            "SELECT name, doc, created_at FROM blob_containers WHERE account = $1 AND name >= $2 AND name < $3 \
             ORDER BY name LIMIT $4",
        )
        .bind(account.to_owned())
        .bind(from)
        .bind(below)
        .bind(i64::from(page.limit.min(MAX_ROWS)));
        self.fetch_all("list containers", query).await?.iter().map(container_row).collect()
    }

    /// Deletes a container with everything in it, or (`None`) all of the account's. Its objects become garbage. Returns
    /// how many containers there were.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_containers(
        &mut self,
        account: &str,
        name: Option<&str>,
        region: &str,
        keep: Duration,
    ) -> Result<u64, StoreError> {
        let due = (self.now().await? + keep).timestamp_micros();
        // All three sources first: parts are found through the blobs that own them.
        const OBJECTS: &str = "SELECT object FROM blobs WHERE account = $1";
        let (in_container, of_container) = match name {
            Some(_) => (" AND container = $2", " AND name = $2"),
            None => ("", ""),
        };
        let statements = [
            format!(
                "INSERT INTO blob_garbage (object, region, due) SELECT DISTINCT object, $R, $D FROM blob_parts WHERE owner IN \
                 ({OBJECTS}{in_container}) ON CONFLICT DO NOTHING"
            ),
            format!("DELETE FROM blob_parts WHERE owner IN ({OBJECTS}{in_container})"),
            format!(
                "INSERT INTO blob_garbage (object, region, due) SELECT object, $R, $D FROM blobs WHERE account = $1\
                 {in_container} ON CONFLICT DO NOTHING"
            ),
            format!(
                "INSERT INTO blob_garbage (object, region, due) SELECT object, $R, $D FROM blob_blocks WHERE account = $1\
                 {in_container} ON CONFLICT DO NOTHING"
            ),
            format!("DELETE FROM blob_blocks WHERE account = $1{in_container}"),
            format!("DELETE FROM blobs WHERE account = $1{in_container}"),
            format!("DELETE FROM blob_containers WHERE account = $1{of_container}"),
        ];
        let mut deleted = 0;
        for sql in statements {
            let garbage = sql.contains("$R");
            let (region_at, due_at) = if name.is_some() { ("$3", "$4") } else { ("$2", "$3") };
            let sql = sql
                .replace("$R", &format!("CAST({region_at} AS TEXT)"))
                .replace("$D", &format!("CAST({due_at} AS BIGINT)"));
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.to_owned());
            if let Some(name) = name {
                query = query.bind(name.as_bytes().to_vec());
            }
            if garbage {
                query = query.bind(region.to_owned()).bind(due);
            }
            deleted = self.execute("delete containers", query).await?;
        }
        Ok(deleted)
    }

    // ---- blobs ----

    /// A blob, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`] if the row does not fit `T`; the database's own.
    pub async fn blob<T: DeserializeOwned>(
        &mut self,
        key: &BlobKey,
    ) -> Result<Option<BlobRow<T>>, StoreError> {
        let query = sqlx::query(
            "SELECT name, object, doc, created_at FROM blobs WHERE account = $1 AND container = $2 AND name = $3",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec());
        self.fetch_optional("read a blob", query).await?.as_ref().map(blob_row).transpose()
    }

    /// Writes a blob over what was there; its first moment stays. What the row named before is the caller's to drop.
    ///
    /// # Errors
    /// The database's own, also when there is no such container.
    pub async fn put_blob<T: Serialize + Sync>(
        &mut self,
        key: &BlobKey,
        object: &str,
        data: &T,
    ) -> Result<(), StoreError> {
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "INSERT INTO blobs (account, container, name, object, doc, created_at) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (account, container, name) DO UPDATE SET object = excluded.object, doc = excluded.doc",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec())
        .bind(object.to_owned())
        .bind(encode("blobs", data)?)
        .bind(now);
        self.execute("write a blob", query).await?;
        Ok(())
    }

    /// Deletes a blob's row; `false` if there was none. What it named is the caller's to drop.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_blob(&mut self, key: &BlobKey) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM blobs WHERE account = $1 AND container = $2 AND name = $3")
            .bind(key.account.clone())
            .bind(key.container.as_bytes().to_vec())
            .bind(key.name.as_bytes().to_vec());
        Ok(self.execute("delete a blob", query).await? > 0)
    }

    /// A page of a container's blobs, by the bytes of their names.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn blobs<T: DeserializeOwned>(
        &mut self,
        account: &str,
        container: &str,
        page: &BlobPage,
    ) -> Result<Vec<BlobRow<T>>, StoreError> {
        let (from, below) = page.bounds();
        let query = sqlx::query(
            "SELECT name, object, doc, created_at FROM blobs WHERE account = $1 AND container = $2 AND name >= $3 AND \
             name < $4 ORDER BY name LIMIT $5",
        )
        .bind(account.to_owned())
        .bind(container.as_bytes().to_vec())
        .bind(from)
        .bind(below)
        .bind(i64::from(page.limit.min(MAX_ROWS)));
        self.fetch_all("list blobs", query).await?.iter().map(blob_row).collect()
    }

    // ---- blocks and parts ----

    /// Writes a block that is in no list yet. Returns the object that a block of the same id had before.
    ///
    /// # Errors
    /// The database's own, also when there is no such container.
    pub async fn put_block(&mut self, key: &BlobKey, block: &BlobPart) -> Result<Option<String>, StoreError> {
        let query = sqlx::query(
            "SELECT object FROM blob_blocks WHERE account = $1 AND container = $2 AND name = $3 AND id = $4",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec())
        .bind(block.id.clone());
        let before = match self.fetch_optional("read a block", query).await? {
            Some(row) => Some(Cells::new("blob_blocks", "object", &row).text("object")?),
            None => None,
        };
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "INSERT INTO blob_blocks (account, container, name, id, object, bytes, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (account, container, name, id) DO UPDATE SET \
             object = excluded.object, bytes = excluded.bytes, created_at = excluded.created_at",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec())
        .bind(block.id.clone())
        .bind(block.object.clone())
        .bind(i64::try_from(block.bytes).unwrap_or(i64::MAX))
        .bind(now);
        self.execute("write a block", query).await?;
        Ok(before)
    }

    /// A blob's blocks that are in no list yet, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn blocks(&mut self, key: &BlobKey) -> Result<Vec<BlobPart>, StoreError> {
        let query = sqlx::query(
            "SELECT id, object, bytes FROM blob_blocks WHERE account = $1 AND container = $2 AND name = $3 \
             ORDER BY created_at, id",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec());
        self.fetch_all("read blocks", query).await?.iter().map(|row| part("blob_blocks", row)).collect()
    }

    /// How many blocks of a blob are in no list yet.
    ///
    /// # Errors
    /// The database's own.
    pub async fn count_blocks(&mut self, key: &BlobKey) -> Result<u64, StoreError> {
        let query = sqlx::query(
            "SELECT COUNT(*) AS found FROM blob_blocks WHERE account = $1 AND container = $2 AND name = $3",
        )
        .bind(key.account.clone())
        .bind(key.container.as_bytes().to_vec())
        .bind(key.name.as_bytes().to_vec());
        let row = self.fetch_one("count blocks", query).await?;
        Cells::new("blob_blocks", "found", &row).count("found")
    }

    /// Blobs with blocks that are in no list yet, none of which was put within `age`; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn forgotten_blocks(&mut self, age: Duration, limit: u32) -> Result<Vec<BlobKey>, StoreError> {
        let before = (self.now().await? - age).timestamp_micros();
        let query = sqlx::query(
            "SELECT account, container, name FROM blob_blocks GROUP BY account, container, name \
             HAVING MAX(created_at) <= $1 ORDER BY account, container, name LIMIT $2",
        )
        .bind(before)
        .bind(i64::from(limit));
        let rows = self.fetch_all("read forgotten blocks", query).await?;
        rows.iter()
            .map(|row| {
                let cells = Cells::new("blob_blocks", "name", row);
                let text = |column| {
                    String::from_utf8(cells.bytes(column)?).map_err(|error| cells.wrong(column, error))
                };
                Ok(BlobKey {
                    account: cells.text("account")?,
                    container: text("container")?,
                    name: text("name")?,
                })
            })
            .collect()
    }

    /// Forgets all of a blob's blocks that are in no list. Their objects are the caller's to drop.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_blocks(&mut self, key: &BlobKey) -> Result<(), StoreError> {
        let query =
            sqlx::query("DELETE FROM blob_blocks WHERE account = $1 AND container = $2 AND name = $3")
                .bind(key.account.clone())
                .bind(key.container.as_bytes().to_vec())
                .bind(key.name.as_bytes().to_vec());
        self.execute("delete blocks", query).await?;
        Ok(())
    }

    /// What a blob consists of, in order; nothing if its object holds its bytes.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn parts(&mut self, owner: &str) -> Result<Vec<BlobPart>, StoreError> {
        let query = sqlx::query("SELECT id, object, bytes FROM blob_parts WHERE owner = $1 ORDER BY seq")
            .bind(owner.to_owned());
        self.fetch_all("read parts", query).await?.iter().map(|row| part("blob_parts", row)).collect()
    }

    /// Adds parts after those that are there.
    ///
    /// # Errors
    /// The database's own.
    pub async fn add_parts(&mut self, owner: &str, parts: &[BlobPart]) -> Result<(), StoreError> {
        let query =
            sqlx::query("SELECT COUNT(*) AS seq FROM blob_parts WHERE owner = $1").bind(owner.to_owned());
        let row = self.fetch_one("count parts", query).await?;
        let first = Cells::new("blob_parts", "seq", &row).int("seq")?;
        for (seq, part) in (first..).zip(parts) {
            let query = sqlx::query(
                "INSERT INTO blob_parts (owner, seq, id, object, bytes) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(owner.to_owned())
            .bind(seq)
            .bind(part.id.clone())
            .bind(part.object.clone())
            .bind(i64::try_from(part.bytes).unwrap_or(i64::MAX));
            self.execute("write a part", query).await?;
        }
        Ok(())
    }

    /// Forgets what a blob consists of. The parts' objects are the caller's to drop.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_parts(&mut self, owner: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM blob_parts WHERE owner = $1").bind(owner.to_owned());
        self.execute("delete parts", query).await?;
        Ok(())
    }

    // ---- objects ----

    /// Notes objects that no row names, to be removed after `keep`: ones that are about to be made, or that were unnamed.
    ///
    /// # Errors
    /// The database's own.
    pub async fn drop_objects(
        &mut self,
        region: &str,
        objects: &[String],
        keep: Duration,
    ) -> Result<(), StoreError> {
        let due = (self.now().await? + keep).timestamp_micros();
        for object in objects {
            let query = sqlx::query(
                "INSERT INTO blob_garbage (object, region, due) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            )
            .bind(object.clone())
            .bind(region.to_owned())
            .bind(due);
            self.execute("drop an object", query).await?;
        }
        Ok(())
    }

    /// Takes an object off the garbage: a row names it now. `false`: it was not there, or its time has come, so that it may
    /// have been removed already, or be removed at any moment.
    ///
    /// # Errors
    /// The database's own.
    pub async fn take_object(&mut self, object: &str) -> Result<bool, StoreError> {
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query("DELETE FROM blob_garbage WHERE object = $1 AND due > $2")
            .bind(object.to_owned())
            .bind(now);
        Ok(self.execute("take an object", query).await? > 0)
    }

    /// Forgets an object whose file is gone.
    ///
    /// # Errors
    /// The database's own.
    pub async fn forget_object(&mut self, object: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM blob_garbage WHERE object = $1").bind(object.to_owned());
        self.execute("forget an object", query).await?;
        Ok(())
    }

    /// A region's objects whose time has come, the oldest first.
    ///
    /// # Errors
    /// The database's own.
    pub async fn due_objects(&mut self, region: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        let now = self.now().await?.timestamp_micros();
        let query = sqlx::query(
            "SELECT object FROM blob_garbage WHERE region = $1 AND due <= $2 ORDER BY due, object LIMIT $3",
        )
        .bind(region.to_owned())
        .bind(now)
        .bind(i64::from(limit));
        let rows = self.fetch_all("read garbage", query).await?;
        rows.iter().map(|row| Cells::new("blob_garbage", "object", row).text("object")).collect()
    }
}

fn encode<T: Serialize>(table: &'static str, data: &T) -> Result<String, StoreError> {
    serde_json::to_string(data).map_err(|source| StoreError::Encode { table, column: "doc", source })
}

fn decode<T: DeserializeOwned>(cells: &Cells<'_>) -> Result<T, StoreError> {
    serde_json::from_str(&cells.text("doc")?).map_err(|error| cells.wrong("doc", error))
}

fn name(cells: &Cells<'_>) -> Result<String, StoreError> {
    String::from_utf8(cells.bytes("name")?).map_err(|error| cells.wrong("name", error))
}

fn container_row<T: DeserializeOwned>(row: &AnyRow) -> Result<ContainerRow<T>, StoreError> {
    let cells = Cells::new("blob_containers", "doc", row);
    Ok(ContainerRow { name: name(&cells)?, data: decode(&cells)?, created_at: cells.time("created_at")? })
}

fn blob_row<T: DeserializeOwned>(row: &AnyRow) -> Result<BlobRow<T>, StoreError> {
    let cells = Cells::new("blobs", "object", row);
    Ok(BlobRow {
        name: name(&cells)?,
        object: cells.text("object")?,
        data: decode(&cells)?,
        created_at: cells.time("created_at")?,
    })
}

fn part(table: &'static str, row: &AnyRow) -> Result<BlobPart, StoreError> {
    let cells = Cells::new(table, "object", row);
    Ok(BlobPart { id: cells.text("id")?, object: cells.text("object")?, bytes: cells.count("bytes")? })
}
