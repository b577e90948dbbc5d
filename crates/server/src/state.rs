//! What handlers and jobs share. Handlers take it as `State<AppState>` and use the fields they need.

use std::ops::Deref;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use store::Store;

use crate::auth::{Clients, SigningKeys};
use crate::blob::disk_access::DiskExports;
use crate::fabric::Fabric;
use crate::seal::Sealer;
use crate::{Config, Endpoint};

/// Cheap to clone; see [`Shared`] for what is in it.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

/// The parts of the running service.
pub struct Shared {
    /// Configuration.
    pub config: Config,
    /// Database.
    pub store: Store,
    /// Regions' stores, QEMU, folders of this host.
    pub fabric: Fabric,
    /// Address for URLs.
    pub endpoint: Endpoint,
    pub(crate) disk_exports: DiskExports,
    pub(crate) keys: SigningKeys,
    pub(crate) clients: Clients,
    pub(crate) sealer: Sealer,
}

impl AppState {
    pub(crate) fn new(shared: Shared) -> AppState {
        AppState(Arc::new(shared))
    }

    /// The parts of a service in a data folder of the test's own, which serves nothing.
    #[cfg(test)]
    pub(crate) async fn for_tests(config: Config) -> AppState {
        let folder = config.data_dir.clone();
        let store = Store::connect(&config.database_url()).await.unwrap();
        let endpoint = Endpoint::new("localhost", 1, None, config.tenant_id);
        let keys = SigningKeys::load(&folder).unwrap();
        let clients = Clients::set_up(store.clone(), &folder, config.tenant_id, "s").await.unwrap();
        let fabric = Fabric::new(&config).unwrap();
        let disk_exports = DiskExports::open(&folder, &fabric.block_cache_dir(), 1 << 20).unwrap();
        let sealer = Sealer::load(&folder).unwrap();
        Self::new(Shared { config, store, fabric, endpoint, disk_exports, keys, clients, sealer })
    }

    /// The present moment, for what is decided at the edge; rows use the database's.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
