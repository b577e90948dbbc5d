//! Packs: appended to frame by frame, uploaded in parts while they grow, made durable in order.

use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::merge::merge_segments;
use crate::format::{EncodedFrame, Entry, Location, MAX_PACK_ENTRIES, encode_segment, pack_header};
use crate::id::{PackId, WriterId};
use crate::seal::{FrameSealer, TAG_BYTES};
use crate::store::{Store, pack_path, segment_path};
use crate::{Error, Result};

/// Bytes of a pack that are sent at once. Larger than the smallest part that object stores take (5 MiB).
const PART_BYTES: usize = 8 << 20;

/// Writes frames into packs, one after the other.
pub(super) struct PackWriter {
    store: Store,
    writer: WriterId,
    ids: Vec<PackId>,
    open: Option<OpenPack>,
    /// The pack before, on its way to the disk. The next one is finished only after it, so that a page is never durable
    /// before the blocks that it names.
    finishing: Option<AbortOnDropHandle<Result<Indexed>>>,
    stored_bytes: u64,
}

/// All that a writer packed.
pub(super) struct Packed {
    pub(super) ids: Vec<PackId>,
    /// Bytes of all objects.
    pub(super) stored_bytes: u64,
}

/// A pack that is durable, and found by the store's index.
struct Indexed {
    hashes: Vec<[u8; 32]>,
    stored_bytes: u64,
}

impl PackWriter {
    pub(super) fn new(store: Store, writer: WriterId) -> Self {
        Self { store, writer, ids: Vec::new(), open: None, finishing: None, stored_bytes: 0 }
    }

    /// Appends a frame. Returns the hashes that the index knows since the last call.
    pub(super) async fn append(&mut self, frame: EncodedFrame) -> Result<Vec<[u8; 32]>> {
        let mut indexed = Vec::new();
        let full = self.open.as_ref().is_some_and(|pack| !pack.has_room(&frame, self.store.pack_bytes()));
        if full {
            indexed = self.close().await?;
        }
        if self.open.is_none() {
            let id = PackId::of_writer(&self.writer);
            self.ids.push(id);
            self.open = Some(OpenPack::create(&self.store, id).await?);
        }
        if let Some(pack) = &mut self.open {
            pack.append(frame).await?;
        }
        Ok(indexed)
    }

    /// Makes everything durable and found.
    pub(super) async fn finish(mut self) -> Result<Packed> {
        self.close().await?;
        self.wait().await?;
        Ok(Packed { ids: self.ids, stored_bytes: self.stored_bytes })
    }

    /// Begins to finish the open pack, once the one before is finished.
    async fn close(&mut self) -> Result<Vec<[u8; 32]>> {
        let indexed = self.wait().await?;
        if let Some(pack) = self.open.take() {
            let task = tokio::spawn(pack.finish(self.store.clone()));
            self.finishing = Some(AbortOnDropHandle::new(task));
        }
        Ok(indexed)
    }

    async fn wait(&mut self) -> Result<Vec<[u8; 32]>> {
        let Some(task) = self.finishing.take() else { return Ok(Vec::new()) };
        let Indexed { hashes, stored_bytes } = task.await??;
        self.stored_bytes += stored_bytes;
        Ok(hashes)
    }
}

struct OpenPack {
    id: PackId,
    /// The file in which a folder's pack grows, as `object_store` names it.
    growing: Option<PathBuf>,
    sealer: Option<FrameSealer>,
    /// Dropped before it is complete, it removes what it wrote.
    upload: Box<dyn MultipartUpload>,
    sending: Option<AbortOnDropHandle<object_store::Result<()>>>,
    /// What has gathered for the next part, as it came: a copy of it would be most of what this thread does.
    part: Vec<Bytes>,
    part_bytes: usize,
    /// Of the pack, so far.
    len: u32,
    frames: u32,
    entries: Vec<Entry>,
}

impl OpenPack {
    async fn create(store: &Store, id: PackId) -> Result<Self> {
        let path = pack_path(&id);
        let upload = store.objects().put_multipart(&path).await.map_err(Error::objects("write", &path))?;
        let sealer = store.keys().map(|keys| keys.sealer(id));
        let header = pack_header(id, sealer.as_ref().map(FrameSealer::key_id));
        let folder = store.location().as_folder();
        Ok(Self {
            id,
            growing: folder.map(|folder| folder.join(format!("{path}#1"))),
            sealer,
            upload,
            sending: None,
            len: header.len() as u32,
            part_bytes: header.len(),
            part: vec![header.into()],
            frames: 0,
            entries: Vec::new(),
        })
    }

