//! Applications that may ask for tokens: id and the hash of a secret, in the settings table.
//!
//! The first start makes one and writes its secret to `bootstrap-credentials.json` (mode 0600), the
//! only place where it can be read. Secrets are 256 random bits, so a plain SHA-256 of one cannot be
//! searched; a slow hash is for secrets that people choose.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{Store, StoreError};
use uuid::Uuid;

use crate::secret_file;

/// File in the data folder with the first client's secret.
pub(crate) const BOOTSTRAP_FILE: &str = "bootstrap-credentials.json";
/// Settings key of the first client's id.
const BOOTSTRAP_SETTING: &str = "auth.bootstrap_client";

/// Why the first credentials cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is not what the first start wrote.
    #[error("{path} is damaged; remove it to have new credentials made")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// The database's own.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `bootstrap-credentials.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bootstrap {
    tenant_id: Uuid,
    subscription_id: String,
    client_id: Uuid,
    client_secret: String,
    object_id: Uuid,
}

/// An application as the database knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) app_id: Uuid,
    pub(crate) object_id: Uuid,
    secret_sha256: String,
}

#[derive(Clone)]
pub(crate) struct Clients {
    store: Store,
}

impl Clients {
    /// Makes the first client if there is none. A file without its row (a new database) is taken up
    /// again; a row without its file stays as it is, because whoever removed the file meant to.
    pub(crate) async fn set_up(
        store: Store,
        data_dir: &Path,
        tenant_id: Uuid,
        subscription_id: &str,
    ) -> Result<Clients, ClientError> {
        let path = data_dir.join(BOOTSTRAP_FILE);
        let clients = Clients { store };
        let known = clients.store.read(|tx| Box::pin(async { tx.setting(BOOTSTRAP_SETTING).await })).await?;
        let file = |source| ClientError::File { path: path.clone(), source };
        let text = secret_file::read(&path).map_err(file)?;
        let bootstrap = match (known, text) {
            (Some(_), None) => return Ok(clients),
            (_, Some(text)) => serde_json::from_str(&text)
                .map_err(|source| ClientError::Damaged { path: path.clone(), source })?,
            (None, None) => {
                let new = Bootstrap {
                    tenant_id,
                    subscription_id: subscription_id.to_owned(),
                    client_id: Uuid::new_v4(),
                    // In hexadecimal: what begins with '-' is an option to az.
                    client_secret: hex::encode(rand::random::<[u8; 32]>()),
                    object_id: Uuid::new_v4(),
                };
                // The file first: a crash after it leaves credentials that the next start takes up.
                secret_file::create(&path, &format!("{:#}\n", serde_json::json!(new))).map_err(file)?;
                new
            }
        };
        let client = Client {
            app_id: bootstrap.client_id,
            object_id: bootstrap.object_id,
            secret_sha256: hash(&bootstrap.client_secret),
        };
        let row = serde_json::json!(client).to_string();
        clients
            .store
            .write(|tx| {
                Box::pin(async {
                    tx.set_setting(&setting_of(client.app_id), row.as_bytes()).await?;
                    tx.set_setting(BOOTSTRAP_SETTING, client.app_id.to_string().as_bytes()).await
                })
            })
            .await?;
        Ok(clients)
    }

    /// The client with this id if the secret is its secret.
    pub(crate) async fn check(&self, app_id: &str, secret: &str) -> Result<Option<Client>, StoreError> {
        // An id that is no UUID has no row; do not let it become a settings key.
        let Ok(app_id) = Uuid::parse_str(app_id) else { return Ok(None) };
        let key = setting_of(app_id);
        let Some(row) = self.store.read(|tx| Box::pin(async { tx.setting(&key).await })).await? else {
            return Ok(None);
        };
        let client: Client = serde_json::from_slice(&row).map_err(|e| StoreError::Inconsistent {
            table: "settings",
            column: "value",
            row: key.clone(),
            reason: e.to_string(),
        })?;
        let (given, expected) = (hash(secret), client.secret_sha256.clone());
        let same =
            aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), expected.as_bytes()).is_ok();
        Ok(same.then_some(client))
    }
}

fn setting_of(app_id: Uuid) -> String {
    format!("auth.client.{app_id}")
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}
