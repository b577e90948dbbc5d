//! Where a store is: a folder, or a prefix of a bucket or container.
//!
//! A location is written down in configurations, specifications and messages, so it never holds a secret: credentials come
//! from the environment (`objects.rs`), and a URL that carries one is refused without repeating it.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest location, as text.
const MAX_LOCATION_BYTES: usize = 4096;
/// The longest prefix inside of a bucket; leaves room for our names under the 1024 bytes that object stores take.
const MAX_PREFIX_BYTES: usize = 512;

/// Where a store is. Written as a path, or as one of
///
/// - `file:///folder`
/// - `s3://bucket/prefix?region=us-east-1&endpoint=http://127.0.0.1:5000`
/// - `az://account/container/prefix?endpoint=http://127.0.0.1:10000`
/// - `gs://bucket/prefix?endpoint=http://127.0.0.1:4443`
///
/// The prefix and everything after `?` are optional. Plain HTTP is spoken only to an endpoint that says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreLocation {
    /// A folder of this host, absolute.
    Folder(PathBuf),
    /// Amazon S3, or what speaks its protocol.
    S3 {
        /// Its bucket, which must exist.
        bucket: String,
        /// What names in it begin with, without slashes at its ends; empty for the whole bucket.
        prefix: String,
        /// Another service than Amazon's, addressed as `endpoint/bucket/name`.
        endpoint: Option<String>,
        /// Otherwise `AWS_REGION`, or us-east-1.
        region: Option<String>,
    },
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
        /// Its container, which must exist.
        container: String,
        /// As for S3.
        prefix: String,
        /// Another service than Azure's public cloud. One with an IP address (Azurite) has the account in its path; it is
        /// added when there is no path.
        endpoint: Option<String>,
    },
    /// Google Cloud Storage.
    Gcs {
        /// Its bucket, which must exist.
        bucket: String,
        /// As for S3.
        prefix: String,
        /// Another service than Google's.
        endpoint: Option<String>,
    },
}

impl StoreLocation {
    /// A folder, made absolute now, so that a later change of the working directory changes nothing.
    pub fn folder(path: &Path) -> Result<Self> {
        let folder = std::path::absolute(path).map_err(Error::io("find the absolute path of", path))?;
        Ok(Self::Folder(folder))
    }

    /// The folder, if it is one.
    pub fn as_folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::S3 { .. } | Self::Azure { .. } | Self::Gcs { .. } => None,
        }
    }

    /// What names inside the bucket begin with; empty for a folder.
    pub(crate) fn prefix(&self) -> &str {
        match self {
            Self::Folder(_) => "",
            Self::S3 { prefix, .. } | Self::Azure { prefix, .. } | Self::Gcs { prefix, .. } => prefix,
        }
    }
}

