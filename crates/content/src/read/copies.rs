//! The copies of one image: which is asked first, and what happens when it is slow, away or damaged.
//!
//! ```text
//!   home copy of the page ── answers ──────────────► what it gave
//!        │ fails            │ silent for HEDGE_AFTER
//!        ▼                  ▼
//!   the next copy      the next copy as well: whichever gives verified bytes first
//! ```
//!
//! A copy that is out of reach is asked last for a while, and looked for beside the reads: only the first of them waits for
//! it. Its client goes on trying for minutes, which is right where there is no other copy, and only there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};

use crate::id::ManifestId;
use crate::store::Store;
use crate::{Error, Result};

/// Silence after which another copy is asked as well. A frame of 1 MiB in this time is 4 Mbit/s.
const HEDGE_AFTER: Duration = Duration::from_secs(2);
/// How long a copy is asked last after it was out of reach once; twice as long after each further time.
const MIN_AWAY: Duration = Duration::from_secs(1);
/// The longest that it is asked last before it is looked for again.
const MAX_AWAY: Duration = Duration::from_secs(30);

/// The stores that hold an image, at least one.
#[derive(Debug)]
pub(super) struct Copies {
    image: ManifestId,
    list: Vec<Arc<Copy>>,
    damaged: AtomicU64,
}

#[derive(Debug)]
struct Copy {
    store: Store,
    reach: Mutex<Reach>,
}

/// Whether a copy is in reach, as far as anybody found out.
#[derive(Debug, Default)]
struct Reach {
    /// Times that it was asked or looked for in vain, since it last gave something.
    failures: u32,
    /// It is asked last until it was looked for, which is not before this.
    look_at: Option<Instant>,
}

impl Reach {
    fn put_off(&mut self) {
        let wait = MIN_AWAY.saturating_mul(1 << self.failures.min(16)).min(MAX_AWAY);
        self.failures = self.failures.saturating_add(1);
        self.look_at = Some(Instant::now() + wait);
    }
}

/// What a failure says about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Damaged,
    Away,
    /// Nothing: a key is missing, or this process stops.
    Neither,
}

impl Copies {
    /// Finds out where the image is visible. A store that does not answer in time while another does counts as a copy that
    /// is away.
    pub(super) async fn open(stores: &[Store], image: ManifestId) -> Result<Self> {
        if let [only] = stores {
            only.is_readable(&image).await?;
            let copy = Copy { store: only.clone(), reach: Mutex::default() };
            return Ok(Self { image, list: vec![Arc::new(copy)], damaged: AtomicU64::new(0) });
        }
        let started = Instant::now();
        let mut asked: FuturesUnordered<_> = stores
            .iter()
            .enumerate()
            .map(|(number, store)| async move { (number, store.is_readable(&image).await) })
            .collect();
        let mut answers: Vec<Option<Result<()>>> = stores.iter().map(|_| None).collect();
        let mut until = None;
        loop {
            let answer = match until {
                None => asked.next().await,
                // Those who have not answered by then are away.
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or(None),
            };
            let Some((number, answer)) = answer else { break };
            if answer.is_ok() {
                until = Some(started + HEDGE_AFTER);
            }
            answers[number] = Some(answer);
        }
        drop(asked);
        let found = answers.iter().any(|answer| matches!(answer, Some(Ok(()))));
        let mut list = Vec::new();
        let mut first = None;
        for (store, answer) in stores.iter().zip(answers) {
            let copy = Copy { store: store.clone(), reach: Mutex::default() };
            match answer {
                Some(Ok(())) => list.push(Arc::new(copy)),
                None => {
                    copy.is_away("it does not answer");
                    list.push(Arc::new(copy));
                }
                Some(Err(error)) => {
                    if found && copy.is_out_of_reach(&error) {
                        copy.is_away(&error.to_string());
                        list.push(Arc::new(copy));
                    } else if found {
                        tracing::warn!(%error, store = %store.location(), "a copy of an image is not used");
                    }
                    first.get_or_insert(error);
                }
            }
        }
        match found {
            true => Ok(Self { image, list, damaged: AtomicU64::new(0) }),
            false => Err(first.unwrap_or_else(|| nowhere(image))),
        }
    }

    pub(super) fn store(&self, copy: usize) -> &Store {
        &self.list[copy].store
    }

    /// What was damaged in one place and whole in another.
    pub(super) fn damaged_reads(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Takes note that something was read elsewhere because of damage to this copy.
    pub(super) fn note_damage(&self, copy: usize, error: &Error) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.list[copy].store.note_damaged_read();
        tracing::warn!(%error, image = %self.image, "part of an image was read from another place");
    }

