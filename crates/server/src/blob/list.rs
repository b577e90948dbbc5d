//! Lists of containers and of blobs, by the bytes of their names, in pages. With a delimiter, names are folded at its
//! first occurrence after the prefix; folding skips the rows that it hides instead of reading them.

use axum::response::{IntoResponse, Response};
use store::BlobPage;

use super::about::{Copied, Metadata, etag, http_date};
use super::blobs::modified;
use super::containers;
use super::error::BlobError;
use super::rows::{self, BlobData, ContainerData, Kept, Row};
use super::service::Call;
use super::xml::Xml;

/// Most entries of a page, and how many there are unless the client wants fewer (Azure).
const MAX_ENTRIES: usize = 5000;
/// Rows that are read at once.
const ROWS: u32 = 1000;
/// Longest delimiter in bytes.
const MAX_DELIMITER_BYTES: usize = 64;

/// What a client asks of a list.
struct Wanted {
    prefix: String,
    marker: String,
    from: Vec<u8>,
    most: usize,
    metadata: bool,
    copy: bool,
}

impl Wanted {
    fn of(call: &Call) -> Result<Self, BlobError> {
        let query = &call.query;
        let marker = query.get("marker").unwrap_or_default();
        let from = hex::decode(marker)
            .map_err(|_| BlobError::query("marker", "was not given out by this service"))?;
        let most = match query.get("maxresults") {
            None => MAX_ENTRIES,
            Some(text) => match text.parse::<usize>() {
                Ok(most) if most > 0 => most.min(MAX_ENTRIES),
                _ => return Err(BlobError::query("maxresults", "is no positive number")),
            },
        };
        let include = query.get("include").unwrap_or_default();
        let includes = |wanted: &str| include.split(',').any(|part| part.eq_ignore_ascii_case(wanted));
        Ok(Self {
            prefix: query.get("prefix").unwrap_or_default().to_owned(),
            marker: marker.to_owned(),
            from,
            most,
            metadata: includes("metadata"),
            copy: includes("copy"),
        })
    }

    fn document(&self, call: &Call, container: Option<&str>) -> Xml {
        let endpoint = call.state.endpoint.blob_url(call.account.data.name.as_str());
        let mut attributes = vec![("ServiceEndpoint", endpoint.as_str())];
        attributes.extend(container.map(|container| ("ContainerName", container)));
        let mut xml = Xml::document_with("EnumerationResults", &attributes);
        let shown = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        xml.maybe("Prefix", shown(&self.prefix).as_deref()).maybe("Marker", shown(&self.marker).as_deref());
        xml.text("MaxResults", &self.most.to_string());
        xml
    }
}

/// List Containers.
pub(super) async fn containers(call: &Call) -> Result<Response, BlobError> {
    let wanted = Wanted::of(call)?;
    let account = &call.account.key;
    let page = BlobPage {
        prefix: wanted.prefix.clone(),
        from: wanted.from.clone(),
        // One more than asked for tells whether there is a next page.
        limit: wanted.most as u32 + 1,
    };
    let rows = call
        .state
        .store
        .read(|tx| Box::pin(async { tx.containers::<ContainerData>(account, &page).await }))
        .await?;
    let mut xml = wanted.document(call, None);
    xml.nest("Containers", |xml| {
        for row in rows.iter().take(wanted.most) {
            xml.nest("Container", |xml| {
                xml.text("Name", &row.name).nest("Properties", |xml| {
                    xml.text("Last-Modified", &http_date(row.data.modified))
                        .text("Etag", &etag(row.data.modified))
                        .text("LeaseStatus", "unlocked")
                        .text("LeaseState", "available")
                        .text("HasImmutabilityPolicy", "false")
                        .text("HasLegalHold", "false");
                });
                if wanted.metadata {
                    write_metadata(xml, &row.data.metadata);
                }
            });
        }
    });
    let next = rows.get(wanted.most).map(|row| hex::encode(&row.name));
    xml.text("NextMarker", &next.unwrap_or_default());
    Ok(xml.into_response())
}

/// An entry of a list of blobs.
enum Entry {
    Blob(Box<Row>),
    /// All names that begin with this.
    Prefix(String),
}

