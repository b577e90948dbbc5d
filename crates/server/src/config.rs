//! `tintype.toml`. The binary lays flags over environment over this file; here are the file's shape,
//! the defaults and what must hold. Unknown keys are errors, because a misspelt limit is no limit.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use content::StoreLocation;
use model::placement::{RegionZones, ZONES_MAX};
use model::{Region, SubscriptionId};
use serde::Deserialize;
use uuid::Uuid;

/// Largest configuration file in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Port that the service listens on unless told otherwise.
const DEFAULT_PORT: u16 = 8443;

/// What the server needs to know. Make one with [`Config::new`] or [`Config::load`], change what flags
/// say, then [`Config::check`] it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder for everything that is not in a region: database, keys, certificates, overlays.
    pub data_dir: PathBuf,
    /// Address of the HTTPS service; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address on which blobs are served over plain HTTP too, for guests and clients without our certificate; `None`:
    /// not at all. Accounts refuse it unless `supportsHttpsTrafficOnly` is false.
    pub blob_listen: Option<SocketAddr>,
    /// Host name in the URLs that the service hands out; it is in the certificate.
    pub public_host: String,
    /// `sqlite:/path` or `postgres://…`; `None`: `sqlite:{data_dir}/tintype.db`.
    pub database: Option<String>,
    /// Tenant id.
    pub tenant_id: Uuid,
    /// The one subscription.
    pub subscription_id: SubscriptionId,
    /// Name of the subscription that people see.
    pub subscription_name: String,
    /// Regions, at least one.
    pub regions: Vec<RegionConfig>,
    /// Folders with further catalogues of platform images (`*.toml`).
    pub catalog: Vec<PathBuf>,
    /// This program, which runs the VMs' processes.
    pub program: PathBuf,
    /// Folders of this host from which disks may be imported, as `sourceUri` or an image version's `uri`.
    pub import_paths: Vec<PathBuf>,
    /// What fetches and guests may reach beyond the internet.
    pub network: NetworkConfig,
    /// Limits.
    pub limits: Limits,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    /// Name, such as "eastus".
    pub name: Region,
    /// Where the stores of its zones are, one to three.
    pub zones: Vec<StoreLocation>,
    /// Whether zone-redundant storage is taken although there are fewer than three zones.
    pub zrs_fallback: bool,
    /// File with the keys that its stores are encrypted with; `None`: those of the environment, if any.
    pub key_file: Option<PathBuf>,
}

impl RegionConfig {
    /// A region of one zone, without a key file.
    #[must_use]
    pub fn of_one_zone(name: Region, store: StoreLocation) -> Self {
        Self { name, zones: vec![store], zrs_fallback: false, key_file: None }
    }

    /// What it offers to images.
    #[must_use]
    pub fn offers(&self) -> RegionZones {
        RegionZones { count: self.zones.len(), zrs_fallback: self.zrs_fallback }
    }
}

/// Exceptions from the network policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `address`, `address:port` or `network/bits`, parsed by the policy that enforces them.
    pub allow: Vec<String>,
}

