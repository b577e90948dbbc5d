//! Blobs: put, get, properties, metadata, pages, delete.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use model::Region;
use store::{BlobKey, StoreError, Tx};

use super::about::{About, BlobKind, ContentHeaders, Copied, Metadata, metadata, set};
use super::auth::Action;
use super::body::{self, Unread, answer, content_length};
use super::conditions::{self, For};
use super::containers;
use super::error::BlobError;
use super::objects::{self, GRACE, Pending};
use super::page::{MAX_PAGE_BLOB_BYTES, PageBlob, PageFile, serve};
use super::range::PAGE_BYTES;
use super::rows::{self, BlobData, ContainerData, Kept, Row};
use super::service::Call;
use super::stored::{self, StoredObject};
use crate::AppState;
use crate::api::storage_accounts::later;

/// Largest block blob that is put at once (Azure).
const MAX_PUT_BLOB_BYTES: u64 = 5000 << 20;

/// The blob in question.
pub(super) async fn read(call: &Call) -> Result<Row, BlobError> {
    let key = call.key()?;
    let found = call
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let row = tx.blob::<BlobData>(&key).await?;
                if row.is_none()
                    && tx.container::<ContainerData>(&key.account, &key.container).await?.is_none()
                {
                    return Err(BlobError::container_not_found());
                }
                Ok(row)
            })
        })
        .await?;
    found.ok_or_else(BlobError::blob_not_found)
}

/// Get Blob (`with_body`), Get Blob Properties, Get Blob Metadata.
pub(super) async fn get(call: &Call, with_body: bool) -> Result<Response, BlobError> {
    let row = read(call).await?;
    let headers = &call.parts.headers;
    let mut about = rows::about(&row);
    let mut response = match row.data.kept {
        Kept::Pages => {
            let pages = open_pages(call, &row).await?;
            about.modified = pages_modified(&pages, about.modified).await?;
            serve::get(&PageBlob::File(pages), &about, headers, with_body).await?
        }
        Kept::Whole | Kept::Parts { .. } => {
            let parts = if with_body { files(call, &row).await? } else { Vec::new() };
            let stream = |range| objects::stream(parts, range);
            answer(headers, &about, row.data.bytes, with_body, stream).await?
        }
    };
    override_headers(call, response.headers_mut());
    Ok(response)
}

/// Objects of a blob that is not of pages.
pub(super) async fn files(call: &Call, row: &Row) -> Result<Vec<StoredObject>, BlobError> {
    let key = call.key()?;
    objects_of(&call.state, &call.region, &key, row).await
}

/// As [`files`], of any blob.
pub(super) async fn objects_of(
    state: &AppState,
    region: &Region,
    key: &BlobKey,
    row: &Row,
) -> Result<Vec<StoredObject>, BlobError> {
    let folder = objects::folder(state, region).await?;
    let blob = shown(key);
    let stored = |id: &str, bytes| StoredObject::new(folder.clone(), id, bytes, Arc::clone(&blob));
    match row.data.kept {
        Kept::Pages => Ok(Vec::new()),
        Kept::Whole => Ok(vec![stored(&row.object, row.data.bytes)]),
        Kept::Parts { .. } => {
            let parts = state.store.read(|tx| Box::pin(async { tx.parts(&row.object).await })).await?;
            Ok(parts.iter().map(|part| stored(&part.object, part.bytes)).collect())
        }
    }
}

/// A blob as messages call it.
fn shown(key: &BlobKey) -> Arc<str> {
    format!("{}/{}", key.container, key.name).into()
}

/// `rscc` and its like: a SAS may say what the answer's headers are. Only a signed request gets here, and they are signed.
fn override_headers(call: &Call, headers: &mut HeaderMap) {
    if call.query.get("sig").is_none() {
        return;
    }
    for (name, header) in [
        ("rscc", header::CACHE_CONTROL),
        ("rscd", header::CONTENT_DISPOSITION),
        ("rsce", header::CONTENT_ENCODING),
        ("rscl", header::CONTENT_LANGUAGE),
        ("rsct", header::CONTENT_TYPE),
    ] {
        if let Some(value) = call.query.get(name).filter(|value| !value.is_empty()) {
            set(headers, header, value);
        }
    }
}

