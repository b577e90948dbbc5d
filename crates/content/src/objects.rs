//! Opening the object store of a location.
//!
//! A remote one is reached with credentials from the environment alone, by requests that time out, are tried again a bounded
//! number of times, and are bounded in number at a time. What a read gives is whole or an error: the client underneath
//! continues an answer that was cut off, and checks its range.

mod bounded;

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut, S3CopyIfNotExists};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, PutMode, PutOptions, RetryConfig};
use uuid::Uuid;

use self::bounded::Bounded;
use crate::seal::{KeyId, KeyRing};
use crate::{Error, Result, StoreLocation};

/// A connection that is not there by then never will be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A whole request: a part of 9 MiB in this time is 75 KiB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Times that a request is tried again after it failed in a way that may pass.
const MAX_RETRIES: usize = 6;
/// Time in which it is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
/// Times that a frame is read from a remote store before it is taken for damaged or out of reach.
pub(crate) const READ_ATTEMPTS: u32 = 3;
/// Waits between the attempts, doubled each time.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// The most bytes of the environment's variables that are taken; a service account is about 2 KiB.
const MAX_CREDENTIAL_BYTES: usize = 64 << 10;

/// The variables that are passed on, as their services' own tools call them. Any other (an endpoint, a bucket) belongs into
/// the location.
const AWS_VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];
const AZURE_VARIABLES: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_IDENTITY_ENDPOINT",
];
const GOOGLE_VARIABLES: &[&str] = &[
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
];
/// Set to anything, it lets a store be opened with the machine's own identity, asked from the cloud's metadata service.
const MACHINE_IDENTITY: &str = "TINTYPE_MACHINE_IDENTITY";

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Folder for local copies of index segments, one folder below it for each store. Processes may share it. `None`:
    /// `tintype/index` in `$XDG_CACHE_HOME`, `~/.cache` or `/var/cache`. A plain folder store needs none.
    pub index_dir: Option<PathBuf>,
    /// Makes a new store encrypted, and is needed to open one that is. A store that is not encrypted is refused with keys.
    /// `None`: what [`KeyRing::from_env`] finds, for stores that are encrypted or new.
    pub keys: Option<KeyRing>,
    /// For remote stores; `None`: this process's environment.
    pub credentials: Option<Credentials>,
    /// For tests of many packs: begins another after so many bytes.
    #[doc(hidden)]
    pub pack_bytes: Option<u32>,
}

impl StoreOptions {
    /// The keys that a store could be made or opened with.
    pub(crate) fn find_keys(&self) -> Result<Option<Arc<KeyRing>>> {
        let keys = match &self.keys {
            Some(keys) => Some(keys.clone()),
            None => KeyRing::from_env()?,
        };
        Ok(keys.map(Arc::new))
    }

    /// Those of them that a store uses which says that it is encrypted with this key, or that it is not.
    pub(crate) fn check_keys(
        &self,
        location: &StoreLocation,
        found: Option<Arc<KeyRing>>,
        used: Option<KeyId>,
    ) -> Result<Option<Arc<KeyRing>>> {
        match (used, found) {
            (None, _) if self.keys.is_some() => Err(Error::Key {
                reason: format!(
                    "the store at {location} is not encrypted, and stays so; replicate its images to a new one, or open it \
                     without a key"
                ),
            }),
            (None, _) => Ok(None),
            (Some(key_id), Some(keys)) if keys.has(key_id) => Ok(Some(keys)),
            (Some(key_id), _) => Err(Error::KeyNeeded { location: location.to_string(), key_id }),
        }
    }

    /// The folder for copies of one store's segments.
    pub(crate) fn index_dir_of(&self, store: Uuid) -> Result<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let parent = self.index_dir.clone().unwrap_or_else(|| {
            let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
            cache.unwrap_or_else(|| PathBuf::from("/var/cache")).join("tintype/index")
        });
        let dir = parent.join(store.to_string());
        std::path::absolute(&dir).map_err(Error::io("find the absolute path of", &dir))
    }
}

