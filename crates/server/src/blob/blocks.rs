//! Blocks: put, committed in a list, and appended. A block is an object of its own, which its blob then names: committing
//! moves no bytes.

use std::collections::HashMap;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roxmltree::Document;
use store::BlobPart;

use super::about::BlobKind;
use super::blobs::{self, New, Parts, take};
use super::body::{self, Unread, check_md5, md5};
use super::conditions::{self, For};
use super::error::BlobError;
use super::objects::{self, GRACE, Pending};
use super::page::MAX_PAGE_BLOB_BYTES;
use super::rows::{self, BlobData, ContainerData, Kept};
use super::service::Call;
use super::xml::Xml;
use crate::api::storage_accounts::later;

/// Largest block (Azure).
const MAX_BLOCK_BYTES: u64 = 4000 << 20;
/// Largest block that is appended (Azure).
const MAX_APPEND_BYTES: u64 = 100 << 20;
/// Most blocks of a blob (Azure).
const MAX_BLOCKS: usize = 50_000;
/// Most blocks that were put and are in no list yet (Azure).
const MAX_UNCOMMITTED: u64 = 100_000;
/// Largest blob of blocks. Azure's 50,000 blocks of 4,000 MiB come to 190 TiB, of which one block can be named 50,000 times;
/// this is what the largest disk needs.
pub(super) const MAX_BYTES: u64 = MAX_PAGE_BLOB_BYTES;
/// Longest id of a block, decoded (Azure).
const MAX_ID_BYTES: usize = 64;
/// Largest block list: 50,000 of the longest ids, with their tags.
const MAX_LIST_BYTES: u64 = 8 << 20;

/// Put Block.
pub(super) async fn put(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    let key = call.key()?;
    let id = call.query.get("blockid").unwrap_or_default().to_owned();
    check_id(&id).map_err(|reason| BlobError::query("blockid", reason))?;
    let refuse = async |tx: &mut store::Tx<'_>| {
        if tx.container::<ContainerData>(&key.account, &key.container).await?.is_none() {
            return Err(BlobError::container_not_found());
        }
        let found = tx.blob::<BlobData>(&key).await?;
        if found.is_some_and(|row| row.data.kind != BlobKind::Block) {
            return Err(BlobError::blob_type());
        }
        Ok(())
    };
    call.state.store.read(|tx| Box::pin(async { refuse(tx).await })).await?;
    let headers = &call.parts.headers;
    let received =
        objects::receive(&call.state, &call.region, headers, body::take(unread), MAX_BLOCK_BYTES).await?;
    let block = BlobPart { id, object: received.object.id.clone(), bytes: received.bytes };
    call.state
        .store
        .write(|tx| {
            Box::pin(async {
                refuse(tx).await?;
                take(tx, &block.object).await?;
                let before = tx.put_block(&key, &block).await?;
                tx.drop_objects(call.region.as_str(), before.as_slice(), GRACE).await?;
                if tx.count_blocks(&key).await? > MAX_UNCOMMITTED {
                    let message =
                        "The uncommitted block count cannot exceed the maximum limit of 100,000 blocks.";
                    let code = "BlockCountExceedsLimit";
                    return Err(BlobError::new(StatusCode::CONFLICT, code, message));
                }
                Ok::<_, BlobError>(())
            })
        })
        .await?;
    received.object.taken();
    let mut response = body::empty(StatusCode::CREATED, None);
    body::set_md5(response.headers_mut(), &received.md5);
    Ok(response)
}

fn check_id(id: &str) -> Result<(), &'static str> {
    match STANDARD.decode(id) {
        Ok(bytes) if (1..=MAX_ID_BYTES).contains(&bytes.len()) => Ok(()),
        Ok(_) => Err("has no byte, or more than 64"),
        Err(_) => Err("is not base64"),
    }
}

/// Which blocks make a blob, and where each is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockList(Vec<(Source, String)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Committed,
    Uncommitted,
    Latest,
}

impl BlockList {
    fn parse(bytes: &[u8]) -> Result<Self, BlobError> {
        let text = std::str::from_utf8(bytes).map_err(|_| BlobError::xml("it is not UTF-8"))?;
        let document = Document::parse(text.trim_start_matches('\u{feff}'))
            .map_err(|error| BlobError::xml(&error.to_string()))?;
        let root = document.root_element();
        if !root.has_tag_name("BlockList") {
            return Err(BlobError::xml("its root is not BlockList"));
        }
        let mut list = Vec::new();
        for node in root.children().filter(|node| node.is_element()) {
            let source = match node.tag_name().name() {
                "Committed" => Source::Committed,
                "Uncommitted" => Source::Uncommitted,
                "Latest" => Source::Latest,
                _ => return Err(BlobError::xml("a block is Committed, Uncommitted or Latest")),
            };
            let id = node.text().unwrap_or_default().trim().to_owned();
            check_id(&id).map_err(|reason| BlobError::xml(&format!("a block's id {reason}")))?;
            if list.len() == MAX_BLOCKS {
                let message = "The block list may not contain more than 50,000 blocks.";
                return Err(BlobError::new(StatusCode::BAD_REQUEST, "BlockListTooLong", message));
            }
            list.push((source, id));
        }
        Ok(Self(list))
    }

