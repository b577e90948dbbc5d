//! What images and writers need: every manifest, page and block that can be reached.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::GcStage;
use crate::format::{Manifest, Page};
use crate::id::{BlockHash, ManifestId, PageId, WriterId};
use crate::store::Store;
use crate::{Error, Result};

/// Manifests and pages that are read at a time.
const MAX_READS: usize = 16;
/// Times that marking begins anew because an image went meanwhile.
const MAX_MARKS: u32 = 8;
/// Times that something is missing although the same images are visible before it is taken for lost.
pub(super) const MAX_UNCHANGED: u32 = 3;
/// Pages between two reports of progress.
const REPORT_PAGES: u64 = 1024;

/// What has to stay.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    /// Images that someone refers to.
    pub(crate) visible: BTreeSet<ManifestId>,
    /// Images that writers hold.
    pub(crate) held: BTreeSet<ManifestId>,
    /// Writers that live: their packs are not looked at.
    pub(crate) writers: HashSet<WriterId>,
}

/// What was reached. Grows only: what was needed a moment ago is kept once more.
///
/// For each hash its first half is kept. Two that share it are both kept, so a collision costs a block and loses none.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    manifests: HashSet<ManifestId>,
    pages: HashSet<PageId>,
    /// Sorted, without doubles.
    marks: Arc<Vec<Mark>>,
    /// What could not be read, and by whom it is needed; only where damage is asked for.
    pub(crate) unreadable: Vec<Unreadable>,
    /// Whether damage is collected rather than an error.
    collect_damage: bool,
}

/// A table of an image, page or manifest, that no source has undamaged.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) hash: BlockHash,
    pub(crate) error: Error,
}

/// Something that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The first half of its hash.
    pub(crate) half: [u8; 16],
    /// By a visible image: it must be there. What only a writer holds may be gone, and the writer will notice.
    pub(crate) required: bool,
}

impl Marked {
    /// Goes on where a table cannot be read, and says so in `unreadable`.
    pub(crate) fn collecting_damage() -> Self {
        Self { collect_damage: true, ..Self::default() }
    }

    /// From now on a table that cannot be read is an error again: something is about to be freed.
    pub(crate) fn refuse_damage(&mut self) {
        self.collect_damage = false;
    }

    /// Begins anew: what was needed may no longer be.
    pub(crate) fn forget(&mut self) {
        *self = Self { collect_damage: self.collect_damage, ..Self::default() };
    }

    /// Everything that is needed, in the order of the hashes.
    pub(crate) fn marks(&self) -> Arc<Vec<Mark>> {
        Arc::clone(&self.marks)
    }

    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    fn add(&mut self, hash: &[u8; 32], required: bool) {
        Arc::make_mut(&mut self.marks).push(Mark { half: half(hash), required });
    }

    fn settle(&mut self) {
        let marks = Arc::make_mut(&mut self.marks);
        marks.sort_unstable_by_key(|mark| (mark.half, !mark.required));
        marks.dedup_by_key(|mark| mark.half);
    }
}

