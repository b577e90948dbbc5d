//! Where a VHD distributor's VHD goes: which addresses can take it, and how the SAS in them is kept.
//!
//! A SAS is a secret. When a template is accepted, the query leaves the address and is sealed beside it, so that nothing
//! that shows the template or a run can show it. For an account of this service none is needed: whoever may run templates
//! here may manage the accounts as well.

use std::net::Ipv4Addr;

use chrono::{DateTime, Utc};
use model::image_template::{Distributor, DistributorKind};
use model::{Rule, Violation};
use reqwest::Url;

use super::fetch::allowed_client;
use crate::AppState;
use crate::blob::disk_access;
use crate::blob::own_pages::OwnBlob;
use crate::blob::{BlobError, BlobQuery};
use crate::http::error::ApiError;
use crate::jobs::write_vhd::READ_TIMEOUT;

/// Where a VHD goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VhdTarget {
    /// A blob of a storage account of this service.
    Own(OwnBlob),
    /// A blob anywhere else: the whole address, SAS included. Never to be shown.
    Remote(Url),
}

/// Checks the addresses of new distributors, and seals their SAS.
///
/// # Errors
/// 400 naming the distributor.
pub(crate) fn accept(state: &AppState, distributors: &mut [Distributor]) -> Result<(), ApiError> {
    for (index, distributor) in distributors.iter_mut().enumerate() {
        let DistributorKind::Vhd { uri: Some(uri), sealed_query } = &mut distributor.kind else { continue };
        let target = parse(state, uri).map_err(|reason| {
            let target = format!("properties.distribute[{index}].uri");
            let message =
                format!("The VHD can not be distributed to '{}': {reason}", super::fetch::shown(uri));
            ApiError::from(Violation::at(Rule::Template, target, message))
        })?;
        let (base, query) = split(uri);
        *sealed_query = match target {
            VhdTarget::Own(_) => None,
            VhdTarget::Remote(_) => Some(state.sealer.seal(&purpose(base), query.as_bytes())?),
        };
        *uri = base.to_owned();
    }
    Ok(())
}

fn split(uri: &str) -> (&str, &str) {
    uri.split_once('?').unwrap_or((uri, ""))
}

/// What a SAS is sealed for.
fn purpose(base: &str) -> String {
    format!("VHD distributor {base}")
}

/// The target of a distributor that was accepted.
///
/// # Errors
/// Why it cannot be used any more: a SAS that has expired, a key that is lost.
pub(crate) fn open(state: &AppState, base: &str, sealed_query: Option<&str>) -> Result<VhdTarget, String> {
    let Some(sealed) = sealed_query else { return parse(state, base) };
    let query = state.sealer.open(&purpose(base), sealed).map_err(|error| error.to_string())?;
    let query = String::from_utf8(query).map_err(|_| "its SAS is damaged".to_owned())?;
    parse(state, &format!("{base}?{query}"))
}

/// Checks what changes with time: whether account and container are there, or whether the network policy allows the host.
///
/// # Errors
/// Cause and remedy, without the SAS.
pub(crate) async fn check(state: &AppState, target: &VhdTarget) -> Result<(), String> {
    match target {
        VhdTarget::Own(blob) => blob.find(state).await.map(|_| ()).map_err(|error| own_refusal(blob, &error)),
        VhdTarget::Remote(url) => {
            allowed_client(state.fabric.outbound(), url, READ_TIMEOUT).await.map(|_| ())
        }
    }
}

/// Why an own blob cannot be written.
pub(crate) fn own_refusal(blob: &OwnBlob, error: &BlobError) -> String {
    let OwnBlob { account, container, .. } = blob;
    let remedy = match error.code {
        "ResourceNotFound" => format!(" Create the storage account '{account}' first."),
        "ContainerNotFound" => format!(" Create the container '{container}' in '{account}' first."),
        _ => String::new(),
    };
    format!("{} ({}){remedy}", error.message, error.code)
}

fn parse(state: &AppState, uri: &str) -> Result<VhdTarget, String> {
    let url = Url::parse(uri).map_err(|error| format!("it is no URL: {error}."))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("'{}' is neither http nor https.", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(
            "it has a user, a password or a fragment, which the address of a blob has not.".to_owned()
        );
    }
    if state.endpoint.origins().contains(&url.origin().ascii_serialization()) {
        if disk_access::is_path(url.path()) {
            return Err("it is the address of a disk. A VHD goes to a blob.".to_owned());
        }
        return OwnBlob::parse(url.path())
            .map(VhdTarget::Own)
            .map_err(|reason| format!("{}.", reason.trim_end_matches('.')));
    }
    check_path(&url)?;
    check_sas(&url, state.now())?;
    Ok(VhdTarget::Remote(url))
}

/// The path of a blob: on a host of the account's own `/{container}/{blob}`, on any other host with the account before it.
fn check_path(url: &Url) -> Result<(), String> {
    let path_style = is_path_style(url);
    let (least, form) =
        if path_style { (3, "/{account}/{container}/{blob}") } else { (2, "/{container}/{blob}") };
    let segments: Vec<&str> = url.path().trim_start_matches('/').split('/').collect();
    if segments.len() < least || segments.iter().any(|segment| segment.is_empty()) {
        return Err(format!("it names no blob; its path must be {form}."));
    }
    Ok(())
}

/// A SAS as far as it can be judged without its key: there, for blobs, for writing, not expired.
fn check_sas(url: &Url, now: DateTime<Utc>) -> Result<(), String> {
    let query = BlobQuery::parse(url.query().unwrap_or_default()).map_err(|error| error.message)?;
    let get = |name: &str| query.get(name).filter(|value| !value.is_empty());
    if get("sig").is_none() || get("sv").is_none() {
        return Err(
            "it is no storage account of this server, so it needs a SAS: add one that allows creating and \
                    writing the blob (sp=cw)."
                .to_owned(),
        );
    }
    if get("comp").is_some() || get("restype").is_some() {
        return Err("its query has 'comp' or 'restype', which are no part of a SAS.".to_owned());
    }
    if get("ss").is_some_and(|services| !services.contains('b'))
        || get("srt").is_some_and(|types| !types.contains('o'))
    {
        return Err("its account SAS is not for blobs: it needs ss=b and srt=o.".to_owned());
    }
    match get("sp") {
        Some(allowed) if !allowed.contains('w') => {
            return Err(format!("its SAS allows sp={}, and writing pages needs sp=cw.", plain(allowed)));
        }
        // A stored access policy (si) may say it instead.
        None if get("si").is_none() => return Err("its SAS says nothing of what it allows (sp).".to_owned()),
        _ => {}
    }
    match get("se").and_then(|expiry| DateTime::parse_from_rfc3339(expiry).ok()) {
        Some(expiry) if expiry < now => Err(format!("its SAS has expired at {expiry}. Make a new one.")),
        _ => Ok(()),
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(20).collect()
}

/// Whether a host is not an account's own: an IP address, or a name without a domain, as emulators have.
fn is_path_style(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host.parse::<Ipv4Addr>().is_ok() || host.starts_with('[') || !host.contains('.')
}

#[cfg(test)]
mod tests;