    /// The parts that it means, of those that the blob has and those that were put since.
    pub(super) fn choose(
        &self,
        committed: &[BlobPart],
        uncommitted: &[BlobPart],
    ) -> Result<Vec<BlobPart>, BlobError> {
        let by_id = |parts: &[BlobPart]| -> HashMap<String, BlobPart> {
            parts.iter().map(|part| (part.id.clone(), part.clone())).collect()
        };
        let (committed, uncommitted) = (by_id(committed), by_id(uncommitted));
        let chosen = self.0.iter().map(|(source, id)| {
            let found = match source {
                Source::Committed => committed.get(id),
                Source::Uncommitted => uncommitted.get(id),
                Source::Latest => uncommitted.get(id).or_else(|| committed.get(id)),
            };
            found.cloned().ok_or_else(|| invalid(&format!("there is no block '{id}' ({source:?})")))
        });
        let chosen: Vec<BlobPart> = chosen.collect::<Result<_, _>>()?;
        let bytes = chosen.iter().fold(0_u64, |sum, part| sum.saturating_add(part.bytes));
        if bytes > MAX_BYTES {
            return Err(invalid(&format!(
                "its blocks come to {bytes} bytes, and a blob has at most {MAX_BYTES}"
            )));
        }
        Ok(chosen)
    }
}

fn invalid(reason: &str) -> BlobError {
    let message = format!("The specified block list is invalid: {reason}.");
    BlobError::new(StatusCode::BAD_REQUEST, "InvalidBlockList", message)
}

/// Put Block List.
pub(super) async fn commit(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    let whole = body::read(body::take(unread), MAX_LIST_BYTES).await?;
    let digest = md5(&whole.bytes);
    check_md5(&call.parts.headers, &digest)?;
    let list = BlockList::parse(&whole.bytes)?;
    drop(whole);
    let mut new = New::of_request(call, BlobKind::Block)?;
    new.must_be_blocks = true;
    new.check_now(call).await?;
    // The plain headers are about the list.
    new.content = super::about::ContentHeaders::of_request(&call.parts.headers, false)?;
    // An id that owns the parts; it never has a file.
    let owner = Pending::begin(&call.state, &call.region).await?;
    let about = new.commit(call, owner, Parts::List(&list)).await?;
    let mut response = body::empty(StatusCode::CREATED, Some(&about));
    body::set_md5(response.headers_mut(), &digest);
    Ok(response)
}

/// Get Block List.
pub(super) async fn list(call: &Call) -> Result<Response, BlobError> {
    let key = call.key()?;
    let (committed, uncommitted) = match call.query.get("blocklisttype").unwrap_or("committed") {
        "committed" => (true, false),
        "uncommitted" => (false, true),
        "all" => (true, true),
        _ => return Err(BlobError::query("blocklisttype", "is none of committed, uncommitted, all")),
    };
    let (row, parts, blocks) = call
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let row = tx.blob::<BlobData>(&key).await?;
                let parts = match &row {
                    Some(row) => tx.parts(&row.object).await?,
                    None => Vec::new(),
                };
                Ok::<_, BlobError>((row, parts, tx.blocks(&key).await?))
            })
        })
        .await?;
    if row.is_none() && blocks.is_empty() {
        return Err(BlobError::blob_not_found());
    }
    if row.as_ref().is_some_and(|row| row.data.kind != BlobKind::Block) {
        return Err(BlobError::blob_type());
    }
    let mut xml = Xml::document("BlockList");
    for (name, wanted, parts) in
        [("CommittedBlocks", committed, &parts), ("UncommittedBlocks", uncommitted, &blocks)]
    {
        if wanted {
            xml.nest(name, |xml| {
                for part in parts {
                    xml.nest("Block", |xml| {
                        xml.text("Name", &part.id).text("Size", &part.bytes.to_string());
                    });
                }
            });
        }
    }
    let mut response = xml.into_response();
    if let Some(row) = &row {
        rows::about(row).write_version(response.headers_mut());
        response.headers_mut().insert("x-ms-blob-content-length", row.data.bytes.into());
    }
    Ok(response)
}

