//! What the service tells of a blob beside its bytes, and what a client may set of it.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::BlobError;

/// Most bytes of a blob's metadata, names and values together: Azure's limit.
const MAX_METADATA_BYTES: usize = 8 * 1024;
/// Longest content header in bytes.
const MAX_CONTENT_HEADER_BYTES: usize = 1024;
/// What a blob is when nobody said.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// Azure's blob types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// Written whole or in blocks.
    Block,
    /// Random writes of 512-byte pages.
    Page,
    /// Grows at its end.
    Append,
}

impl BlobKind {
    /// `x-ms-blob-type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BlobKind::Block => "BlockBlob",
            BlobKind::Page => "PageBlob",
            BlobKind::Append => "AppendBlob",
        }
    }
}

/// The headers that a blob gives back as they were set, in wire form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentHeaders {
    /// `Content-Type`; `None` is `application/octet-stream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// `Content-Language`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// `Content-MD5` of the whole blob, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// `Content-Disposition`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disposition: Option<String>,
    /// `Cache-Control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
}

impl ContentHeaders {
    /// From `x-ms-blob-content-*`; Put Blob of block blobs also takes the plain headers (`plain`).
    ///
    /// # Errors
    /// 400 when one is too long or no text.
    pub(super) fn of_request(headers: &HeaderMap, plain: bool) -> Result<Self, BlobError> {
        let text = |ours: &'static str, standard: &'static str| {
            let value = headers.get(ours).or_else(|| headers.get(standard).filter(|_| plain));
            let Some(value) = value else { return Ok(None) };
            match value.to_str() {
                Ok(text) if text.len() <= MAX_CONTENT_HEADER_BYTES => {
                    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
                }
                _ => Err(BlobError::header(ours, "is too long or holds more than ASCII")),
            }
        };
        Ok(Self {
            content_type: text("x-ms-blob-content-type", "content-type")?,
            encoding: text("x-ms-blob-content-encoding", "content-encoding")?,
            language: text("x-ms-blob-content-language", "content-language")?,
            md5: text("x-ms-blob-content-md5", "")?,
            disposition: text("x-ms-blob-content-disposition", "")?,
            cache_control: text("x-ms-blob-cache-control", "cache-control")?,
        })
    }

    /// The type, never absent.
    pub(super) fn content_type(&self) -> &str {
        self.content_type.as_deref().unwrap_or(DEFAULT_CONTENT_TYPE)
    }
}

/// `x-ms-meta-*`, names in lower case.
pub type Metadata = BTreeMap<String, String>;

/// The metadata of a request.
///
/// # Errors
/// 400 when it is too large, empty-named, or no text.
pub(super) fn metadata(headers: &HeaderMap) -> Result<Metadata, BlobError> {
    let mut found = Metadata::new();
    let mut bytes = 0;
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-ms-meta-") else { continue };
        let value = value.to_str().map_err(|_| BlobError::header(name.as_str(), "holds more than ASCII"))?;
        if key.is_empty() {
            let message = "The specified metadata is invalid: a name is empty.";
            return Err(BlobError::new(StatusCode::BAD_REQUEST, "EmptyMetadataKey", message));
        }
        // Azure wants C#'s identifiers, and lists write names as XML elements.
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if key.starts_with(|c: char| c.is_ascii_digit()) || !key.bytes().all(fits) {
            let message =
                format!("The specified metadata is invalid: '{key}' is no name (letters, digits and _).");
            return Err(BlobError::new(StatusCode::BAD_REQUEST, "InvalidMetadata", message));
        }
        bytes += key.len() + value.len();
        if bytes > MAX_METADATA_BYTES {
            let message = format!("The metadata is larger than {MAX_METADATA_BYTES} bytes.");
            return Err(BlobError::new(StatusCode::BAD_REQUEST, "MetadataTooLarge", message));
        }
        found.insert(key.to_owned(), value.trim().to_owned());
    }
    Ok(found)
}

/// The copy that made a blob. It was complete when it was answered; clients that wait for it look here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// `x-ms-copy-id`.
    pub id: Uuid,
    /// `x-ms-copy-source`, without its query, which may hold a signature.
    pub source: String,
    /// `x-ms-copy-completion-time`.
    pub completed: DateTime<Utc>,
    /// Bytes that were copied.
    pub bytes: u64,
}

