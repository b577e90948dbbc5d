//! Removing what was condemned.

use std::collections::HashSet;
use std::time::Duration;

use super::GcStage;
use crate::format::Entry;
use crate::id::PackId;
use crate::store::{Store, pack_path, segment_path};
use crate::write::write_segment;
use crate::{Error, Result};
use futures::{StreamExt, TryStreamExt, stream};

/// Packs that are removed at a time.
const MAX_REMOVALS: usize = 16;

impl Store {
    /// Takes the entries of these packs out of the index. A merge beside this may bring some back: readers and writers
    /// notice that the pack is gone, and the next collection takes them out again.
    pub(super) async fn rewrite_segments(&self, gone: &HashSet<PackId>) -> Result<()> {
        self.refresh().await?;
        for segment in self.index().segments().iter() {
            if !segment.packs().iter().any(|pack| gone.contains(pack)) {
                continue;
            }
            let reader = std::sync::Arc::clone(segment);
            let mut entries: Vec<Entry> = tokio::task::spawn_blocking(move || reader.read_all()).await??;
            entries.retain(|entry| !gone.contains(&entry.location.pack));
            if !entries.is_empty() {
                write_segment(self, entries).await?;
            }
            self.remove_object(&segment_path(segment.name())).await?;
        }
        self.refresh().await
    }

    /// Removes packs out of which everything that is needed was copied.
    pub(super) async fn remove_packs(
        &self,
        packs: &HashSet<PackId>,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<()> {
        let total = packs.len() as u64;
        let removals: Vec<_> = packs.iter().map(|pack| self.clone().remove_pack(*pack)).collect();
        let mut removals = stream::iter(removals).buffer_unordered(MAX_REMOVALS);
        let mut done = 0;
        while removals.try_next().await?.is_some() {
            done += 1;
            progress(GcStage::Removing, done, total);
        }
        Ok(())
    }

    async fn remove_pack(self, pack: PackId) -> Result<()> {
        self.remove_object(&pack_path(&pack)).await?;
        self.index().forget_pack(pack);
        Ok(())
    }

    /// Removes files of uploads that nobody will finish, in a folder; object stores expire theirs by a rule of the bucket.
    pub(super) async fn remove_dead_uploads(&self, older_than: Duration) -> Result<u64> {
        let Some(folder) = self.location().as_folder().map(std::path::Path::to_owned) else { return Ok(0) };
        let listed = folder.clone();
        let writers = self.roots().await?.writers;
        let remove = move || -> std::io::Result<u64> {
            let mut removed = 0;
            for (path, age) in unfinished(&folder)? {
                let pack = path.file_name().and_then(|name| name.to_str()?.split('#').next()?.parse().ok());
                let dead = match pack {
                    Some::<PackId>(pack) if path.starts_with(folder.join("packs")) => {
                        !writers.iter().any(|writer| pack.is_of(writer))
                    }
                    _ => age >= older_than,
                };
                if dead && std::fs::remove_file(&path).is_ok() {
                    removed += 1;
                }
            }
            Ok(removed)
        };
        tokio::task::spawn_blocking(remove).await?.map_err(Error::io("list", &listed))
    }
}

/// The files below a folder whose name ends in `#<digits>`, with their age.
fn unfinished(folder: &std::path::Path) -> std::io::Result<Vec<(std::path::PathBuf, Duration)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // What goes meanwhile is nothing to us.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            let upload = name.to_str().and_then(|name| name.rsplit_once('#'));
            if upload.is_some_and(|(_, number)| number.bytes().all(|b| b.is_ascii_digit())) {
                let age = metadata.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
                found.push((entry.path(), age));
            }
        }
    }
    Ok(found)
}
