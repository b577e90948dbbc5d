//! What the service builds and runs with on this host: the regions' stores, the catalogue of platform images,
//! QEMU, and the folders in which VMs and runs live.
//!
//! Stores are opened on first use and again after a failure: a region that is away for a while must not keep
//! the service from starting, nor need a restart when it is back. A region has one to three zones, each a store
//! ([`zone`]); what is to be where, and brings it there, is in [`crate::copies`].

mod zone;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use build::platform::{Catalog, CatalogError};
use build::{CacheLimits, StepCache};
use content::{Bandwidth, KeyRing, ManifestId};
use futures::future::join_all;
use model::Region;
use model::placement::RegionZones;
use tokio::sync::{Mutex, Notify, OnceCell};
use uuid::Uuid;
use vmhost::{Accelerator, MachineError, Outbound};

use self::zone::{Common, RunningServer, Zone};
use crate::http::error::chain;
use crate::{Config, RegionConfig};

/// Bound of the block cache that all VMs of this host share.
const BLOCK_CACHE_BYTES_MAX: u64 = 8 << 30;
const BYTES_PER_MEGABIT: u64 = 1_000_000 / 8;

/// Why a part of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// A region that the configuration does not have.
    #[error("region '{0}' is not configured")]
    UnknownRegion(Region),
    /// A region's store.
    #[error("{name} cannot be used: {source}")]
    Store {
        /// The region.
        region: Region,
        /// The store or zone, as messages name it.
        name: String,
        /// Cause.
        #[source]
        source: Box<content::Error>,
    },
    /// A zone that is not there now, and may be again.
    #[error("{name} is away: {reason}")]
    Away {
        /// The store or zone, as messages name it.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// QEMU.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The catalogue of platform images.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A folder of this host.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// The host's parts.
pub struct Fabric {
    data_dir: PathBuf,
    program: PathBuf,
    regions: BTreeMap<Region, Zones>,
    bandwidth: Option<Arc<Bandwidth>>,
    /// Wakes what compares the stores with the database.
    pub(crate) reconcile: Notify,
    /// Held by whoever does that: twice at once would only be twice the work.
    pub(crate) reconciling: Mutex<()>,
    catalog: Catalog,
    step_cache: StepCache,
    outbound: Outbound,
    accelerator: OnceCell<Accelerator>,
    qemu_version: OnceCell<String>,
}

/// The stores of a region.
struct Zones {
    offers: RegionZones,
    key_file: Option<PathBuf>,
    zones: Vec<Zone>,
    blob_keys: OnceCell<Option<Arc<KeyRing>>>,
}

/// Where the bytes of a region's blobs lie.
#[derive(Debug, Clone)]
pub struct BlobFolder {
    /// The folder, which need not be there yet.
    pub path: PathBuf,
    /// What they are encrypted with.
    pub keys: Option<Arc<KeyRing>>,
}

impl Zones {
    fn new(
        region: &RegionConfig,
        server: &RunningServer,
        index_dir: &std::path::Path,
        seen_dir: &std::path::Path,
    ) -> Self {
        let common = Common {
            region: &region.name,
            server,
            count: region.zones.len(),
            index_dir,
            key_file: region.key_file.as_deref(),
            seen_dir,
        };
        let zones = region.zones.iter().enumerate();
        Self {
            offers: region.offers(),
            key_file: region.key_file.clone(),
            zones: zones.map(|(index, location)| Zone::new(&common, index, location)).collect(),
            blob_keys: OnceCell::new(),
        }
    }
}

impl Fabric {
    /// Reads the catalogue and makes the folders; stores and QEMU are looked at when they are needed.
    ///
    /// # Errors
    /// When the catalogue is wrong or a folder cannot be made.
    pub(crate) fn new(config: &Config) -> Result<Self, FabricError> {
        let data_dir = config.data_dir.clone();
        let cache_dir = data_dir.join("step-cache");
        let step_cache = StepCache::open(&cache_dir, CacheLimits::default())
            .map_err(|source| FabricError::Folder { path: cache_dir, source })?;
        // Beside the block cache: there the VMs' processes look for it.
        let index_dir = data_dir.join(vmhost::INDEX_DIR);
        let seen_dir = data_dir.join("zones");
        crate::secret_file::create_folder(&seen_dir)
            .map_err(|source| FabricError::Folder { path: seen_dir.clone(), source })?;
        let port = config.listen.port();
        let url = (port != 0).then(|| format!("https://{}:{port}", config.public_host));
        let server = RunningServer { id: Uuid::new_v4(), url };
        let zones = |region: &RegionConfig| Zones::new(region, &server, &index_dir, &seen_dir);
        let regions = config.regions.iter().map(|region| (region.name.clone(), zones(region))).collect();
        let bandwidth = config.limits.replication_mbps;
        let fabric = Self {
            program: config.program.clone(),
            regions,
            bandwidth: bandwidth.map(|mbps| Arc::new(Bandwidth::new(mbps.saturating_mul(BYTES_PER_MEGABIT)))),
            reconcile: Notify::new(),
            reconciling: Mutex::default(),
            catalog: Catalog::load(&config.catalog)?,
            step_cache,
            outbound: Outbound { allow: config.network.allow.clone(), resolvers: Vec::new() },
            accelerator: OnceCell::new(),
            qemu_version: OnceCell::new(),
            data_dir,
        };
        for path in [fabric.runs_dir(), fabric.vms_dir(), fabric.staging_root()] {
            crate::secret_file::create_folder(&path)
                .map_err(|source| FabricError::Folder { path, source })?;
        }
        Ok(fabric)
    }

    /// Platform images.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// This program, for `vmhost` processes.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// What guests may reach.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// What a region offers to images.
    ///
    /// # Errors
    /// When it is not configured.
    pub fn offers(&self, region: &Region) -> Result<RegionZones, FabricError> {
        Ok(self.region(region)?.offers)
    }

    /// The stores of a region's zones, in their order, opened or made on first use; or why one cannot be used now.
    ///
    /// # Errors
    /// When the region is not configured.
    pub async fn zones(
        &self,
        region: &Region,
    ) -> Result<Vec<Result<content::Store, FabricError>>, FabricError> {
        Ok(join_all(self.region(region)?.zones.iter().map(Zone::store)).await)
    }

    /// As [`Fabric::zones`], of those that were ever opened: `None` for one that nobody needed yet. For what looks at all
    /// stores and must not make any.
    ///
    /// # Errors
    /// When the region is not configured.
    pub async fn zones_in_use(
        &self,
        region: &Region,
    ) -> Result<Vec<Option<Result<content::Store, FabricError>>>, FabricError> {
        let open = async |zone: &Zone| match zone.was_opened() {
            true => Some(zone.store().await),
            false => None,
        };
        Ok(join_all(self.region(region)?.zones.iter().map(open)).await)
    }

    /// The store of one zone, by its index.
    ///
    /// # Errors
    /// When there is no such zone or it cannot be used now.
    pub async fn zone(&self, region: &Region, index: usize) -> Result<content::Store, FabricError> {
        let zone = self.region(region)?.zones.get(index);
        zone.ok_or_else(|| FabricError::UnknownRegion(region.clone()))?.store().await
    }

    /// The stores of a region that can be used now, at least one.
    ///
    /// # Errors
    /// When the region is not configured or none of its stores can be used now: why the first one cannot.
    pub async fn stores(&self, region: &Region) -> Result<Vec<content::Store>, FabricError> {
        let (mut usable, mut first) = (Vec::new(), None);
        for zone in self.zones(region).await? {
            match zone {
                Ok(store) => usable.push(store),
                Err(error) => {
                    tracing::debug!(error = chain(&error), "a zone is not used");
                    first.get_or_insert(error);
                }
            }
        }
        match (usable.is_empty(), first) {
            (true, Some(error)) => Err(error),
            _ => Ok(usable),
        }
    }

    /// A store of a region, opened or made on first use: that of its first zone which can be used now.
    ///
    /// # Errors
    /// As [`Fabric::stores`].
    pub async fn store(&self, region: &Region) -> Result<content::Store, FabricError> {
        for zone in &self.region(region)?.zones {
            if let Ok(store) = zone.store().await {
                return Ok(store);
            }
        }
        let mut stores = self.stores(region).await?;
        Ok(stores.swap_remove(0))
    }

    /// The stores of a region that hold an image and can be used now; none if no zone has it.
    ///
    /// # Errors
    /// As [`Fabric::stores`].
    pub async fn holding(
        &self,
        region: &Region,
        manifest: &ManifestId,
    ) -> Result<Vec<content::Store>, FabricError> {
        let stores = self.stores(region).await?;
        let held = join_all(stores.iter().map(|store| store.has_manifest(manifest))).await;
        let mut holding = Vec::new();
        for (store, held) in stores.into_iter().zip(held) {
            match held {
                Ok(true) => holding.push(store),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, store = %store.location(), "cannot look for an image"),
            }
        }
        Ok(holding)
    }

    /// Where VM processes read an image of a region: the zones that hold it, from `turn` on, so that readers are spread.
    ///
    /// # Errors
    /// As [`Fabric::stores`].
    pub async fn reading_places(
        &self,
        region: &Region,
        manifest: &ManifestId,
        turn: u64,
    ) -> Result<Vec<String>, FabricError> {
        let mut holding = self.holding(region, manifest).await?;
        if !holding.is_empty() {
            let turn = turn % holding.len() as u64;
            holding.rotate_left(turn as usize);
        }
        Ok(holding.iter().map(|store| store.location().to_string()).collect())
    }

    /// What all replications of this process share.
    pub fn bandwidth(&self) -> Option<&Bandwidth> {
        self.bandwidth.as_deref()
    }

    /// File with the keys of a region's store, as VM processes read it.
    ///
    /// # Errors
    /// When the region is not configured.
    pub fn store_key_file(&self, region: &Region) -> Result<Option<PathBuf>, FabricError> {
        Ok(self.region(region)?.key_file.clone())
    }

    /// Where the bytes of a region's blobs lie, beside its images in its first zone, and what they are encrypted with.
    ///
    /// # Errors
    /// When the region is not configured, or that zone is away.
    pub async fn blob_folder(&self, region: &Region) -> Result<BlobFolder, FabricError> {
        let zone = self.region(region)?.zones.first();
        if let Some(zone) = zone {
            zone.check_folder()?;
        }
        let path = match zone.and_then(|zone| zone.location().as_folder()) {
            Some(folder) => folder.join("blobs"),
            // Page blobs are written in place, which a bucket's objects cannot be.
            None => self.data_dir.join("blobs").join(region.as_str()),
        };
        Ok(BlobFolder { path, keys: self.blob_keys(region).await? })
    }

    /// What blobs and uploads of a region are encrypted with: what the store of its first zone is, if it is.
    ///
    /// # Errors
    /// As [`Fabric::blob_folder`].
    pub async fn blob_keys(&self, region: &Region) -> Result<Option<Arc<KeyRing>>, FabricError> {
        // The ring was read when the store was opened, and stays as it was then as well.
        let keys = &self.region(region)?.blob_keys;
        let found = async || Ok(self.zone(region, 0).await?.keys().cloned());
        keys.get_or_try_init(found).await.cloned()
    }

    fn region(&self, region: &Region) -> Result<&Zones, FabricError> {
        self.regions.get(region).ok_or_else(|| FabricError::UnknownRegion(region.clone()))
    }

    /// KVM or TCG, found out once by a trial boot.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub async fn accelerator(&self) -> Result<Accelerator, FabricError> {
        let probe = || Accelerator::probe(&self.data_dir);
        Ok(*self.accelerator.get_or_try_init(probe).await?)
    }

    /// Everything that a build in `region` from an image `base` uses. The result goes to the first zone of `order` that has
    /// the base, and takes it.
    ///
    /// # Errors
    /// When none of the region's stores, or QEMU, can be used.
    pub async fn build_host(
        &self,
        region: &Region,
        base: &ManifestId,
        order: &[usize],
    ) -> Result<build::Host, FabricError> {
        let mut stores = self.holding(region, base).await?;
        if stores.is_empty() {
            stores = self.stores(region).await?;
        }
        let zones = &self.region(region)?.zones;
        stores.sort_by_key(|store| {
            let zone = zones.iter().position(|zone| zone.location() == store.location());
            order.iter().position(|wanted| Some(*wanted) == zone)
        });
        Ok(build::Host {
            program: self.program.clone(),
            runs_dir: self.runs_dir(),
            cache: self.step_cache.clone(),
            store_locations: stores.iter().map(|store| store.location().to_string()).collect(),
            stores,
            store_key_file: self.store_key_file(region)?,
            block_cache_dir: self.block_cache_dir(),
            block_cache_bytes_max: BLOCK_CACHE_BYTES_MAX,
            accelerator: self.accelerator().await?,
            qemu_version: self.qemu_version.get_or_try_init(vmhost::qemu_version).await?.clone(),
            outbound: self.outbound.clone(),
        })
    }

    /// Bound of [`Fabric::block_cache_dir`] in bytes.
    pub fn block_cache_bytes_max(&self) -> u64 {
        BLOCK_CACHE_BYTES_MAX
    }

    /// Block cache that all VMs of this host share.
    pub fn block_cache_dir(&self) -> PathBuf {
        self.data_dir.join("block-cache")
    }

    /// Parent of the builds' directories.
    pub fn runs_dir(&self) -> PathBuf {
        self.data_dir.join("runs")
    }

    /// Directory of a virtual machine: its disk, its sockets, its console.
    pub fn vm_dir(&self, vm_id: Uuid) -> PathBuf {
        self.vms_dir().join(vm_id.to_string())
    }

    /// Parent of the virtual machines' directories.
    pub fn vms_dir(&self) -> PathBuf {
        self.data_dir.join("vms")
    }

    /// What a staging resource group keeps: scripts and logs.
    pub fn staging_dir(&self, group: &str) -> PathBuf {
        self.staging_root().join(group)
    }

    fn staging_root(&self) -> PathBuf {
        self.data_dir.join("staging")
    }

    /// Scratch folder for making platform images.
    pub fn scratch_dir(&self) -> PathBuf {
        self.data_dir.join("scratch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_lock::holder;

    fn two_zones(dir: &std::path::Path) -> Config {
        let mut config = Config::new(dir);
        let second = dir.join("second").to_string_lossy().parse().unwrap();
        config.regions[0].zones.push(second);
        config
    }

    #[tokio::test]
    async fn an_open_store_is_marked_as_this_servers() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path());
        let RegionConfig { name, zones, .. } = &config.regions[0];
        let folder = zones[0].as_folder().unwrap();
        let fabric = Fabric::new(&config).unwrap();
        fabric.store(name).await.unwrap();
        assert_eq!(holder(folder).unwrap().map(|holder| holder.pid), Some(std::process::id()));
        drop(fabric);
        assert_eq!(holder(folder).unwrap(), None);
    }

    #[tokio::test]
    async fn a_zone_that_is_away_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let config = two_zones(dir.path());
        let name = &config.regions[0].name;
        let (folder, elsewhere) = (dir.path().join("second"), dir.path().join("elsewhere"));
        let fabric = Fabric::new(&config).unwrap();
        let id = fabric.zones(name).await.unwrap()[1].as_ref().unwrap().id();
        std::fs::rename(&folder, &elsewhere).unwrap();
        assert_eq!(fabric.stores(name).await.unwrap().len(), 1);
        drop(fabric);
        let fabric = Fabric::new(&config).unwrap();
        let away = fabric.zones(name).await.unwrap().swap_remove(1).unwrap_err().to_string();
        assert!(away.starts_with("zone 2 of region 'eastus'") && away.contains("make the folder"), "{away}");
        assert!(!folder.exists());
        // Back as it was.
        std::fs::rename(&elsewhere, &folder).unwrap();
        assert_eq!(fabric.zones(name).await.unwrap()[1].as_ref().unwrap().id(), id);
        // Lost: an empty folder is what the message asks for.
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(fabric.zones(name).await.unwrap()[1].is_err());
        std::fs::create_dir(&folder).unwrap();
        assert_ne!(fabric.zones(name).await.unwrap()[1].as_ref().unwrap().id(), id);
    }
}