/// List Blobs.
pub(super) async fn blobs(call: &Call) -> Result<Response, BlobError> {
    let wanted = Wanted::of(call)?;
    let delimiter = call.query.get("delimiter").filter(|delimiter| !delimiter.is_empty());
    if delimiter.is_some_and(|delimiter| delimiter.len() > MAX_DELIMITER_BYTES) {
        return Err(BlobError::query("delimiter", "is too long"));
    }
    containers::read(call).await?;
    let (mut entries, next) = entries(call, &wanted, delimiter).await?;
    for entry in &mut entries {
        if let Entry::Blob(row) = entry {
            row.data.modified = modified(call, row).await?;
        }
    }
    let mut xml = wanted.document(call, Some(call.container()?));
    xml.maybe("Delimiter", delimiter);
    xml.nest("Blobs", |xml| {
        for entry in &entries {
            match entry {
                Entry::Prefix(name) => {
                    xml.nest("BlobPrefix", |xml| {
                        xml.text("Name", name);
                    });
                }
                Entry::Blob(row) => {
                    xml.nest("Blob", |xml| write_blob(xml, row, &wanted));
                }
            }
        }
    });
    xml.text("NextMarker", &next.map(hex::encode).unwrap_or_default());
    Ok(xml.into_response())
}

/// A page of entries, and where the next one begins.
async fn entries(
    call: &Call,
    wanted: &Wanted,
    delimiter: Option<&str>,
) -> Result<(Vec<Entry>, Option<Vec<u8>>), BlobError> {
    let (account, container) = (&call.account.key, call.container()?);
    let mut entries = Vec::new();
    let mut from = wanted.from.clone();
    loop {
        let left = wanted.most - entries.len();
        let limit = ROWS.min(left as u32 + 1);
        let page = BlobPage { prefix: wanted.prefix.clone(), from: from.clone(), limit };
        let rows = call
            .state
            .store
            .read(|tx| Box::pin(async { tx.blobs::<BlobData>(account, container, &page).await }))
            .await?;
        let last = rows.len() < limit as usize;
        let mut folded = false;
        for row in rows {
            if entries.len() == wanted.most {
                return Ok((entries, Some(row.name.into_bytes())));
            }
            let rest = row.name.get(wanted.prefix.len()..).unwrap_or_default();
            let fold = delimiter.and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()));
            if let Some(length) = fold {
                let name = row.name[..wanted.prefix.len() + length].to_owned();
                // UTF-8 has no byte 0xff: this is behind every name that is folded into this one.
                from = name.clone().into_bytes();
                from.push(0xff);
                entries.push(Entry::Prefix(name));
                folded = true;
                break;
            }
            // The least name behind this one.
            from = row.name.clone().into_bytes();
            from.push(0);
            entries.push(Entry::Blob(Box::new(row)));
        }
        if last && !folded {
            return Ok((entries, None));
        }
    }
}

fn write_blob(xml: &mut Xml, row: &Row, wanted: &Wanted) {
    let about = rows::about(row);
    let content = &about.content;
    xml.text("Name", &row.name).nest("Properties", |xml| {
        xml.text("Creation-Time", &http_date(row.created_at))
            .text("Last-Modified", &http_date(about.modified))
            .text("Etag", about.etag().trim_matches('"'))
            .text("Content-Length", &row.data.bytes.to_string())
            .text("Content-Type", content.content_type())
            .maybe("Content-Encoding", content.encoding.as_deref())
            .maybe("Content-Language", content.language.as_deref())
            .maybe("Content-MD5", content.md5.as_deref())
            .maybe("Cache-Control", content.cache_control.as_deref())
            .maybe("Content-Disposition", content.disposition.as_deref());
        if row.data.kept == Kept::Pages {
            xml.text("x-ms-blob-sequence-number", &about.sequence_number.to_string());
        }
        xml.text("BlobType", about.kind.name())
            .text("LeaseStatus", "unlocked")
            .text("LeaseState", "available")
            .text("ServerEncrypted", "false");
        if let Some(copied) = about.copied.as_ref().filter(|_| wanted.copy) {
            xml.text("CopyId", &copied.id.to_string())
                .text("CopySource", &copied.source)
                .text("CopyStatus", Copied::STATUS)
                .text("CopyProgress", &copied.progress())
                .text("CopyCompletionTime", &http_date(copied.completed));
        }
    });
    if wanted.metadata {
        write_metadata(xml, &about.metadata);
    }
}

fn write_metadata(xml: &mut Xml, metadata: &Metadata) {
    xml.nest("Metadata", |xml| {
        for (name, value) in metadata {
            xml.text(name, value);
        }
    });
}
