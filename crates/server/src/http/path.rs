//! ARM's paths compare without case, tolerate doubled slashes, and carry names whose case must be kept.
//! The router sees a canonical lower-case path; handlers see the segments as they were written.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::error::ApiError;
use super::query::{decode, encode};

/// Longest path in bytes, before decoding.
pub const MAX_PATH_BYTES: usize = 4096;
/// Most segments.
pub const MAX_SEGMENTS: usize = 64;

/// A request's path: decoded segments in the case in which they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmPath {
    segments: Vec<String>,
}

impl ArmPath {
    /// Splits and decodes a raw path.
    ///
    /// # Errors
    /// What is wrong with it: length, encoding, a control character, an encoded slash, `.` or `..`.
    pub fn parse(raw: &str) -> Result<ArmPath, &'static str> {
        if raw.len() > MAX_PATH_BYTES {
            return Err("it is too long");
        }
        let mut segments = Vec::new();
        for raw in raw.split('/').filter(|segment| !segment.is_empty()) {
            if segments.len() == MAX_SEGMENTS {
                return Err("it has too many segments");
            }
            let segment = decode(raw, false).ok_or("its percent-encoding is wrong")?;
            if segment.chars().any(|c| c.is_control() || matches!(c, '/' | '\\')) {
                return Err("a segment contains a slash or a control character");
            }
            if segment == "." || segment == ".." {
                return Err("a segment is '.' or '..'");
            }
            segments.push(segment);
        }
        Ok(ArmPath { segments })
    }

    /// The path for the router: one slash each, lower case, encoded.
    #[must_use]
    pub fn route(&self) -> String {
        let lower = self.segments.iter().map(|segment| format!("/{}", encode(&segment.to_ascii_lowercase())));
        let path: String = lower.collect();
        if path.is_empty() { "/".to_owned() } else { path }
    }

    /// The path as text, as it was written, with single slashes.
    #[must_use]
    pub fn text(&self) -> String {
        self.segments.iter().map(|segment| format!("/{segment}")).collect()
    }

    /// A segment by position, or the empty string.
    #[must_use]
    pub fn segment(&self, at: usize) -> &str {
        self.segments.get(at).map_or("", String::as_str)
    }

    /// Number of segments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The value after a key, as in `/subscriptions/{value}`; ids are pairs of key and value.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&str> {
        self.segments
            .chunks_exact(2)
            .find(|pair| pair[0].eq_ignore_ascii_case(key))
            .map(|pair| pair[1].as_str())
    }

    /// The value after a key that the route is known to have.
    ///
    /// # Errors
    /// 500: the route does not have it, which is a mistake in the handler.
    pub fn value(&self, key: &str) -> Result<&str, ApiError> {
        self.find(key).ok_or_else(|| ApiError::internal(format!("route without '{key}'")))
    }
}

impl<S: Sync> FromRequestParts<S> for ArmPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<ArmPath>()
            .cloned()
            .ok_or_else(|| ApiError::internal("request without a parsed path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_meet_and_names_keep_their_case() {
        let path = ArmPath::parse(
            "//Subscriptions/S1/RESOURCEGROUPS/My%20Rg//providers/Microsoft.Compute//galleries/G/",
        )
        .unwrap();
        assert_eq!(
            path.route(),
            "/subscriptions/s1/resourcegroups/my%20rg/providers/microsoft.compute/galleries/g"
        );
        assert_eq!(path.find("resourceGroups"), Some("My Rg"));
        assert_eq!(path.find("galleries"), Some("G"));
        assert_eq!(path.find("s1"), None, "a value is no key");
        assert_eq!(path.segment(1), "S1");
        assert_eq!(ArmPath::parse("/").unwrap().route(), "/");
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in ["/a/%2e%2e/b", "/a/..", "/a%2Fb", "/a%5Cb", "/a%00", "/%", "/%ff", "/a\u{7f}"] {
            assert!(ArmPath::parse(bad).is_err(), "{bad}");
        }
        assert!(ArmPath::parse(&"/a".repeat(MAX_SEGMENTS + 1)).is_err());
        assert!(ArmPath::parse(&format!("/{}", "a".repeat(MAX_PATH_BYTES))).is_err());
    }
}
