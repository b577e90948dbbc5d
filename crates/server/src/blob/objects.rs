//! The files that hold blobs' bytes: `blobs/{2 digits}/{id}` in the store of the account's region. An id is random and
//! never used again; a file is complete and durable before a row names it, and never changed then (but for page blobs). What is
//! in a file: `stored.rs`, and for page blobs `page/file.rs`.
//!
//! Which files nobody needs is known by rows (`store::Tx::drop_objects`), not by looking: an upload is noted before its
//! file is made. [`sweep`] removes what is due.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use chrono::TimeDelta;
use content::{FramedFile, FramedWriter};
use futures::{StreamExt, stream};
use md5::{Digest, Md5};
use model::Region;
use model::storage_account::StorageAccount;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::body::{self, Bytestream, check_md5, content_length};
use super::error::BlobError;
use super::page::PageName;
use super::stored::{self, StoredObject};
use crate::AppState;
use crate::fabric::BlobFolder;
use crate::http::error::chain;

/// How long an object outlives its row, for readers that are under way.
pub(crate) const GRACE: TimeDelta = TimeDelta::minutes(10);
/// How long an upload may take.
const UPLOAD_MAX: TimeDelta = TimeDelta::hours(24);
/// Bytes that an upload gathers in memory between two writes.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes of one piece of a download.
const READ_BYTES: u64 = 512 * 1024;
/// Between two looks for what is due.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);
/// Objects of a region that one look removes at most.
const SWEEP_OBJECTS: u32 = 1000;
/// How long blocks that are in no list are kept after the last one of their blob (Azure).
const BLOCKS_KEPT: TimeDelta = TimeDelta::days(7);
/// Looks for what is due between two for such blocks: an hour.
const LOOKS_FOR_BLOCKS: u32 = 60;
/// Blobs that lose such blocks at one look at most.
const SWEEP_BLOBS: u32 = 100;

/// An object that no row names yet. Dropped without [`Pending::taken`], its file goes; the note in the database is swept.
#[derive(Debug)]
pub(super) struct Pending {
    /// Its id.
    pub(super) id: String,
    /// Its file.
    pub(super) path: PathBuf,
    folder: BlobFolder,
    taken: bool,
}

impl Pending {
    /// Notes an object that is about to be made.
    pub(super) async fn begin(state: &AppState, region: &Region) -> Result<Self, BlobError> {
        let mut made = Self::begin_many(state, region, vec![new_id()]).await?;
        made.pop().ok_or_else(|| BlobError::internal("no object was noted"))
    }

    /// Notes several of these ids at once.
    pub(super) async fn begin_many(
        state: &AppState,
        region: &Region,
        ids: Vec<String>,
    ) -> Result<Vec<Self>, BlobError> {
        let folder = folder(state, region).await?;
        let mut made = Vec::new();
        for id in &ids {
            let path = stored::file_of(&folder, id);
            made.push(Self { id: id.clone(), path, folder: folder.clone(), taken: false });
        }
        let folders: BTreeSet<PathBuf> =
            made.iter().filter_map(|object| object.path.parent().map(Path::to_owned)).collect();
        let folders = tokio::task::spawn_blocking(move || {
            let make = |folder| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            folders.into_iter().try_for_each(make)
        });
        flat(folders.await).map_err(|error| BlobError::io("make a folder for blobs", &error))?;
        let noted = state
            .store
            .write(|tx| Box::pin(async { tx.drop_objects(region.as_str(), &ids, UPLOAD_MAX).await }));
        noted.await?;
        Ok(made)
    }

    /// As the name of a page blob's file.
    pub(super) fn page_name(&self) -> PageName {
        stored::page_name(&self.folder, &self.id)
    }

    /// Whether its bytes are encrypted on the disk.
    pub(super) fn is_encrypted(&self) -> bool {
        self.folder.keys.is_some()
    }

    /// Makes its file with the content of another object, which is checked by that. Blocking.
    ///
    /// # Errors
    /// As reading one and writing the other.
    pub(super) fn fill_from(&self, source: &StoredObject) -> io::Result<()> {
        let from = source.open()?;
        let mut sink = Sink::create_in(&self.path, &self.folder, &self.id)?;
        let mut piece = vec![0; WRITE_BYTES];
        let mut at = 0;
        while at < from.size() {
            let piece = &mut piece[..(from.size() - at).min(WRITE_BYTES as u64) as usize];
            from.read_exact_at(piece, at).map_err(|error| source.failed(error))?;
            sink.writer.write(piece)?;
            at += piece.len() as u64;
        }
        sink.close().map(drop)
    }

