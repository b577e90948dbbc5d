//! `Range` and `x-ms-range`: the second wins, as on Azure. Ranges are half-open here and inclusive on the wire.

use std::ops::Range;

use axum::http::HeaderMap;

use super::error::BlobError;

/// Size of a page in bytes.
pub const PAGE_BYTES: u64 = 512;

/// What a request asks for: from a byte, up to a byte if it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// First byte.
    pub(super) start: u64,
    /// Byte after the last; `None`: to the end.
    pub(super) end: Option<u64>,
}

/// The range of a request, if it has one. A form that Azure ignores (several ranges, a suffix) is ignored.
pub(super) fn wanted(headers: &HeaderMap) -> Option<Wanted> {
    let value = headers.get("x-ms-range").or_else(|| headers.get("range"))?;
    let (start, end) = value.to_str().ok()?.trim().strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.trim().parse().ok()?;
    let end = match end.trim() {
        "" => None,
        end => Some(end.parse::<u64>().ok()?.checked_add(1)?),
    };
    end.is_none_or(|end| start < end).then_some(Wanted { start, end })
}

impl Wanted {
    /// The part of `size` bytes that is meant.
    ///
    /// # Errors
    /// 416 when it begins at or after the end.
    pub(super) fn within(self, size: u64) -> Result<Range<u64>, BlobError> {
        if self.start >= size {
            return Err(BlobError::range(size));
        }
        Ok(self.start..self.end.unwrap_or(size).min(size))
    }
}

/// The range of a page operation: there must be one, of whole pages, inside the blob.
///
/// # Errors
/// 400 without one, 416 if it does not fit.
pub(super) fn pages(headers: &HeaderMap, size: u64) -> Result<Range<u64>, BlobError> {
    let Some(Wanted { start, end }) = wanted(headers) else {
        return Err(BlobError::missing_header("x-ms-range"));
    };
    let end = end.ok_or_else(|| BlobError::page_range("it needs an end"))?;
    if start % PAGE_BYTES != 0 || end % PAGE_BYTES != 0 {
        return Err(BlobError::page_range("it must begin at a multiple of 512 bytes and end before one"));
    }
    if end > size {
        return Err(BlobError::page_range(&format!("it ends after the blob, which has {size} bytes")));
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> HeaderMap {
        HeaderMap::from_iter([("x-ms-range".parse().unwrap(), text.parse().unwrap())])
    }

    #[test]
    fn ranges_are_read() {
        let check = |text: &str, expected: Option<(u64, Option<u64>)>| {
            let expected = expected.map(|(start, end)| Wanted { start, end });
            assert_eq!(wanted(&headers(text)), expected, "{text}");
        };
        check("bytes=0-511", Some((0, Some(512))));
        check("bytes=7-", Some((7, None)));
        check("bytes=-7", None);
        check("bytes=8-7", None);
        check("bytes=0-1,3-4", None);
        check("bytes=0-18446744073709551615", None);
        check("lines=0-1", None);
        let mut both = headers("bytes=1-1");
        both.insert("range", "bytes=2-2".parse().unwrap());
        assert_eq!(wanted(&both), Some(Wanted { start: 1, end: Some(2) }));
        assert_eq!(Wanted { start: 5, end: Some(100) }.within(10), Ok(5..10));
        assert_eq!(Wanted { start: 10, end: None }.within(10), Err(BlobError::range(10)));
    }

    #[test]
    fn page_ranges_are_whole_pages_inside() {
        assert_eq!(pages(&headers("bytes=512-1023"), 1024), Ok(512..1024));
        for bad in ["bytes=1-511", "bytes=0-510", "bytes=0-", "bytes=512-1535"] {
            assert_eq!(pages(&headers(bad), 1024).unwrap_err().code, "InvalidPageRange", "{bad}");
        }
        assert_eq!(pages(&HeaderMap::new(), 1024).unwrap_err().code, "MissingRequiredHeader");
    }
}
