//! Shared access signatures: what an account's key holder allows, for how long, written in a URL and signed.
//!
//! A service SAS (`sr`) is for one container or blob, an account SAS (`ss`, `srt`) for the account. The text that is
//! signed depends on `sv` ("Create a service SAS", "Create an account SAS" in Azure's documentation); versions from
//! 2015-04-05 are accepted. A user delegation SAS needs Entra and is refused.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use super::super::error::BlobError;
use super::super::rows::Policy;
use super::{Asked, Grant, is_signed};
use axum::http::StatusCode;

/// Oldest version whose signatures are accepted.
const OLDEST: &str = "2015-04-05";
/// From here on the kind of resource and the snapshot are signed too.
const WITH_RESOURCE: &str = "2018-11-09";
/// From here on the encryption scope is signed too.
const WITH_SCOPE: &str = "2020-12-06";

/// Checks the SAS in a request's query.
///
/// # Errors
/// 403 with the cause.
pub(super) fn check(
    asked: &Asked<'_>,
    account: &str,
    keys: &[Vec<u8>; 2],
    policies: &[Policy],
) -> Result<Grant, BlobError> {
    let get = |name: &str| asked.query.get(name).filter(|value| !value.is_empty());
    let version = get("sv").unwrap_or_default();
    if NaiveDate::parse_from_str(version, "%Y-%m-%d").is_err() || version < OLDEST {
        let detail = format!("sv is mandatory, and a version from {OLDEST} on.");
        return Err(BlobError::authentication(detail));
    }
    if get("skoid").is_some() {
        let detail = "A user delegation SAS is not accepted; sign with an account key.";
        return Err(BlobError::authentication(detail));
    }
    let signature = get("sig").and_then(|signature| STANDARD.decode(signature).ok());
    let signature = signature.ok_or_else(|| BlobError::authentication("sig is not base64."))?;
    let text = match get("ss") {
        Some(_) => account_text(asked, account, version),
        None => service_text(asked, account, version)?,
    };
    if !is_signed(keys, &text, &signature) {
        let detail = format!("Signature did not match. String to sign used was {text}");
        return Err(BlobError::authentication(detail));
    }
    // From here on everything in the query is the key holder's word.
    let policy = match get("si") {
        None => None,
        Some(id) => Some(policies.iter().find(|policy| policy.id == id).ok_or_else(|| {
            BlobError::authentication(
                "The stored access policy that si names does not exist on this container.",
            )
        })?),
    };
    let said = |name: &'static str, mandatory: Option<&'static str>, ours: Option<&Option<String>>| {
        let ours = ours.and_then(Option::as_deref);
        match (get(name), ours) {
            (Some(_), Some(_)) => Err(BlobError::authentication(format!(
                "{name} must be in the SAS or in its stored access policy, not in both."
            ))),
            (Some(value), None) => Ok(Some(value.to_owned())),
            (None, Some(value)) => Ok(Some(value.to_owned())),
            (None, None) => match mandatory {
                Some(why) => Err(BlobError::authentication(format!("{name} is mandatory: {why}."))),
                None => Ok(None),
            },
        }
    };
    let start = said("st", None, policy.map(|policy| &policy.start))?;
    let expiry = said("se", Some("a SAS says when it ends"), policy.map(|policy| &policy.expiry))?;
    let permissions = said("sp", Some("a SAS says what it allows"), policy.map(|policy| &policy.permission))?;
    check_time(asked.now, start.as_deref(), expiry.as_deref().unwrap_or_default())?;
    check_protocol(get("spr"), asked.peer.secure)?;
    check_address(get("sip"), asked.peer.ip)?;
    let permissions = permissions.unwrap_or_default();
    if let Some(services) = get("ss") {
        if !services.contains('b') {
            let message =
                "This request is not authorized to perform this operation using this service: it needs ss=b.";
            let code = "AuthorizationServiceMismatch";
            return Err(BlobError::new(StatusCode::FORBIDDEN, code, message));
        }
        let resource_types = get("srt").unwrap_or_default().to_owned();
        return Ok(Grant::Account { permissions, resource_types });
    }
    Ok(Grant::Service { permissions, container: get("sr") == Some("c") })
}