    /// A row names it now.
    pub(super) fn taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.taken
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "the sweeper must remove the file of an upload");
        }
    }
}

/// An upload that has come whole.
#[derive(Debug)]
pub(super) struct Received {
    /// Its object, complete and durable.
    pub(super) object: Pending,
    /// Length in bytes.
    pub(super) bytes: u64,
    /// Digest of the bytes.
    pub(super) md5: [u8; 16],
}

/// Receives a body of at most `max` bytes into a new object. Nothing is kept of one that breaks off.
///
/// # Errors
/// 400, 408, 411, 413; 507 when the disk is full.
pub(super) async fn receive(
    state: &AppState,
    region: &Region,
    headers: &HeaderMap,
    body: Body,
    max: u64,
) -> Result<Received, BlobError> {
    let length = content_length(headers)?;
    if length > max {
        return Err(BlobError::too_large(max));
    }
    let object = Pending::begin(state, region).await?;
    let failed = |error: io::Error| BlobError::io("write a blob", &error);
    let mut sink = Sink::create(&object).await.map_err(failed)?;
    let mut stream = body.into_data_stream();
    let mut gathered = BytesMut::new();
    let mut bytes = 0;
    while let Some(piece) = body::next(&mut stream).await? {
        bytes += piece.len() as u64;
        if bytes > length {
            return Err(BlobError::too_large(length));
        }
        gathered.extend_from_slice(&piece);
        if gathered.len() >= WRITE_BYTES {
            sink = sink.write(gathered.split().freeze()).await.map_err(failed)?;
        }
    }
    if bytes != length {
        let message = format!("The body has {bytes} bytes, and Content-Length said {length}.");
        return Err(BlobError::new(StatusCode::BAD_REQUEST, "IncompleteBody", message));
    }
    sink = sink.write(gathered.freeze()).await.map_err(failed)?;
    let md5 = sink.finish().await.map_err(failed)?;
    check_md5(headers, &md5)?;
    Ok(Received { object, bytes, md5 })
}

/// A file under construction, and the digest of what is in it.
struct Sink {
    writer: FramedWriter<File>,
    path: PathBuf,
    md5: Md5,
}

impl Sink {
    async fn create(object: &Pending) -> io::Result<Self> {
        let (path, folder, id) = (object.path.clone(), object.folder.clone(), object.id.clone());
        flat(tokio::task::spawn_blocking(move || Self::create_in(&path, &folder, &id)).await)
    }

    fn create_in(path: &Path, folder: &BlobFolder, id: &str) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { writer: stored::begin(file, folder, id)?, path: path.to_owned(), md5: Md5::new() })
    }

    async fn write(mut self, bytes: Bytes) -> io::Result<Self> {
        flat(
            tokio::task::spawn_blocking(move || {
                self.md5.update(&bytes);
                self.writer.write(&bytes)?;
                Ok(self)
            })
            .await,
        )
    }

    async fn finish(self) -> io::Result<[u8; 16]> {
        flat(tokio::task::spawn_blocking(move || self.close()).await)
    }

    /// Makes file and name durable.
    fn close(self) -> io::Result<[u8; 16]> {
        self.writer.finish()?.sync_all()?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        Ok(self.md5.finalize().into())
    }
}

/// Objects of a blob in order, as a range of their bytes is read.
#[derive(Debug)]
pub(super) struct Reader {
    parts: std::vec::IntoIter<StoredObject>,
    /// The one that is being read, its file, and how far.
    open: Option<(StoredObject, Arc<FramedFile>, u64)>,
    skip: u64,
    left: u64,
}

