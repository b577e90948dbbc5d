//! Containers: create, delete, properties, metadata, stored access policies; and what an account says of itself.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use roxmltree::{Document, Node};

use super::about::{etag, http_date, metadata, set};
use super::body::{self, Unread};
use super::conditions::{self, For};
use super::error::BlobError;
use super::objects;
use super::rows::{ContainerData, Policy};
use super::service::Call;
use super::xml::Xml;
use crate::api::storage_accounts::later;

/// Most stored access policies of a container (Azure).
const MAX_POLICIES: usize = 5;
/// Longest name of a policy in characters (Azure).
const MAX_POLICY_ID_CHARS: usize = 64;
/// Largest body of Set Container ACL in bytes.
const MAX_POLICIES_BYTES: u64 = 64 * 1024;

pub(super) async fn create(call: &Call) -> Result<Response, BlobError> {
    refuse_public(&call.parts.headers)?;
    let name = call.container()?;
    let data = ContainerData {
        modified: call.state.now(),
        metadata: metadata(&call.parts.headers)?,
        policies: Vec::new(),
    };
    let account = &call.account.key;
    let made = call
        .state
        .store
        .write(|tx| Box::pin(async { tx.insert_container(account, name, &data).await }))
        .await?;
    if !made {
        let message = "The specified container already exists.";
        return Err(BlobError::new(StatusCode::CONFLICT, "ContainerAlreadyExists", message));
    }
    Ok(done(StatusCode::CREATED, &data))
}

/// Nothing here is public, and an account that pretended would surprise.
fn refuse_public(headers: &HeaderMap) -> Result<(), BlobError> {
    match headers.get("x-ms-blob-public-access") {
        None => Ok(()),
        Some(_) => {
            let message = "Public access is not permitted on this storage account: hand out a SAS instead.";
            Err(BlobError::new(StatusCode::CONFLICT, "PublicAccessNotPermitted", message))
        }
    }
}

fn done(status: StatusCode, data: &ContainerData) -> Response {
    let mut response = body::empty(status, None);
    write_version(response.headers_mut(), data);
    response
}

fn write_version(headers: &mut HeaderMap, data: &ContainerData) {
    set(headers, axum::http::header::ETAG, &etag(data.modified));
    set(headers, axum::http::header::LAST_MODIFIED, &http_date(data.modified));
}

/// The container's row.
pub(super) async fn read(call: &Call) -> Result<ContainerData, BlobError> {
    let (account, name) = (&call.account.key, call.container()?);
    let row = call
        .state
        .store
        .read(|tx| Box::pin(async { tx.container::<ContainerData>(account, name).await }))
        .await?;
    Ok(row.ok_or_else(BlobError::container_not_found)?.data)
}