/// Limits of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Longest that a handler may take to begin its answer.
    pub request_timeout: Duration,
    /// Jobs that this process runs at the same time, in each of the two lanes.
    pub jobs: usize,
    /// How long a token is valid.
    pub token_lifetime: Duration,
    /// How long shutdown waits for requests and jobs.
    pub shutdown_timeout: Duration,
    /// How long a VM's guest may take to report ready (`limits.provisioning_timeout_s`).
    pub provisioning_timeout: Duration,
    /// Between two comparisons of what the regions' stores hold with what the database wants there.
    pub reconcile_interval: Duration,
    /// Age from which a reference is removed whose owner is gone. No shorter than the longest job: one that is under way
    /// may hold an image that no row names yet.
    pub reference_grace: Duration,
    /// Between two garbage collections of a zone.
    pub gc_interval: Duration,
    /// From a deletion to the garbage collection that frees its bytes.
    pub gc_delay: Duration,
    /// Between two verifications of a zone.
    pub verify_interval: Duration,
    /// Megabits (10^6 bits) a second that all replications of this process write together; `None`: as fast as it goes.
    pub replication_mbps: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            body_bytes: 4 * 1024 * 1024,
            request_timeout: Duration::from_secs(60),
            jobs: 8,
            token_lifetime: Duration::from_secs(3600),
            shutdown_timeout: Duration::from_secs(20),
            // Azure's own limit for Linux.
            provisioning_timeout: Duration::from_secs(20 * 60),
            reconcile_interval: Duration::from_secs(15 * 60),
            // `buildTimeoutInMinutes` is at most 960; what follows a build has as long again.
            reference_grace: Duration::from_secs(2 * 960 * 60),
            gc_interval: Duration::from_secs(24 * 3600),
            gc_delay: Duration::from_secs(10 * 60),
            verify_interval: Duration::from_secs(30 * 24 * 3600),
            replication_mbps: None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}; check that it exists and is readable")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML of the right shape.
    #[error("{path} is not a valid configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Cause, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value is not allowed.
    #[error("configuration key '{key}': {reason}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    blob_listen: Option<SocketAddr>,
    public_host: Option<String>,
    database: Option<String>,
    tenant_id: Option<Uuid>,
    subscription_id: Option<String>,
    subscription_name: Option<String>,
    #[serde(default)]
    catalog: Vec<PathBuf>,
    #[serde(default)]
    import_paths: Vec<PathBuf>,
    #[serde(default, alias = "regions")]
    region: Vec<FileRegion>,
    #[serde(default)]
    network: FileNetwork,
    #[serde(default)]
    limits: FileLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRegion {
    name: String,
    store: Option<String>,
    zones: Option<Vec<String>>,
    #[serde(default)]
    zrs_fallback: bool,
    key_file: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FileNetwork {
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    connections: Option<usize>,
    body_bytes: Option<usize>,
    request_timeout_s: Option<u64>,
    jobs: Option<usize>,
    token_lifetime_s: Option<u64>,
    shutdown_timeout_s: Option<u64>,
    provisioning_timeout_s: Option<u64>,
    reconcile_interval_s: Option<u64>,
    reference_grace_s: Option<u64>,
    gc_interval_s: Option<u64>,
    gc_delay_s: Option<u64>,
    verify_interval_s: Option<u64>,
    replication_mbps: Option<u64>,
}

impl Config {
    /// The defaults with everything under `data_dir`: loopback, SQLite, region "eastus".
    ///
    /// # Panics
    /// Never: the ids and names in here are constants that a test parses.
    #[must_use]
    pub fn new(data_dir: &Path) -> Config {
        let region = |name: &str| {
            let store = StoreLocation::Folder(data_dir.join("regions").join(name));
            RegionConfig::of_one_zone(Region::parse(name).expect("a constant"), store)
        };
        Config {
            data_dir: data_dir.to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            blob_listen: None,
            public_host: "localhost".to_owned(),
            database: None,
            tenant_id: Uuid::from_u128(0x1111_1111_1111_1111_1111_1111_1111_1111),
            subscription_id: SubscriptionId::parse("22222222-2222-2222-2222-222222222222")
                .expect("a constant"),
            subscription_name: "Tintype".to_owned(),
            regions: vec![region("eastus")],
            catalog: Vec::new(),
            import_paths: Vec::new(),
            // Only a program whose file was removed while it runs has no path; spawning a VM says so then.
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("tintype")),
            network: NetworkConfig::default(),
            limits: Limits::default(),
        }
    }

    /// Reads a file. Relative paths in it are relative to its folder; without `data_dir`, that folder is used.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > MAX_FILE_BYTES {
            return Err(value(
                &path.display().to_string(),
                format!("the file has more than {MAX_FILE_BYTES} bytes"),
            ));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let file: File = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let config = file.into_config(folder)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what must hold between and within the values.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the first key that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.regions.is_empty() {
            return Err(value("region", "at least one [[region]] is needed".to_owned()));
        }
        let (mut names, mut stores) = (BTreeSet::new(), BTreeSet::new());
        for region in &self.regions {
            if !names.insert(region.name.as_str()) {
                return Err(value("region.name", format!("'{}' occurs twice", region.name)));
            }
            if !(1..=ZONES_MAX).contains(&region.zones.len()) {
                let count = region.zones.len();
                let reason =
                    format!("region '{}' has {count} zones; a region has 1 to {ZONES_MAX}", region.name);
                return Err(value("region.zones", reason));
            }
            for store in &region.zones {
                if !stores.insert(store) {
                    let reason =
                        format!("'{store}' is the store of two zones or regions; each needs its own");
                    return Err(value("region.store", reason));
                }
            }
        }
        let host_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        if self.public_host.is_empty() || !self.public_host.chars().all(host_ok) {
            return Err(value(
                "public_host",
                format!("'{}' is no host name or IPv4 address", self.public_host),
            ));
        }
        let limits = &self.limits;
        in_range("limits.connections", limits.connections as u64, 1, 65_536)?;
        in_range("limits.body_bytes", limits.body_bytes as u64, 1024, 64 << 20)?;
        in_range("limits.request_timeout_s", limits.request_timeout.as_secs(), 1, 3600)?;
        in_range("limits.jobs", limits.jobs as u64, 1, 1024)?;
        in_range("limits.token_lifetime_s", limits.token_lifetime.as_secs(), 60, 86_400)?;
        in_range("limits.shutdown_timeout_s", limits.shutdown_timeout.as_secs(), 0, 3600)?;
        in_range("limits.provisioning_timeout_s", limits.provisioning_timeout.as_secs(), 1, 86_400)?;
        in_range("limits.reconcile_interval_s", limits.reconcile_interval.as_secs(), 1, 7 * 86_400)?;
        in_range("limits.reference_grace_s", limits.reference_grace.as_secs(), 0, 365 * 86_400)?;
        in_range("limits.gc_interval_s", limits.gc_interval.as_secs(), 1, 365 * 86_400)?;
        in_range("limits.gc_delay_s", limits.gc_delay.as_secs(), 0, 365 * 86_400)?;
        in_range("limits.verify_interval_s", limits.verify_interval.as_secs(), 1, 365 * 86_400)?;
        in_range("limits.replication_mbps", limits.replication_mbps.unwrap_or(1), 1, 1_000_000)
    }

    /// Address of the database.
    #[must_use]
    pub fn database_url(&self) -> String {
        match &self.database {
            Some(url) => url.clone(),
            None => format!("sqlite:{}", self.data_dir.join("tintype.db").display()),
        }
    }

    /// The region with this name, in any of its spellings.
    #[must_use]
    pub fn region(&self, name: &str) -> Option<&RegionConfig> {
        let name = Region::parse(name).ok()?;
        self.regions.iter().find(|region| region.name == name)
    }
}