/// The bytes `range` of a blob that lies in these objects.
pub(super) fn stream(parts: Vec<StoredObject>, range: std::ops::Range<u64>) -> Bytestream {
    let reader = Reader {
        parts: parts.into_iter(),
        open: None,
        skip: range.start,
        left: range.end.saturating_sub(range.start),
    };
    stream::try_unfold(reader, |mut reader| async move {
        let piece = reader.next().await.inspect_err(|error| {
            tracing::error!(%error, "a blob cannot be read");
        })?;
        Ok(piece.map(|piece| (piece, reader)))
    })
    .boxed()
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.left > 0 {
            let Some((object, file, at)) = self.open.take() else {
                let object = self.parts.next().ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the blob's objects are shorter than the blob",
                    )
                })?;
                if self.skip >= object.bytes {
                    self.skip -= object.bytes;
                    continue;
                }
                let opening = object.clone();
                let file = flat(tokio::task::spawn_blocking(move || opening.open()).await)?;
                self.open = Some((object, Arc::new(file), std::mem::take(&mut self.skip)));
                continue;
            };
            if at == object.bytes {
                continue;
            }
            let len = (object.bytes - at).min(READ_BYTES).min(self.left);
            let reading = Arc::clone(&file);
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; len as usize];
                Ok(reading.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece)))
            });
            let piece = flat(read.await)?.map_err(|error| object.failed(error))?;
            self.left -= len;
            self.open = Some((object, file, at + len));
            return Ok(Some(piece));
        }
        Ok(None)
    }
}

/// A new object's id.
pub(super) fn new_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Where a region's objects lie.
pub(super) async fn folder(state: &AppState, region: &Region) -> Result<BlobFolder, BlobError> {
    state.fabric.blob_folder(region).await.map_err(|error| BlobError::internal(chain(&error)))
}

/// Removes what is due, now and then, until `stop`.
pub(crate) async fn sweep(state: AppState, stop: CancellationToken) {
    for look in (0..LOOKS_FOR_BLOCKS).cycle() {
        if look == 0
            && let Err(error) = expire_blocks(&state, BLOCKS_KEPT).await
        {
            tracing::warn!(%error, "blocks that nobody committed could not be forgotten; trying again later");
        }
        if let Err(error) = sweep_once(&state).await {
            tracing::warn!(%error, "blobs that nobody needs could not be removed; trying again later");
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Removes what is due. Returns how many objects.
///
/// # Errors
/// The database's own. An object whose file cannot be removed stays for the next look.
pub(crate) async fn sweep_once(state: &AppState) -> Result<usize, store::StoreError> {
    let mut removed = 0;
    // One after the other: a region that is away, or was taken out of the configuration, keeps its own files until it is back,
    // and nobody else's.
    for region in state.config.regions.iter().map(|region| &region.name) {
        removed += sweep_region(state, region).await?;
    }
    Ok(removed)
}

async fn sweep_region(state: &AppState, region: &Region) -> Result<usize, store::StoreError> {
    let name = region.as_str();
    let due = state.store.read(|tx| Box::pin(async { tx.due_objects(name, SWEEP_OBJECTS).await })).await?;
    let mut removed = Vec::new();
    if due.is_empty() {
        // Nor is a store opened, or made, for nothing.
        return Ok(0);
    }
    // One that is away keeps its files until it is back.
    let Ok(folder) = state.fabric.blob_folder(region).await else { return Ok(0) };
    for object in due {
        let path = stored::file_of(&folder, &object);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => removed.push(object),
            Err(error) if error.kind() == io::ErrorKind::NotFound => removed.push(object),
            Err(error) => tracing::warn!(%error, path = %path.display(), "cannot remove a blob's file"),
        }
    }
    state
        .store
        .write(|tx| {
            Box::pin(async {
                for object in &removed {
                    tx.forget_object(object).await?;
                }
                Ok::<_, store::StoreError>(())
            })
        })
        .await?;
    Ok(removed.len())
}

/// Drops the blocks of blobs for which none came within `age`, and which nobody committed. Returns of how many blobs.
async fn expire_blocks(state: &AppState, age: TimeDelta) -> Result<usize, store::StoreError> {
    let forgotten = state.store.read(|tx| Box::pin(async { tx.forgotten_blocks(age, SWEEP_BLOBS).await }));
    let forgotten = forgotten.await?;
    for key in &forgotten {
        let dropped = state.store.write(|tx| {
            Box::pin(async {
                let Some(account) = tx.get::<StorageAccount>(&key.account).await? else { return Ok(()) };
                let objects: Vec<String> =
                    tx.blocks(key).await?.into_iter().map(|block| block.object).collect();
                tx.delete_blocks(key).await?;
                tx.drop_objects(account.data.spec.location.as_str(), &objects, GRACE).await
            })
        });
        dropped.await?;
    }
    Ok(forgotten.len())
}

fn flat<T>(joined: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    joined.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
