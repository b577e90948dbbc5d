//! Fetches a large file that is mostly zeros: where the server knows which pages of it hold something (page blobs of Azure),
//! only these; and what breaks off goes on where it stopped, as long as the file is still the same one.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::Path;

use futures::StreamExt;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue, IF_MATCH, RANGE};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::{
    ATTEMPTS, Answer, Attempt, FetchError, FetchLimits, RETRY_PAUSE, Source, attempts, request, store_whole,
};
use crate::AppState;

/// Times that one attempt goes on after it broke off, however much came in between.
const RESUMES_MAX: u32 = 1000;
/// The longest page list that is read, and the most stretches of it that are fetched one by one; of a blob with more, all
/// bytes are fetched.
const PAGE_LIST_BYTES_MAX: usize = 32 << 20;
const STRETCHES_MAX: usize = 100_000;
/// Pages without content that are fetched rather than asked around.
const GAP_MAX: u64 = 64 << 10;
/// A version of the storage service that tells all pages at once.
const PAGE_LIST_VERSION: &str = "2019-12-12";

/// Fetches `url` (http or https) into the file `path`, which is replaced; zeros become holes. `progress` hears how far it
/// is, of how many bytes if the server says so. Returns the file's length.
///
/// # Errors
/// [`FetchError`]; the file may then be there in part.
pub(crate) async fn fetch_sparse_to_file(
    state: &AppState,
    url: &str,
    path: &Path,
    limits: FetchLimits,
    progress: impl Fn(u64, Option<u64>),
) -> Result<u64, FetchError> {
    let source = Source { outbound: state.fabric.outbound(), own: Some(state) };
    fetch(source, url, path, limits, progress).await
}

pub(super) async fn fetch(
    source: Source<'_>,
    url: &str,
    path: &Path,
    limits: FetchLimits,
    progress: impl Fn(u64, Option<u64>),
) -> Result<u64, FetchError> {
    let progress = &progress;
    attempts(url, limits, move || once(source, url, path, limits, progress)).await
}

async fn once(
    source: Source<'_>,
    url: &str,
    path: &Path,
    limits: FetchLimits,
    progress: &impl Fn(u64, Option<u64>),
) -> Result<u64, Attempt> {
    // One byte tells whether there are parts to be had, of what and of how much.
    let first = request(source, url, &part(0..1, None)).await?;
    if first.status != StatusCode::PARTIAL_CONTENT {
        return Ok(store_whole(first, path, limits, progress).await?.bytes);
    }
    let Some(pinned) = Pinned::of(&first) else {
        let whole = request(source, url, &HeaderMap::new()).await?;
        return Ok(store_whole(whole, path, limits, progress).await?.bytes);
    };
    limits.check(pinned.total)?;
    let is_page_blob = first.headers.get("x-ms-blob-type").is_some_and(|kind| kind == "PageBlob");
    drop(first);
    let pages = if is_page_blob { pages(source, url, &pinned).await } else { None };
    let mut transfer = Transfer { source, url, pinned, file: File::create(path).await?, resumes: 0 };
    transfer.file.set_len(transfer.pinned.total).await?;
    let all = 0..transfer.pinned.total;
    for stretch in pages.unwrap_or_else(|| Vec::from([all])) {
        transfer.stretch(stretch, progress).await?;
    }
    transfer.file.flush().await?;
    transfer.file.sync_all().await?;
    Ok(transfer.pinned.total)
}

/// What all parts must be of.
struct Pinned {
    etag: HeaderValue,
    total: u64,
}

impl Pinned {
    /// `None`: the server does not say it so that a part could be trusted to fit the others. Weak tags do not.
    fn of(answer: &Answer) -> Option<Self> {
        let etag = answer.headers.get("etag").filter(|etag| etag.as_bytes().starts_with(b"\""))?;
        let (start, total) = answer.part()?;
        (start == 0 && total > 0).then(|| Self { etag: etag.clone(), total })
    }
}

/// Headers that ask for a part, of the same file as before.
fn part(range: Range<u64>, of: Option<&Pinned>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Digits are a header's value.
    if let Ok(range) = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
    {
        headers.insert(RANGE, range);
    }
    if let Some(pinned) = of {
        headers.insert(IF_MATCH, pinned.etag.clone());
    }
    headers
}

/// One attempt's way through the file.
struct Transfer<'a> {
    source: Source<'a>,
    url: &'a str,
    pinned: Pinned,
    file: File,
    resumes: u32,
}