impl File {
    fn into_config(self, folder: &Path) -> Result<Config, ConfigError> {
        let data_dir = self.data_dir.map_or_else(|| folder.to_owned(), |dir| folder.join(dir));
        let mut config = Config::new(&data_dir);
        if !self.region.is_empty() {
            config.regions =
                self.region.into_iter().map(|region| region.into_config(folder)).collect::<Result<_, _>>()?;
        }
        if let Some(id) = self.subscription_id {
            config.subscription_id =
                SubscriptionId::parse(&id).map_err(|e| value("subscription_id", e.message.to_string()))?;
        }
        config.listen = self.listen.unwrap_or(config.listen);
        config.blob_listen = self.blob_listen;
        config.public_host = self.public_host.unwrap_or(config.public_host);
        config.database = self.database;
        config.tenant_id = self.tenant_id.unwrap_or(config.tenant_id);
        config.subscription_name = self.subscription_name.unwrap_or(config.subscription_name);
        config.catalog = self.catalog.into_iter().map(|path| folder.join(path)).collect();
        config.import_paths = self.import_paths.into_iter().map(|path| folder.join(path)).collect();
        config.network.allow = self.network.allow;
        let (limits, file) = (&mut config.limits, self.limits);
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        limits.connections = file.connections.unwrap_or(limits.connections);
        limits.body_bytes = file.body_bytes.unwrap_or(limits.body_bytes);
        limits.jobs = file.jobs.unwrap_or(limits.jobs);
        limits.request_timeout = seconds(file.request_timeout_s, limits.request_timeout);
        limits.token_lifetime = seconds(file.token_lifetime_s, limits.token_lifetime);
        limits.shutdown_timeout = seconds(file.shutdown_timeout_s, limits.shutdown_timeout);
        limits.provisioning_timeout = seconds(file.provisioning_timeout_s, limits.provisioning_timeout);
        limits.reconcile_interval = seconds(file.reconcile_interval_s, limits.reconcile_interval);
        limits.reference_grace = seconds(file.reference_grace_s, limits.reference_grace);
        limits.gc_interval = seconds(file.gc_interval_s, limits.gc_interval);
        limits.gc_delay = seconds(file.gc_delay_s, limits.gc_delay);
        limits.verify_interval = seconds(file.verify_interval_s, limits.verify_interval);
        limits.replication_mbps = file.replication_mbps;
        Ok(config)
    }
}

