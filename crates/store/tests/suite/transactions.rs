//! Isolation, and the small tables.

use std::time::Duration;

use store::{MAX_LOG_CHUNK_BYTES, MAX_LOG_CHUNKS_PER_RUN, Placement, PlacementState, Store, StoreError};

use super::{GROUP, delete, get, put};
use crate::support::Bed;

pub(crate) async fn errors_and_reads_leave_nothing(bed: Bed) {
    let store = bed.store().await;
    let failed: Result<(), StoreError> = store
        .write(|tx| {
            Box::pin(async {
                tx.set_setting("a", b"1").await?;
                Err(StoreError::NotFound { what: "thing", key: "x".to_owned() })
            })
        })
        .await;
    assert!(matches!(failed, Err(StoreError::NotFound { what: "thing", .. })));
    assert_eq!(setting(&store, "a").await, None);
    // PostgreSQL refuses writes in a read; SQLite takes them back. Neither keeps them.
    let _refused_or_dropped: Result<(), StoreError> =
        store.read(|tx| Box::pin(async { tx.set_setting("a", b"1").await })).await;
    assert_eq!(setting(&store, "a").await, None);
}

async fn setting(store: &Store, key: &str) -> Option<Vec<u8>> {
    store.read(|tx| Box::pin(async { tx.setting(key).await })).await.expect("read")
}

async fn number(tx: &mut store::Tx<'_>, key: &str) -> Result<u32, StoreError> {
    let text = tx.setting(key).await?.unwrap_or_else(|| b"0".to_vec());
    Ok(String::from_utf8(text).expect("text").parse().expect("a number"))
}

pub(crate) async fn increments_are_not_lost(bed: Bed) {
    const TASKS: u32 = 8;
    const TIMES: u32 = 5;
    let store = bed.store().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..TIMES {
                // Contention is an answer too: the caller tries again.
                loop {
                    let done: Result<(), StoreError> = store
                        .write(|tx| {
                            Box::pin(async {
                                let n = number(tx, "n").await?;
                                tokio::time::sleep(Duration::from_millis(1)).await;
                                tx.set_setting("n", (n + 1).to_string().as_bytes()).await
                            })
                        })
                        .await;
                    match done {
                        Ok(()) => break,
                        Err(StoreError::Contention { .. }) => {}
                        Err(e) => panic!("{e:?}"),
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("task");
    }
    assert_eq!(setting(&store, "n").await, Some((TASKS * TIMES).to_string().into_bytes()));
}

/// Two transactions each look at both rows and write another one. Snapshot isolation lets both
/// through; serializable lets one through and the other then sees it.
pub(crate) async fn write_skew_is_impossible(bed: Bed) {
    let store = bed.store().await;
    for round in 0..5 {
        let take = async |own: String, other: String| {
            store
                .write(|tx| {
                    Box::pin(async {
                        let taken = number(tx, &own).await? + number(tx, &other).await?;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if taken == 0 {
                            tx.set_setting(&own, b"1").await?;
                        }
                        Ok::<_, StoreError>(taken == 0)
                    })
                })
                .await
                .expect("write")
        };
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let (first, second) = tokio::join!(take(a.clone(), b.clone()), take(b.clone(), a.clone()));
        assert!(first ^ second, "round {round}: {first} {second}");
    }
}

pub(crate) async fn settings_logs_and_placements(bed: Bed) {
    let store = bed.store().await;
    let version = put(&store, GROUP).await.expect("group").key;
    let bytes = [0_u8, 255, 10, 0];
    let long = vec![7_u8; MAX_LOG_CHUNK_BYTES + 1];
    store
        .write(|tx| {
            Box::pin(async {
                tx.set_setting("k", b"old").await?;
                tx.set_setting("k", &bytes).await?;
                assert_eq!(tx.append_log("run", &bytes).await?, 1);
                assert_eq!(tx.append_log("run", &long).await?, 3);
                assert_eq!(tx.append_log("run", &[]).await?, 3);
                assert_eq!(tx.append_log("other", b"x").await?, 1);
                for state in
                    [PlacementState::Pending, PlacementState::Failed { error: "no route".to_owned() }]
                {
                    tx.put_placement(&Placement {
                        version_key: version.clone(),
                        region: "westus2".to_owned(),
                        manifest: "m1".to_owned(),
                        state,
                        bytes_moved: 1 << 40,
                        progress: 40,
                    })
                    .await?;
                }
                Ok::<_, StoreError>(())
            })
        })
        .await
        .expect("write");
    assert_eq!(setting(&store, "k").await.as_deref(), Some(&bytes[..]));
    let chunks = store.read(|tx| Box::pin(async { tx.read_log("run", 1).await })).await.expect("log");
    assert_eq!(
        chunks.iter().map(|c| (c.seq, c.bytes.len())).collect::<Vec<_>>(),
        [(2, MAX_LOG_CHUNK_BYTES), (3, 1)]
    );
    let first =
        store.read(|tx| Box::pin(async { tx.read_log("run", 0).await })).await.expect("log").remove(0);
    assert_eq!(first.bytes, bytes);

    let placements =
        store.read(|tx| Box::pin(async { tx.placements(GROUP).await })).await.expect("placements");
    assert_eq!(placements.len(), 1);
    assert_eq!(placements[0].state, PlacementState::Failed { error: "no route".to_owned() });
    assert_eq!(placements[0].bytes_moved, 1 << 40);
    let open =
        store.read(|tx| Box::pin(async { tx.incomplete_placements(10).await })).await.expect("placements");
    assert_eq!(open, placements);

    delete(&store, GROUP).await.expect("delete");
    assert_eq!(get(&store, GROUP).await, None);
    let open =
        store.read(|tx| Box::pin(async { tx.incomplete_placements(10).await })).await.expect("placements");
    assert_eq!(open, [], "placements go with their version");
    store.write(|tx| Box::pin(async { tx.delete_log("run").await })).await.expect("delete");
    let chunks = store.read(|tx| Box::pin(async { tx.read_log("run", 0).await })).await.expect("log");
    assert_eq!(chunks, []);
}

pub(crate) async fn logs_are_bounded(bed: Bed) {
    let store = bed.store().await;
    store.write(|tx| Box::pin(async { tx.append_log("run", b"x").await })).await.expect("first");
    bed.raw(&format!("UPDATE run_logs SET seq = {MAX_LOG_CHUNKS_PER_RUN}")).await;
    let full = store.write(|tx| Box::pin(async { tx.append_log("run", b"x").await })).await;
    assert!(matches!(full, Err(StoreError::Limit { .. })), "{full:?}");
}
