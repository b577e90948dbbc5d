//! Containers, blobs, blocks and the objects that hold their bytes.

use chrono::Duration;
use store::{BlobKey, BlobPage, BlobPart, Store, StoreError};

use super::{GROUP, delete, put};
use crate::support::Bed;

const ACCOUNT: &str = "/subscriptions/s1/resourcegroups/rg1/providers/microsoft.storage/storageaccounts/a1";

async fn account(bed: &Bed) -> Store {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    put(&store, ACCOUNT).await.expect("account");
    let made = store
        .write(|tx| {
            Box::pin(async {
                let first = tx.insert_container(ACCOUNT, "c", &1).await?;
                let again = tx.insert_container(ACCOUNT, "c", &2).await?;
                tx.insert_container(ACCOUNT, "d", &3).await?;
                Ok::<_, StoreError>((first, again))
            })
        })
        .await
        .expect("containers");
    assert_eq!(made, (true, false));
    store
}

fn key(container: &str, name: &str) -> BlobKey {
    BlobKey { account: ACCOUNT.to_owned(), container: container.to_owned(), name: name.to_owned() }
}

async fn put_blob(store: &Store, key: &BlobKey, object: &str) -> Result<(), StoreError> {
    store.write(|tx| Box::pin(async { tx.put_blob(key, object, &object.len()).await })).await
}

async fn garbage(store: &Store) -> Vec<String> {
    let due = store.read(|tx| Box::pin(async { tx.due_objects("eastus", 100).await })).await;
    let mut objects = due.expect("reads");
    objects.sort();
    objects
}

pub(crate) async fn names_order_by_bytes_and_page(bed: Bed) {
    let store = account(&bed).await;
    let names = ["B", "a", "a/1", "a-1", "é", "日本", "\u{10ffff}", "ab"];
    for name in names {
        put_blob(&store, &key("c", name), name).await.expect(name);
    }
    put_blob(&store, &key("d", "other"), "o").await.expect("other");
    let orphan = put_blob(&store, &key("none", "x"), "x").await;
    assert!(matches!(orphan, Err(StoreError::Database { .. })), "{orphan:?}");
    let list = async |prefix: &str, from: &[u8], limit| {
        let page = BlobPage { prefix: prefix.to_owned(), from: from.to_vec(), limit };
        let rows = store.read(|tx| Box::pin(async { tx.blobs::<usize>(ACCOUNT, "c", &page).await })).await;
        rows.expect("lists").into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    let mut sorted = names.to_vec();
    sorted.sort_by_key(|name| name.as_bytes());
    assert_eq!(list("", b"", 100).await, sorted);
    assert_eq!(list("a", b"", 100).await, ["a", "a-1", "a/1", "ab"]);
    assert_eq!(list("a", b"a-1", 2).await, ["a-1", "a/1"]);
    assert_eq!(list("a", b"b", 2).await, [""; 0]);
    assert_eq!(list("\u{10ffff}", b"", 2).await, ["\u{10ffff}"]);
    let page = BlobPage { prefix: "d".to_owned(), from: Vec::new(), limit: 9 };
    let containers = store.read(|tx| Box::pin(async { tx.containers::<i32>(ACCOUNT, &page).await })).await;
    let containers = containers.expect("lists");
    assert_eq!((containers.len(), containers[0].name.as_str(), containers[0].data), (1, "d", 3));
}

pub(crate) async fn objects_are_named_or_garbage(bed: Bed) {
    let store = account(&bed).await;
    let part = |id: &str, bytes| BlobPart { id: id.to_owned(), object: format!("part-{id}"), bytes };
    let (zero, day) = (Duration::zero(), Duration::days(1));
    store
        .write(|tx| {
            Box::pin(async {
                // Pending, then taken by a row.
                tx.drop_objects("eastus", &["one".to_owned(), "slow".to_owned()], day).await?;
                assert!(tx.take_object("one").await?);
                assert!(!tx.take_object("one").await?, "gone: whoever wanted it is too late");
                tx.put_blob(&key("c", "b"), "one", &0).await?;
                tx.put_blob(&key("c", "b"), "two", &1).await?;
                tx.drop_objects("eastus", &["one".to_owned()], zero).await?;
                tx.add_parts("two", &[part("1", 7), part("2", u64::from(u32::MAX) * 2)]).await?;
                tx.add_parts("two", &[part("1", 7)]).await?;
                assert_eq!(tx.put_block(&key("c", "b"), &part("3", 1)).await?, None);
                let again = BlobPart { object: "again".to_owned(), ..part("3", 2) };
                assert_eq!(tx.put_block(&key("c", "b"), &again).await?.as_deref(), Some("part-3"));
                assert_eq!(tx.blocks(&key("c", "b")).await?, [again]);
                assert_eq!(
                    tx.parts("two").await?,
                    [part("1", 7), part("2", u64::from(u32::MAX) * 2), part("1", 7)]
                );
                assert_eq!(
                    (tx.count_blocks(&key("c", "b")).await?, tx.count_blocks(&key("c", "x")).await?),
                    (1, 0)
                );
                assert_eq!(tx.forgotten_blocks(Duration::days(7), 9).await?, []);
                assert_eq!(tx.forgotten_blocks(Duration::zero(), 9).await?, [key("c", "b")]);
                assert!(!tx.take_object("one").await?, "its time has come: it may be being removed");
                tx.drop_objects("westus", &["far".to_owned()], zero).await?;
                tx.forget_object("far").await?;
                assert_eq!(tx.due_objects("westus", 9).await?, [""; 0]);
                tx.put_blob(&key("d", "b"), "three", &1).await
            })
        })
        .await
        .expect("writes");
    assert_eq!(garbage(&store).await, ["one"], "what is pending for a day is not due");
    let busy = delete(&store, ACCOUNT).await;
    assert!(busy.is_err(), "an account with containers stays: {busy:?}");
    let drop = async |name: Option<&'static str>| {
        let deleted = store.write(|tx| {
            Box::pin(async move { tx.delete_containers(ACCOUNT, name, "eastus", Duration::zero()).await })
        });
        deleted.await.expect("deletes")
    };
    assert_eq!(drop(Some("c")).await, 1);
    assert_eq!(garbage(&store).await, ["again", "one", "part-1", "part-2", "two"]);
    let left =
        store.read(|tx| Box::pin(async { tx.blob::<i32>(&key("d", "b")).await })).await.expect("reads");
    assert_eq!(left.expect("the other container's").object, "three");
    assert_eq!(drop(None).await, 1);
    assert_eq!(garbage(&store).await.len(), 6);
    delete(&store, ACCOUNT).await.expect("nothing holds the account now");
}
