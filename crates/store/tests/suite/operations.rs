//! Operations.

use serde_json::json;
use store::{NewOperation, OperationEnd, OperationFamily, OperationState, StoreError};

use super::gallery_id;
use crate::support::Bed;

pub(crate) async fn an_operation_ends_once(bed: Bed) {
    let store = bed.store().await;
    let id = gallery_id("g");
    for (family, end) in [
        (OperationFamily::Gallery, OperationEnd::Succeeded(None)),
        (OperationFamily::Disk, OperationEnd::Succeeded(Some(json!({"accessSAS": "x"})))),
        (
            OperationFamily::ImageBuilder,
            OperationEnd::Failed(json!({"code": "Unauthorized", "message": "no"})),
        ),
        (OperationFamily::Compute, OperationEnd::Canceled(json!({"code": "OperationPreempted"}))),
        (OperationFamily::ResourceGroup, OperationEnd::Succeeded(None)),
    ] {
        let begun = store
            .write(|tx| {
                Box::pin(async {
                    tx.begin_operation(NewOperation {
                        resource_id: id.clone(),
                        kind: "test".to_owned(),
                        family,
                        location: "eastus".to_owned(),
                    })
                    .await
                })
            })
            .await
            .expect("begin");
        let read = async || {
            store
                .read(|tx| Box::pin(async { tx.operation(&begun.id.to_uppercase()).await }))
                .await
                .expect("read")
        };
        assert_eq!(read().await.as_ref(), Some(&begun));
        let busy = async || {
            store
                .read(|tx| Box::pin(async { tx.operations_in_progress(&id).await }))
                .await
                .expect("read")
                .len()
        };
        assert_eq!(busy().await, 1);
        let finish = async |end: &OperationEnd| {
            store.write(|tx| Box::pin(async { tx.end_operation(&begun.id, end).await })).await
        };
        finish(&end).await.expect("end");
        let again = finish(&OperationEnd::Failed(json!({}))).await;
        assert!(matches!(again, Err(StoreError::OperationEnded { .. })), "{again:?}");
        let ended = read().await.expect("there");
        assert!(
            matches!(&ended.state, OperationState::Ended { at, end: e } if *e == end && *at >= ended.started_at)
        );
        assert_eq!(busy().await, 0);
    }
    let missing = store
        .write(|tx| Box::pin(async { tx.end_operation("none", &OperationEnd::Succeeded(None)).await }))
        .await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");

    bed.raw("UPDATE operations SET ended_at = NULL WHERE family = 'disk'").await;
    let id = store.read(|tx| Box::pin(async { tx.operations_in_progress(&id).await })).await.expect("none");
    assert_eq!(id, []);
    bed.raw("UPDATE operations SET status = 'InProgress' WHERE family = 'disk'").await;
    let bad = store.read(|tx| Box::pin(async { tx.operations_in_progress(&gallery_id("g")).await })).await;
    assert!(
        matches!(bad, Err(StoreError::Inconsistent { table: "operations", column: "status", .. })),
        "{bad:?}"
    );
}
