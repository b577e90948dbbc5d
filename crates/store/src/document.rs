//! A resource as the store keeps it: indexed columns around typed data.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::StoreError;
use crate::path::{key_of, place_of};

/// A resource of any type. `T` is the caller's data (or `serde_json::Value` where any will do).
#[derive(Debug, Clone, PartialEq)]
pub struct Document<T> {
    /// Lower-case id: the primary key.
    pub key: String,
    /// The id as it was written when the resource was created.
    pub id: String,
    /// Lower-case type, such as "microsoft.compute/galleries/images".
    pub ty: String,
    /// Last segment of the id, as it was written.
    pub name: String,
    /// Key of the containing resource or resource group, which must exist. `None`: stands alone.
    pub parent: Option<String>,
    /// Lower-case subscription id, or empty.
    pub subscription: String,
    /// Lower-case name of the resource group, or empty.
    pub resource_group: String,
    /// Azure location, such as "eastus".
    pub location: String,
    /// ARM's `provisioningState`.
    pub state: ProvisioningState,
    /// Counts updates from 1; [`Tx::update`](crate::Tx::update) compares it. 0: not yet inserted.
    pub generation: i64,
    /// Number of the shape of `data`, for code that reads older rows. New documents have 1.
    pub schema: i64,
    /// The resource's data.
    pub data: T,
    /// What clients sent that `T` cannot express; a PUT of an older api-version must not lose it.
    pub extra: Map<String, Value>,
    /// When it was inserted (database time).
    pub created_at: DateTime<Utc>,
    /// When it was last updated (database time).
    pub updated_at: DateTime<Utc>,
}

impl<T> Document<T> {
    /// A document that is yet to be inserted. All but location, state and data follows from `id`.
    ///
    /// # Errors
    /// [`StoreError::BadId`] if `id` is no resource's id.
    pub fn new(id: &str, location: &str, state: ProvisioningState, data: T) -> Result<Self, StoreError> {
        let id = id.trim_end_matches('/').to_owned();
        let key = key_of(&id);
        let place = place_of(&key)?;
        let name = id.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Document {
            key,
            id,
            ty: place.ty,
            name,
            parent: place.parent,
            subscription: place.subscription,
            resource_group: place.resource_group,
            location: location.to_owned(),
            state,
            generation: 0,
            schema: 1,
            data,
            extra: Map::new(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        })
    }
}

/// ARM's provisioning states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProvisioningState {
    /// Being made for the first time.
    Creating,
    /// Being changed.
    Updating,
    /// Ready.
    Succeeded,
    /// The last operation failed.
    Failed,
    /// The last operation was canceled.
    Canceled,
    /// Being deleted.
    Deleting,
}

impl ProvisioningState {
    /// Every state.
    pub const ALL: [ProvisioningState; 6] =
        [Self::Creating, Self::Updating, Self::Succeeded, Self::Failed, Self::Canceled, Self::Deleting];

    /// As ARM writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::Updating => "Updating",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
            Self::Deleting => "Deleting",
        }
    }

    /// True while an operation works on the resource: another change must wait (409).
    #[must_use]
    pub fn is_busy(self) -> bool {
        match self {
            Self::Creating | Self::Updating | Self::Deleting => true,
            Self::Succeeded | Self::Failed | Self::Canceled => false,
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl std::fmt::Display for ProvisioningState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
