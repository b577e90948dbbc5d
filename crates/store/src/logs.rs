//! Table `run_logs`: what a run prints while it runs, in chunks that are read by sequence number.

use chrono::{DateTime, Utc};

use crate::cells::Cells;
use crate::{StoreError, Tx};

/// Largest chunk in bytes; longer appends are split.
pub const MAX_LOG_CHUNK_BYTES: usize = 64 * 1024;
/// Most chunks of one run (at most 256 MiB).
pub const MAX_LOG_CHUNKS_PER_RUN: usize = 4096;
/// Most chunks that one read returns (at most 4 MiB).
const MAX_CHUNKS_PER_READ: u32 = 64;

/// A piece of a run's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Counts from 1 without gaps.
    pub seq: i64,
    /// When it was written (database time).
    pub at: DateTime<Utc>,
    /// Bytes as they came; not necessarily UTF-8, and a chunk may end within a character.
    pub bytes: Vec<u8>,
}

impl Tx<'_> {
    /// Appends to a run's log; returns the sequence number of the last chunk.
    ///
    /// # Errors
    /// [`StoreError::Limit`] when the run has [`MAX_LOG_CHUNKS_PER_RUN`] chunks.
    pub async fn append_log(&mut self, run: &str, bytes: &[u8]) -> Result<i64, StoreError> {
        let at = self.now().await?.timestamp_micros();
        let query =
            sqlx::query("SELECT $1 AS run_id, COALESCE(MAX(seq), 0) AS seq FROM run_logs WHERE run_id = $1")
                .bind(run.to_owned());
        let row = self.fetch_one("read a log's end", query).await?;
        let mut seq = Cells::new("run_logs", "run_id", &row).int("seq")?;
        for chunk in bytes.chunks(MAX_LOG_CHUNK_BYTES) {
            seq += 1;
            if seq > MAX_LOG_CHUNKS_PER_RUN as i64 {
                return Err(StoreError::Limit {
                    what: "chunks in a run's log",
                    limit: MAX_LOG_CHUNKS_PER_RUN,
                });
            }
            let query = sqlx::query("INSERT INTO run_logs (run_id, seq, at, chunk) VALUES ($1, $2, $3, $4)")
                .bind(run.to_owned())
                .bind(seq)
                .bind(at)
                .bind(chunk.to_vec());
            self.execute("append to a log", query).await?;
        }
        Ok(seq)
    }

    /// Chunks of a run's log after sequence number `after` (0: from the start), in order, at most 64.
    ///
    /// # Errors
    /// The database's own.
    pub async fn read_log(&mut self, run: &str, after: i64) -> Result<Vec<LogChunk>, StoreError> {
        let query = sqlx::query(
            "SELECT run_id, seq, at, chunk FROM run_logs WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(run.to_owned())
        .bind(after)
        .bind(i64::from(MAX_CHUNKS_PER_READ));
        let rows = self.fetch_all("read a log", query).await?;
        rows.iter()
            .map(|row| {
                let cells = Cells::new("run_logs", "run_id", row);
                Ok(LogChunk { seq: cells.int("seq")?, at: cells.time("at")?, bytes: cells.bytes("chunk")? })
            })
            .collect()
    }

    /// Drops a run's log, once it was stored as one object.
    ///
    /// # Errors
    /// The database's own.
    pub async fn delete_log(&mut self, run: &str) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM run_logs WHERE run_id = $1").bind(run.to_owned());
        self.execute("delete a log", query).await?;
        Ok(())
    }
}
