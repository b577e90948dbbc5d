//! An object store that fails: seeded, so that a failure can be repeated.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// The longest that an answer is delayed.
const MAX_DELAY_MS: u64 = 10;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It does not arrive.
    Refused,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// A read ends early, and says that it was all.
    Truncated,
    /// A read ends early with an error.
    Broken,
    /// One bit of a read is not what it was.
    Flipped,
    /// Late, and right.
    Slow,
}

const FAULTS: [Fault; 6] =
    [Fault::Refused, Fault::AnswerLost, Fault::Truncated, Fault::Broken, Fault::Flipped, Fault::Slow];

/// What is wrong with all requests for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// No request is ever answered.
    Hangs,
    /// Every one fails at once.
    Refuses,
    /// Every one takes so long, and is right.
    Slow(Duration),
}

/// Passes requests on, and spoils some of them.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    /// Of 1000 requests, how many fail.
    per_mille: u64,
    requests: AtomicU64,
    pack_reads: AtomicU64,
    faults: AtomicU64,
    outage: Mutex<Option<Outage>>,
}

impl Shared {
    /// The next random number; which request gets which depends on their order.
    fn random(&self) -> u64 {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::hash(&[self.seed.to_le_bytes(), number.to_le_bytes()].concat());
        let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("32 bytes");
        u64::from_le_bytes(*first)
    }

    async fn fault(&self) -> Option<(Fault, u64)> {
        let random = self.random();
        let outage = *self.outage.lock().expect("outage");
        match outage {
            Some(Outage::Hangs) => std::future::pending().await,
            Some(Outage::Refuses) => return Some((Fault::Refused, 0)),
            Some(Outage::Slow(time)) => tokio::time::sleep(time).await,
            None => {}
        }
        if random % 1000 >= self.per_mille {
            return None;
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        let rest = random / 1000;
        let fault = FAULTS[(rest % FAULTS.len() as u64) as usize];
        let rest = rest / FAULTS.len() as u64;
        if fault == Fault::Slow {
            tokio::time::sleep(Duration::from_millis(rest % MAX_DELAY_MS)).await;
        }
        Some((fault, rest))
    }
}

fn timeout() -> Error {
    Error::Generic { store: "faulty", source: "the request timed out (injected)".into() }
}

/// Does what changes something: nothing for a read.
async fn change<T>(shared: &Shared, done: impl Future<Output = Result<T>>) -> Result<T> {
    match shared.fault().await {
        Some((Fault::Refused | Fault::Broken, _)) => Err(timeout()),
        Some((Fault::AnswerLost | Fault::Truncated, _)) => {
            done.await?;
            Err(timeout())
        }
        _ => done.await,
    }
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, seed: u64, per_mille: u64) -> Arc<Self> {
        let shared = Shared {
            seed,
            per_mille,
            requests: AtomicU64::new(0),
            pack_reads: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            outage: Mutex::new(None),
        };
        Arc::new(Self { inner, shared: Arc::new(shared) })
    }

    /// From now on.
    pub(crate) fn set(&self, outage: Option<Outage>) {
        *self.shared.outage.lock().expect("outage") = outage;
    }

    /// Reads of packs so far, answered or not.
    pub(crate) fn pack_reads(&self) -> u64 {
        self.shared.pack_reads.load(Ordering::Relaxed)
    }

    /// Faults so far.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        change(&self.shared, self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = change(&self.shared, self.inner.put_multipart_opts(path, options)).await?;
        Ok(Box::new(FaultyUpload { inner, shared: Arc::clone(&self.shared) }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        if path.as_ref().starts_with("packs/") {
            self.shared.pack_reads.fetch_add(1, Ordering::Relaxed);
        }
        let fault = self.shared.fault().await;
        if matches!(fault, Some((Fault::Refused | Fault::AnswerLost, _))) {
            return Err(timeout());
        }
        let mut result = self.inner.get_opts(path, options).await?;
        // No checksum covers a JSON object; TLS is what protects it.
        let covered = path.as_ref().starts_with("packs/") || path.as_ref().starts_with("index/");
        let (fault, random) = match fault {
            Some((Fault::Flipped, _)) if !covered => return Ok(result),
            Some((fault, random)) if !head => (fault, random),
            _ => return Ok(result),
        };
        let GetResult { meta, range, attributes, extensions, .. } = &result;
        let (meta, range) = (meta.clone(), range.clone());
        let (attributes, extensions) = (attributes.clone(), extensions.clone());
        let mut bytes = result.bytes().await?.to_vec();
        let at = if bytes.is_empty() { 0 } else { (random % bytes.len() as u64) as usize };
        let mut end = None;
        match fault {
            Fault::Truncated => bytes.truncate(at),
            Fault::Broken => {
                bytes.truncate(at);
                end = Some(Err(timeout()));
            }
            Fault::Flipped if !bytes.is_empty() => bytes[at] ^= 1 << (random % 8),
            _ => {}
        }
        let parts = futures::stream::iter([Ok(Bytes::from(bytes))].into_iter().chain(end));
        let payload = GetResultPayload::Stream(parts.boxed());
        result = GetResult { payload, meta, range, attributes, extensions };
        Ok(result)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        let delete = move |path: Result<Path>| {
            let (inner, shared) = (Arc::clone(&inner), Arc::clone(&shared));
            async move {
                let one = futures::stream::iter([path]).boxed();
                let mut deleted = inner.delete_stream(one);
                let deleted = async move { deleted.next().await.unwrap_or_else(|| Err(timeout())) };
                change(&shared, deleted).await
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let shared = Arc::clone(&self.shared);
        let listing = self.inner.list(prefix);
        // An error at the start, or instead of some object.
        let begin = futures::stream::once(async move {
            match shared.fault().await {
                Some((Fault::Refused | Fault::AnswerLost, _)) => (0, true),
                Some((Fault::Truncated | Fault::Broken, random)) => ((random % 4) as usize, true),
                _ => (0, false),
            }
        });
        let listed = begin.flat_map_unordered(1, {
            let mut listing = Some(listing);
            move |(after, fails)| {
                let listing = listing.take().unwrap_or_else(|| futures::stream::empty().boxed());
                match fails {
                    false => listing,
                    true => listing.take(after).chain(futures::stream::iter([Err(timeout())])).boxed(),
                }
            }
        });
        listed.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        change(&self.shared, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        change(&self.shared, self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    shared: Arc<Shared>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { change(&shared, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        change(&self.shared, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// An object store that overwrites where it was asked to create, as some that call themselves S3 do.
#[derive(Debug)]
pub(crate) struct Unconditional(pub(crate) Arc<dyn ObjectStore>);

impl fmt::Display for Unconditional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unconditional({})", self.0)
    }
}

#[async_trait]
impl ObjectStore for Unconditional {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        options.mode = PutMode::Overwrite;
        self.0.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
