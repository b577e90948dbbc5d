//! Which requests are for blobs. They come on the listener of ARM, path-style: `/{account}/{container}/{blob}`.
//!
//! The rule: the first segment could be an account's name (3 to 24 of `a-z 0-9`) and is not one that the rest of the
//! service uses ([`RESERVED`]; no account can have such a name), and
//! - the request says that it is for storage: it has `x-ms-version`, or `Authorization: SharedKey…`, or a SAS's `sig`
//!   and `sv` in its query; or
//! - there is an account of that name.
//!
//! Everything else is ARM's. So a mistyped address keeps ARM's answers, and a storage client that names an account that
//! does not exist is told so in its own language. The plain listener (`blob_listen`) has blobs and nothing else.

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use model::storage_account::StorageAccountName;

use super::error::BlobError;
use super::query::BlobQuery;
use crate::AppState;
use crate::api::storage_accounts;
use crate::http::query::decode;

/// First segments of the service's other routes, and some that it may want: no account has such a name. A test compares
/// them with the routes.
const RESERVED: &[&str] = &[
    "adfs",
    "batch",
    "blob",
    "common",
    "consumers",
    "health",
    "metadata",
    "metrics",
    "organizations",
    "portal",
    "providers",
    "subscriptions",
    "tenants",
    "tintype",
];

/// Longest path in bytes: 1,024 characters of name, encoded.
const MAX_PATH_BYTES: usize = 16 * 1024;
/// Longest name of a blob in characters (Azure).
const MAX_NAME_CHARS: usize = 1024;

/// Whether no account can have this name.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// Whether a request is for blobs: the rule above.
pub(crate) async fn is_blob(state: &AppState, parts: &Parts) -> bool {
    let first = parts.uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    if !StorageAccountName::fits(first) || is_reserved(first) {
        return false;
    }
    if is_marked(&parts.headers, parts.uri.query().unwrap_or_default()) {
        return true;
    }
    match storage_accounts::account(state, first).await {
        Ok(account) => account.is_some(),
        Err(error) => {
            // ARM's side meets the same database and says so.
            tracing::warn!(%error, "cannot look for a storage account");
            false
        }
    }
}

fn is_marked(headers: &HeaderMap, query: &str) -> bool {
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let shared_key = headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"sharedkey"));
    headers.contains_key("x-ms-version") || shared_key || (has("sig") && has("sv"))
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Account.
    pub(super) account: String,
    /// Container; `None`: the account as a whole.
    pub(super) container: Option<String>,
    /// Blob; `None`: the container as a whole.
    pub(super) blob: Option<String>,
}

impl Place {
    /// Reads a raw path. Names are decoded once; what follows the container is one name, slashes and all.
    pub(super) fn parse(path: &str) -> Result<Self, BlobError> {
        let refuse = |reason: &str| {
            let message =
                format!("The requested URI does not represent any resource on the server: {reason}.");
            BlobError::new(axum::http::StatusCode::BAD_REQUEST, "InvalidUri", message)
        };
        if path.len() > MAX_PATH_BYTES {
            return Err(refuse("it is too long"));
        }
        let mut raw = path.trim_start_matches('/').splitn(3, '/');
        let mut part = || {
            let decoded = raw.next().filter(|raw| !raw.is_empty()).map(|raw| decode(raw, false));
            decoded.map(|decoded| decoded.ok_or_else(|| refuse("its percent-encoding is wrong"))).transpose()
        };
        let place = Self { account: part()?.unwrap_or_default(), container: part()?, blob: part()? };
        if let Some(container) = &place.container {
            check_container(container)?;
        }
        if let Some(blob) = &place.blob {
            let bad = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
            if blob.chars().count() > MAX_NAME_CHARS || blob.chars().any(bad) {
                return Err(refuse("a blob's name has at most 1024 characters and no control characters"));
            }
        }
        Ok(place)
    }
}

/// 3 to 63 of `a-z 0-9 -`, each hyphen between two others. `$root`, `$web` and `$logs` are not served.
fn check_container(name: &str) -> Result<(), BlobError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (3..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if fits {
        return Ok(());
    }
    let message = "The specified resource name contains invalid characters: a container's name has 3 to 63 lower-case \
                   letters, digits and single hyphens, and begins and ends with a letter or digit.";
    Err(BlobError::new(axum::http::StatusCode::BAD_REQUEST, "InvalidResourceName", message))
}

/// The query of a request.
pub(super) fn query(parts: &Parts) -> Result<BlobQuery, BlobError> {
    BlobQuery::parse(parts.uri.query().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_other_routes_never_clash() {
        let (public, arm) = crate::route_lists();
        for route in public.iter().chain(&arm) {
            let first = route.path.split('/').nth(1).unwrap_or_default();
            assert!(
                first.starts_with('{') || !StorageAccountName::fits(first) || is_reserved(first),
                "'{first}' of {} must be reserved",
                route.path
            );
        }
        // Tenants come first in some routes; those are UUIDs or names that are reserved.
        assert!(!StorageAccountName::fits("11111111-1111-1111-1111-111111111111"));
    }

    #[test]
    fn storage_clients_are_known_by_their_marks() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(header::HeaderName::from_static(name), value.parse().unwrap())])
        };
        assert!(is_marked(&headers("x-ms-version", "2021-12-02"), ""));
        assert!(is_marked(&headers("authorization", "SharedKey a:b"), ""));
        assert!(!is_marked(&headers("authorization", "Bearer x"), "api-version=1"));
        assert!(is_marked(&HeaderMap::new(), "sp=r&sv=2021-12-02&sig=x"));
        assert!(!is_marked(&HeaderMap::new(), "signature=x&sv=1"));
    }

    #[test]
    fn paths_are_places() {
        let place = |path: &str| {
            let place = Place::parse(path).map_err(|error| error.code)?;
            Ok((place.account, place.container.unwrap_or_default(), place.blob.unwrap_or_default()))
        };
        let some = |a: &str, c: &str, b: &str| Ok((a.to_owned(), c.to_owned(), b.to_owned()));
        assert_eq!(place("/acct"), some("acct", "", ""));
        assert_eq!(place("/acct/con-1/"), some("acct", "con-1", ""));
        assert_eq!(place("/acct/con/a%20b//c%2Fd/../e"), some("acct", "con", "a b//c/d/../e"));
        assert_eq!(place("/acct/con/%zz"), Err("InvalidUri"));
        assert_eq!(place("/acct/con/a%00"), Err("InvalidUri"));
        assert_eq!(place(&format!("/acct/con/{}", "a".repeat(1025))), Err("InvalidUri"));
        for bad in ["Con", "a--b", "-ab", "ab", "$root"] {
            assert_eq!(place(&format!("/acct/{bad}")), Err("InvalidResourceName"), "{bad}");
        }
    }
}
