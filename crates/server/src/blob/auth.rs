//! Who may do what with blobs: account keys (SharedKey), shared access signatures, and the service's own tokens.
//!
//! ```text
//!   shared_key.rs   Authorization: SharedKey   ─┐
//!   sas.rs          ?sv=…&sig=…                 ├─▶ Grant ── allows(Action) ──▶ the operation
//!   bearer          Authorization: Bearer      ─┘
//! ```
//!
//! Nothing is anonymous. A refusal says its cause, and nothing that a client who knows no key could use.

mod sas;
mod shared_key;

use axum::http::{Method, StatusCode, header};
use chrono::{DateTime, Utc};
use model::storage_account::StorageAccount;

use super::error::BlobError;
use super::query::BlobQuery;
use super::route::Place;
use super::rows::ContainerData;
use crate::AppState;
use crate::api::storage_accounts;
use crate::http::serve::Peer;

/// What an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// List the account's containers.
    ListContainers,
    /// Read the account's properties.
    ReadService,
    /// Make a container.
    CreateContainer,
    /// Read a container's properties or metadata.
    ReadContainer,
    /// Change a container's metadata.
    WriteContainer,
    /// Delete a container.
    DeleteContainer,
    /// Read or change stored access policies: for whoever has the account's key.
    Policies,
    /// List a container's blobs.
    ListBlobs,
    /// Read a blob.
    Read,
    /// Make a blob that is not there.
    Create,
    /// Make or change a blob.
    Write,
    /// Add to an append blob.
    Append,
    /// Delete a blob.
    Delete,
}

/// What an action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Service,
    Container,
    Object,
}

impl Action {
    /// What it is about, and the permissions any of which allows it; empty: none does.
    fn rule(self) -> (Level, &'static str) {
        match self {
            Action::ListContainers => (Level::Service, "l"),
            Action::ReadService => (Level::Service, "r"),
            Action::CreateContainer => (Level::Container, "cw"),
            Action::ReadContainer => (Level::Container, "r"),
            Action::WriteContainer => (Level::Container, "w"),
            Action::DeleteContainer => (Level::Container, "d"),
            Action::Policies => (Level::Container, ""),
            Action::ListBlobs => (Level::Container, "l"),
            Action::Read => (Level::Object, "r"),
            Action::Create => (Level::Object, "cw"),
            Action::Write => (Level::Object, "w"),
            Action::Append => (Level::Object, "aw"),
            Action::Delete => (Level::Object, "d"),
        }
    }
}

/// What a request was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grant {
    /// Everything in the account.
    All,
    /// By a service SAS: these permissions for one blob, or for a container's blobs.
    Service {
        /// `sp`.
        permissions: String,
        /// `sr=c`.
        container: bool,
    },
    /// By an account SAS.
    Account {
        /// `sp`.
        permissions: String,
        /// `srt`.
        resource_types: String,
    },
}

impl Grant {
    /// Whether it covers an action.
    pub(super) fn allows(&self, action: Action) -> bool {
        self.check(action).is_ok()
    }

    /// Refuses what it does not cover.
    pub(super) fn check(&self, action: Action) -> Result<(), BlobError> {
        let (level, any_of) = action.rule();
        let permissions = match self {
            Grant::All => return Ok(()),
            Grant::Service { permissions, container } => {
                let covered = match level {
                    Level::Object => true,
                    // The one thing about a container that a service SAS can allow.
                    Level::Container => *container && action == Action::ListBlobs,
                    Level::Service => false,
                };
                if !covered {
                    return Err(BlobError::permission("A service SAS does not cover this operation."));
                }
                permissions
            }
            Grant::Account { permissions, resource_types } => {
                let letter = match level {
                    Level::Service => 's',
                    Level::Container => 'c',
                    Level::Object => 'o',
                };
                if !resource_types.contains(letter) {
                    let message = format!(
                        "This request is not authorized to perform this operation using this resource type: it needs srt={letter}, \
                         and the SAS has srt={resource_types}."
                    );
                    let code = "AuthorizationResourceTypeMismatch";
                    return Err(BlobError::new(StatusCode::FORBIDDEN, code, message));
                }
                permissions
            }
        };
        if permissions.contains(|letter| any_of.contains(letter)) {
            return Ok(());
        }
        let cause = match any_of {
            "" => "It needs the account's key.".to_owned(),
            _ => format!("It needs one of sp={any_of}, and the SAS has sp={permissions}."),
        };
        Err(BlobError::permission(&cause))
    }
}

