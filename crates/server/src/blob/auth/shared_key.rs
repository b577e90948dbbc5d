//! `Authorization: SharedKey account:signature`: the request itself, signed with one of the account's keys.
//!
//! The text that is signed is the one of version 2015-02-21 and later ("Authorize with Shared Key" in Azure's
//! documentation): method, eleven standard headers, all `x-ms-` headers, and the resource with its query. The resource is
//! `/{account}` and the path as it came, so that the account occurs twice in path-style addresses.

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};

use super::super::error::BlobError;
use super::{Asked, is_signed};

/// How far a request's date may be from now: Azure's quarter of an hour.
const CLOCK_SKEW_MAX: TimeDelta = TimeDelta::minutes(15);

/// The standard headers that are signed, in order.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// Characters of header names in the order in which Azure's own service, and its newer clients, sort them. Others (the
/// hyphen above all) do not count.
const COLLATION: &[u8] = b"!#$%&*.^_`|~+0123456789abcdefghijklmnopqrstuvwxyz";

/// Checks a credential, `account:signature`.
///
/// # Errors
/// 403 with the cause.
pub(super) fn check(
    asked: &Asked<'_>,
    account: &str,
    keys: &[Vec<u8>; 2],
    credential: &str,
) -> Result<(), BlobError> {
    let (named, signature) = credential
        .trim()
        .split_once(':')
        .ok_or_else(|| BlobError::authentication("The credential is not 'account:signature'."))?;
    if named != account {
        return Err(BlobError::authentication("The credential is for another account."));
    }
    let signature =
        STANDARD.decode(signature).map_err(|_| BlobError::authentication("The signature is not base64."))?;
    check_date(asked.headers, asked.now)?;
    // Older clients sort header names by their bytes; only unusual metadata names tell the two apart.
    let orders: [fn(&str) -> Vec<u8>; 2] = [|name| name.as_bytes().to_vec(), collation_key];
    let texts = orders.map(|order| string_to_sign(asked, account, order));
    if texts.iter().any(|text| is_signed(keys, text, &signature)) {
        return Ok(());
    }
    // As Azure, which shows what it signed: it holds nothing but what the client sent.
    let detail = format!(
        "The MAC signature found in the HTTP request is not the same as any computed signature. Server used following string \
         to sign: '{}'.",
        texts[0]
    );
    Err(BlobError::authentication(detail))
}

fn check_date(headers: &HeaderMap, now: DateTime<Utc>) -> Result<(), BlobError> {
    let date = headers.get("x-ms-date").or_else(|| headers.get(header::DATE));
    let date = date.and_then(|value| DateTime::parse_from_rfc2822(value.to_str().ok()?).ok());
    let date =
        date.ok_or_else(|| BlobError::authentication("The request has no valid x-ms-date or Date header."))?;
    if (now - date.to_utc()).abs() > CLOCK_SKEW_MAX {
        let detail = format!(
            "Request date header too old or in the future: '{}', and it is {}. Set the client's clock.",
            date.to_rfc2822(),
            now.to_rfc2822()
        );
        return Err(BlobError::authentication(detail));
    }
    Ok(())
}

fn string_to_sign(asked: &Asked<'_>, account: &str, order: fn(&str) -> Vec<u8>) -> String {
    let headers = asked.headers;
    let mut text = format!("{}\n", asked.method);
    for name in SIGNED_HEADERS {
        match (name, joined(headers, name)) {
            ("content-length", value) if value == "0" => {}
            // x-ms-date takes its place.
            ("date", _) if headers.contains_key("x-ms-date") => {}
            (_, value) => text.push_str(&value),
        }
        text.push('\n');
    }
    let mut names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    names.retain(|name| name.starts_with("x-ms-"));
    names.sort_by_key(|name| (order(name), *name));
    for name in names {
        text.push_str(&format!("{name}:{}\n", joined(headers, name)));
    }
    text.push_str(&format!("/{account}{}", asked.path));
    let mut pairs: Vec<(String, &str)> =
        asked.query.pairs().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    pairs.sort();
    let mut last = None;
    for (name, value) in pairs {
        if last.as_ref() == Some(&name) {
            text.push_str(&format!(",{value}"));
        } else {
            text.push_str(&format!("\n{name}:{value}"));
        }
        last = Some(name);
    }
    text
}

