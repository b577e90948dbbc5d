//! Migrations: numbered SQL files, forward only, applied in one transaction under a lock, so that two
//! processes that start together apply each once. Not sqlx's migrator, because through `Any` it takes
//! no lock on SQLite.

use sqlx::{AnyPool, AssertSqlSafe, Executor, Row};

use crate::StoreError;
use crate::engine::Engine;

struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "first", sql: include_str!("../migrations/0001_first.sql") },
    Migration { version: 2, name: "blobs", sql: include_str!("../migrations/0002_blobs.sql") },
];

const BOOKKEEPING: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
  version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL)";

/// Brings the database to this program's schema, or refuses one that is newer.
pub(crate) async fn run(engine: Engine, writers: &AnyPool) -> Result<(), StoreError> {
    let failed = || StoreError::database("migrate");
    let mut tx = writers.begin_with(engine.begin_row_write()).await.map_err(failed())?;
    if let Some(lock) = engine.migration_lock() {
        tx.execute(lock).await.map_err(failed())?;
    }
    tx.execute(BOOKKEEPING).await.map_err(failed())?;
    let rows = tx
        .fetch_all("SELECT version, checksum FROM schema_migrations ORDER BY version")
        .await
        .map_err(failed())?;
    let mut applied = 0;
    for row in rows {
        let version: i64 = row.try_get("version").map_err(failed())?;
        let found: String = row.try_get("checksum").map_err(failed())?;
        let Some(migration) = MIGRATIONS.iter().find(|m| m.version == version) else {
            return Err(StoreError::NewerSchema { found: version, known: newest() });
        };
        if found != checksum(migration.sql) {
            return Err(StoreError::ChangedMigration { version });
        }
        applied = version;
    }
    for migration in MIGRATIONS.iter().filter(|m| m.version > applied) {
        let sql = engine.dialect(migration.sql);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.map_err(failed())?;
        sqlx::query("INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)")
            .bind(migration.version)
            .bind(migration.name)
            .bind(checksum(migration.sql))
            .execute(&mut *tx)
            .await
            .map_err(failed())?;
        tracing::info!(migration.version, migration.name, "migration applied");
    }
    tx.commit().await.map_err(failed())
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}

/// A checksum against accidental edits, not against attackers: FNV-1a needs no dependency.
fn checksum(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("fnv1a:{hash:016x}")
}