/// Put Blob.
pub(super) async fn put(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    let headers = &call.parts.headers;
    let kind = headers.get("x-ms-blob-type").ok_or_else(|| BlobError::missing_header("x-ms-blob-type"))?;
    let kind = match kind.as_bytes() {
        b"BlockBlob" => BlobKind::Block,
        b"PageBlob" => BlobKind::Page,
        b"AppendBlob" => BlobKind::Append,
        _ => return Err(BlobError::header("x-ms-blob-type", "is none of BlockBlob, PageBlob, AppendBlob")),
    };
    let mut new = New::of_request(call, kind)?;
    // A refusal before the body saves the upload; what counts is the check in the transaction.
    new.check_now(call).await?;
    let (object, md5) = match kind {
        BlobKind::Block => {
            let received =
                objects::receive(&call.state, &call.region, headers, body::take(unread), MAX_PUT_BLOB_BYTES)
                    .await?;
            new.bytes = received.bytes;
            new.content.md5.get_or_insert_with(|| STANDARD.encode(received.md5));
            (received.object, Some(received.md5))
        }
        BlobKind::Page => (create_pages(call, &mut new).await?, None),
        BlobKind::Append => {
            check_empty(headers)?;
            (Pending::begin(&call.state, &call.region).await?, None)
        }
    };
    let encrypted = body::encrypted(object.is_encrypted());
    let about = new.commit(call, object, Parts::None).await?;
    let mut response = body::empty(StatusCode::CREATED, Some(&about));
    response.headers_mut().insert("x-ms-request-server-encrypted", encrypted);
    if let Some(md5) = md5 {
        body::set_md5(response.headers_mut(), &md5);
    }
    Ok(response)
}

fn check_empty(headers: &HeaderMap) -> Result<(), BlobError> {
    match content_length(headers)? {
        0 => Ok(()),
        _ => Err(BlobError::header("Content-Length", "must be 0: the blob is made empty and then written")),
    }
}

async fn create_pages(call: &Call, new: &mut New) -> Result<Pending, BlobError> {
    let headers = &call.parts.headers;
    check_empty(headers)?;
    let number = |name: &'static str| match headers.get(name) {
        None => Ok(None),
        Some(value) => match value.to_str().ok().and_then(|text| text.parse::<u64>().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(BlobError::header(name, "is no number")),
        },
    };
    let name = "x-ms-blob-content-length";
    let size = number(name)?.ok_or_else(|| BlobError::missing_header(name))?;
    if size % PAGE_BYTES != 0 || size > MAX_PAGE_BLOB_BYTES {
        let reason = format!("must be a multiple of 512 up to {MAX_PAGE_BLOB_BYTES}");
        return Err(BlobError::header(name, &reason));
    }
    new.bytes = size;
    new.sequence_number = number("x-ms-blob-sequence-number")?.unwrap_or(0);
    let object = Pending::begin(&call.state, &call.region).await?;
    let made = PageFile::create(&object.path, &object.page_name(), size).await;
    made.map_err(|error| BlobError::io("make a page blob", &error))?;
    // After the file's own time, so that the ETag of this answer holds until the first page is written.
    new.now = call.state.now();
    Ok(object)
}

/// A blob that is about to take its place.
pub(super) struct New {
    pub(super) kind: BlobKind,
    pub(super) bytes: u64,
    pub(super) kept: Kept,
    pub(super) content: ContentHeaders,
    pub(super) metadata: Metadata,
    pub(super) sequence_number: u64,
    /// Where it was copied from.
    pub(super) copied: Option<Copied>,
    /// The request may make blobs and not overwrite them.
    must_be_new: bool,
    /// What is there is changed rather than overwritten, and only block blobs have blocks.
    pub(super) must_be_blocks: bool,
    now: DateTime<Utc>,
}