fn account_text(asked: &Asked<'_>, account: &str, version: &str) -> String {
    let mut text = format!("{account}\n");
    let scope: &[&str] = if version >= WITH_SCOPE { &["ses"] } else { &[] };
    for name in ["sp", "ss", "srt", "st", "se", "sip", "spr", "sv"].iter().chain(scope) {
        text.push_str(asked.query.get(name).unwrap_or_default());
        text.push('\n');
    }
    text
}

fn service_text(asked: &Asked<'_>, account: &str, version: &str) -> Result<String, BlobError> {
    let get = |name: &str| asked.query.get(name).unwrap_or_default();
    let place = asked.place;
    let container = place.container.as_deref().ok_or_else(|| {
        BlobError::authentication(
            "A service SAS is for a container or a blob, and the address names neither.",
        )
    })?;
    let resource = match (get("sr"), place.blob.as_deref()) {
        ("c", _) => format!("/blob/{account}/{container}"),
        ("b", Some(blob)) => format!("/blob/{account}/{container}/{blob}"),
        ("b", None) => {
            let detail = "The SAS is for a blob (sr=b), and the address names a container.";
            return Err(BlobError::authentication(detail));
        }
        _ => return Err(BlobError::authentication("sr is mandatory, and 'b' or 'c'.")),
    };
    let mut lines =
        vec![get("sp"), get("st"), get("se"), &resource, get("si"), get("sip"), get("spr"), get("sv")];
    if version >= WITH_RESOURCE {
        // The second is the moment of a snapshot, which this service does not have.
        lines.extend([get("sr"), ""]);
    }
    if version >= WITH_SCOPE {
        lines.push(get("ses"));
    }
    lines.extend(["rscc", "rscd", "rsce", "rscl", "rsct"].map(get));
    Ok(lines.join("\n"))
}

fn check_time(now: DateTime<Utc>, start: Option<&str>, expiry: &str) -> Result<(), BlobError> {
    let read = |name: &str, text: &str| {
        moment(text).ok_or_else(|| BlobError::authentication(format!("{name} is no date and time in UTC.")))
    };
    if let Some(start) = start
        && now < read("st", start)?
    {
        let detail =
            format!("Signature not valid in the specified time frame: Start [{start}], and it is [{now}].");
        return Err(BlobError::authentication(detail));
    }
    if now >= read("se", expiry)? {
        let detail =
            format!("Signature not valid in the specified time frame: Expiry [{expiry}], and it is [{now}].");
        return Err(BlobError::authentication(detail));
    }
    Ok(())
}

/// The forms of ISO 8601 that Azure takes: a date, to the minute, to the second, or finer.
fn moment(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Some(date.and_hms_opt(0, 0, 0)?.and_utc());
    }
    let zoneless = text.strip_suffix('Z')?;
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    forms.iter().find_map(|form| Some(NaiveDateTime::parse_from_str(zoneless, form).ok()?.and_utc()))
}

fn check_protocol(allowed: Option<&str>, secure: bool) -> Result<(), BlobError> {
    match allowed {
        Some("https") if !secure => {
            let message = "This request is not authorized to perform this operation using this protocol: the SAS is for https.";
            Err(BlobError::new(StatusCode::FORBIDDEN, "AuthorizationProtocolMismatch", message))
        }
        None | Some("https" | "https,http" | "http,https") => Ok(()),
        Some(_) => Err(BlobError::authentication("spr is neither 'https' nor 'https,http'.")),
    }
}

fn check_address(allowed: Option<&str>, peer: IpAddr) -> Result<(), BlobError> {
    let Some(allowed) = allowed else { return Ok(()) };
    let (first, last) = allowed.split_once('-').unwrap_or((allowed, allowed));
    let bounds = first.parse::<IpAddr>().ok().zip(last.parse::<IpAddr>().ok());
    let (first, last) =
        bounds.ok_or_else(|| BlobError::authentication("sip is no address or range of addresses."))?;
    // An IPv4 client of a dual-stack listener is the same client; a range of one family holds none of the other.
    let peer = peer.to_canonical();
    let same_family = first.is_ipv4() == peer.is_ipv4() && last.is_ipv4() == peer.is_ipv4();
    if same_family && (first..=last).contains(&peer) {
        return Ok(());
    }
    let message =
        format!("This request is not authorized to perform this operation using this source IP {peer}.");
    Err(BlobError::new(StatusCode::FORBIDDEN, "AuthorizationSourceIPMismatch", message))
}

#[cfg(test)]
mod tests;
