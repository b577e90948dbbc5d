//! The two engines and everything in which they differ. Nothing outside this file asks which one it is.

use std::path::{Path, PathBuf};

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Executor};
use std::time::Duration;

use crate::StoreError;

/// Readers at the same time.
const MAX_READERS: u32 = 8;
/// Writers at the same time on PostgreSQL. SQLite has one, so that its own writers queue fairly here
/// instead of racing for the file's lock.
const MAX_POSTGRES_WRITERS: u32 = 8;
/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub(crate) fn of_url(url: &str) -> Result<Engine, StoreError> {
        let refuse =
            |reason: &str| StoreError::BadUrl { url: without_password(url), reason: reason.to_owned() };
        if let Some(path) = url.strip_prefix("sqlite:") {
            if path.contains(":memory:") || path.contains("mode=memory") {
                return Err(refuse("an in-memory database would be another one for each connection"));
            }
            if sqlite_path(url).as_os_str().is_empty() {
                return Err(refuse("the path is empty"));
            }
            Ok(Engine::Sqlite)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(Engine::Postgres)
        } else {
            Err(refuse("unknown scheme"))
        }
    }

    /// Pools of readers and writers.
    pub(crate) async fn open(self, url: &str) -> Result<(AnyPool, AnyPool), StoreError> {
        sqlx::any::install_default_drivers();
        let mut url = url.to_owned();
        if self == Engine::Sqlite {
            create_private_file(&sqlite_path(&url)).map_err(|source| StoreError::Database {
                action: "create the database file",
                source: sqlx::Error::Io(source),
            })?;
            if let Some((path, _)) = url.split_once('?') {
                url = path.to_owned();
            }
        }
        let writers = match self {
            Engine::Sqlite => 1,
            Engine::Postgres => MAX_POSTGRES_WRITERS,
        };
        // Writers first: they switch a new SQLite file to WAL before any reader opens it.
        let writers = self.pool(writers).connect(&url).await.map_err(StoreError::database("connect"))?;
        let readers = self.pool(MAX_READERS).connect(&url).await.map_err(StoreError::database("connect"))?;
        Ok((readers, writers))
    }

    fn pool(self, max: u32) -> AnyPoolOptions {
        AnyPoolOptions::new()
            .max_connections(max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| Box::pin(self.prepare(connection)))
    }

    async fn prepare(self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        let settings: &[&'static str] = match self {
            // busy_timeout first: switching to WAL may already have to wait for another process.
            Engine::Sqlite => &[
                "PRAGMA busy_timeout = 10000",
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = FULL",
                "PRAGMA foreign_keys = ON",
            ],
            Engine::Postgres => &[
                "SET statement_timeout = '60s'",
                "SET idle_in_transaction_session_timeout = '60s'",
                "SET lock_timeout = '30s'",
            ],
        };
        for statement in settings {
            connection.execute(*statement).await?;
        }
        Ok(())
    }

    pub(crate) fn begin_read(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    pub(crate) fn begin_write(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }

    /// For claims and heartbeats, which lock the one row that they change: serializable isolation
    /// would only make workers conflict with one another.
    pub(crate) fn begin_row_write(self) -> &'static str {
        match self {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// Query for the database's time in microseconds since 1970.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Engine::Sqlite => "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now",
            Engine::Postgres => {
                "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS now"
            }
        }
    }

    /// Suffix of a SELECT that locks the row it finds and passes over rows that others hold.
    pub(crate) fn lock_row(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => " FOR UPDATE SKIP LOCKED",
        }
    }

    /// Statement that makes migrations wait for one another. (BEGIN IMMEDIATE does it on SQLite.)
    pub(crate) fn migration_lock(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => Some("SELECT pg_advisory_xact_lock(7453219604)"),
        }
    }

    /// One SQL text for both, but for the name of the type for bytes.
    pub(crate) fn dialect(self, sql: &str) -> String {
        match self {
            Engine::Sqlite => sql.to_owned(),
            Engine::Postgres => sql.replace(" BLOB ", " BYTEA "),
        }
    }
}

fn sqlite_path(url: &str) -> PathBuf {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    let path = path.strip_prefix("//").unwrap_or(path);
    PathBuf::from(path.split('?').next().unwrap_or(path))
}

/// The file holds sealed secrets and hashes: only its owner may read it. (SQLite gives the WAL the same mode.)
fn create_private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// An address for messages: what stands between the first ':' of the user part and '@' is dropped.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_do_not_reach_messages() {
        assert_eq!(without_password("postgres://me:secret@h/db"), "postgres://me@h/db");
        assert_eq!(without_password("postgres://me:se@cret@h/db"), "postgres://me@h/db");
        assert_eq!(without_password("sqlite:/a/b"), "sqlite:/a/b");
    }

    #[test]
    fn refuses_what_cannot_work() {
        for url in ["sqlite::memory:", "sqlite:", "sqlite://", "mysql://h/db", "x"] {
            assert!(matches!(Engine::of_url(url), Err(StoreError::BadUrl { .. })), "{url}");
        }
        assert_eq!(Engine::of_url("sqlite:/a.db").ok(), Some(Engine::Sqlite));
        assert_eq!(Engine::of_url("postgresql://h/db").ok(), Some(Engine::Postgres));
    }
}