impl FromStr for StoreLocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: String| Error::Location { location: without_secrets(text), reason };
        if text.is_empty() {
            return Err(refused("it is empty; give a folder or a URL".to_owned()));
        }
        if text.len() > MAX_LOCATION_BYTES {
            return Err(refused(format!("it is longer than {MAX_LOCATION_BYTES} bytes")));
        }
        let url = text.split_once("://").filter(|_| !text.starts_with('/'));
        let Some((scheme, rest)) = url else { return Self::folder(Path::new(text)) };
        if scheme == "file" {
            return file_url(rest).map_err(refused).and_then(|path| Self::folder(Path::new(&path)));
        }
        remote(scheme, rest).map_err(refused)
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, endpoint, region) = match self {
            Self::Folder(folder) => return fmt::Display::fmt(&folder.display(), f),
            Self::S3 { bucket, endpoint, region, .. } => (format!("s3://{bucket}"), endpoint, region),
            Self::Azure { account, container, endpoint, .. } => {
                (format!("az://{account}/{container}"), endpoint, &None)
            }
            Self::Gcs { bucket, endpoint, .. } => (format!("gs://{bucket}"), endpoint, &None),
        };
        f.write_str(&root)?;
        if !self.prefix().is_empty() {
            write!(f, "/{}", self.prefix())?;
        }
        let parameters = [("endpoint", endpoint), ("region", region)];
        let present = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (number, (name, value)) in present.enumerate() {
            write!(f, "{}{name}={value}", if number == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for StoreLocation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<StoreLocation> for String {
    fn from(location: StoreLocation) -> Self {
        location.to_string()
    }
}

/// The path of a file URL.
fn file_url(rest: &str) -> Result<String, String> {
    let path = percent_decode(rest).ok_or("its percent-encoding is not valid")?;
    if !path.starts_with('/') {
        return Err("a file URL needs an absolute path on this host, as in file:///folder".to_owned());
    }
    Ok(path)
}

/// Parses what follows the scheme of a URL that is not a file's. The error is the reason alone.
fn remote(scheme: &str, rest: &str) -> Result<StoreLocation, String> {
    let credentials = match scheme {
        "s3" => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "az" => "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        "gs" => "GOOGLE_APPLICATION_CREDENTIALS",
        _ => {
            let schemes =
                "file:///folder, s3://bucket/prefix, az://account/container/prefix, gs://bucket/prefix";
            return Err(format!("`{scheme}` is not known: use a folder, or {schemes}"));
        }
    };
    let no_credentials = || {
        format!(
            "it carries credentials, which would be kept and shown with it: set {credentials} in the environment"
        )
    };
    if rest.contains('#') {
        return Err("it has a fragment (`#`), which means nothing here".to_owned());
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.contains('@') {
        return Err(no_credentials());
    }
    let (mut endpoint, mut region) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value).ok_or("its percent-encoding is not valid")?;
        let slot = match name {
            "endpoint" => &mut endpoint,
            "region" if scheme == "s3" => &mut region,
            _ if is_secret_name(name) => return Err(no_credentials()),
            _ => {
                return Err(
                    "it has a parameter that is not known: `endpoint`, and `region` for s3, are".to_owned()
                );
            }
        };
        if slot.replace(value).is_some() {
            return Err(format!("it says `{name}` twice"));
        }
    }
    if let Some(endpoint) = &endpoint {
        check_endpoint(endpoint, no_credentials)?;
    }
    if region.as_deref().is_some_and(|region| !is_name(region, 1, 63, b"-")) {
        return Err("its region is not one: lower-case letters, digits and `-`".to_owned());
    }

    let (first, path) = path.split_once('/').unwrap_or((path, ""));
    if scheme == "az" {
        let (container, prefix) = path.split_once('/').unwrap_or((path, ""));
        if !is_name(first, 3, 24, b"") {
            return Err("a storage account has 3 to 24 lower-case letters and digits".to_owned());
        }
        if !is_name(container, 3, 63, b"-") {
            return Err("a container has 3 to 63 lower-case letters, digits and `-`: az://account/container"
                .to_owned());
        }
        let endpoint = endpoint.map(|endpoint| with_account(&endpoint, first));
        let (account, container, prefix) = (first.to_owned(), container.to_owned(), check_prefix(prefix)?);
        return Ok(StoreLocation::Azure { account, container, prefix, endpoint });
    }
    let (bucket, prefix) = (first.to_owned(), check_prefix(path)?);
    if !is_name(&bucket, 3, 222, b"-._") {
        return Err("a bucket has 3 to 222 lower-case letters, digits, `-`, `_` and `.`".to_owned());
    }
    Ok(match scheme {
        "s3" => StoreLocation::S3 { bucket, prefix, endpoint, region },
        _ => StoreLocation::Gcs { bucket, prefix, endpoint },
    })
}

/// What could only be a key, a token or a part of a shared access signature.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["key", "secret", "token", "sig", "sas", "password", "credential", "auth"];
    let sas = [
        "sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "si", "skoid", "sktid", "skt", "ske", "sks", "skv",
    ];
    parts.iter().any(|part| name.contains(part)) || sas.contains(&name.as_str())
}

fn is_name(name: &str, min: usize, max: usize, marks: &[u8]) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || marks.contains(&b);
    (min..=max).contains(&name.len()) && name.bytes().all(known) && !name.starts_with(['.', '-'])
}

/// Takes letters, digits and marks that mean the same in a URL and in an object's name.
fn check_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_end_matches('/');
    let known = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~=+,".contains(&b);
    let segments = prefix.is_empty() || prefix.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if prefix.len() > MAX_PREFIX_BYTES || !segments || !prefix.bytes().all(known) {
        return Err(format!(
            "its prefix is not one: names of letters, digits and `-_.~=+,` between single slashes, {MAX_PREFIX_BYTES} bytes \
             at most"
        ));
    }
    Ok(prefix.to_owned())
}

fn check_endpoint(endpoint: &str, no_credentials: impl Fn() -> String) -> Result<(), String> {
    if endpoint.contains('@') {
        return Err(no_credentials());
    }
    let plain = !endpoint.bytes().any(|b| b"?#&% ".contains(&b));
    let url: Option<http::Uri> = endpoint.parse().ok().filter(|_| plain);
    match url.as_ref().map(|url| (url.scheme_str(), url.host())) {
        Some((Some("http" | "https"), Some(host))) if !host.is_empty() => Ok(()),
        _ => Err("its endpoint is not one: http://host:port or https://host:port, and a path if need be"
            .to_owned()),
    }
}