/// What remote stores are opened with: the variables that their services' own tools read (`AWS_…`, `AZURE_…`, `GOOGLE_…`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    variables: BTreeMap<String, String>,
}

impl Credentials {
    /// Those of this process's environment.
    pub fn from_env() -> Self {
        // What is no text cannot be one of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_variables(std::env::vars_os().filter_map(text))
    }

    /// Those among the given variables; others are left out, and so is what is empty or absurdly long.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |name: &str| {
            name == MACHINE_IDENTITY
                || [AWS_VARIABLES, AZURE_VARIABLES, GOOGLE_VARIABLES]
                    .iter()
                    .any(|names| names.contains(&name))
        };
        let usable = |(name, value): &(String, String)| {
            ours(name) && !value.is_empty() && value.len() <= MAX_CREDENTIAL_BYTES
        };
        Self { variables: variables.into_iter().filter(usable).collect() }
    }

    /// The names of every variable that this reads: what must not reach a child that has no business with the store.
    pub fn variable_names() -> impl Iterator<Item = &'static str> {
        [AWS_VARIABLES, AZURE_VARIABLES, GOOGLE_VARIABLES].into_iter().flatten().copied()
    }

    /// The set ones of these names, or what to set. A region alone is no credential.
    fn of(&self, names: &[&'static str]) -> Result<Vec<(&'static str, &str)>, String> {
        let set: Vec<_> =
            names.iter().filter_map(|name| Some((*name, self.variables.get(*name)?.as_str()))).collect();
        let secret = set.iter().any(|(name, _)| !name.ends_with("REGION"));
        if !secret && !self.variables.contains_key(MACHINE_IDENTITY) {
            return Err(format!(
                "there are no credentials in the environment: set {}, or {MACHINE_IDENTITY}=1 to use this machine's own \
                 identity",
                if names.contains(&"AWS_ACCESS_KEY_ID") {
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                } else {
                    names[0]
                }
            ));
        }
        Ok(set)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// Opens the object store; makes a folder that is not there if `create`. Nothing is sent to a remote one yet.
pub(crate) fn connect(
    location: &StoreLocation,
    options: &StoreOptions,
    create: bool,
) -> Result<Arc<dyn ObjectStore>> {
    if let StoreLocation::Folder(folder) = location {
        if create {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder).map_err(Error::io("create", folder))?;
        } else if !folder.is_dir() {
            return Err(Error::NotAStore { location: location.to_string() });
        }
        let objects = LocalFileSystem::new_with_prefix(folder)
            .map_err(Error::objects("open", &Path::from(folder.display().to_string())))?;
        // A write that was reported is on the disk.
        return Ok(Arc::new(objects.with_fsync(true)));
    }
    let credentials = options.credentials.clone().unwrap_or_else(Credentials::from_env);
    let refused = |reason| Error::Location { location: location.to_string(), reason };
    let objects = connect_remote(location, &credentials).map_err(refused)?;
    let objects: Arc<dyn ObjectStore> = match location.prefix() {
        "" => objects,
        prefix => Arc::new(PrefixStore::new(objects, Path::from(prefix))),
    };
    Ok(Arc::new(Bounded::new(objects)))
}

fn connect_remote(
    location: &StoreLocation,
    credentials: &Credentials,
) -> Result<Arc<dyn ObjectStore>, String> {
    let unusable = |error: object_store::Error| format!("its client cannot be set up: {error}");
    Ok(match location {
        StoreLocation::Folder(_) => return Err("a folder is not remote".to_owned()),
        StoreLocation::S3 { bucket, endpoint, region, .. } => {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in credentials.of(AWS_VARIABLES)? {
                let key = name.to_ascii_lowercase().parse().map_err(unusable)?;
                builder = builder.with_config(key, value);
            }
            if let Some(region) = region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            let s3 = builder
                .with_bucket_name(bucket)
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
                .with_client_options(client_options(endpoint.as_deref()))
                .with_retry(retry_config())
                .build();
            Arc::new(s3.map_err(unusable)?)
        }
        StoreLocation::Azure { account, container, endpoint, .. } => {
            let mut builder = MicrosoftAzureBuilder::new();
            for (name, value) in credentials.of(AZURE_VARIABLES)? {
                // What `az` calls it.
                let name = if name == "AZURE_STORAGE_KEY" { "AZURE_STORAGE_ACCOUNT_KEY" } else { name };
                let key = name.to_ascii_lowercase().parse().map_err(unusable)?;
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            let azure = builder
                .with_account(account)
                .with_container_name(container)
                .with_client_options(client_options(endpoint.as_deref()))
                .with_retry(retry_config())
                .build();
            Arc::new(azure.map_err(unusable)?)
        }
        StoreLocation::Gcs { bucket, endpoint, .. } => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (name, value) in credentials.of(GOOGLE_VARIABLES)? {
                let key = name.to_ascii_lowercase().parse().map_err(unusable)?;
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_base_url(endpoint);
            }
            let gcs = builder
                .with_bucket_name(bucket)
                .with_client_options(client_options(endpoint.as_deref()))
                .with_retry(retry_config())
                .build();
            Arc::new(gcs.map_err(unusable)?)
        }
    })
}

fn client_options(endpoint: Option<&str>) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
}

