//! An object store whose requests wait for those of others.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::actors::Dice;

/// Turns of the scheduler without any request after which time goes on by itself.
const IDLE_TURNS: u32 = 12;

/// The requests of all actors of one schedule, counted: the schedule's time.
#[derive(Debug, Default)]
pub(crate) struct Time(AtomicU64);

impl Time {
    async fn pass(&self, requests: u64) {
        let until = self.0.fetch_add(1, Ordering::Relaxed) + requests;
        let mut idle = 0;
        let mut last = 0;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            if now >= until {
                return;
            }
            idle = if now == last { idle + 1 } else { 0 };
            last = now;
            if idle > IDLE_TURNS {
                // All others wait as well, or have ended.
                self.0.fetch_add(1, Ordering::Relaxed);
                idle = 0;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// How an actor's requests are spread over time.
#[derive(Debug)]
pub(crate) struct Pace {
    time: Arc<Time>,
    dice: Mutex<Dice>,
    /// Of 64 requests, how many wait, and for at most how many requests of others.
    waits: (u64, u64),
    dead: AtomicBool,
}

impl Pace {
    pub(crate) fn new(time: Arc<Time>, mut dice: Dice) -> Self {
        let waits = *dice.pick(&[(2, 200), (8, 60), (16, 30), (40, 10)]);
        Self { time, dice: Mutex::new(dice), waits, dead: AtomicBool::new(false) }
    }

    /// Waits for nothing.
    pub(crate) fn quick() -> Self {
        Self {
            time: Arc::default(),
            dice: Mutex::new(Dice::new(0)),
            waits: (0, 1),
            dead: AtomicBool::new(false),
        }
    }

    /// From now on no request is answered, as if the process were killed.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Comes before each request.
    async fn wait(&self) {
        let requests = {
            let mut dice = self.dice.lock().expect("dice");
            if dice.below(64) < self.waits.0 { dice.below(self.waits.1) } else { 0 }
        };
        self.time.pass(requests).await;
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

#[derive(Debug)]
pub(crate) struct Slow {
    inner: Arc<dyn ObjectStore>,
    pace: Arc<Pace>,
}

impl Slow {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, pace: Arc<Pace>) -> Self {
        Self { inner, pace }
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for Slow {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pace.wait().await;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pace.wait().await;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.pace.wait().await;
        self.inner.get_opts(path, options).await
    }

    /// Each removal waits for itself.
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, pace) = (Arc::clone(&self.inner), Arc::clone(&self.pace));
        paths
            .then(move |path| {
                let (inner, pace) = (Arc::clone(&inner), Arc::clone(&pace));
                async move {
                    pace.wait().await;
                    let mut removed = inner.delete_stream(stream::once(async { path }).boxed());
                    removed.next().await.unwrap_or_else(|| Err(not_answered()))
                }
            })
            .boxed()
    }

    /// In two parts, as real stores answer in pages: the second sees what changed meanwhile.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, pace, prefix) = (Arc::clone(&self.inner), Arc::clone(&self.pace), prefix.cloned());
        let listed = async move {
            pace.wait().await;
            let sorted = |mut objects: Vec<ObjectMeta>| {
                objects.sort_by(|a, b| a.location.cmp(&b.location));
                objects
            };
            let mut first = sorted(inner.list(prefix.as_ref()).try_collect().await?);
            if first.len() < 2 {
                return Ok::<_, object_store::Error>(first);
            }
            first.truncate(first.len() / 2);
            pace.wait().await;
            let second = sorted(inner.list(prefix.as_ref()).try_collect().await?);
            let last = first.last().map(|object| object.location.clone());
            first.extend(second.into_iter().filter(|object| Some(&object.location) > last.as_ref()));
            Ok(first)
        };
        stream::once(listed).map_ok(|objects| stream::iter(objects.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pace.wait().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.pace.wait().await;
        self.inner.copy_opts(from, to, options).await
    }
}

fn not_answered() -> object_store::Error {
    object_store::Error::Generic { store: "slow", source: "no answer".into() }
}
