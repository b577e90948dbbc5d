//! A blob request's query: decoded pairs in order, of which signatures are made.

use crate::http::query::decode;

use super::error::BlobError;

/// Most pairs.
const MAX_PAIRS: usize = 64;
/// Longest query in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// The decoded pairs. `+` is itself, as the clients' canonical forms have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobQuery(Vec<(String, String)>);

impl BlobQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// 400 when it is too long or wrongly encoded.
    pub fn parse(text: &str) -> Result<Self, BlobError> {
        let refuse = || {
            let message =
                "The requested URI does not represent any resource on the server: its query is malformed.";
            BlobError::new(axum::http::StatusCode::BAD_REQUEST, "InvalidUri", message)
        };
        if text.len() > MAX_BYTES {
            return Err(refuse());
        }
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PAIRS {
                return Err(refuse());
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = decode(name, false).zip(decode(value, false));
            pairs.push(decoded.ok_or_else(refuse)?);
        }
        Ok(Self(pairs))
    }

    /// The first value under this name, in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All pairs, in order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