/// What is asked, as far as signatures cover it.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    /// As it came, encoded.
    pub(super) path: &'a str,
    pub(super) query: &'a BlobQuery,
    pub(super) headers: &'a axum::http::HeaderMap,
    pub(super) place: &'a Place,
    pub(super) peer: Peer,
    pub(super) now: DateTime<Utc>,
}

/// Finds out what a request may do.
///
/// # Errors
/// 401 without credentials, 403 with ones that do not hold, 400 over plain HTTP where the account wants HTTPS.
pub(super) async fn authorize(
    state: &AppState,
    key: &str,
    account: &StorageAccount,
    asked: &Asked<'_>,
) -> Result<Grant, BlobError> {
    if account.spec.https_only && !asked.peer.secure {
        let message = "The account being accessed does not support http.";
        return Err(BlobError::new(StatusCode::BAD_REQUEST, "AccountRequiresHttps", message));
    }
    let authorization = asked.headers.get(header::AUTHORIZATION).map(|value| value.to_str());
    let signed = asked.query.get("sig").is_some();
    let scheme = match authorization {
        None if signed => "",
        None => {
            let message = "Server failed to authenticate the request. Please refer to the information in the www-authenticate \
                           header. Nothing here is public: sign the request with an account key or a SAS.";
            return Err(BlobError::new(StatusCode::UNAUTHORIZED, "NoAuthenticationInformation", message));
        }
        Some(Err(_)) => return Err(BlobError::authentication("The Authorization header is no text.")),
        Some(Ok(text)) => text,
    };
    if let Some(token) = scheme.strip_prefix("Bearer ") {
        return bearer(state, asked, token);
    }
    if !account.spec.shared_key_access {
        let message = "Key based authentication is not permitted on this storage account.";
        return Err(BlobError::new(StatusCode::FORBIDDEN, "KeyBasedAuthenticationNotPermitted", message));
    }
    let keys = storage_accounts::open_keys(state, account).map_err(BlobError::internal)?;
    if let Some(credential) = scheme.strip_prefix("SharedKey ") {
        shared_key::check(asked, account.name.as_str(), &keys, credential)?;
        return Ok(Grant::All);
    }
    if !scheme.is_empty() {
        let detail =
            "The Authorization header is neither 'SharedKey' nor 'Bearer'; SharedKeyLite is not accepted.";
        return Err(BlobError::authentication(detail));
    }
    let mut policies = Vec::new();
    if asked.query.get("si").is_some()
        && let Some(container) = &asked.place.container
    {
        let read =
            state.store.read(|tx| Box::pin(async { tx.container::<ContainerData>(key, container).await }));
        policies = read.await?.map(|row| row.data.policies).unwrap_or_default();
    }
    sas::check(asked, account.name.as_str(), &keys, &policies)
}

fn bearer(state: &AppState, asked: &Asked<'_>, token: &str) -> Result<Grant, BlobError> {
    if !asked.peer.secure {
        return Err(BlobError::authentication("Tokens are only accepted over HTTPS."));
    }
    let claims = state
        .keys
        .verify(token.trim(), &state.endpoint.issuer(), state.endpoint.audiences())
        .map_err(|_| {
            BlobError::authentication("The token does not hold: its time, issuer, audience or signature.")
        })?;
    if claims.tid != state.config.tenant_id {
        return Err(BlobError::authentication("The token is from another tenant."));
    }
    Ok(Grant::All)
}

/// Whether a signature (base64) over `text` was made with one of the keys.
fn is_signed(keys: &[Vec<u8>; 2], text: &str, signature: &[u8]) -> bool {
    use aws_lc_rs::hmac;
    keys.iter().any(|key| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        // Compares in constant time.
        hmac::verify(&key, text.as_bytes(), signature).is_ok()
    })
}
