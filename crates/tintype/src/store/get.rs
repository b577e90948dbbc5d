//! `tintype store get`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use content::{BlockCache, ManifestId, StoreLocation};
use serde_json::json;

use super::format::Format;
use super::output::{Meter, Output, size};
use super::{Ending, place, raw};

/// Gets an image out of a store, as a disk file.
///
/// Every block is verified. FILE appears when it is complete and on the disk, and not before. Zeros of a raw
/// file are holes.
///
/// Examples:
///   tintype store get MANIFEST disk.raw --region /srv/images --format raw
///   tintype store get MANIFEST disk.raw --region /srv/images --force
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
    /// Format of FILE.
    #[arg(long, default_value = "raw")]
    format: Format,
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
    if format != Format::Raw {
        bail!("images are written as raw only; convert the file with qemu-img afterwards");
    }
    let store = place::to_read(&region).await?;
    let image = store.open_image(&manifest, Arc::new(BlockCache::in_memory())).await?;
    let meter = Meter::new("get");
    let unfinished = Unfinished::beside(&file)?;
    let written =
        File::create_new(&unfinished.path).with_context(|| unfinished.cannot("create")).map(Arc::new)?;
    raw::write(&image, &written, |progress| meter.show(progress))
        .await
        .with_context(|| format!("cannot write {} as {}", manifest, file.display()))?;
    drop(written);
    unfinished.become_file(&file)?;
    drop(meter);
    let (logical_bytes, seconds) = (image.size(), started.elapsed().as_secs_f64());
    let value = json!({
        "manifest": manifest,
        "file": file.display().to_string(),
        "format": "raw",
        "logical_bytes": logical_bytes,
        "seconds": seconds,
    });
    output
        .result(&value, || format!("{}\n  disk {}, in {seconds:.2} s", file.display(), size(logical_bytes)));
    Ok(Ending::Done)
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
