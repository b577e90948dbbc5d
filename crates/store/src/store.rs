//! [`Store`]: connecting, and the two ways to run a transaction.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::AnyPool;
use tokio::sync::Notify;

use crate::engine::Engine;
use crate::error::is_conflict;
use crate::{StoreError, Tx, migrate};

/// How often a transaction is tried before the store gives up with [`StoreError::Contention`].
pub const MAX_WRITE_ATTEMPTS: u32 = 12;
/// Longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_millis(400);

/// What a transaction's body returns: `Box::pin(async { … })`.
pub type TxFuture<'t, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>;

/// The database. Cheap to clone; all clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Engine,
    readers: AnyPool,
    writers: AnyPool,
    job_added: Arc<Notify>,
}

impl Store {
    /// Opens `sqlite:/path/to/file.db` (created with mode 0600 if absent; WAL, synchronous=FULL,
    /// foreign keys) or `postgres://…`, and migrates it.
    ///
    /// # Errors
    /// [`StoreError::BadUrl`], [`StoreError::NewerSchema`], [`StoreError::ChangedMigration`], or the database's own.
    pub async fn connect(url: &str) -> Result<Store, StoreError> {
        let engine = Engine::of_url(url)?;
        let (readers, writers) = engine.open(url).await?;
        migrate::run(engine, &writers).await?;
        Ok(Store { engine, readers, writers, job_added: Arc::new(Notify::new()) })
    }

    /// Runs `body` on one snapshot of the database. Nothing that it writes is kept.
    ///
    /// # Errors
    /// What `body` returns, or the database's own.
    pub async fn read<'x, T, E, F>(&self, mut body: F) -> Result<T, E>
    where
        F: for<'t> FnMut(&'t mut Tx<'x>) -> TxFuture<'t, T, E> + Send,
        T: Send,
        E: From<StoreError> + Send,
    {
        let begun = self.readers.begin_with(self.engine.begin_read()).await;
        let mut tx = Tx::new(self.engine, begun.map_err(StoreError::database("begin a read"))?);
        let result = body(&mut tx).await;
        tx.rollback().await?;
        result
    }

    /// Runs `body` as one serializable transaction and commits it if it returns `Ok`. `body` runs
    /// again, at most [`MAX_WRITE_ATTEMPTS`] times, when another transaction got in its way: it must
    /// have no effects but those on the transaction, and should do no slow work.
    ///
    /// # Errors
    /// What `body` returns (nothing is written then), [`StoreError::Contention`], or the database's own.
    pub async fn write<'x, T, E, F>(&self, body: F) -> Result<T, E>
    where
        F: for<'t> FnMut(&'t mut Tx<'x>) -> TxFuture<'t, T, E> + Send,
        T: Send,
        E: From<StoreError> + Send,
    {
        self.attempt(self.engine.begin_write(), body).await
    }

    /// Like [`Store::write`], for changes to one row which that row's lock alone protects.
    pub(crate) async fn write_row<'x, T, E, F>(&self, body: F) -> Result<T, E>
    where
        F: for<'t> FnMut(&'t mut Tx<'x>) -> TxFuture<'t, T, E> + Send,
        T: Send,
        E: From<StoreError> + Send,
    {
        self.attempt(self.engine.begin_row_write(), body).await
    }

    async fn attempt<'x, T, E, F>(&self, begin: &'static str, mut body: F) -> Result<T, E>
    where
        F: for<'t> FnMut(&'t mut Tx<'x>) -> TxFuture<'t, T, E> + Send,
        T: Send,
        E: From<StoreError> + Send,
    {
        for attempt in 1..=MAX_WRITE_ATTEMPTS {
            if attempt > 1 {
                tokio::time::sleep(backoff(attempt)).await;
            }
            let begun = match self.writers.begin_with(begin).await {
                Ok(begun) => begun,
                Err(e) if is_conflict(&e) => continue,
                Err(e) => return Err(StoreError::database("begin a write")(e).into()),
            };
            let mut tx = Tx::new(self.engine, begun);
            let result = body(&mut tx).await;
            // A body may have swallowed the conflict: the transaction is lost all the same.
            if tx.conflicted() {
                tx.rollback().await?;
                continue;
            }
            let value = match result {
                Ok(value) => value,
                Err(error) => {
                    tx.rollback().await?;
                    return Err(error);
                }
            };
            let added = tx.added_jobs();
            match tx.commit().await {
                Ok(()) => {
                    if added {
                        self.job_added.notify_waiters();
                    }
                    return Ok(value);
                }
                Err(e) if is_conflict(&e) => continue,
                Err(e) => return Err(StoreError::database("commit")(e).into()),
            }
        }
        Err(StoreError::Contention { attempts: MAX_WRITE_ATTEMPTS }.into())
    }

    /// Returns when this process committed a job. Jobs that other processes add are not seen, so a
    /// worker must poll as well.
    pub fn job_added(&self) -> impl Future<Output = ()> + Send + '_ {
        self.job_added.notified()
    }

    /// Closes all connections after the transactions that run have ended.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// Doubles from 2 ms up to [`MAX_BACKOFF`], with jitter so that rivals do not meet again.
fn backoff(attempt: u32) -> Duration {
    let ceiling = Duration::from_millis(1 << attempt.min(10)).min(MAX_BACKOFF);
    ceiling / 2 + ceiling.mul_f64(rand::random::<f64>() / 2.0)
}
