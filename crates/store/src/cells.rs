//! Reading a row's cells. Whatever does not fit becomes [`StoreError::Inconsistent`] with table,
//! column and row, because a database that says nonsense must be found, not guessed at.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{Any, Decode, Row, Type};

use crate::StoreError;

pub(crate) struct Cells<'r> {
    table: &'static str,
    row: &'r AnyRow,
    name: String,
}

impl<'r> Cells<'r> {
    /// `name_column` holds (the first part of) the primary key.
    pub(crate) fn new(table: &'static str, name_column: &'static str, row: &'r AnyRow) -> Self {
        let name = row.try_get::<String, _>(name_column).unwrap_or_default();
        Cells { table, row, name }
    }

    fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Any> + Type<Any>,
    {
        self.row.try_get(column).map_err(|e| self.wrong(column, e))
    }

    pub(crate) fn wrong(&self, column: &'static str, reason: impl std::fmt::Display) -> StoreError {
        StoreError::inconsistent(self.table, column, &self.name, reason)
    }

    pub(crate) fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column)
    }

    pub(crate) fn opt_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    pub(crate) fn int(&self, column: &'static str) -> Result<i64, StoreError> {
        self.get(column)
    }

    pub(crate) fn count<N: TryFrom<i64>>(&self, column: &'static str) -> Result<N, StoreError> {
        let value = self.int(column)?;
        N::try_from(value).map_err(|_| self.wrong(column, format!("{value} is out of range")))
    }

    pub(crate) fn flag(&self, column: &'static str) -> Result<bool, StoreError> {
        match self.int(column)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.wrong(column, format!("{other} is neither 0 nor 1"))),
        }
    }

    pub(crate) fn bytes(&self, column: &'static str) -> Result<Vec<u8>, StoreError> {
        self.get(column)
    }

    pub(crate) fn time(&self, column: &'static str) -> Result<DateTime<Utc>, StoreError> {
        self.as_time(column, self.int(column)?)
    }

    pub(crate) fn opt_time(&self, column: &'static str) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.get::<Option<i64>>(column)?.map(|micros| self.as_time(column, micros)).transpose()
    }

    fn as_time(&self, column: &'static str, micros: i64) -> Result<DateTime<Utc>, StoreError> {
        DateTime::from_timestamp_micros(micros)
            .ok_or_else(|| self.wrong(column, format!("{micros} µs is no time")))
    }

    pub(crate) fn json(&self, column: &'static str) -> Result<Value, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|e| self.wrong(column, e))
    }

    pub(crate) fn opt_json(&self, column: &'static str) -> Result<Option<Value>, StoreError> {
        self.opt_text(column)?
            .map(|text| serde_json::from_str(&text).map_err(|e| self.wrong(column, e)))
            .transpose()
    }
}
