//! The service: Azure Resource Manager's REST API over HTTPS, and the jobs behind it.
//!
//! ```text
//!   http/ ── auth/ ── api/ (one file per resource) ── store
//!                                                       │ operation + job in one transaction
//!                                jobs/ (claim → handler → one closing transaction)
//! ```
//!
//! [`Server::start`] runs everything in this process; the binary and the tests use it alike.

pub mod api;
pub mod auth;
pub mod blob;
mod config;
mod copies;
mod endpoint;
pub mod fabric;
pub mod http;
pub mod jobs;
mod reconcile;
mod seal;
mod secret_file;
mod state;
pub mod store_lock;
mod tls;
mod vhd;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, ConfigError, Limits, NetworkConfig, RegionConfig};
pub use endpoint::Endpoint;
pub use seal::SealError;
pub use state::{AppState, Shared};
pub use tls::{TlsError, install_crypto};

use jobs::engine::Engine;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A folder or the lock in it cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another server runs on the same data folder.
    #[error("{path} is in use by another server; stop that one, or choose another data_dir")]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another with 'listen'")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The address for blobs over plain HTTP cannot be listened on.
    #[error("cannot listen on {address} for blobs: {source}; choose another with 'blob_listen'")]
    ListenForBlobs {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the database: {0}")]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] auth::KeyError),
    /// The key for secrets in the database cannot be used.
    #[error(transparent)]
    Seal(#[from] seal::SealError),
    /// The host's folders or catalogue cannot be used.
    #[error(transparent)]
    Fabric(#[from] fabric::FabricError),
    /// Disks cannot be served.
    #[error(transparent)]
    DiskExports(#[from] blob::disk_access::ExportsError),
    /// The first credentials cannot be set up.
    #[error(transparent)]
    Client(#[from] auth::ClientError),
}

/// A running server.
pub struct Server {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// The address on which blobs are served over plain HTTP, if the configuration wants it.
    pub blob_addr: Option<SocketAddr>,
    /// `https://{public_host}:{port}`.
    pub url: String,
    /// Certificate of the authority, for clients to trust.
    pub ca_pem: PathBuf,
    /// Credentials of the first client (the file may have been removed).
    pub credentials: PathBuf,
    /// What handlers share; for what runs beside the API in the same process.
    pub state: AppState,
    stop: CancellationToken,
    connections: TaskTracker,
    listener: tokio::task::JoinHandle<()>,
    plain: Option<tokio::task::JoinHandle<()>>,
    /// What looks after blobs, virtual machines and stores.
    followers: [tokio::task::JoinHandle<()>; 4],
    engine: Engine,
    _lock: std::fs::File,
}

impl Server {
    /// Opens the database, sets up keys and certificates, and serves and works until [`Server::shutdown`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        install_crypto();
        config.check()?;
        let lock = lock(&config.data_dir)?;
        let store = Store::connect(&config.database_url()).await?;
        let data_dir = config.data_dir.clone();
        let tls = tls::set_up(&data_dir, &config.public_host, chrono::Utc::now())?;
        let keys = auth::SigningKeys::load(&data_dir)?;
        let clients = auth::Clients::set_up(
            store.clone(),
            &data_dir,
            config.tenant_id,
            config.subscription_id.as_str(),
        )
        .await?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let (mut blob_listener, mut blob_addr) = (None, None);
        if let Some(address) = config.blob_listen {
            let listen = |source| StartError::ListenForBlobs { address, source };
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            blob_addr = Some(listener.local_addr().map_err(listen)?);
            blob_listener = Some(listener);
        }
        let endpoint = Endpoint::new(&config.public_host, addr.port(), blob_addr, config.tenant_id);

        let fabric = fabric::Fabric::new(&config)?;
        let disk_exports = blob::disk_access::DiskExports::open(
            &data_dir,
            &fabric.block_cache_dir(),
            fabric.block_cache_bytes_max(),
        )?;
        let sealer = seal::Sealer::load(&data_dir)?;
        let state =
            AppState::new(Shared { config, store, fabric, endpoint, disk_exports, keys, clients, sealer });
        reconcile::runs::undo_left_behind(&state).await;
        reconcile::virtual_machines::remove_strays(&state).await?;
        let app = http::front::app(&state);
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let max = state.config.limits.connections;
        let served =
            http::serve::serve(listener, Some(tls.config), app, max, stop.clone(), connections.clone());
        let plain = blob_listener.map(|listener| {
            let app = http::front::blob_app(&state);
            let served = http::serve::serve(listener, None, app, max, stop.clone(), connections.clone());
            tokio::spawn(served)
        });
        let followers = [
            tokio::spawn(blob::objects::sweep(state.clone(), stop.clone())),
            tokio::spawn(reconcile::virtual_machines::follow(state.clone(), stop.clone())),
            tokio::spawn(reconcile::references::follow(state.clone(), stop.clone())),
            tokio::spawn(reconcile::gc::follow(state.clone(), stop.clone())),
        ];
        let engine = Engine::start(state.clone(), jobs::handlers(), jobs::engine::Timing::default());
        tracing::info!(%addr, url = state.endpoint.url(), "serving");
        Ok(Server {
            addr,
            blob_addr,
            url: state.endpoint.url().to_owned(),
            ca_pem: tls.ca_pem,
            credentials: data_dir.join(auth::BOOTSTRAP_FILE),
            state,
            stop,
            connections,
            listener: tokio::spawn(served),
            plain,
            followers,
            engine,
            _lock: lock,
        })
    }

    /// Stops: no new connections or jobs; running ones have `limits.shutdown_timeout_s` to end. Jobs that do
    /// not end in time are given up, and claimed again by the next start.
    pub async fn shutdown(self) {
        let limit = self.state.config.limits.shutdown_timeout;
        self.stop.cancel();
        if let Err(error) = self.listener.await {
            tracing::error!(%error, "the listener panicked");
        }
        if let Some(Err(error)) = futures::future::OptionFuture::from(self.plain).await {
            tracing::error!(%error, "the plain listener panicked");
        }
        for follower in self.followers {
            if let Err(error) = follower.await {
                tracing::error!(%error, "what looks after blobs, virtual machines or stores panicked");
            }
        }
        self.connections.close();
        let (idle, ()) = tokio::join!(within(limit, self.connections.wait()), self.engine.stop(limit));
        if !idle {
            tracing::warn!("some requests did not end in time");
        }
        self.state.store.close().await;
    }
}

async fn within(limit: Duration, work: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, work).await.is_ok()
}

/// The routes of the service, (public, behind a token), for the test that covers them all.
#[must_use]
pub fn route_lists() -> (Vec<http::routes::Route>, Vec<http::routes::Route>) {
    http::front::route_lists()
}

/// Makes the data folder, and holds a lock in it for as long as the file is open.
fn lock(data_dir: &Path) -> Result<std::fs::File, StartError> {
    let folder = |source| StartError::Folder { path: data_dir.to_owned(), source };
    secret_file::create_folder(data_dir).map_err(folder)?;
    let path = data_dir.join("server.lock");
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(folder)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse { path: data_dir.to_owned() }),
        Err(error) => Err(folder(error.into())),
    }
}
