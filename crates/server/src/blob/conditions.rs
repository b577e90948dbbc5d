//! Conditional headers: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since.

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use chrono::{DateTime, Utc};

use super::about::etag;
use super::error::BlobError;

/// What the conditions are for: a read that need not be answered is 304, anything else 412.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// GET and HEAD.
    Reading,
    /// A change of something that may not be there yet.
    Writing,
}

/// Checks a request's conditions against what is there (`None`: nothing).
///
/// # Errors
/// 304, 412; 409 `BlobAlreadyExists` for `If-None-Match: *`.
pub(super) fn check(
    headers: &HeaderMap,
    purpose: For,
    modified: Option<DateTime<Utc>>,
) -> Result<(), BlobError> {
    let not_modified = || match purpose {
        For::Reading => {
            let message = "The condition specified using HTTP conditional header(s) is not met.";
            BlobError::new(StatusCode::NOT_MODIFIED, "ConditionNotMet", message)
        }
        For::Writing => BlobError::condition(),
    };
    let current = modified.map(etag);
    if let Some(wanted) = text(headers, header::IF_MATCH)
        && !current.as_deref().is_some_and(|current| matches(wanted, current))
    {
        return Err(BlobError::condition());
    }
    if let Some(unwanted) = text(headers, header::IF_NONE_MATCH)
        && current.as_deref().is_some_and(|current| matches(unwanted, current))
    {
        if unwanted.trim() == "*" && purpose == For::Writing {
            let message = "The specified blob already exists.";
            return Err(BlobError::new(StatusCode::CONFLICT, "BlobAlreadyExists", message));
        }
        return Err(not_modified());
    }
    let Some(modified) = modified else { return Ok(()) };
    // HTTP's dates have whole seconds.
    if let Some(since) = date(headers, header::IF_MODIFIED_SINCE)?
        && modified.timestamp() <= since.timestamp()
    {
        return Err(not_modified());
    }
    if let Some(since) = date(headers, header::IF_UNMODIFIED_SINCE)?
        && modified.timestamp() > since.timestamp()
    {
        return Err(BlobError::condition());
    }
    Ok(())
}

/// A list of ETags, or `*`. Clients send them with and without quotes.
fn matches(list: &str, current: &str) -> bool {
    let bare = current.trim_matches('"');
    list.split(',')
        .map(|etag| etag.trim().trim_start_matches("W/").trim_matches('"'))
        .any(|etag| etag == "*" || etag == bare)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

fn date(headers: &HeaderMap, name: HeaderName) -> Result<Option<DateTime<Utc>>, BlobError> {
    let Some(value) = text(headers, name.clone()) else { return Ok(None) };
    let date = DateTime::parse_from_rfc2822(value);
    Ok(Some(date.map_err(|_| BlobError::header(name.as_str(), "is no HTTP date"))?.to_utc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_or_do_not() {
        let modified = DateTime::from_timestamp(1_000_000, 7).unwrap();
        let same = etag(modified);
        let check = |name: &'static str, value: &str, purpose, there: bool, expected: Option<u16>| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
            let found = super::check(&headers, purpose, there.then_some(modified));
            assert_eq!(found.err().map(|e| e.status.as_u16()), expected, "{name}: {value}");
        };
        check("if-match", &same, For::Writing, true, None);
        check("if-match", same.trim_matches('"'), For::Writing, true, None);
        check("if-match", "\"0x1\"", For::Reading, true, Some(412));
        check("if-match", "*", For::Writing, false, Some(412));
        check("if-none-match", "*", For::Writing, true, Some(409));
        check("if-none-match", "*", For::Writing, false, None);
        check("if-none-match", &same, For::Reading, true, Some(304));
        check("if-none-match", &same, For::Writing, true, Some(412));
        let at = "Mon, 12 Jan 1970 13:46:40 GMT";
        let before = "Mon, 12 Jan 1970 13:46:39 GMT";
        check("if-modified-since", at, For::Reading, true, Some(304));
        check("if-modified-since", before, For::Reading, true, None);
        check("if-unmodified-since", at, For::Writing, true, None);
        check("if-unmodified-since", before, For::Writing, true, Some(412));
        check("if-unmodified-since", "yesterday", For::Writing, true, Some(400));
    }
}
