//! What the actors of a schedule do, and what they know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use content::{BlockCache, Error, GcOptions, ManifestId, Store, replicate};
use disk::{BlockSource, Extent, ExtentKind, Extents};

use super::Stores;
use super::slow::{Pace, Time};
use crate::support::BLOCK;

/// Different blocks that disks are made of: few, so that disks share them.
const PALETTE: u64 = 9;
/// Blocks of a disk.
const DISK_BLOCKS: u64 = 6;
/// What an actor does before it ends.
const MAX_STEPS: u64 = 5;

/// Numbers that a seed fixes (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// A disk as the numbers of its blocks; 0 is zeros. In changes, blocks above the palette are not there.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Vec<u64>);

impl Disk {
    fn random(dice: &mut Dice) -> Self {
        Self((0..DISK_BLOCKS).map(|_| dice.below(PALETTE + 1)).collect())
    }

    /// Changes of one or two blocks.
    fn changes(dice: &mut Dice) -> Self {
        let mut disk = Self(vec![PALETTE + 1; DISK_BLOCKS as usize]);
        for _ in 0..1 + dice.below(2) {
            disk.0[dice.below(DISK_BLOCKS) as usize] = dice.below(PALETTE + 1);
        }
        disk
    }

    fn over(&self, base: &Self) -> Self {
        let blocks = self.0.iter().zip(&base.0).map(|(own, base)| if *own > PALETTE { *base } else { *own });
        Self(blocks.collect())
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|number| block(*number)).collect::<Vec<_>>().concat()
    }
}

fn block(number: u64) -> Vec<u8> {
    match number {
        0 => vec![0; BLOCK],
        _ => number.to_le_bytes().repeat(BLOCK / 8),
    }
}

impl BlockSource for Disk {
    fn logical_size(&self) -> u64 {
        (self.0.len() * BLOCK) as u64
    }

    fn extents(&self) -> Extents<'_> {
        let own = self.0.iter().enumerate().filter(|(_, number)| **number <= PALETTE);
        Box::new(own.map(|(at, number)| {
            let kind = if *number == 0 { ExtentKind::Zero } else { ExtentKind::Data };
            Ok(Extent { start: (at * BLOCK) as u64, len: BLOCK as u64, kind })
        }))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        let mut covered = 0;
        let first = offset as usize / BLOCK;
        for (part, number) in buf.chunks_mut(BLOCK).zip(&self.0[first..]) {
            if *number <= PALETTE {
                part.copy_from_slice(&block(*number)[..part.len()]);
                covered += part.len();
            }
        }
        Ok(covered)
    }
}

/// A reference: store, image, owner.
type Reference = (usize, ManifestId, String);

/// What all actors know together.
pub(crate) struct World {
    pub(crate) stores: Stores,
    seed: u64,
    time: Arc<Time>,
    disks: Mutex<HashMap<ManifestId, Disk>>,
    /// References that exist for certain: an actor was told so, and nobody began to remove them.
    promised: Mutex<BTreeSet<Reference>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            stores: Stores::new(),
            seed,
            time: Arc::default(),
            disks: Mutex::default(),
            promised: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// Two images for a start.
    pub(crate) async fn prepare(&self, stores: &[Store; 2]) {
        let mut dice = Dice::new(self.seed ^ 0x5eed);
        for (number, store) in stores.iter().enumerate() {
            let disk = Disk::random(&mut dice);
            let owner = format!("start{number}");
            let report = store.put_source(Arc::new(disk.clone()), &owner, |_| {}).await.expect("put");
            self.visible(number, report.manifest, &owner, disk);
        }
    }

    pub(crate) fn promised(&self, store: usize) -> Vec<(ManifestId, String)> {
        let promised = self.promised.lock().expect("promised");
        promised.iter().filter(|(at, ..)| *at == store).map(|(_, id, owner)| (*id, owner.clone())).collect()
    }