/// The first half of a hash.
pub(crate) fn half(hash: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

/// Marks what the roots need that was not marked before. Tables are read from the first source that has them undamaged.
pub(crate) async fn mark(
    sources: &[Store],
    roots: &Roots,
    marked: &mut Marked,
    progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
) -> Result<()> {
    let mut visible = roots.visible.clone();
    let mut unchanged = 0;
    for _ in 0..MAX_MARKS {
        match mark_all(sources, &visible, true, marked, progress).await {
            // An image whose last reference went after we listed it may be half gone; one that is still visible is damaged.
            Err(Error::NotIndexed { hash }) if !marked.collect_damage => {
                let now = sources[0].visible_images().await?;
                let left: BTreeSet<_> = visible.intersection(&now).copied().collect();
                // It may also have gone and come back while we looked.
                unchanged += u32::from(left == visible);
                if unchanged == MAX_UNCHANGED {
                    return Err(Error::NotIndexed { hash });
                }
                visible = left;
            }
            Err(error) => return Err(error),
            Ok(()) => {
                mark_all(sources, &roots.held, false, marked, progress).await?;
                marked.settle();
                return Ok(());
            }
        }
    }
    let reason = "images were deleted during each attempt to see what is needed; try again".to_owned();
    Err(Error::Contended { reason })
}

async fn mark_all(
    sources: &[Store],
    images: &BTreeSet<ManifestId>,
    must_exist: bool,
    marked: &mut Marked,
    progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
) -> Result<()> {
    let new: Vec<ManifestId> =
        images.iter().filter(|image| !marked.manifests.contains(*image)).copied().collect();
    let mut pages: BTreeMap<u32, Vec<PageId>> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut roots =
        stream::iter(new).map(|image| named(image, load_root(sources.to_vec(), image))).buffered(MAX_READS);
    let mut read = Vec::new();
    while let Some((image, root)) = roots.next().await {
        let root = match root {
            Ok(root) => root,
            // A writer that held it and found it gone is about to say so.
            Err(Error::NotIndexed { .. }) if !must_exist => continue,
            Err(error) if marked.collect_damage => {
                marked.add(image.as_bytes(), must_exist);
                let hash = BlockHash::from_bytes(*image.as_bytes());
                marked.unreadable.push(Unreadable { hash, error });
                continue;
            }
            Err(error) => return Err(error),
        };
        marked.add(image.as_bytes(), must_exist);
        read.push(image);
        for (number, entry) in root.pages {
            if !marked.pages.contains(&entry.id) && seen.insert(entry.id) {
                pages.entry(number).or_default().push(entry.id);
            }
        }
    }
    drop(roots);

    let total = seen.len() as u64;
    let list = pages.into_iter().flat_map(|(number, ids)| ids.into_iter().map(move |id| (number, id)));
    let mut loads = stream::iter(list)
        .map(|(number, id)| named((number, id), load_page(sources.to_vec(), id)))
        .buffered(MAX_READS);
    let mut before: Option<(u32, Page)> = None;
    let mut done = 0;
    while let Some(((number, id), page)) = loads.next().await {
        if done % REPORT_PAGES == 0 {
            progress(GcStage::Marking, done, total);
        }
        done += 1;
        let page = match page {
            Ok(page) => page,
            Err(Error::NotIndexed { .. }) if !must_exist => continue,
            Err(error) if marked.collect_damage => {
                marked.add(id.as_bytes(), must_exist);
                let hash = BlockHash::from_bytes(*id.as_bytes());
                marked.unreadable.push(Unreadable { hash, error });
                continue;
            }
            Err(error) => return Err(error),
        };
        marked.add(id.as_bytes(), must_exist);
        marked.pages.insert(id);
        // Versions of one page differ in few blocks: what stands at the same place in the one before is marked.
        let same = before.as_ref().filter(|(other, _)| *other == number).map(|(_, page)| page);
        for (index, hash) in page.present() {
            if same.and_then(|page| page.get(index)) != Some(hash) {
                marked.add(hash.as_bytes(), must_exist);
            }
        }
        before = Some((number, page));
    }
    drop(loads);
    // Only now: an image is marked when all of it is. One that is only held may have parts which are not there yet.
    if must_exist {
        marked.manifests.extend(read);
    }
    Ok(())
}

/// What a future gives, with what it was for.
async fn named<N, T>(name: N, future: impl Future<Output = T>) -> (N, T) {
    (name, future.await)
}

pub(crate) async fn load_root(sources: Vec<Store>, id: ManifestId) -> Result<Manifest> {
    let bytes = load(&sources, id.as_bytes()).await?;
    Manifest::decode(&id, &bytes)
        .map_err(|reason| Error::DamagedObject { object: format!("manifest {id}"), reason })
}

pub(crate) async fn load_page(sources: Vec<Store>, id: PageId) -> Result<Page> {
    let bytes = load(&sources, id.as_bytes()).await?;
    Page::decode(&bytes).map_err(|reason| Error::DamagedObject { object: format!("page {id}"), reason })
}

/// A table from the first source that has it. The error is the first source's.
async fn load(sources: &[Store], hash: &[u8; 32]) -> Result<Vec<u8>> {
    let mut first = None;
    for store in sources {
        match store.load_by_hash(hash).await {
            Ok(frame) => return Ok(frame.plain),
            Err(error) => first.get_or_insert(error),
        };
    }
    Err(first.unwrap_or(Error::NotIndexed { hash: BlockHash::from_bytes(*hash) }))
}