impl Transfer<'_> {
    /// Fetches a stretch, and goes on where it broke off.
    async fn stretch(
        &mut self,
        stretch: Range<u64>,
        progress: &impl Fn(u64, Option<u64>),
    ) -> Result<(), Attempt> {
        let (mut at, mut stalled) = (stretch.start, 0);
        while at < stretch.end {
            let before = at;
            let reason = match self.stream(&mut at, stretch.end, progress).await {
                Ok(()) => continue,
                Err(Attempt::Passing(reason)) => reason,
                Err(other) => return Err(other),
            };
            self.resumes += 1;
            stalled = if at > before { 0 } else { stalled + 1 };
            if stalled == ATTEMPTS || self.resumes == RESUMES_MAX {
                return Err(Attempt::Passing(reason));
            }
            if stalled > 0 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        at: &mut u64,
        end: u64,
        progress: &impl Fn(u64, Option<u64>),
    ) -> Result<(), Attempt> {
        let total = self.pinned.total;
        let answer = request(self.source, self.url, &part(*at..end, Some(&self.pinned))).await?;
        if answer.part() != Some((*at, total)) {
            return Err(Attempt::Passing("the server gave another part than it was asked for".to_owned()));
        }
        let mut body = answer.body;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(Attempt::Passing)?;
            if chunk.len() as u64 > end - *at {
                return Err(Attempt::Passing("the server gave more than it was asked for".to_owned()));
            }
            if chunk.iter().any(|byte| *byte != 0) {
                self.file.seek(SeekFrom::Start(*at)).await?;
                self.file.write_all(&chunk).await?;
            }
            *at += chunk.len() as u64;
            progress(*at, Some(total));
        }
        match *at == end {
            true => Ok(()),
            false => Err(Attempt::Passing("the server gave less than it was asked for".to_owned())),
        }
    }
}

/// Where a page blob holds something. `None` if the server does not tell: then all of it is fetched.
async fn pages(source: Source<'_>, url: &str, pinned: &Pinned) -> Option<Vec<Range<u64>>> {
    let mut list = reqwest::Url::parse(url).ok()?;
    list.query_pairs_mut().append_pair("comp", "pagelist");
    let mut headers = HeaderMap::new();
    headers.insert(IF_MATCH, pinned.etag.clone());
    headers.insert("x-ms-version", HeaderValue::from_static(PAGE_LIST_VERSION));
    let mut body = request(source, list.as_str(), &headers).await.ok()?.body;
    let mut text = Vec::new();
    while let Some(chunk) = body.next().await {
        text.extend_from_slice(&chunk.ok()?);
        if text.len() > PAGE_LIST_BYTES_MAX {
            return None;
        }
    }
    stretches(str::from_utf8(&text).ok()?, pinned.total)
}

/// The stretches of a page list: in order, apart from each other, inside of the blob.
fn stretches(list: &str, total: u64) -> Option<Vec<Range<u64>>> {
    let within = |text: &str, name: &str| -> Option<u64> {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>"))?.0.trim().parse().ok()
    };
    let (_, mut rest) = list.split_once("<PageList")?;
    if !rest.contains("</PageList>") && !rest.trim_start().starts_with("/>") {
        return None;
    }
    if rest
        .split_once("<NextMarker>")
        .is_some_and(|(_, marker)| !marker.trim_start().starts_with("</NextMarker>"))
    {
        return None;
    }
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut end = 0;
    while let Some((_, behind)) = rest.split_once("<PageRange>") {
        let (range, behind) = behind.split_once("</PageRange>")?;
        rest = behind;
        let start = within(range, "Start")?;
        let last = within(range, "End")?;
        if start < end || last < start || last >= total {
            return None;
        }
        end = last + 1;
        match found.last_mut() {
            Some(before) if start - before.end <= GAP_MAX => before.end = end,
            _ => found.push(start..end),
        }
    }
    (found.len() <= STRETCHES_MAX).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_lists_are_read_with_care() {
        let list = |ranges: &[(u64, u64)]| {
            let ranges: String = ranges
                .iter()
                .map(|(start, end)| {
                    format!("<PageRange><Start>{start}</Start>\n<End>{end}</End></PageRange>")
                })
                .collect();
            format!("\u{feff}<?xml version=\"1.0\"?><PageList>{ranges}</PageList>")
        };
        let read = |ranges: &[(u64, u64)]| stretches(&list(ranges), 1 << 30);
        assert_eq!(read(&[]), Some(Vec::new()));
        assert_eq!(stretches("<PageList />", 512), Some(Vec::new()));
        // Near ones are one.
        assert_eq!(
            read(&[(0, 511), (1024, 1535), (1 << 20, (1 << 20) + 511)]),
            Some(Vec::from([0..1536, (1 << 20)..(1 << 20) + 512]))
        );
        for wrong in
            [[(512, 511), (0, 0)], [(1024, 2047), (0, 511)], [(0, 511), (511, 1023)], [(0, 1 << 30), (0, 0)]]
        {
            assert_eq!(read(&wrong), None, "{wrong:?}");
        }
        for text in [
            "",
            "<Error/>",
            "<PageList><PageRange>",
            "<PageList>",
            "<PageList><PageRange><Start>0</Start></PageRange></PageList>",
        ] {
            assert_eq!(stretches(text, 512), None, "{text}");
        }
        assert_eq!(stretches("<PageList><NextMarker>more</NextMarker></PageList>", 512), None);
    }
}