    pub(crate) fn is_disk(&self, manifest: &ManifestId, bytes: &[u8]) -> bool {
        // An image of a writer that was killed after it made it visible is known to nobody.
        self.disks.lock().expect("disks").get(manifest).is_none_or(|disk| disk.bytes() == bytes)
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().expect("counts").clone()
    }

    fn count(&self, what: &'static str, by: u64) {
        *self.counts.lock().expect("counts").entry(what).or_insert(0) += by;
    }

    fn visible(&self, store: usize, manifest: ManifestId, owner: &str, disk: Disk) {
        self.disks.lock().expect("disks").insert(manifest, disk);
        self.promised.lock().expect("promised").insert((store, manifest, owner.to_owned()));
    }

    /// Any reference that exists for certain.
    fn any(&self, dice: &mut Dice) -> Option<(Reference, Disk)> {
        let promised = self.promised.lock().expect("promised");
        let all: Vec<_> = promised.iter().collect();
        let reference = (*dice.pick(if all.is_empty() { return None } else { &all })).clone();
        let disk = self.disks.lock().expect("disks").get(&reference.1)?.clone();
        Some((reference, disk))
    }

    /// Takes a reference from the promised ones, so that only one actor removes it.
    fn take(&self, reference: &Reference) -> bool {
        self.promised.lock().expect("promised").remove(reference)
    }

    fn is_promised(&self, reference: &Reference) -> bool {
        self.promised.lock().expect("promised").contains(reference)
    }
}

/// One process that uses both stores.
pub(crate) struct Actor {
    world: Arc<World>,
    name: String,
    dice: Dice,
    pace: Arc<Pace>,
    stores: [Store; 2],
}

impl Actor {
    pub(crate) async fn new(world: Arc<World>, number: u64) -> Self {
        let mut dice = Dice::new(world.seed.wrapping_mul(1000).wrapping_add(number));
        dice.next();
        let pace = Arc::new(Pace::new(Arc::clone(&world.time), dice.clone()));
        let stores = [world.stores.open(0, &pace).await, world.stores.open(1, &pace).await];
        Self { world, name: format!("actor{number}"), dice, pace, stores }
    }

    pub(crate) async fn act(mut self) {
        for step in 0..1 + self.dice.below(MAX_STEPS) {
            let owner = format!("{}-{step}", self.name);
            let what = self.dice.below(16);
            let done = match what {
                0..4 => self.put(&owner).await,
                4..6 => self.commit(&owner).await,
                6 => self.copy(&owner).await,
                7 => self.share(&owner).await,
                8..11 => self.remove().await,
                11 => self.read().await,
                12 => return self.die(&owner).await,
                _ => self.collect().await,
            };
            match done {
                Ok(()) => {}
                // Too many others were in the way.
                Err(Error::Contended { .. }) => self.world.count("contended", 1),
                Err(error) => panic!("{owner}, step {what}: {error:?}"),
            }
        }
    }

    fn store(&mut self) -> (usize, Store) {
        let number = self.dice.below(2) as usize;
        (number, self.stores[number].clone())
    }

    async fn put(&mut self, owner: &str) -> Result<(), Error> {
        let (number, store) = self.store();
        let disk = Disk::random(&mut self.dice);
        let report = store.put_source(Arc::new(disk.clone()), owner, |_| {}).await?;
        self.world.visible(number, report.manifest, owner, disk);
        self.world.count("put", 1);
        Ok(())
    }

    async fn commit(&mut self, owner: &str) -> Result<(), Error> {
        let Some((base, disk)) = self.world.any(&mut self.dice) else { return Ok(()) };
        let changes = Disk::changes(&mut self.dice);
        let disk = changes.over(&disk);
        let store = &self.stores[base.0];
        let report = store.commit_source(&base.1, Arc::new(changes), owner, |_| {}).await;
        let Some(report) = self.if_there(&base, report)? else { return Ok(()) };
        self.world.visible(base.0, report.manifest, owner, disk);
        self.world.count("commit", 1);
        Ok(())
    }