/// A header's values, trimmed and joined; empty if there is none.
fn joined(headers: &HeaderMap, name: &str) -> String {
    let values: Vec<String> = headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .collect();
    values.join(",")
}

fn collation_key(name: &str) -> Vec<u8> {
    let weight = |byte: u8| COLLATION.iter().position(|known| *known == byte);
    name.bytes().filter_map(weight).map(|weight| weight as u8).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use aws_lc_rs::hmac;
    use axum::http::{HeaderName, Method};

    use super::super::super::query::BlobQuery;
    use super::super::super::route::Place;
    use super::*;
    use crate::http::serve::Peer;

    const DATE: &str = "Sun, 11 Oct 2015 21:49:13 GMT";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn with<T>(headers: &HeaderMap, query: &str, run: impl FnOnce(&Asked<'_>) -> T) -> T {
        let asked = Asked {
            method: &Method::GET,
            path: "/myaccount/mycontainer",
            query: &BlobQuery::parse(query).unwrap(),
            headers,
            place: &Place::parse("/myaccount/mycontainer").unwrap(),
            peer: Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), secure: true },
            now: DateTime::parse_from_rfc2822(DATE).unwrap().to_utc(),
        };
        run(&asked)
    }

    /// The example of Azure's documentation, but for the path, which is path-style here.
    #[test]
    fn the_documented_text_is_signed() {
        let headers = headers(&[
            ("x-ms-date", DATE),
            ("x-ms-version", "2015-02-21"),
            ("date", "ignored"),
            ("content-length", "0"),
        ]);
        let query = "restype=container&comp=metadata&timeout=20&include=b&include=a%2C";
        let text = with(&headers, query, |asked| string_to_sign(asked, "myaccount", collation_key));
        assert_eq!(
            text,
            format!(
                "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{DATE}\nx-ms-version:2015-02-21\n/myaccount/myaccount/mycontainer\n\
                 comp:metadata\ninclude:a,,b\nrestype:container\ntimeout:20"
            )
        );
    }

    #[test]
    fn only_a_fresh_signature_of_the_account_passes() {
        let keys = [b"one".to_vec(), b"two".to_vec()];
        let fresh = headers(&[("x-ms-date", DATE), ("x-ms-meta-a_b", "1"), ("x-ms-meta-a1", "2")]);
        let sign = |key: &[u8], order: fn(&str) -> Vec<u8>| {
            let text = with(&fresh, "", |asked| string_to_sign(asked, "myaccount", order));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
            format!("myaccount:{}", STANDARD.encode(tag))
        };
        let check = |headers: &HeaderMap, credential: &str| {
            with(headers, "", |asked| super::check(asked, "myaccount", &keys, credential))
                .map_err(|error| error.detail.unwrap_or_default())
        };
        let bytes: fn(&str) -> Vec<u8> = |name| name.as_bytes().to_vec();
        assert_ne!(sign(b"two", bytes), sign(b"two", collation_key), "the two orders differ here");
        assert_eq!(check(&fresh, &sign(b"one", bytes)), Ok(()));
        assert_eq!(check(&fresh, &sign(b"two", collation_key)), Ok(()));
        assert!(check(&fresh, &sign(b"three", bytes)).unwrap_err().contains("not the same"));
        let good = sign(b"one", bytes);
        assert!(check(&fresh, &good.replace("myaccount", "other")).unwrap_err().contains("another account"));
        assert!(check(&fresh, "myaccount:%").unwrap_err().contains("not base64"));
        assert!(check(&fresh, "x").unwrap_err().contains("account:signature"));
        let old = headers(&[("x-ms-date", "Sun, 11 Oct 2015 21:34:12 GMT")]);
        assert!(check(&old, &good).unwrap_err().contains("too old"));
        assert!(check(&HeaderMap::new(), &good).unwrap_err().contains("no valid x-ms-date"));
    }
}