/// Adds the account to an endpoint that is an IP address and has no path, as all Azure clients do.
fn with_account(endpoint: &str, account: &str) -> String {
    let url: http::Uri = endpoint.parse().unwrap_or_default();
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let no_path = matches!(url.path(), "" | "/");
    if no_path && (host == "localhost" || host.parse::<IpAddr>().is_ok()) {
        return format!("{}/{account}", endpoint.trim_end_matches('/'));
    }
    endpoint.to_owned()
}

/// A location for an error message: no user information, no parameters.
fn without_secrets(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    let end = text.find(['?', '#']).unwrap_or(text.len());
    match (text[..end].split_once("://"), text[..end].rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://…@{}", &text[at + 1..end]),
        _ => text[..end].to_owned(),
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
    fn what_is_written_is_read_again() {
        for (text, written) in [
            ("/data/west", "/data/west"),
            ("/data/odd:name", "/data/odd:name"),
            ("file:///data/a%20b", "/data/a b"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my-bucket/a/b/?region=eu-west-1", "s3://my-bucket/a/b?region=eu-west-1"),
            (
                "s3://bucket/x?region=us-east-1&endpoint=http%3A%2F%2F127.0.0.1:5000",
                "s3://bucket/x?endpoint=http://127.0.0.1:5000&region=us-east-1",
            ),
            ("az://account/container/p", "az://account/container/p"),
            (
                "az://devstoreaccount1/images?endpoint=http://127.0.0.1:10000/",
                "az://devstoreaccount1/images?endpoint=http://127.0.0.1:10000/devstoreaccount1",
            ),
            (
                "az://acc/images?endpoint=https://acc.blob.core.usgovcloudapi.net",
                "az://acc/images?endpoint=https://acc.blob.core.usgovcloudapi.net",
            ),
            ("gs://bucket_1/p?endpoint=http://[::1]:4443", "gs://bucket_1/p?endpoint=http://[::1]:4443"),
        ] {
            let location: StoreLocation = text.parse().expect(text);
            assert_eq!(location.to_string(), written, "{text}");
            assert_eq!(written.parse::<StoreLocation>().expect(written), location);
            let json = serde_json::to_string(&location).expect("JSON");
            assert_eq!(serde_json::from_str::<StoreLocation>(&json).expect("JSON"), location);
        }
        assert!("data".parse::<StoreLocation>().expect("relative").to_string().starts_with('/'));
        let remote: StoreLocation = "s3://bucket".parse().expect("location");
        assert_eq!(remote.as_folder(), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!("s3://bucket/{}", "x".repeat(600));
        for (text, reason) in [
            ("ftp://bucket/x", "s3://bucket/prefix"),
            ("file://host/x", "absolute"),
            ("file:///%zz", "percent"),
            ("", "empty"),
            ("s3://", "bucket has"),
            ("s3://Bucket", "bucket has"),
            ("s3://-bucket", "bucket has"),
            ("s3://bucket/a//b", "prefix"),
            ("s3://bucket/../b", "prefix"),
            ("s3://bucket/a b", "prefix"),
            (&long, "prefix"),
            ("s3://bucket?region=a/b", "region"),
            ("s3://bucket?colour=blue", "not known"),
            ("s3://bucket?region=a&region=b", "twice"),
            ("gs://bucket?region=a", "not known"),
            ("s3://bucket?endpoint=127.0.0.1:5000", "endpoint"),
            ("s3://bucket?endpoint=ftp://host", "endpoint"),
            ("s3://bucket?endpoint=http://host/?a=b", "endpoint"),
            ("s3://bucket#x", "fragment"),
            ("az://account", "container has"),
            ("az://my-account/images", "storage account"),
        ] {
            let error = text.parse::<StoreLocation>().expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn secrets_are_refused_and_not_repeated() {
        for text in [
            "s3://AKIA:hunter2@bucket/x",
            "s3://bucket/x?aws_secret_access_key=hunter2",
            "s3://bucket/x?region=us-east-1&X-Amz-Signature=hunter2",
            "az://account/container?sv=2021&sig=hunter2",
            "az://account/container?endpoint=http://me:hunter2@127.0.0.1",
            "az://account:hunter2@host/container",
            "gs://bucket?service_account_key=hunter2",
        ] {
            let error = text.parse::<StoreLocation>().expect_err(text).to_string();
            assert!(error.contains("environment") && !error.contains("hunter2"), "{error}");
        }
    }
}
