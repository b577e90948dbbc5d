//! A fresh database of each engine for each test: a SQLite file, or a database in a PostgreSQL that
//! the test run starts itself.

mod postgres;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor};
use store::Store;

use postgres::Postgres;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// An empty database; gone (or stopped) when dropped.
pub(crate) struct Bed {
    pub(crate) url: String,
    _keep: Keep,
}

#[expect(dead_code, reason = "held for their Drop")]
enum Keep {
    Folder(tempfile::TempDir),
    Server(Arc<Postgres>),
}

impl Bed {
    pub(crate) async fn new(kind: Kind) -> Bed {
        match kind {
            Kind::Sqlite => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let url = format!("sqlite:{}", folder.path().join("store.db").display());
                Bed { url, _keep: Keep::Folder(folder) }
            }
            Kind::Postgres => {
                static DATABASES: AtomicU32 = AtomicU32::new(0);
                let server = Postgres::shared();
                let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
                raw(&server.url("postgres"), &format!("CREATE DATABASE {name}")).await;
                Bed { url: server.url(&name), _keep: Keep::Server(server) }
            }
        }
    }

    pub(crate) async fn store(&self) -> Store {
        Store::connect(&self.url).await.expect("connects")
    }

    /// Runs SQL behind the store's back.
    pub(crate) async fn raw(&self, sql: &str) {
        raw(&self.url, sql).await;
    }

    /// The same, expecting the database to refuse.
    pub(crate) async fn raw_refused(&self, sql: &str) -> String {
        sqlx::any::install_default_drivers();
        let mut connection = sqlx::AnyConnection::connect(&self.url).await.expect("connects");
        connection.execute(AssertSqlSafe(sql.to_owned())).await.expect_err("refused").to_string()
    }
}

async fn raw(url: &str, sql: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(url).await.expect("connects");
    connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    connection.close().await.expect("closes");
}
