//! What the service builds and runs with on this host: the regions' stores, the catalogue of platform images,
//! QEMU, and the folders in which VMs and runs live.
//!
//! Stores are opened on first use and again after a failure: a region that is away for a while must not keep
//! the service from starting, nor need a restart when it is back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use build::platform::{Catalog, CatalogError};
use build::{CacheLimits, StepCache};
use content::{KeyRing, StoreLocation, StoreOptions};
use model::Region;
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;
use vmhost::{Accelerator, MachineError, Outbound};

use crate::Config;
use crate::store_lock::ServerLock;

/// Bound of the block cache that all VMs of this host share.
const BLOCK_CACHE_BYTES_MAX: u64 = 8 << 30;

/// Why a part of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// A region that the configuration does not have.
    #[error("region '{0}' is not configured")]
    UnknownRegion(Region),
    /// A region's store.
    #[error("the store of region '{region}' cannot be used: {source}")]
    Store {
        /// The region.
        region: Region,
        /// Cause.
        #[source]
        source: Box<content::Error>,
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
    regions: BTreeMap<Region, RegionStore>,
    catalog: Catalog,
    step_cache: StepCache,
    outbound: Outbound,
    accelerator: OnceCell<Accelerator>,
    qemu_version: OnceCell<String>,
}

struct RegionStore {
    location: StoreLocation,
    key_file: Option<PathBuf>,
    open: Mutex<Option<OpenStore>>,
}

/// An open store, and the mark that keeps the command line from changing it meanwhile (remote stores have none).
struct OpenStore {
    store: content::Store,
    _lock: Option<ServerLock>,
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
        let regions = config
            .regions
            .iter()
            .map(|region| {
                let store = RegionStore {
                    location: region.store.clone(),
                    key_file: region.key_file.clone(),
                    open: Mutex::new(None),
                };
                (region.name.clone(), store)
            })
            .collect();
        let fabric = Self {
            program: config.program.clone(),
            regions,
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

    /// The store of a region, opened or made on first use.
    ///
    /// # Errors
    /// When the region is not configured or its store cannot be opened now.
    pub async fn store(&self, region: &Region) -> Result<content::Store, FabricError> {
        let known = self.region(region)?;
        let mut open = known.open.lock().await;
        if let Some(open) = &*open {
            return Ok(open.store.clone());
        }
        let fail = |source| FabricError::Store { region: region.clone(), source: Box::new(source) };
        let keys = known.key_file.as_deref().map(KeyRing::from_file).transpose().map_err(fail)?;
        let options = StoreOptions { index_dir: Some(self.index_dir()), keys, ..StoreOptions::default() };
        let store = content::Store::open_or_create_with(&known.location, "tintype", &options);
        let store = store.await.map_err(fail)?;
        let mark = |folder: &std::path::Path| {
            ServerLock::hold(folder, region)
                .map_err(|source| FabricError::Folder { path: folder.to_owned(), source })
        };
        let lock = known.location.as_folder().map(mark).transpose()?;
        *open = Some(OpenStore { store: store.clone(), _lock: lock });
        Ok(store)
    }

    /// Location of a region's store, as VM processes open it.
    ///
    /// # Errors
    /// When the region is not configured.
    pub fn store_location(&self, region: &Region) -> Result<String, FabricError> {
        Ok(self.region(region)?.location.to_string())
    }

    /// File with the keys of a region's store, as VM processes read it.
    ///
    /// # Errors
    /// When the region is not configured.
    pub fn store_key_file(&self, region: &Region) -> Result<Option<PathBuf>, FabricError> {
        Ok(self.region(region)?.key_file.clone())
    }

    fn region(&self, region: &Region) -> Result<&RegionStore, FabricError> {
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

    /// Everything that a build in `region` uses.
    ///
    /// # Errors
    /// When the region's store or QEMU cannot be used.
    pub async fn build_host(&self, region: &Region) -> Result<build::Host, FabricError> {
        Ok(build::Host {
            program: self.program.clone(),
            runs_dir: self.runs_dir(),
            cache: self.step_cache.clone(),
            store: self.store(region).await?,
            store_location: self.store_location(region)?,
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

    /// Copies of remote stores' indexes. Beside the block cache: there the VMs' processes look for it.
    fn index_dir(&self) -> PathBuf {
        self.data_dir.join(vmhost::INDEX_DIR)
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
    use crate::RegionConfig;
    use crate::store_lock::holder;

    #[tokio::test]
    async fn an_open_store_is_marked_as_this_servers() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path());
        let RegionConfig { name, store } = &config.regions[0];
        let fabric = Fabric::new(&config).unwrap();
        fabric.store(name).await.unwrap();
        let store = store.as_folder().unwrap();
        assert_eq!(holder(store).unwrap().map(|holder| holder.pid), Some(std::process::id()));
        drop(fabric);
        assert_eq!(holder(store).unwrap(), None);
    }
}