    async fn copy(&mut self, owner: &str) -> Result<(), Error> {
        let Some((source, disk)) = self.world.any(&mut self.dice) else { return Ok(()) };
        let (from, to) = (&self.stores[source.0], &self.stores[1 - source.0]);
        match replicate(from, to, &source.1, owner, |_| {}).await {
            Ok(_) => {
                self.world.visible(1 - source.0, source.1, owner, disk);
                self.world.count("replicate", 1);
                Ok(())
            }
            failed => self.if_there(&source, failed).map(drop),
        }
    }

    async fn share(&mut self, owner: &str) -> Result<(), Error> {
        let Some((source, disk)) = self.world.any(&mut self.dice) else { return Ok(()) };
        let added = self.stores[source.0].add_ref(&source.1, owner).await;
        if self.if_there(&source, added)?.is_none() {
            return Ok(());
        }
        self.world.visible(source.0, source.1, owner, disk);
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), Error> {
        let Some((reference, _)) = self.world.any(&mut self.dice) else { return Ok(()) };
        if self.world.take(&reference) {
            self.stores[reference.0].remove_ref(&reference.1, &reference.2).await?;
        }
        Ok(())
    }

    /// What is referred to all the while can be read all the while.
    async fn read(&mut self) -> Result<(), Error> {
        let Some((reference, disk)) = self.world.any(&mut self.dice) else { return Ok(()) };
        let bytes = contents(&self.stores[reference.0], &reference.1).await;
        if self.world.is_promised(&reference) {
            assert!(bytes? == disk.bytes(), "{} read other bytes", self.name);
            self.world.count("read", 1);
        }
        Ok(())
    }

    async fn collect(&mut self) -> Result<(), Error> {
        let (_, store) = self.store();
        let writer_timeout = Duration::from_secs(*self.dice.pick(&[0, 3600, 3600]));
        let options = GcOptions { writer_timeout, ..GcOptions::default() };
        let report = store.gc(&options, |_, _, _| {}).await?;
        self.world.count("collected", 1);
        self.world.count("packs removed", report.packs_removed);
        self.world.count("given up", report.writers_given_up);
        Ok(())
    }

    /// Is killed in the middle of something that changes a store.
    async fn die(mut self, owner: &str) {
        let (_, store) = self.store();
        let disk = Disk::random(&mut self.dice);
        let base = self.world.any(&mut self.dice);
        let (what, changes) = (self.dice.below(4), Disk::changes(&mut self.dice));
        let other = self.stores.clone();
        let owner = owner.to_owned();
        let work = tokio::spawn(async move {
            let done = match (what, base) {
                (1, Some((base, _))) => {
                    other[base.0].commit_source(&base.1, Arc::new(changes), &owner, |_| {}).await.map(drop)
                }
                (2, Some((source, _))) => {
                    let (from, to) = (&other[source.0], &other[1 - source.0]);
                    replicate(from, to, &source.1, &owner, |_| {}).await.map(drop)
                }
                (3, _) => store.gc(&GcOptions::default(), |_, _, _| {}).await.map(drop),
                _ => store.put_source(Arc::new(disk), &owner, |_| {}).await.map(drop),
            };
            // Nobody hears of it.
            drop(done);
        });
        for _ in 0..self.dice.below(3000) {
            tokio::task::yield_now().await;
        }
        self.pace.kill();
        work.abort();
        self.world.count("killed", 1);
    }

    /// An image that is promised all the while must be found. One that is not may go in the middle: when the writer is
    /// given up, nobody holds it.
    fn if_there<T>(&self, reference: &Reference, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Error::Contended { .. }) => Ok(None),
            Err(error) => {
                assert!(!self.world.is_promised(reference), "{}: {reference:?}: {error}", self.name);
                self.world.count("refused", 1);
                Ok(None)
            }
        }
    }
}

/// All bytes of an image.
pub(crate) async fn contents(store: &Store, manifest: &ManifestId) -> Result<Vec<u8>, Error> {
    let image = store.open_image(manifest, Arc::new(BlockCache::in_memory())).await?;
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(0, &mut bytes).await?;
    Ok(bytes)
}