/// What becomes of the parts of a new blob.
pub(super) enum Parts<'a> {
    /// It has none.
    None,
    /// Those of a list, chosen from what there is.
    List(&'a super::blocks::BlockList),
    /// These, whose objects are pending.
    Objects(&'a [store::BlobPart]),
}

impl New {
    /// From the headers of a request that makes a blob.
    pub(super) fn of_request(call: &Call, kind: BlobKind) -> Result<Self, BlobError> {
        let headers = &call.parts.headers;
        Ok(Self {
            kind,
            bytes: 0,
            kept: match kind {
                BlobKind::Block => Kept::Whole,
                BlobKind::Page => Kept::Pages,
                BlobKind::Append => Kept::Parts { count: 0 },
            },
            content: ContentHeaders::of_request(headers, true)?,
            metadata: metadata(headers)?,
            sequence_number: 0,
            copied: None,
            must_be_new: !call.grant.allows(Action::Write),
            must_be_blocks: false,
            now: call.state.now(),
        })
    }

    /// Refuses what could not be committed now.
    pub(super) async fn check_now(&self, call: &Call) -> Result<(), BlobError> {
        let key = call.key()?;
        call.state.store.read(|tx| Box::pin(async { self.check(tx, call, &key).await.map(|_| ()) })).await
    }

    /// The blob that is there, as new as its pages, if the request may take its place.
    async fn check(&self, tx: &mut Tx<'_>, call: &Call, key: &BlobKey) -> Result<Option<Row>, BlobError> {
        if tx.container::<ContainerData>(&key.account, &key.container).await?.is_none() {
            return Err(BlobError::container_not_found());
        }
        let mut found = tx.blob::<BlobData>(key).await?;
        if found.is_some() && self.must_be_new {
            return Err(BlobError::permission("The blob exists, and overwriting it needs sp=w."));
        }
        if self.must_be_blocks && found.as_ref().is_some_and(|row| row.data.kind != BlobKind::Block) {
            return Err(BlobError::blob_type());
        }
        if let Some(row) = &mut found {
            row.data.modified = modified(call, row).await?;
        }
        conditions::check(&call.parts.headers, For::Writing, found.as_ref().map(|row| row.data.modified))?;
        Ok(found)
    }

    /// Takes the place of what is there, whose objects are dropped; uncommitted blocks go too.
    pub(super) async fn commit(
        &self,
        call: &Call,
        object: Pending,
        parts: Parts<'_>,
    ) -> Result<About, BlobError> {
        let key = call.key()?;
        let row = call
            .state
            .store
            .write(|tx| Box::pin(async { self.replace(tx, call, &key, &object.id, &parts).await }))
            .await?;
        object.taken();
        Ok(rows::about(&row))
    }

    async fn replace(
        &self,
        tx: &mut Tx<'_>,
        call: &Call,
        key: &BlobKey,
        object: &str,
        parts: &Parts<'_>,
    ) -> Result<Row, BlobError> {
        let found = self.check(tx, call, key).await?;
        self.take_place(tx, call.region.as_str(), key, found, object, parts).await
    }

    /// A page blob that the service itself has written.
    pub(super) fn of_pages(bytes: u64, now: DateTime<Utc>) -> Self {
        Self {
            kind: BlobKind::Page,
            bytes,
            kept: Kept::Pages,
            content: ContentHeaders::default(),
            metadata: Metadata::default(),
            sequence_number: 0,
            copied: None,
            must_be_new: false,
            must_be_blocks: false,
            now,
        }
    }

    /// Puts the row in the place of `found`, the one that is there.
    pub(super) async fn take_place(
        &self,
        tx: &mut Tx<'_>,
        region: &str,
        key: &BlobKey,
        found: Option<Row>,
        object: &str,
        parts: &Parts<'_>,
    ) -> Result<Row, BlobError> {
        take(tx, object).await?;
        let mut dropped: Vec<String> = Vec::new();
        let mut had = Vec::new();
        if let Some(found) = &found {
            had = tx.parts(&found.object).await?;
            tx.delete_parts(&found.object).await?;
            dropped.push(found.object.clone());
        }
        let blocks = tx.blocks(key).await?;
        tx.delete_blocks(key).await?;
        let (mut bytes, mut kept) = (self.bytes, self.kept);
        let chosen = match parts {
            Parts::None => Vec::new(),
            Parts::List(list) => list.choose(&had, &blocks)?,
            Parts::Objects(parts) => {
                for part in *parts {
                    take(tx, &part.object).await?;
                }
                parts.to_vec()
            }
        };
        if !matches!(parts, Parts::None) {
            bytes = chosen.iter().map(|part| part.bytes).sum();
            kept = Kept::Parts { count: chosen.len() as u64 };
            tx.add_parts(object, &chosen).await?;
        }
        let used: std::collections::HashSet<&str> = chosen.iter().map(|part| part.object.as_str()).collect();
        dropped.extend(had.into_iter().chain(blocks).map(|part| part.object));
        dropped.retain(|object| !used.contains(object.as_str()));
        tx.drop_objects(region, &dropped, GRACE).await?;
        let data = BlobData {
            kind: self.kind,
            bytes,
            kept,
            modified: later(self.now, found.as_ref().map(|row| row.data.modified)),
            content: self.content.clone(),
            metadata: self.metadata.clone(),
            sequence_number: self.sequence_number,
            copied: self.copied.clone(),
        };
        tx.put_blob(key, object, &data).await?;
        let created_at = match found {
            Some(found) => found.created_at,
            None => tx.now().await?,
        };
        Ok(Row { name: key.name.clone(), object: object.to_owned(), data, created_at })
    }
}

/// Takes an object into use, or says that its upload took too long.
pub(super) async fn take(tx: &mut Tx<'_>, object: &str) -> Result<(), BlobError> {
    if tx.take_object(object).await? {
        return Ok(());
    }
    Err(BlobError::timed_out("The upload took more than a day and was given up; send it again."))
}

/// Put Page.
pub(super) async fn put_page(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    let (pages, about) = read_pages(call).await?;
    serve::put_page(&PageBlob::File(pages), &about, &call.parts.headers, body::take(unread)).await
}

/// Get Page Ranges.
pub(super) async fn page_ranges(call: &Call) -> Result<Response, BlobError> {
    let (pages, about) = read_pages(call).await?;
    serve::page_ranges(&PageBlob::File(pages), &about, &call.parts.headers, &call.query).await
}

async fn read_pages(call: &Call) -> Result<(PageFile, About), BlobError> {
    let row = read(call).await?;
    if row.data.kept != Kept::Pages {
        return Err(BlobError::blob_type());
    }
    let pages = open_pages(call, &row).await?;
    let mut about = rows::about(&row);
    about.modified = pages_modified(&pages, about.modified).await?;
    Ok((pages, about))
}

async fn open_pages(call: &Call, row: &Row) -> Result<PageFile, BlobError> {
    open_page_file(&call.state, &call.region, &call.key()?, row).await
}

/// The file of a page blob.
pub(super) async fn open_page_file(
    state: &AppState,
    region: &Region,
    key: &BlobKey,
    row: &Row,
) -> Result<PageFile, BlobError> {
    let folder = objects::folder(state, region).await?;
    let (path, name) = (stored::file_of(&folder, &row.object), stored::page_name(&folder, &row.object));
    let opened = PageFile::open(&path, &name).await;
    opened.map_err(|error| {
        let error = stored::failed(&shown(key), &row.object, stored::cause(error));
        BlobError::io("open a page blob", &error)
    })
}

/// When a blob was last changed: the row does not know of writes to pages.
pub(super) async fn modified(call: &Call, row: &Row) -> Result<DateTime<Utc>, BlobError> {
    if row.data.kept != Kept::Pages {
        return Ok(row.data.modified);
    }
    let path = stored::file_of(&objects::folder(&call.state, &call.region).await?, &row.object);
    match tokio::fs::metadata(&path).await.and_then(|file| file.modified()) {
        Ok(written) => Ok(row.data.modified.max(written.into())),
        // Whoever overwrites or deletes it need not find its bytes.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(row.data.modified),
        Err(error) => Err(BlobError::io("look at a page blob", &error)),
    }
}

/// The later of what the row says and what the pages say.
async fn pages_modified(pages: &PageFile, row: DateTime<Utc>) -> Result<DateTime<Utc>, BlobError> {
    let written = pages.modified().await.map_err(|error| BlobError::io("look at a page blob", &error))?;
    Ok(written.max(row))
}

/// Set Blob Metadata.
pub(super) async fn set_metadata(call: &Call) -> Result<Response, BlobError> {
    let metadata = metadata(&call.parts.headers)?;
    let about = change(call, |data| {
        data.metadata = metadata.clone();
        Ok(())
    })
    .await?;
    Ok(body::empty(StatusCode::OK, Some(&about)))
}

/// Set Blob Properties: the content headers, all at once, as on Azure; a page blob's sequence number.
pub(super) async fn set_properties(call: &Call) -> Result<Response, BlobError> {
    let headers = &call.parts.headers;
    if headers.contains_key("x-ms-blob-content-length") {
        return Err(BlobError::unsupported("resizing of page blobs"));
    }
    let content = ContentHeaders::of_request(headers, false)?;
    let number = headers.get("x-ms-blob-sequence-number").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let action = headers.get("x-ms-sequence-number-action").map(|v| v.as_bytes().to_ascii_lowercase());
    let about = change(call, |data| {
        if let Some(action) = &action {
            data.sequence_number = match (action.as_slice(), number) {
                _ if data.kept != Kept::Pages => return Err(BlobError::blob_type()),
                (b"max", Some(number)) => data.sequence_number.max(number),
                (b"update", Some(number)) => number,
                (b"increment", None) => data.sequence_number.saturating_add(1),
                _ => {
                    let reason =
                        "is none of max, update, increment, or does not fit x-ms-blob-sequence-number";
                    return Err(BlobError::header("x-ms-sequence-number-action", reason));
                }
            };
        } else {
            data.content = content.clone();
            // As on Azure.
            data.copied = None;
        }
        Ok(())
    })
    .await?;
    let mut response = body::empty(StatusCode::OK, Some(&about));
    if about.kind == BlobKind::Page {
        let name = HeaderName::from_static("x-ms-blob-sequence-number");
        response.headers_mut().insert(name, about.sequence_number.into());
    }
    Ok(response)
}

/// Changes a blob's data, if the request's conditions hold.
async fn change(
    call: &Call,
    change: impl Fn(&mut BlobData) -> Result<(), BlobError> + Sync,
) -> Result<About, BlobError> {
    let (key, now) = (call.key()?, call.state.now());
    read(call).await?;
    let row = call
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut row = tx.blob::<BlobData>(&key).await?.ok_or_else(BlobError::blob_not_found)?;
                let before = modified(call, &row).await?;
                conditions::check(&call.parts.headers, For::Writing, Some(before))?;
                change(&mut row.data)?;
                row.data.modified = later(now, Some(before));
                tx.put_blob(&key, &row.object, &row.data).await?;
                Ok::<_, BlobError>(row)
            })
        })
        .await?;
    Ok(rows::about(&row))
}

/// Delete Blob.
pub(super) async fn delete(call: &Call) -> Result<Response, BlobError> {
    let key = call.key()?;
    containers::read(call).await?;
    call.state
        .store
        .write(|tx| {
            Box::pin(async {
                let row = tx.blob::<BlobData>(&key).await?.ok_or_else(BlobError::blob_not_found)?;
                let modified = modified(call, &row).await?;
                conditions::check(&call.parts.headers, For::Writing, Some(modified))?;
                drop_blob(tx, call, &key, &row).await?;
                Ok::<_, BlobError>(())
            })
        })
        .await?;
    Ok(body::empty(StatusCode::ACCEPTED, None))
}

async fn drop_blob(tx: &mut Tx<'_>, call: &Call, key: &BlobKey, row: &Row) -> Result<(), StoreError> {
    let mut dropped: Vec<String> = vec![row.object.clone()];
    dropped.extend(tx.parts(&row.object).await?.into_iter().map(|part| part.object));
    tx.delete_parts(&row.object).await?;
    tx.delete_blob(key).await?;
    tx.drop_objects(call.region.as_str(), &dropped, GRACE).await
}