/// Append Block.
pub(super) async fn append(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    if blobs::read(call).await?.data.kind != BlobKind::Append {
        return Err(BlobError::blob_type());
    }
    let headers = &call.parts.headers;
    let number = |name: &'static str| -> Result<Option<u64>, BlobError> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let number = value.to_str().ok().and_then(|text| text.parse().ok());
        Ok(Some(number.ok_or_else(|| BlobError::header(name, "is no number"))?))
    };
    let (position, most) = (number("x-ms-blob-condition-appendpos")?, number("x-ms-blob-condition-maxsize")?);
    let received =
        objects::receive(&call.state, &call.region, headers, body::take(unread), MAX_APPEND_BYTES).await?;
    let (key, now) = (call.key()?, call.state.now());
    let part = BlobPart { id: String::new(), object: received.object.id.clone(), bytes: received.bytes };
    let (row, offset) = call
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut row = tx.blob::<BlobData>(&key).await?.ok_or_else(BlobError::blob_not_found)?;
                let Kept::Parts { count } = row.data.kept else { return Err(BlobError::blob_type()) };
                conditions::check(headers, For::Writing, Some(row.data.modified))?;
                let (offset, end) = (row.data.bytes, row.data.bytes.saturating_add(part.bytes));
                if position.is_some_and(|position| position != offset) {
                    let message = "The append position condition specified was not met.";
                    let code = "AppendPositionConditionNotMet";
                    return Err(BlobError::new(StatusCode::PRECONDITION_FAILED, code, message));
                }
                if most.is_some_and(|most| end > most) {
                    let message = "The max blob size condition specified was not met.";
                    let code = "MaxBlobSizeConditionNotMet";
                    return Err(BlobError::new(StatusCode::PRECONDITION_FAILED, code, message));
                }
                if count >= MAX_BLOCKS as u64 {
                    let message =
                        "The committed block count cannot exceed the maximum limit of 50,000 blocks.";
                    let code = "BlockCountExceedsLimit";
                    return Err(BlobError::new(StatusCode::CONFLICT, code, message));
                }
                take(tx, &part.object).await?;
                tx.add_parts(&row.object, std::slice::from_ref(&part)).await?;
                row.data.bytes = end;
                row.data.kept = Kept::Parts { count: count + 1 };
                // It was of what the blob held before.
                row.data.content.md5 = None;
                row.data.modified = later(now, Some(row.data.modified));
                tx.put_blob(&key, &row.object, &row.data).await?;
                Ok::<_, BlobError>((row, offset))
            })
        })
        .await?;
    received.object.taken();
    let about = rows::about(&row);
    let mut response = body::empty(StatusCode::CREATED, Some(&about));
    let answer = response.headers_mut();
    body::set_md5(answer, &received.md5);
    answer.insert("x-ms-blob-append-offset", offset.into());
    answer.insert("x-ms-blob-committed-block-count", about.append_blocks.into());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: &str, object: &str) -> BlobPart {
        BlobPart { id: STANDARD.encode(id), object: object.to_owned(), bytes: 1 }
    }

    #[test]
    fn lists_choose_blocks() {
        let (a, b) = (STANDARD.encode("a"), STANDARD.encode("b"));
        let parse = |inner: &str| BlockList::parse(format!("<BlockList>{inner}</BlockList>").as_bytes());
        let list =
            parse(&format!("<Latest>{a}</Latest><Committed>{a}</Committed><Uncommitted>{b}</Uncommitted>"));
        let list = list.unwrap();
        let (old, new) = ([part("a", "old")], [part("a", "new"), part("b", "b")]);
        let chosen = list.choose(&old, &new).unwrap();
        let objects: Vec<&str> = chosen.iter().map(|part| part.object.as_str()).collect();
        assert_eq!(objects, ["new", "old", "b"]);
        let large = BlobPart { bytes: MAX_BLOCK_BYTES, ..part("a", "a") };
        let times = |times: usize| parse(&format!("<Latest>{a}</Latest>").repeat(times)).unwrap();
        assert_eq!(times(8_000).choose(&[], std::slice::from_ref(&large)).unwrap().len(), 8_000);
        let error = times(MAX_BLOCKS).choose(&[], &[large]).unwrap_err();
        assert!(
            error.code == "InvalidBlockList" && error.message.contains("209715200000000 bytes"),
            "{error:?}"
        );
        assert_eq!(list.choose(&[], &new).unwrap_err().code, "InvalidBlockList");
        assert_eq!(list.choose(&old, &old).unwrap_err().code, "InvalidBlockList");
        for bad in ["<Newest>YQ==</Newest>", "<Latest>%</Latest>", "<Latest/>", "<Latest>"] {
            assert_eq!(parse(bad).unwrap_err().code, "InvalidXmlDocument", "{bad}");
        }
        assert!(BlockList::parse(b"<Other/>").is_err());
        let many = format!("<Latest>{a}</Latest>").repeat(MAX_BLOCKS + 1);
        assert_eq!(parse(&many).unwrap_err().code, "BlockListTooLong");
    }
}
