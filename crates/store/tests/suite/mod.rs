//! The suite, by subject.

pub(crate) mod blobs;
pub(crate) mod documents;
pub(crate) mod jobs;
pub(crate) mod migrations;
pub(crate) mod operations;
pub(crate) mod transactions;

use serde_json::{Value, json};
use store::{Document, ProvisioningState, Store, StoreError};

pub(crate) const GROUP: &str = "/subscriptions/S1/resourceGroups/Rg1";

pub(crate) fn gallery_id(name: &str) -> String {
    format!("{GROUP}/providers/Microsoft.Compute/galleries/{name}")
}

/// Inserts a resource with empty data.
pub(crate) async fn put(store: &Store, id: &str) -> Result<Document<Value>, StoreError> {
    store
        .write(|tx| {
            Box::pin(async {
                let mut document = Document::new(id, "eastus", ProvisioningState::Succeeded, json!({}))?;
                tx.insert(&mut document).await?;
                Ok(document)
            })
        })
        .await
}

pub(crate) async fn get(store: &Store, id: &str) -> Option<Document<Value>> {
    store.read(|tx| Box::pin(async { tx.get::<Value>(id).await })).await.expect("read")
}

pub(crate) async fn delete(store: &Store, id: &str) -> Result<(), StoreError> {
    store.write(|tx| Box::pin(async { tx.delete(id).await })).await
}