impl FileRegion {
    fn into_config(self, folder: &Path) -> Result<RegionConfig, ConfigError> {
        let name = Region::parse(&self.name).map_err(|e| value("region.name", e.message.to_string()))?;
        let (key, stores) = match (self.store, self.zones) {
            (Some(store), None) => ("region.store", vec![store]),
            (None, Some(zones)) => ("region.zones", zones),
            (Some(_), Some(_)) => {
                let reason =
                    format!("region '{name}' has both 'store' and 'zones'; 'store' is a region's only zone");
                return Err(value("region.zones", reason));
            }
            (None, None) => {
                let reason = format!(
                    "region '{name}' has no store; give it zones = [\"/a/folder\"], or up to {ZONES_MAX} of them"
                );
                return Err(value("region.zones", reason));
            }
        };
        // A path is relative to the configuration's folder.
        let location = |text: &String| match text.as_str() {
            url if url.contains("://") => url.parse().map_err(|error: content::Error| error.to_string()),
            "" => Err(format!("region '{name}' has an empty path")),
            path => StoreLocation::folder(&folder.join(path)).map_err(|error| error.to_string()),
        };
        let zones = stores.iter().map(location).collect::<Result<Vec<_>, _>>();
        Ok(RegionConfig {
            zones: zones.map_err(|reason| value(key, reason))?,
            zrs_fallback: self.zrs_fallback,
            key_file: self.key_file.map(|path| folder.join(path)),
            name,
        })
    }
}

fn value(key: &str, reason: String) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), reason }
}