    /// A frame's length in this pack.
    fn len_of(&self, frame: &EncodedFrame) -> u32 {
        frame.len() + if self.sealer.is_some() { TAG_BYTES as u32 } else { 0 }
    }

    fn has_room(&self, frame: &EncodedFrame, pack_bytes: u32) -> bool {
        self.len + self.len_of(frame) <= pack_bytes
            && self.entries.len() + frame.hashes.len() <= MAX_PACK_ENTRIES
    }

    async fn append(&mut self, frame: EncodedFrame) -> Result<()> {
        let location = Location {
            pack: self.id,
            offset: self.len,
            len: self.len_of(&frame),
            slot: 0,
            // At most 16.
            count: frame.hashes.len() as u8,
            kind: frame.kind,
        };
        for (slot, hash) in frame.hashes.iter().enumerate() {
            self.entries.push(Entry { hash: *hash, location: Location { slot: slot as u8, ..location } });
        }
        match &self.sealer {
            Some(sealer) => {
                let mut sealed = Vec::with_capacity(location.len as usize);
                frame.write(self.frames, &mut sealed);
                sealer.seal(&mut sealed, 0);
                self.part.push(sealed.into());
            }
            None => self.part.extend([frame.head(self.frames).into(), frame.payload.into()]),
        }
        self.part_bytes += location.len as usize;
        self.len += location.len;
        self.frames += 1;
        if self.part_bytes >= PART_BYTES {
            self.send().await?;
        }
        Ok(())
    }

    /// Sends what has gathered, while the next part gathers.
    async fn send(&mut self) -> Result<()> {
        if let Some(sending) = self.sending.take() {
            sending.await?.map_err(Error::objects("write", &pack_path(&self.id)))?;
        }
        let part = PutPayload::from_iter(std::mem::take(&mut self.part));
        self.part_bytes = 0;
        let sent = self.upload.put_part(part);
        let growing = self.growing.clone();
        let sending = tokio::spawn(async move {
            sent.await?;
            if let Some(file) = growing {
                // Little is left to wait for in the end then. What counts is that end: it makes all of the file durable,
                // and says what went wrong.
                drop(tokio::task::spawn_blocking(move || write_out(&file)).await);
            }
            Ok(())
        });
        self.sending = Some(AbortOnDropHandle::new(sending));
        Ok(())
    }

    /// Makes the pack durable, then its index segment, then lets this process's index see it.
    async fn finish(mut self, store: Store) -> Result<Indexed> {
        let path = pack_path(&self.id);
        self.send().await?;
        if let Some(sending) = self.sending.take() {
            sending.await?.map_err(Error::objects("write", &path))?;
        }
        self.upload.complete().await.map_err(Error::objects("write", &path))?;

        let hashes = self.entries.iter().map(|entry| entry.hash).collect();
        let segment = write_segment(&store, self.entries).await?;
        store.refresh().await?;
        // The pack is found; an index of many segments is only slower. Here rather than at the end of a write, because a large
        // one makes thousands of them.
        if let Err(error) = merge_segments(&store).await {
            tracing::warn!(%error, store = %store.location(), "index segments could not be merged");
        }
        Ok(Indexed { hashes, stored_bytes: u64::from(self.len) + segment })
    }
}

/// Makes the disk write what a file has so far.
fn write_out(file: &std::path::Path) -> std::io::Result<()> {
    File::open(file)?.sync_data()
}

/// Writes a segment under a new name and returns its size.
pub(crate) async fn write_segment(store: &Store, entries: Vec<Entry>) -> Result<u64> {
    let name = Uuid::new_v4().simple().to_string();
    let path = segment_path(&name);
    let (keys, object) = (store.keys().cloned(), path.to_string());
    let encode = move || {
        let bytes = Bytes::from(encode_segment(entries));
        let stored = keys.map_or_else(|| bytes.clone(), |keys| keys.seal_object(&object, &bytes).into());
        (bytes, stored)
    };
    let (bytes, stored) = tokio::task::spawn_blocking(encode).await?;
    let len = stored.len() as u64;
    store.objects().put(&path, stored.into()).await.map_err(Error::objects("write", &path))?;
    store.index().keep(&name, bytes).await;
    Ok(len)
}