impl Copied {
    /// `x-ms-copy-status`.
    pub(super) const STATUS: &'static str = "success";

    /// `x-ms-copy-progress`.
    pub(super) fn progress(&self) -> String {
        format!("{0}/{0}", self.bytes)
    }
}

/// What is told of a blob with every answer about it.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Its type.
    pub kind: BlobKind,
    /// Last change of bytes, properties or metadata. The ETag is made of it, so two changes have two moments.
    pub modified: DateTime<Utc>,
    /// When it was made.
    pub created: Option<DateTime<Utc>>,
    /// Content headers.
    pub content: ContentHeaders,
    /// Metadata.
    pub metadata: Metadata,
    /// `x-ms-blob-sequence-number` of page blobs.
    pub sequence_number: u64,
    /// `x-ms-blob-committed-block-count` of append blobs.
    pub append_blocks: u64,
    /// The copy that made it.
    pub copied: Option<Copied>,
}

impl About {
    /// A page blob without content headers or metadata, such as a disk's.
    #[must_use]
    pub fn page(modified: DateTime<Utc>) -> Self {
        Self {
            kind: BlobKind::Page,
            modified,
            created: None,
            content: ContentHeaders::default(),
            metadata: Metadata::new(),
            sequence_number: 0,
            append_blocks: 0,
            copied: None,
        }
    }

    /// The ETag with its quotes.
    #[must_use]
    pub fn etag(&self) -> String {
        etag(self.modified)
    }

    /// ETag and Last-Modified, which every answer about the blob has.
    pub(super) fn write_version(&self, headers: &mut HeaderMap) {
        set(headers, header::ETAG, &self.etag());
        set(headers, header::LAST_MODIFIED, &http_date(self.modified));
    }

    /// Everything, as Get Blob and Get Blob Properties answer it. `whole`: the bytes that go with it are all of the
    /// blob's, so that its MD5 is theirs.
    pub(super) fn write(&self, headers: &mut HeaderMap, whole: bool) {
        self.write_version(headers);
        let content = &self.content;
        set(headers, header::CONTENT_TYPE, content.content_type());
        let md5 = if whole { "content-md5" } else { "x-ms-blob-content-md5" };
        for (name, value) in [
            ("content-encoding", &content.encoding),
            ("content-language", &content.language),
            ("content-disposition", &content.disposition),
            ("cache-control", &content.cache_control),
            (md5, &content.md5),
        ] {
            if let Some(value) = value {
                set(headers, HeaderName::from_static(name), value);
            }
        }
        for (name, value) in &self.metadata {
            if let Ok(name) = HeaderName::try_from(format!("x-ms-meta-{name}")) {
                set(headers, name, value);
            }
        }
        if let Some(created) = self.created {
            set(headers, HeaderName::from_static("x-ms-creation-time"), &http_date(created));
        }
        if let Some(copied) = &self.copied {
            for (name, value) in [
                ("x-ms-copy-id", copied.id.to_string()),
                ("x-ms-copy-source", copied.source.clone()),
                ("x-ms-copy-status", Copied::STATUS.to_owned()),
                ("x-ms-copy-progress", copied.progress()),
                ("x-ms-copy-completion-time", http_date(copied.completed)),
            ] {
                set(headers, HeaderName::from_static(name), &value);
            }
        }
        let fixed = [
            (header::ACCEPT_RANGES.as_str(), "bytes"),
            ("x-ms-blob-type", self.kind.name()),
            ("x-ms-lease-status", "unlocked"),
            ("x-ms-lease-state", "available"),
            ("x-ms-server-encrypted", "false"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        match self.kind {
            BlobKind::Page => {
                headers.insert("x-ms-blob-sequence-number", self.sequence_number.into());
            }
            BlobKind::Append => {
                headers.insert("x-ms-blob-committed-block-count", self.append_blocks.into());
            }
            BlobKind::Block => {}
        }
    }
}

/// An ETag of a moment, with quotes, in Azure's form.
pub(super) fn etag(modified: DateTime<Utc>) -> String {
    let nanos = modified.timestamp_nanos_opt().unwrap_or_default();
    format!("\"0x{:016X}\"", nanos.cast_unsigned())
}

/// A moment as HTTP writes it.
pub(super) fn http_date(at: DateTime<Utc>) -> String {
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Sets a header; a value that HTTP cannot carry (it came from HTTP, so there is none) is left out.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
