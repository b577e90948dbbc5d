//! Writing an image as a raw file, as fast as its blocks can be read: several frames are read, checked and written beside
//! each other, each at its own place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::Context;
use content::{Image, Progress};
use tokio::task::JoinSet;

/// Bytes that are read and written as one piece, at a multiple of it: what one frame of a disk that was put whole holds.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces under way: bounds the memory to as many MiB.
const MAX_PIECES: usize = 8;
/// Bytes that are looked at for one question about zeros.
const STATUS_BYTES: u64 = 1 << 30;
/// Parts of one answer.
const MAX_PARTS: usize = 4096;

/// Writes `image` into `file`, which is empty, and makes it durable. What is zeros stays a hole.
pub(super) async fn write(
    image: &Image,
    file: &Arc<File>,
    progress: impl Fn(Progress),
) -> anyhow::Result<()> {
    let total_bytes = image.size();
    file.set_len(total_bytes).context("cannot set the file's size")?;
    let mut pieces = JoinSet::new();
    let mut at = 0;
    while at < total_bytes {
        let len = STATUS_BYTES.min(total_bytes - at);
        for part in image.block_status(at, len, MAX_PARTS).await? {
            let end = at + part.len;
            while !part.zero && at < end {
                let piece_end = ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(end);
                if pieces.len() == MAX_PIECES {
                    finish_one(&mut pieces).await?;
                }
                pieces.spawn(piece(image.clone(), Arc::clone(file), at, (piece_end - at) as usize));
                at = piece_end;
                progress(Progress { done_bytes: at, total_bytes });
            }
            at = end;
        }
        progress(Progress { done_bytes: at, total_bytes });
    }
    while !pieces.is_empty() {
        finish_one(&mut pieces).await?;
    }
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || file.sync_all()).await?.context("cannot make the file durable")
}

async fn finish_one(pieces: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match pieces.join_next().await {
        Some(done) => done?,
        None => Ok(()),
    }
}

async fn piece(image: Image, file: Arc<File>, at: u64, len: usize) -> anyhow::Result<()> {
    let mut bytes = vec![0; len];
    image.read_at(at, &mut bytes).await?;
    tokio::task::spawn_blocking(move || file.write_all_at(&bytes, at)).await?.context("cannot write the file")
}
