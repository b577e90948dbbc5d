//! Table `operations`: the public face of asynchronous work, which clients poll.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::cells::Cells;
use crate::path::{key_of, place_of};
use crate::{StoreError, Tx};

/// An operation that is about to begin.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Id of the resource that it works on, as written.
    pub resource_id: String,
    /// What it does, such as "imageTemplates.run". For people and metrics; nothing branches on it.
    pub kind: String,
    /// Which poll URL and body it has.
    pub family: OperationFamily,
    /// Location in the poll URL.
    pub location: String,
}

/// An operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Lower-case UUID.
    pub id: String,
    /// Key of the resource.
    pub resource_key: String,
    /// Id of the resource as written.
    pub resource_id: String,
    /// See [`NewOperation::kind`].
    pub kind: String,
    /// See [`NewOperation::family`].
    pub family: OperationFamily,
    /// Lower-case subscription id.
    pub subscription: String,
    /// Location in the poll URL.
    pub location: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Where it is.
    pub state: OperationState,
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationState {
    /// Not ended.
    InProgress,
    /// Ended.
    Ended {
        /// When.
        at: DateTime<Utc>,
        /// How.
        end: OperationEnd,
    },
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationEnd {
    /// It worked; the result, if the operation has one, is what `?monitor=true` answers.
    Succeeded(Option<Value>),
    /// It failed, with ARM's error object `{code, message, …}`.
    Failed(Value),
    /// It was canceled, with ARM's error object.
    Canceled(Value),
}

/// Azure's families of operations: each has its own poll URL and body (REFERENCE.md 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationFamily {
    /// Galleries: `Microsoft.Compute/locations/{l}/capsOperations/{id}`.
    Gallery,
    /// VMs and managed images: `Microsoft.Compute/locations/{l}/operations/{id}`.
    Compute,
    /// Disks and snapshots: `Microsoft.Compute/locations/{l}/DiskOperations/{id}`.
    Disk,
    /// Image templates: `Microsoft.VirtualMachineImages/locations/{l}/operations/{id}`.
    ImageBuilder,
    /// Resource groups: `/subscriptions/{s}/operationresults/{id}`.
    ResourceGroup,
}

impl OperationFamily {
    /// Every family.
    pub const ALL: [OperationFamily; 5] =
        [Self::Gallery, Self::Compute, Self::Disk, Self::ImageBuilder, Self::ResourceGroup];

    fn as_str(self) -> &'static str {
        match self {
            Self::Gallery => "gallery",
            Self::Compute => "compute",
            Self::Disk => "disk",
            Self::ImageBuilder => "imageBuilder",
            Self::ResourceGroup => "resourceGroup",
        }
    }
}

impl Tx<'_> {
    /// Begins an operation and returns it. Enqueue its job in the same transaction.
    ///
    /// # Errors
    /// [`StoreError::BadId`] if `resource_id` is none.
    pub async fn begin_operation(&mut self, new: NewOperation) -> Result<Operation, StoreError> {
        let resource_key = key_of(&new.resource_id);
        let operation = Operation {
            id: Uuid::new_v4().to_string(),
            subscription: place_of(&resource_key)?.subscription,
            resource_key,
            resource_id: new.resource_id,
            kind: new.kind,
            family: new.family,
            location: new.location,
            started_at: self.now().await?,
            state: OperationState::InProgress,
        };
        let query = sqlx::query(
            "INSERT INTO operations (id, resource_key, resource_id, kind, family, subscription, location, status, \
             started_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'InProgress', $8)",
        )
        .bind(operation.id.clone())
        .bind(operation.resource_key.clone())
        .bind(operation.resource_id.clone())
        .bind(operation.kind.clone())
        .bind(operation.family.as_str())
        .bind(operation.subscription.clone())
        .bind(operation.location.clone())
        .bind(operation.started_at.timestamp_micros());
        self.execute("begin an operation", query).await?;
        Ok(operation)
    }

    /// The operation with this id (any case), if there is one.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn operation(&mut self, id: &str) -> Result<Option<Operation>, StoreError> {
        let query = sqlx::query("SELECT * FROM operations WHERE id = $1").bind(id.to_lowercase());
        self.fetch_optional("read an operation", query).await?.as_ref().map(operation).transpose()
    }

    /// Operations in progress on a resource, oldest first. None: the resource is not busy.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]; the database's own.
    pub async fn operations_in_progress(&mut self, resource_id: &str) -> Result<Vec<Operation>, StoreError> {
        let query = sqlx::query(
            "SELECT * FROM operations WHERE resource_key = $1 AND status = 'InProgress' ORDER BY started_at, id",
        )
        .bind(key_of(resource_id));
        self.fetch_all("read operations", query).await?.iter().map(operation).collect()
    }

    /// Ends an operation. A terminal status never changes.
    ///
    /// # Errors
    /// [`StoreError::OperationEnded`], [`StoreError::NotFound`].
    pub async fn end_operation(&mut self, id: &str, end: &OperationEnd) -> Result<(), StoreError> {
        let now = self.now().await?.timestamp_micros();
        let (status, error, result) = match end {
            OperationEnd::Succeeded(result) => ("Succeeded", None, result.as_ref()),
            OperationEnd::Failed(error) => ("Failed", Some(error), None),
            OperationEnd::Canceled(error) => ("Canceled", Some(error), None),
        };
        let query = sqlx::query(
            "UPDATE operations SET status = $1, error = $2, result = $3, ended_at = $4 \
             WHERE id = $5 AND status = 'InProgress'",
        )
        .bind(status)
        .bind(error.map(Value::to_string))
        .bind(result.map(Value::to_string))
        .bind(now)
        .bind(id.to_lowercase());
        if self.execute("end an operation", query).await? == 1 {
            return Ok(());
        }
        match self.operation(id).await? {
            Some(_) => Err(StoreError::OperationEnded { id: id.to_owned() }),
            None => Err(StoreError::NotFound { what: "operation", key: id.to_owned() }),
        }
    }
}

fn operation(row: &AnyRow) -> Result<Operation, StoreError> {
    let cells = Cells::new("operations", "id", row);
    let family = cells.text("family")?;
    let status = cells.text("status")?;
    let ended = (cells.opt_time("ended_at")?, cells.opt_json("error")?, cells.opt_json("result")?);
    let state = match (status.as_str(), ended) {
        ("InProgress", (None, None, None)) => OperationState::InProgress,
        ("Succeeded", (Some(at), None, result)) => {
            OperationState::Ended { at, end: OperationEnd::Succeeded(result) }
        }
        ("Failed", (Some(at), Some(error), None)) => {
            OperationState::Ended { at, end: OperationEnd::Failed(error) }
        }
        ("Canceled", (Some(at), Some(error), None)) => {
            OperationState::Ended { at, end: OperationEnd::Canceled(error) }
        }
        (status, _) => {
            return Err(cells.wrong("status", format!("'{status}' does not fit ended_at, error and result")));
        }
    };
    Ok(Operation {
        id: cells.text("id")?,
        resource_key: cells.text("resource_key")?,
        resource_id: cells.text("resource_id")?,
        kind: cells.text("kind")?,
        family: OperationFamily::ALL
            .into_iter()
            .find(|f| f.as_str() == family)
            .ok_or_else(|| cells.wrong("family", format!("'{family}' is no family")))?,
        subscription: cells.text("subscription")?,
        location: cells.text("location")?,
        started_at: cells.time("started_at")?,
        state,
    })
}
