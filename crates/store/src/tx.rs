//! [`Tx`]: one transaction. Its methods live beside their tables (`resources.rs`, `jobs.rs`, …);
//! here is what they share.

use std::marker::PhantomData;

use chrono::{DateTime, Utc};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row, Transaction};

use crate::StoreError;
use crate::engine::Engine;
use crate::error::is_conflict;

/// One transaction, as [`Store::read`](crate::Store::read) and [`Store::write`](crate::Store::write)
/// hand it out. `'x` is how long what the body borrows must live.
pub struct Tx<'x> {
    engine: Engine,
    inner: Transaction<'static, Any>,
    now: Option<DateTime<Utc>>,
    conflicted: bool,
    added_jobs: bool,
    borrows: PhantomData<&'x ()>,
}

impl Tx<'_> {
    pub(crate) fn new(engine: Engine, inner: Transaction<'static, Any>) -> Self {
        Tx { engine, inner, now: None, conflicted: false, added_jobs: false, borrows: PhantomData }
    }

    /// The database's time, the same for the whole transaction. Leases and timestamps use it, so
    /// that workers with wrong clocks agree.
    ///
    /// # Errors
    /// The database's own.
    pub async fn now(&mut self) -> Result<DateTime<Utc>, StoreError> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        let row = self.fetch_one("read the clock", sqlx::query(self.engine.now())).await?;
        let micros: i64 = row.try_get("now").map_err(StoreError::database("read the clock"))?;
        let now = DateTime::from_timestamp_micros(micros).ok_or_else(|| {
            StoreError::inconsistent("(clock)", "now", "", format!("{micros} µs is no time"))
        })?;
        self.now = Some(now);
        Ok(now)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn conflicted(&self) -> bool {
        self.conflicted
    }

    pub(crate) fn added_jobs(&self) -> bool {
        self.added_jobs
    }

    pub(crate) fn note_added_job(&mut self) {
        self.added_jobs = true;
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }

    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        self.inner.rollback().await.map_err(StoreError::database("roll back"))
    }

    pub(crate) async fn execute(
        &mut self,
        action: &'static str,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        let result = query.execute(&mut *self.inner).await;
        self.noted(action, result).map(|done| done.rows_affected())
    }

    pub(crate) async fn fetch_optional(
        &mut self,
        action: &'static str,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Option<AnyRow>, StoreError> {
        let result = query.fetch_optional(&mut *self.inner).await;
        self.noted(action, result)
    }

    pub(crate) async fn fetch_one(
        &mut self,
        action: &'static str,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<AnyRow, StoreError> {
        let result = query.fetch_one(&mut *self.inner).await;
        self.noted(action, result)
    }

    pub(crate) async fn fetch_all(
        &mut self,
        action: &'static str,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Vec<AnyRow>, StoreError> {
        let result = query.fetch_all(&mut *self.inner).await;
        self.noted(action, result)
    }

    /// Remembers a conflict, whatever the body then makes of the error.
    fn noted<T>(&mut self, action: &'static str, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        result.map_err(|source| {
            self.conflicted |= is_conflict(&source);
            StoreError::Database { action, source }
        })
    }
}