pub(super) async fn properties(call: &Call) -> Result<Response, BlobError> {
    let data = read(call).await?;
    let mut response = done(StatusCode::OK, &data);
    let headers = response.headers_mut();
    for (name, value) in &data.metadata {
        if let Ok(name) = HeaderName::try_from(format!("x-ms-meta-{name}")) {
            set(headers, name, value);
        }
    }
    for (name, value) in [
        ("x-ms-lease-status", "unlocked"),
        ("x-ms-lease-state", "available"),
        ("x-ms-has-immutability-policy", "false"),
        ("x-ms-has-legal-hold", "false"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

pub(super) async fn set_metadata(call: &Call) -> Result<Response, BlobError> {
    let metadata = metadata(&call.parts.headers)?;
    let data = change(call, |data| data.metadata = metadata.clone()).await?;
    Ok(done(StatusCode::OK, &data))
}

/// Changes a container's data, if the request's conditions hold.
async fn change(call: &Call, change: impl Fn(&mut ContainerData) + Sync) -> Result<ContainerData, BlobError> {
    let (account, name, now) = (&call.account.key, call.container()?, call.state.now());
    call.state
        .store
        .write(|tx| {
            Box::pin(async {
                let row = tx.container::<ContainerData>(account, name).await?;
                let mut data = row.ok_or_else(BlobError::container_not_found)?.data;
                conditions::check(&call.parts.headers, For::Writing, Some(data.modified))?;
                change(&mut data);
                data.modified = later(now, Some(data.modified));
                tx.update_container(account, name, &data).await?;
                Ok::<_, BlobError>(data)
            })
        })
        .await
}

pub(super) async fn delete(call: &Call) -> Result<Response, BlobError> {
    let (account, name) = (&call.account.key, call.container()?);
    call.state
        .store
        .write(|tx| {
            Box::pin(async {
                let row = tx.container::<ContainerData>(account, name).await?;
                let row = row.ok_or_else(BlobError::container_not_found)?;
                conditions::check(&call.parts.headers, For::Writing, Some(row.data.modified))?;
                tx.delete_containers(account, Some(name), call.region.as_str(), objects::GRACE).await?;
                Ok::<_, BlobError>(())
            })
        })
        .await?;
    Ok(body::empty(StatusCode::ACCEPTED, None))
}

/// Get Container ACL.
pub(super) async fn policies(call: &Call) -> Result<Response, BlobError> {
    let data = read(call).await?;
    let mut xml = Xml::document("SignedIdentifiers");
    for policy in &data.policies {
        xml.nest("SignedIdentifier", |xml| {
            xml.text("Id", &policy.id).nest("AccessPolicy", |xml| {
                xml.maybe("Start", policy.start.as_deref())
                    .maybe("Expiry", policy.expiry.as_deref())
                    .maybe("Permission", policy.permission.as_deref());
            });
        });
    }
    let mut response = xml.into_response();
    write_version(response.headers_mut(), &data);
    Ok(response)
}

/// Set Container ACL.
pub(super) async fn set_policies(call: &Call, unread: &mut Unread) -> Result<Response, BlobError> {
    refuse_public(&call.parts.headers)?;
    let whole = body::read(body::take(unread), MAX_POLICIES_BYTES).await?;
    let policies = parse_policies(&whole.bytes)?;
    let data = change(call, |data| data.policies = policies.clone()).await?;
    Ok(done(StatusCode::OK, &data))
}

fn parse_policies(bytes: &[u8]) -> Result<Vec<Policy>, BlobError> {
    let text = std::str::from_utf8(bytes).map_err(|_| BlobError::xml("it is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let document = Document::parse(text).map_err(|error| BlobError::xml(&error.to_string()))?;
    let mut policies = Vec::new();
    for node in elements(document.root_element(), "SignedIdentifier") {
        if policies.len() == MAX_POLICIES {
            return Err(BlobError::xml("a container has at most 5 stored access policies"));
        }
        let id = text_of(node, "Id").unwrap_or_default();
        if id.is_empty() || id.chars().count() > MAX_POLICY_ID_CHARS {
            return Err(BlobError::xml("each SignedIdentifier needs an Id of 1 to 64 characters"));
        }
        let policy = elements(node, "AccessPolicy").next();
        let field = |name: &str| policy.and_then(|policy| text_of(policy, name));
        policies.push(Policy {
            id,
            start: field("Start"),
            expiry: field("Expiry"),
            permission: field("Permission"),
        });
    }
    Ok(policies)
}

fn elements<'a>(node: Node<'a, 'a>, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

fn text_of(node: Node<'_, '_>, name: &str) -> Option<String> {
    let child = node.children().find(|child| child.has_tag_name(name))?;
    child.text().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Get Account Information.
pub(super) fn account_information(call: &Call) -> Result<Response, BlobError> {
    let spec = &call.account.data.spec;
    let mut response = body::empty(StatusCode::OK, None);
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-ms-sku-name", arm::storage_account::sku_name(spec.sku)),
        ("x-ms-account-kind", arm::storage_account::kind_name(spec.kind)),
        ("x-ms-is-hns-enabled", "false"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Get Blob Service Properties: what cannot be set is off.
pub(super) fn service_properties() -> Response {
    let off = |xml: &mut Xml, name: &str| {
        xml.nest(name, |xml| {
            xml.text("Version", "1.0").text("Enabled", "false").nest("RetentionPolicy", |xml| {
                xml.text("Enabled", "false");
            });
        });
    };
    let mut xml = Xml::document("StorageServiceProperties");
    xml.nest("Logging", |xml| {
        xml.text("Version", "1.0").text("Delete", "false").text("Read", "false").text("Write", "false").nest(
            "RetentionPolicy",
            |xml| {
                xml.text("Enabled", "false");
            },
        );
    });
    off(&mut xml, "HourMetrics");
    off(&mut xml, "MinuteMetrics");
    xml.text("Cors", "");
    xml.nest("DeleteRetentionPolicy", |xml| {
        xml.text("Enabled", "false");
    });
    xml.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_or_refused() {
        let one = "<SignedIdentifier><Id>a</Id><AccessPolicy><Expiry>2026-01-01</Expiry><Permission>r</Permission>\
                   </AccessPolicy></SignedIdentifier>";
        let body =
            |inner: &str| format!("<?xml version=\"1.0\"?><SignedIdentifiers>{inner}</SignedIdentifiers>");
        let read = parse_policies(body(one).as_bytes()).unwrap();
        let expected = Policy {
            id: "a".to_owned(),
            start: None,
            expiry: Some("2026-01-01".to_owned()),
            permission: Some("r".to_owned()),
        };
        assert_eq!(read, [expected]);
        assert_eq!(parse_policies(b"").unwrap(), []);
        for bad in [
            body(&one.repeat(6)),
            body("<SignedIdentifier/>"),
            "<a".to_owned(),
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>".to_owned(),
        ] {
            assert_eq!(parse_policies(bad.as_bytes()).unwrap_err().code, "InvalidXmlDocument", "{bad}");
        }
    }
}
