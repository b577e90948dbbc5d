//! `tintype store get`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use content::{BlockCache, Image, ImageSource, ManifestId, Progress, StoreLocation};
use disk::write::{Existing, Layout};
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::format::{Stoppable, Written};
use super::output::{Meter, Output, size};
use super::{Ending, place, raw};

/// Gets an image out of a store, as a disk file.
///
/// Every block is verified. FILE appears when it is complete and on the disk, and not before. Zeros of a raw
/// file are holes. A fixed VHD has the size and footer that Azure wants. VHDX, qcow2 and VMDK need qemu-img.
///
/// Examples:
///   tintype store get MANIFEST disk.raw --region /srv/images --format raw
///   tintype store get MANIFEST disk.vhd --region /srv/images
///   tintype store get MANIFEST disk.img --region /srv/images --format qcow2 --force
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The image, as `store put` and `store ls` print it.
    manifest: ManifestId,
    /// The file to write.
    file: PathBuf,
    /// The store: a folder, or its URL.
    #[arg(long, value_name = "URL")]
    region: StoreLocation,
    /// Format of FILE: raw, vhd (fixed), vhd-dynamic, vhdx, qcow2, vmdk. If it is not said: what the name of FILE says,
    /// else raw.
    #[arg(long)]
    format: Option<Written>,
    /// Replace FILE if it exists.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<Ending> {
    let Arguments { manifest, file, region, format, force } = arguments;
    let started = Instant::now();
    if !force && file.symlink_metadata().is_ok() {
        bail!("{} exists; choose another name, or replace it with --force", file.display());
    }
    let format = format.or_else(|| Written::from_extension(&file)).unwrap_or(Written(Layout::Raw));
    let store = place::to_read(&region).await?;
    let image = store.open_image(&manifest, Arc::new(BlockCache::in_memory())).await?;
    let logical_bytes = image.size();
    let meter = Meter::new("get");
    match format.0 {
        Layout::Raw => write_raw(&image, &file, &meter).await?,
        layout => {
            let existing = if force { Existing::Replace } else { Existing::Refuse };
            write_other(image, &file, layout, existing, meter).await?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let value = json!({
        "manifest": manifest,
        "file": file.display().to_string(),
        "format": format.name(),
        "logical_bytes": logical_bytes,
        "seconds": seconds,
    });
    output.result(&value, || {
        format!("{}\n  {} disk of {}, in {seconds:.2} s", file.display(), format.name(), size(logical_bytes))
    });
    Ok(Ending::Done)
}

async fn write_raw(image: &Image, file: &Path, meter: &Meter) -> anyhow::Result<()> {
    let unfinished = Unfinished::beside(file)?;
    let written =
        File::create_new(&unfinished.path).with_context(|| unfinished.cannot("create")).map(Arc::new)?;
    raw::write(image, &written, |progress| meter.show(progress))
        .await
        .with_context(|| format!("cannot write {} as {}", image.id(), file.display()))?;
    unfinished.become_file(file)
}

/// Every other format is written by one thread, in the order that it wants.
async fn write_other(
    image: Image,
    file: &Path,
    layout: Layout,
    existing: Existing,
    meter: Meter,
) -> anyhow::Result<()> {
    let total_bytes = image.size();
    let (stop, path) = (CancellationToken::new(), file.to_owned());
    let source = Stoppable { source: ImageSource::new(image, Handle::current()), stop: stop.clone() };
    let _ends_with_this = stop.drop_guard();
    let write = move || {
        disk::write::write(&source, &path, layout, existing, &mut |done_bytes| {
            meter.show(Progress { done_bytes, total_bytes });
        })
    };
    Ok(tokio::task::spawn_blocking(write).await??)
}

/// A file under another name until it is complete. Removed when dropped before.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn beside(file: &Path) -> anyhow::Result<Self> {
        let Some(name) = file.file_name() else { bail!("{} is not the name of a file", file.display()) };
        let hidden = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        Ok(Self { path: file.with_file_name(hidden) })
    }

    fn cannot(&self, action: &str) -> String {
        format!("cannot {action} {}", self.path.display())
    }

    /// Gives it its name, and makes that last.
    fn become_file(self, file: &Path) -> anyhow::Result<()> {
        std::fs::rename(&self.path, file).with_context(|| self.cannot("rename"))?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync the folder {}", folder.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            // Never created, or renamed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "cannot remove an unfinished file")
            }
        }
    }
}
