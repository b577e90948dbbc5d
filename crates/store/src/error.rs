//! The one error of the store. Variants are what callers branch on; everything else that a database
//! can say is `Database` with its source kept.

/// Why a read or a write could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row does not exist.
    #[error("{what} '{key}' does not exist")]
    NotFound {
        /// Kind of row: "resource", "operation", "job".
        what: &'static str,
        /// Its key.
        key: String,
    },
    /// A resource with this id exists already.
    #[error("'{key}' exists already; update it instead")]
    AlreadyExists {
        /// Lower-case id.
        key: String,
    },
    /// The containing resource (or resource group) does not exist.
    #[error("'{key}' cannot be created: its parent '{parent}' does not exist")]
    ParentMissing {
        /// Lower-case id of the resource to be created.
        key: String,
        /// Lower-case id of what is missing.
        parent: String,
    },
    /// A delete was refused because nested resources exist.
    #[error("'{key}' cannot be deleted: it still contains '{child}'; delete that first")]
    HasChildren {
        /// Lower-case id of the resource.
        key: String,
        /// Id of one nested resource, as it was written.
        child: String,
    },
    /// A delete was refused because another resource links to this one.
    #[error("'{key}' cannot be deleted: '{by}' refers to it ({kind}); delete or change that first")]
    Referenced {
        /// Lower-case id of the resource.
        key: String,
        /// Lower-case id of one resource that refers to it.
        by: String,
        /// Kind of the link.
        kind: String,
    },
    /// The document changed since it was read.
    #[error("'{key}' was changed meanwhile (generation {expected} expected, {found} found); read it again")]
    StaleDocument {
        /// Lower-case id.
        key: String,
        /// Generation of the caller's copy.
        expected: i64,
        /// Generation in the database.
        found: i64,
    },
    /// The job was claimed by another worker, or has ended: this worker may change nothing any more.
    #[error("job {job} is no longer held with fence {fence}: another worker claimed it, or it has ended")]
    StaleFence {
        /// Id of the job.
        job: String,
        /// The fence that this worker holds.
        fence: i64,
    },
    /// The operation has ended; a terminal status never changes.
    #[error("operation {id} has ended already")]
    OperationEnded {
        /// Id of the operation.
        id: String,
    },
    /// A row fits no state that this program knows.
    #[error("the database is inconsistent: {table}.{column} of row '{row}': {reason}")]
    Inconsistent {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// Primary key of the row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A named limit was reached.
    #[error("limit reached: {what} (at most {limit})")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The string is no ARM resource id that can be stored.
    #[error("'{id}' cannot be a resource's id: {reason}")]
    BadId {
        /// The string, shortened.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The database was written by a newer program.
    #[error(
        "the database has schema {found}, this program knows up to {known}; run the newer tintype, \
         a schema is never taken back"
    )]
    NewerSchema {
        /// Highest migration in the database.
        found: i64,
        /// Highest migration in this binary.
        known: i64,
    },
    /// An applied migration is not the one in this binary.
    #[error(
        "migration {version} of the database differs from this program's; it must not be edited once applied"
    )]
    ChangedMigration {
        /// Number of the migration.
        version: i64,
    },
    /// The database's address is not usable.
    #[error(
        "database '{url}' is not usable: {reason}; use sqlite:/path/to/file.db or postgres://user@host/name"
    )]
    BadUrl {
        /// The address without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The transaction met others again and again.
    #[error("gave up after {attempts} attempts: other transactions kept changing the same rows; try again")]
    Contention {
        /// How often it was tried.
        attempts: u32,
    },
    /// A value cannot be written as JSON.
    #[error("a value for {table}.{column} cannot be written as JSON")]
    Encode {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// Anything else that the database said.
    #[error("the database failed to {action}")]
    Database {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// Cause.
        #[source]
        source: sqlx::Error,
    },
}

impl StoreError {
    /// For `map_err`: a database error with what was being tried.
    pub(crate) fn database(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
        move |source| StoreError::Database { action, source }
    }

    /// A row that fits no state.
    pub(crate) fn inconsistent(
        table: &'static str,
        column: &'static str,
        row: &str,
        reason: impl std::fmt::Display,
    ) -> StoreError {
        StoreError::Inconsistent { table, column, row: row.to_owned(), reason: reason.to_string() }
    }
}

/// True when running the same transaction again may succeed.
/// PostgreSQL: 40001 serialization_failure, 40P01 deadlock_detected. SQLite: 5 BUSY, 6 LOCKED and
/// their extended codes (the low byte is the primary code).
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|e| e.code()) else { return false };
    match code.as_ref() {
        "40001" | "40P01" => true,
        // SQLSTATEs have five characters; SQLite's numbers have at most four.
        other if other.len() < 5 => other.parse::<u32>().is_ok_and(|n| matches!(n & 0xff, 5 | 6)),
        _ => false,
    }
}
