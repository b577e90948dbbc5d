//! Query strings and forms: percent-decoding, bounded.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

/// Most pairs in a query or form.
const MAX_PAIRS: usize = 64;
/// Longest query or form in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// The text is no query: too long, too many pairs, or wrongly encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The decoded pairs, in order.
///
/// # Errors
/// [`Malformed`].
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, Malformed> {
    if text.len() > MAX_BYTES {
        return Err(Malformed);
    }
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == MAX_PAIRS {
            return Err(Malformed);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((decode(name, true).ok_or(Malformed)?, decode(value, true).ok_or(Malformed)?));
    }
    Ok(pairs)
}

/// Decodes `%xx` once (and `+` as a space in queries). `None`: not hexadecimal, or not UTF-8.
#[must_use]
pub fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            // Two hexadecimal digits fit a byte.
            b'%' => (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8,
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

/// Encodes everything but unreserved characters (RFC 3986).
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// A request's query. Names compare without case, as ARM's do.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a query string.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &str) -> Result<Query, Malformed> {
        pairs(text).map(Query)
    }

    /// The first value under this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Query>().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        let query =
            Query::parse("$filter=resourceGroup%20eq%20%27rg1%27&API-version=2024-11-01&a+b=c%2Bd&flag")
                .unwrap();
        assert_eq!(query.get("$filter"), Some("resourceGroup eq 'rg1'"));
        assert_eq!(query.get("api-version"), Some("2024-11-01"));
        assert_eq!(query.get("a b"), Some("c+d"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("none"), None);
    }

    #[test]
    fn hostile_queries_are_refused() {
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff", "%C0%AF=1"] {
            assert_eq!(Query::parse(bad).err(), Some(Malformed), "{bad}");
        }
        assert!(Query::parse(&"a=1&".repeat(MAX_PAIRS + 1)).is_err());
        assert!(Query::parse(&"a".repeat(MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn encoding_is_undone_by_decoding() {
        let text = "a b/ä%+~";
        assert_eq!(encode(text), "a%20b%2F%C3%A4%25%2B~");
        assert_eq!(decode(&encode(text), false).as_deref(), Some(text));
    }
}
