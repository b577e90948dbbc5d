//! A remote object store with a bound on what is under way at a time, and uploads that are taken back when they are dropped.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that carry bytes, at a time and for one open store. Each read holds up to 1 MiB, each part of an upload 9 MiB.
const MAX_REQUESTS: usize = 32;

/// Listings are not counted: who reads while listing would wait for themselves.
#[derive(Debug)]
pub(super) struct Bounded {
    inner: Arc<dyn ObjectStore>,
    requests: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, requests: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }
}

/// The semaphore is never closed: there is always a permit in the end.
async fn permit(requests: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(requests).acquire_owned().await.ok()
}

impl fmt::Display for Bounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for Bounded {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let _permit = permit(&self.requests).await;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(path, options).await?;
        let requests = Arc::clone(&self.requests);
        Ok(Box::new(Upload { inner: Some(upload), requests, path: path.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let permit = permit(&self.requests).await;
        let mut result = self.inner.get_opts(path, options).await?;
        if let GetResultPayload::Stream(stream) = result.payload {
            // The permit goes when the answer was read, or is dropped.
            let held = stream.map(move |part| {
                let _held = &permit;
                part
            });
            result.payload = GetResultPayload::Stream(held.boxed());
        }
        Ok(result)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let _permit = permit(&self.requests).await;
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload in parts. Object stores keep (and charge for) the parts of one that was neither completed nor aborted; a
/// process that is killed leaves them to the bucket's own rule.
#[derive(Debug)]
struct Upload {
    /// `None` once it is complete or aborted.
    inner: Option<Box<dyn MultipartUpload>>,
    requests: Arc<Semaphore>,
    path: Path,
}

impl Upload {
    fn over(&self) -> object_store::Error {
        let source = format!("the upload of `{}` has ended", self.path);
        object_store::Error::Generic { store: "upload", source: source.into() }
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let Some(upload) = &mut self.inner else {
            let error = self.over();
            return Box::pin(async { Err(error) });
        };
        let part = upload.put_part(data);
        let requests = Arc::clone(&self.requests);
        Box::pin(async move {
            let _permit = permit(&requests).await;
            part.await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let _permit = permit(&self.requests).await;
        let error = self.over();
        let result = self.inner.as_mut().ok_or(error)?.complete().await?;
        self.inner = None;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        let _permit = permit(&self.requests).await;
        match self.inner.take() {
            Some(mut upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) = (self.inner.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let path = self.path.clone();
        runtime.spawn(async move {
            if let Err(error) = upload.abort().await {
                tracing::warn!(%error, %path, "the parts of an abandoned upload could not be removed");
            }
        });
    }
}
