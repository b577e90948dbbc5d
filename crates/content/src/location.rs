//! Where a store is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Error, Result};

/// Where a store is: a folder, written as a path or as `file:///path`. Other schemes are refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreLocation {
    folder: PathBuf,
}

impl StoreLocation {
    /// A folder, made absolute now, so that a later change of the working directory changes nothing.
    pub fn folder(path: &Path) -> Result<Self> {
        let folder = std::path::absolute(path).map_err(Error::io("find the absolute path of", path))?;
        Ok(Self { folder })
    }

    /// The folder, where the store is one on this host.
    pub fn local_folder(&self) -> Option<&Path> {
        Some(&self.folder)
    }

    pub(crate) fn as_folder(&self) -> &Path {
        &self.folder
    }
}

impl FromStr for StoreLocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: &str| Error::Location { location: text.to_owned(), reason: reason.to_owned() };
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.is_empty() {
                return Err(refused("it is empty; give a folder"));
            }
            return Self::folder(Path::new(text));
        };
        if scheme != "file" {
            return Err(refused(&format!("`{scheme}` is not supported yet: use a folder or file:///folder")));
        }
        let path = percent_decode(rest).ok_or_else(|| refused("its percent-encoding is not valid"))?;
        if !path.starts_with('/') {
            return Err(refused("a file URL needs an absolute path on this host, as in file:///folder"));
        }
        Self::folder(Path::new(&path))
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.folder.display(), f)
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let folder = |text: &str| text.parse::<StoreLocation>().map(|l| l.to_string());
        assert_eq!(folder("/data/west").expect("path"), "/data/west");
        assert_eq!(folder("file:///data/a%20b").expect("URL"), "/data/a b");
        assert!(folder("data").expect("relative").starts_with('/'));
        for (text, reason) in [
            ("s3://bucket/x", "not supported yet"),
            ("file://host/x", "absolute"),
            ("file:///%zz", "percent"),
            ("", "empty"),
        ] {
            let error = folder(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
