//! `tintype store export-nbd`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use content::nbd::Export;
use content::{BlockCache, ManifestId, StoreLocation};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output::{Output, size};
use super::{Ending, place};

/// Serves an image as a read-only network block device on a Unix socket, until Ctrl-C.
///
/// Blocks are read and verified when a client asks for them. The first line is printed when clients can
/// connect. Only this user and root are let in; keep the socket in a folder of mode 0700.
///
/// Examples:
///   tintype store export-nbd MANIFEST --region /srv/images --socket /run/user/0/disk.sock
///   qemu-img info 'nbd+unix:///?socket=/run/user/0/disk.sock'
///   qemu-system-x86_64 -snapshot -drive format=raw,file='nbd+unix:///?socket=/run/user/0/disk.sock' …
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The image, as `store put` and `store ls` print it.
    manifest: ManifestId,
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// The socket to make.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Folder that keeps verified blocks; may be shared. Without it, 32 MiB of memory do.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Bound of that folder.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30)]
    cache_bytes_max: u64,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { manifest, region, socket, cache, cache_bytes_max } = arguments;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let store = place::to_read(&region).await?;
    let cache = match cache {
        Some(folder) => {
            tokio::task::spawn_blocking(move || BlockCache::open(&folder, cache_bytes_max)).await??
        }
        None => BlockCache::in_memory(),
    };
    let image = store.open_image(&manifest, Arc::new(cache)).await?;
    let logical_bytes = image.size();
    let export = Export::bind(&socket)?;
    let value = json!({
        "manifest": manifest,
        "logical_bytes": logical_bytes,
        "socket": socket.display().to_string(),
    });
    output.result(&value, || {
        format!("serving {manifest} ({}) on nbd+unix:///?socket={}", size(logical_bytes), socket.display())
    });
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    export.serve(image, shutdown).await;
    Ok(Ending::Done)
}