    /// Asks the copies for something of a page, one after the other, until one has it. With several, one that is silent is
    /// overtaken by the next. The error is that of the first that failed.
    pub(super) async fn first_of<T, F>(&self, page: u32, ask: impl Fn(usize) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        if self.list.len() == 1 {
            return ask(0).await;
        }
        let ask = |copy: usize| {
            let answer = ask(copy);
            async move {
                match answer.await {
                    Ok(given) => (copy, Ok(given)),
                    Err(error) => (copy, Err((self.list[copy].judge(&error, &self.image).await, error))),
                }
            }
        };
        let mut waiting = self.order(page).into_iter();
        let mut running = FuturesUnordered::new();
        let mut asked: Vec<(usize, Instant)> = Vec::new();
        let mut failed: Vec<(usize, Verdict, Error)> = Vec::new();
        loop {
            // To begin with, after a failure, and after silence.
            if let Some(copy) = waiting.next() {
                asked.push((copy, Instant::now()));
                running.push(ask(copy));
            }
            let answer = match waiting.len() {
                0 => running.next().await,
                _ => match timeout(HEDGE_AFTER, running.next()).await {
                    Ok(answer) => answer,
                    Err(_) => continue,
                },
            };
            match answer {
                Some((copy, Ok(given))) => {
                    self.list[copy].is_here();
                    let slow = |(_, asked): &&(usize, Instant)| asked.elapsed() >= HEDGE_AFTER;
                    for (other, _) in asked.iter().filter(|(other, _)| *other != copy).filter(slow) {
                        self.list[*other].is_away("it is silent");
                    }
                    let damaged = failed.iter().find(|(_, verdict, _)| *verdict == Verdict::Damaged);
                    if let Some((copy, _, error)) = damaged {
                        self.note_damage(*copy, error);
                    }
                    return Ok(given);
                }
                Some((copy, Err((verdict, error)))) => {
                    asked.retain(|(other, _)| *other != copy);
                    if verdict == Verdict::Away {
                        self.list[copy].is_away(&error.to_string());
                    }
                    failed.push((copy, verdict, error));
                }
                None => {
                    let first = failed.into_iter().next().map(|(_, _, error)| error);
                    return Err(first.unwrap_or_else(|| nowhere(self.image)));
                }
            }
        }
    }

    /// The copies as they are asked for something of a page: those in reach first. One that was not in reach for its time is
    /// looked for, beside this.
    fn order(&self, page: u32) -> Vec<usize> {
        let count = self.list.len();
        let mut order: Vec<usize> = (0..count).map(|turn| (page as usize + turn) % count).collect();
        order.sort_by_key(|copy| self.list[*copy].look(&self.image));
        order
    }
}

/// Where no store was given at all.
fn nowhere(manifest: ManifestId) -> Error {
    Error::ManifestNotFound { manifest, location: "(none)".to_owned() }
}

impl Copy {
    /// Whether it is asked last.
    fn look(self: &Arc<Self>, image: &ManifestId) -> bool {
        let mut reach = self.lock();
        let Some(look_at) = reach.look_at else { return false };
        if look_at <= Instant::now() {
            // Nobody else looks meanwhile.
            reach.put_off();
            let (copy, image) = (Arc::clone(self), *image);
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(HEDGE_AFTER, copy.store.is_readable(&image)).await {
                    // The next read tells whether it gives anything.
                    copy.lock().look_at = None;
                }
            });
        }
        true
    }

    /// It gave something.
    fn is_here(&self) {
        let mut reach = self.lock();
        if reach.failures > 0 {
            tracing::info!(store = %self.store.location(), "a copy of an image is in reach again");
            *reach = Reach::default();
        }
    }

    /// It is out of reach. Reads that were under way together find that out together: it counts once.
    fn is_away(&self, reason: &str) {
        let mut reach = self.lock();
        if reach.look_at.is_some() {
            return;
        }
        if reach.failures == 0 {
            tracing::warn!(reason, store = %self.store.location(), "a copy of an image is out of reach");
        }
        reach.put_off();
    }

    fn lock(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failure of this copy says of it.
    async fn judge(&self, error: &Error, image: &ManifestId) -> Verdict {
        if matches!(error, Error::DamagedFrame { .. } | Error::DamagedObject { .. }) {
            return Verdict::Damaged;
        }
        if self.is_out_of_reach(error) {
            return Verdict::Away;
        }
        let remote = self.store.location().as_folder().is_none();
        let lost = match error {
            Error::NotIndexed { .. } => true,
            Error::Objects { .. } | Error::Io { .. } => error.is_gone() || !remote,
            _ => false,
        };
        if !lost {
            return Verdict::Neither;
        }
        // Something is not there, or a disk cannot give it. Where nobody refers to the image any more, or a folder is not
        // mounted, that is as it should be.
        match timeout(HEDGE_AFTER, self.store.has_manifest(image)).await {
            Ok(Ok(true)) => Verdict::Damaged,
            _ => Verdict::Away,
        }
    }

    /// Whether a remote store did not answer, as far as the failure tells.
    fn is_out_of_reach(&self, error: &Error) -> bool {
        let remote = self.store.location().as_folder().is_none();
        remote && matches!(error, Error::Objects { .. }) && !error.is_gone()
    }
}