fn in_range(key: &str, found: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(value(key, format!("{found} is not between {least} and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tintype.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tintype.toml");
        std::fs::write(&path, "").unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config, Config::new(folder.path()));
        assert!(config.database_url().starts_with("sqlite:/"));
    }

    #[test]
    fn everything_can_be_set() {
        let config = load(
            r#"
            data_dir = "/srv/tintype"
            listen = "0.0.0.0:9443"
            blob_listen = "127.0.0.1:10000"
            public_host = "images.example.org"
            database = "postgres://tintype@/tintype"
            tenant_id = "7dbfbcb0-0000-4000-8000-000000000001"
            subscription_id = "7dbfbcb0-0000-4000-8000-000000000002"
            [[region]]
            name = "East US 2"
            store = "file:///srv/a"
            [[region]]
            name = "westus"
            store = "b"
            [[region]]
            name = "northeurope"
            store = "s3://images/north"
            key_file = "keys/north"
            [[region]]
            name = "westeurope"
            zones = ["we1", "az://account/we2", "gs://we3/store"]
            zrs_fallback = true
            [network]
            allow = ["127.0.0.1:8000"]
            [limits]
            jobs = 2
            request_timeout_s = 5
            reconcile_interval_s = 60
            replication_mbps = 100
            "#,
        )
        .unwrap();
        assert_eq!(config.regions[0].name.as_str(), "eastus2");
        assert_eq!(config.regions[0].zones[0].as_folder(), Some(Path::new("/srv/a")));
        assert!(config.regions[1].zones[0].as_folder().unwrap().ends_with("b"));
        assert_eq!(config.regions[2].zones[0].to_string(), "s3://images/north");
        assert!(config.regions[2].key_file.as_ref().unwrap().ends_with("keys/north"));
        assert_eq!(config.regions[1].key_file, None);
        let three = &config.regions[3];
        assert_eq!(three.offers(), RegionZones { count: 3, zrs_fallback: true });
        assert_eq!(three.zones[1].to_string(), "az://account/we2");
        assert!(!config.regions[1].zrs_fallback);
        assert_eq!(config.limits.reconcile_interval, Duration::from_secs(60));
        assert_eq!(config.limits.replication_mbps, Some(100));
        assert_eq!(config.region("EASTUS2").unwrap().name.display_name(), "East US 2");
        assert_eq!(config.blob_listen, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 10000))));
        assert_eq!(config.limits.jobs, 2);
        assert_eq!(config.limits.request_timeout, Duration::from_secs(5));
        assert_eq!(config.network.allow, ["127.0.0.1:8000"]);
        assert_eq!(config.data_dir, Path::new("/srv/tintype"));
    }

    #[test]
    fn regions_may_be_called_so() {
        let config = load("[[regions]]\nname = \"a\"\nzones = [\"x\"]").unwrap();
        assert_eq!(config.regions.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("lisen = \"x\"", "unknown field `lisen`"),
            ("[limits]\nbody_byte = 1", "unknown field `body_byte`"),
            ("[limits]\njobs = 0", "'limits.jobs': 0 is not between 1 and 1024"),
            ("[[region]]\nname = \"a/b\"\nstore = \"x\"", "'region.name'"),
            ("[[region]]\nname = \"a\"\nstore = \"ftp://x\"", "`ftp` is not known"),
            ("[[region]]\nname = \"a\"\nstore = \"s3://k:secret@bucket\"", "AWS_ACCESS_KEY_ID"),
            (
                "[[region]]\nname = \"a\"\nstore = \"x\"\n[[region]]\nname = \"A\"\nstore = \"y\"",
                "occurs twice",
            ),
            (
                "[[region]]\nname = \"a\"\nstore = \"x\"\n[[region]]\nname = \"b\"\nstore = \"x\"",
                "two zones or regions",
            ),
            ("[[region]]\nname = \"a\"", "'region.zones': region 'a' has no store; give it zones"),
            ("[[region]]\nname = \"a\"\nstore = \"x\"\nzones = [\"y\"]", "has both 'store' and 'zones'"),
            ("[[region]]\nname = \"a\"\nzones = []", "has 0 zones; a region has 1 to 3"),
            ("[[region]]\nname = \"a\"\nzones = [\"1\", \"2\", \"3\", \"4\"]", "has 4 zones"),
            ("[[region]]\nname = \"a\"\nzones = [\"x\", \"./x\"]", "two zones or regions"),
            (
                "[[region]]\nname = \"a\"\nzones = [\"x\", \"\"]",
                "'region.zones': region 'a' has an empty path",
            ),
            ("[limits]\nreplication_mbps = 0", "'limits.replication_mbps': 0 is not between 1 and 1000000"),
            ("public_host = \"a/b\"", "'public_host'"),
            ("tenant_id = \"x\"", "tenant_id"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