fn retry_config() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: MIN_BACKOFF, max_backoff: MAX_BACKOFF, base: 2.0 },
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

/// Whether reading again may help: not when the object is gone, or we may not read it.
pub(crate) fn may_pass(error: &Error) -> bool {
    use object_store::Error as Cause;
    match error {
        Error::DamagedFrame { .. } => true,
        Error::Objects { source, .. } => !matches!(
            source,
            Cause::NotFound { .. } | Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }
        ),
        _ => false,
    }
}

/// Creates an object; `false` if there is one of this name.
pub(crate) async fn create(objects: &dyn ObjectStore, path: &Path, bytes: Bytes) -> Result<bool> {
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match objects.put_opts(path, bytes.into(), create).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(Error::objects("create", path)(error)),
    }
}

/// Makes sure that an object which exists is not overwritten by one that is created. `bytes` are what it holds, so that a
/// store which fails this loses nothing by it.
pub(crate) async fn check_create_if_absent(
    objects: &dyn ObjectStore,
    location: &StoreLocation,
    path: &Path,
    bytes: Bytes,
) -> Result<()> {
    if create(objects, path, bytes).await? {
        let reason = "it ignores `If-None-Match: *` and overwrites what exists, so that two writers would destroy each \
                      other's work: use a service with conditional writes (Amazon S3, Azure Blob, GCS, MinIO, Ceph)";
        return Err(Error::Location { location: location.to_string(), reason: reason.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(location: &str, variables: &[(&str, &str)]) -> Option<String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let credentials = Some(Credentials::from_variables(variables));
        let options = StoreOptions { credentials, ..StoreOptions::default() };
        let opened = connect(&location.parse().expect("location"), &options, true);
        opened.err().map(|error| error.to_string())
    }

    #[test]
    fn credentials_come_from_the_environment() {
        let azure_key =
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
        assert_eq!(refusal("az://account/images", &[("AZURE_STORAGE_KEY", azure_key)]), None);
        let aws = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
        assert_eq!(refusal("s3://bucket/x?region=eu-west-1", &aws), None);
        assert_eq!(refusal("gs://bucket", &[("GOOGLE_BEARER_TOKEN", "x")]), None);
        assert_eq!(refusal("s3://bucket", &[(MACHINE_IDENTITY, "1")]), None);

        for (location, name) in [
            ("s3://bucket", "AWS_ACCESS_KEY_ID"),
            ("az://account/images", "AZURE_"),
            ("gs://bucket", "GOOGLE_"),
        ] {
            let reason = refusal(location, &[("AWS_REGION", "x"), ("AWS_ENDPOINT", "y")]).expect("refused");
            assert!(reason.contains(name), "{reason}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let pair = ("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned());
        let shown = format!("{:?}", Credentials::from_variables([pair]));
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
    }
}
