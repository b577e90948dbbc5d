//! Copying blocks, pages and manifests by hash, from stores to a writer: replication, and moving out of packs that go.

use std::collections::HashMap;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use super::workers;
use super::writer::BlockWriter;
use crate::format::{BLOCK_BYTES, EncodedFrame, Frame, FrameKind, Location};
use crate::id::BlockHash;
use crate::store::Store;
use crate::{Error, Result};

/// Something to be copied: its hash, and what the caller knows it by.
pub(crate) type Wanted<P> = ([u8; 32], P);

/// A failure, and what it was for if it was for one hash.
pub(crate) struct Failed<P> {
    pub(crate) error: Box<Error>,
    pub(crate) what: Option<(BlockHash, P)>,
}

/// A frame, and what is wanted of it; or something that no index names at the moment.
struct Group<P> {
    frame: Option<(usize, Location)>,
    wanted: Vec<Wanted<P>>,
}

/// What a frame became on its way.
enum Fetched {
    /// All of it is wanted: it goes over as it is.
    Whole(EncodedFrame),
    /// Some of it, which is framed anew, and what was left out.
    Parts(Vec<Part>, Unreadable),
}

struct Part {
    kind: FrameKind,
    hash: [u8; 32],
    plain: Vec<u8>,
}

/// What no source could give.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    pub(crate) hashes: Vec<[u8; 32]>,
    /// Why, of the first one.
    pub(crate) first: Option<Error>,
}

/// What happens where every source is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDamage {
    Fail,
    LeaveOut,
}

/// Copies each from the first of `sources` that can give it. What is damaged in one is taken from the next.
pub(crate) async fn copy<P: Copy + Send + 'static>(
    sources: &[Store],
    wanted: Vec<Wanted<P>>,
    writer: &mut BlockWriter<'_>,
) -> Result<(), Failed<P>> {
    copy_all(sources, wanted, writer, OnDamage::Fail).await.map(drop)
}

/// As [`copy`], but what is damaged in every source is left out and returned. Other failures are errors: they may pass.
pub(crate) async fn copy_readable<P: Copy + Send + 'static>(
    sources: &[Store],
    wanted: Vec<Wanted<P>>,
    writer: &mut BlockWriter<'_>,
) -> Result<Unreadable, Failed<P>> {
    copy_all(sources, wanted, writer, OnDamage::LeaveOut).await
}

async fn copy_all<P: Copy + Send + 'static>(
    sources: &[Store],
    wanted: Vec<Wanted<P>>,
    writer: &mut BlockWriter<'_>,
    on_damage: OnDamage,
) -> Result<Unreadable, Failed<P>> {
    let stores = sources.to_vec();
    let groups = tokio::task::spawn_blocking(move || group(&stores, wanted)).await??;
    let mut unreadable = Unreadable::default();
    let mut fetches: FuturesOrdered<BoxFuture<'static, Result<Fetched, Failed<P>>>> = FuturesOrdered::new();
    for group in groups {
        let task = tokio::spawn(fetch(sources.to_vec(), group, on_damage));
        fetches.push_back(async move { task.await? }.boxed());
        if fetches.len() > 2 * workers() {
            take(fetches.next().await, writer, &mut unreadable).await?;
        }
    }
    while !fetches.is_empty() {
        take(fetches.next().await, writer, &mut unreadable).await?;
    }
    Ok(unreadable)
}

async fn take<P>(
    fetched: Option<Result<Fetched, Failed<P>>>,
    writer: &mut BlockWriter<'_>,
    unreadable: &mut Unreadable,
) -> Result<(), Failed<P>> {
    match fetched.transpose()? {
        Some(Fetched::Whole(frame)) => writer.frame(frame).await?,
        Some(Fetched::Parts(parts, left)) => {
            unreadable.hashes.extend(left.hashes);
            unreadable.first = unreadable.first.take().or(left.first);
            for Part { kind, hash, plain } in parts {
                match kind {
                    FrameKind::Blocks => writer.block(BlockHash::from_bytes(hash), &plain).await?,
                    FrameKind::Page => writer.frame(EncodedFrame::page(hash, plain)).await?,
                    FrameKind::Manifest => writer.frame(EncodedFrame::manifest(hash, plain)).await?,
                }
            }
        }
        None => {}
    }
    Ok(())
}

/// Groups by frame, in the order in which the frames are first wanted.
fn group<P: Copy>(sources: &[Store], wanted: Vec<Wanted<P>>) -> Result<Vec<Group<P>>, Failed<P>> {
    let mut groups: Vec<Group<P>> = Vec::new();
    let mut numbers = HashMap::new();
    for (hash, place) in wanted {
        let mut found = None;
        for (source, store) in sources.iter().enumerate() {
            if let Some(location) = store.index().find(&hash)? {
                found = Some((source, location));
                break;
            }
        }
        let Some((source, location)) = found else {
            groups.push(Group { frame: None, wanted: vec![(hash, place)] });
            continue;
        };
        let number = *numbers.entry((source, location.pack, location.offset)).or_insert_with(|| {
            groups.push(Group { frame: Some((source, location)), wanted: Vec::new() });
            groups.len() - 1
        });
        groups[number].wanted.push((hash, place));
    }
    Ok(groups)
}

async fn fetch<P: Copy>(
    sources: Vec<Store>,
    group: Group<P>,
    on_damage: OnDamage,
) -> Result<Fetched, Failed<P>> {
    let Group { frame, wanted } = group;
    // Here one frame serves all that is wanted of it; when it cannot be had, each is sought for itself: a collection may
    // have moved it, or it is damaged and another source has it.
    if let Some((source, location)) = frame
        && let Ok((frame, bytes)) = sources[source].load_frame_bytes(&location).await
    {
        let all = wanted.len() == frame.hashes.len();
        if all && wanted.iter().all(|(hash, _)| frame.hashes.contains(hash)) {
            return Ok(Fetched::Whole(EncodedFrame::as_stored(frame, &bytes)));
        }
        let parts: Option<Vec<_>> = wanted.iter().map(|(hash, _)| part(&frame, hash)).collect();
        if let Some(parts) = parts {
            return Ok(Fetched::Parts(parts, Unreadable::default()));
        }
    }
    let mut parts = Vec::with_capacity(wanted.len());
    let mut left = Unreadable::default();
    for (hash, place) in wanted {
        match seek(&sources, &hash).await {
            Ok(part) => parts.push(part),
            Err(error) if on_damage == OnDamage::LeaveOut && error.is_damage() => {
                left.hashes.push(hash);
                left.first.get_or_insert(error);
            }
            Err(error) => {
                let what = Some((BlockHash::from_bytes(hash), place));
                return Err(Failed { error: Box::new(error), what });
            }
        }
    }
    Ok(Fetched::Parts(parts, left))
}

/// One part, from whichever source has it undamaged. The error is the first source's.
async fn seek(sources: &[Store], hash: &[u8; 32]) -> Result<Part> {
    let mut first = None;
    for store in sources {
        let error = match store.load_by_hash(hash).await {
            Ok(frame) => match part(&frame, hash) {
                Some(part) => return Ok(part),
                None => Error::NotIndexed { hash: BlockHash::from_bytes(*hash) },
            },
            Err(error) => error,
        };
        first.get_or_insert(error);
    }
    Err(first.unwrap_or(Error::NotIndexed { hash: BlockHash::from_bytes(*hash) }))
}

fn part(frame: &Frame, hash: &[u8; 32]) -> Option<Part> {
    let slot = frame.hashes.iter().position(|held| held == hash)?;
    let plain = match frame.kind {
        FrameKind::Blocks => frame.plain[slot * BLOCK_BYTES..(slot + 1) * BLOCK_BYTES].to_vec(),
        FrameKind::Page | FrameKind::Manifest => frame.plain.clone(),
    };
    Some(Part { kind: frame.kind, hash: *hash, plain })
}

impl<P> From<Error> for Failed<P> {
    fn from(error: Error) -> Self {
        Self { error: Box::new(error), what: None }
    }
}

impl<P> From<tokio::task::JoinError> for Failed<P> {
    fn from(error: tokio::task::JoinError) -> Self {
        Error::from(error).into()
    }
}
