//! Storage accounts: PUT, PATCH, GET, lists, DELETE, keys, and whether a name is free. Their blobs are served by
//! [`crate::blob`]. An account is a row and nothing more, so all answers are final.

use arm::resource_type::STORAGE_ACCOUNTS;
use arm::storage_account::NameAvailability;
use arm::{ApiVersion, ArmError, Context, ResourceId};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::Timestamp;
use model::storage_account::{KeyName, SealedKey, StorageAccount, StorageAccountName, StorageAccountSpec};
use serde_json::Value;
use store::{Document, Filter, StoreError, Tx};

use super::column_state;
use super::galleries::{Write, check_region, check_version, find, group, id_of, missing, page};
use crate::AppState;
use crate::blob::{self, objects};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Version};
use crate::http::path::ArmPath;
use crate::http::query::Query;
use crate::http::routes::Routes;
use crate::seal::SealError;

/// Type of an account's row.
pub(crate) const TYPE: &str = "microsoft.storage/storageaccounts";
/// Length of an account's key in bytes: Azure's.
const KEY_BYTES: usize = 64;

pub(super) fn routes(routes: Routes) -> Routes {
    const ACCOUNTS: &str =
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts";
    const ACCOUNT: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}";
    const LIST_KEYS: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}/listkeys";
    const REGENERATE_KEY: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}/regeneratekey";
    const CHECK_NAME: &str =
        "/subscriptions/{subscription}/providers/microsoft.storage/checknameavailability";
    routes
        .on(Method::POST, CHECK_NAME, check_name)
        .on(Method::GET, "/subscriptions/{subscription}/providers/microsoft.storage/storageaccounts", list)
        .on(Method::GET, ACCOUNTS, list)
        .on(Method::PUT, ACCOUNT, put)
        .on(Method::PATCH, ACCOUNT, patch)
        .on(Method::GET, ACCOUNT, get)
        .on(Method::DELETE, ACCOUNT, delete)
        .on(Method::POST, LIST_KEYS, list_keys)
        .on(Method::POST, REGENERATE_KEY, regenerate_key)
}

impl From<SealError> for ApiError {
    fn from(error: SealError) -> Self {
        ApiError::internal(error)
    }
}

async fn put(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    write(&state, &path, &version, Write::Put(body)).await
}

async fn patch(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    write(&state, &path, &version, Write::Patch(body)).await
}

async fn write(
    state: &AppState,
    path: &ArmPath,
    version: &ApiVersion,
    body: Write,
) -> Result<Json<Value>, ApiError> {
    check_version(state, version, &STORAGE_ACCOUNTS)?;
    let name = StorageAccountName::parse(path.value("storageaccounts")?)
        .map_err(|violation| ArmError::new(400, "AccountNameInvalid", violation.message))?;
    let id = id_of(path)?;
    // Before the transaction, whose body may run twice.
    let keys = new_keys(state, &name)?;
    let document = state
        .store
        .write(|tx| {
            Box::pin(async {
                let group = group(tx, &id).await?;
                let found = tx.get::<StorageAccount>(&id.to_string()).await?;
                let body = match (&body, &found) {
                    (Write::Put(body), _) => body.clone(),
                    (Write::Patch(patch), Some(found)) => {
                        arm::apply_patch(render(state, found)?, patch.clone())
                    }
                    (Write::Patch(_), None) => return Err(missing(tx, &id).await?),
                };
                let parsed = arm::storage_account::parse(body, version)?;
                check_region(state, &parsed.data.location, &STORAGE_ACCOUNTS, "location")?;
                let Some(mut found) = found else {
                    if let Some(message) = taken(tx, &name).await? {
                        return Err(ApiError::new(409, "StorageAccountAlreadyTaken", message));
                    }
                    let id = id_in(&group.id, &name);
                    let location = parsed.data.location.to_string();
                    let account =
                        StorageAccount::create(name.clone(), parsed.data, keys.clone(), tx.now().await?);
                    let mut new =
                        Document::new(&id, &location, column_state(&account.provisioning), account)?;
                    new.extra = parsed.extra;
                    tx.insert(&mut new).await?;
                    return Ok(new);
                };
                found.data.check_update(&parsed.data)?;
                found.data.spec = parsed.data;
                found.extra = parsed.extra;
                tx.update(&mut found).await?;
                Ok::<_, ApiError>(found)
            })
        })
        .await?;
    Ok(Json(render(state, &document)?))
}

/// Why a name cannot be had: another account or a part of the service's own addresses has it.
async fn taken(tx: &mut Tx<'_>, name: &StorageAccountName) -> Result<Option<String>, StoreError> {
    let there = tx.find_by_name::<Value>(TYPE, name.as_str()).await?.is_some();
    let reserved = blob::route::is_reserved(name.as_str());
    Ok((there || reserved).then(|| format!("The storage account named {name} is already taken.")))
}

fn new_key(state: &AppState, account: &StorageAccountName, name: KeyName) -> Result<SealedKey, SealError> {
    let key = rand::random::<[u8; KEY_BYTES]>();
    let sealed = state.sealer.seal(&purpose(account, name), &key)?;
    Ok(SealedKey { sealed, created_at: state.now() })
}

/// Both keys of a new account.
///
/// # Errors
/// [`SealError::Seal`].
pub(crate) fn new_keys(state: &AppState, name: &StorageAccountName) -> Result<[SealedKey; 2], SealError> {
    Ok([new_key(state, name, KeyName::Key1)?, new_key(state, name, KeyName::Key2)?])
}

/// The id of an account in a group, which is named by its own id.
pub(crate) fn id_in(group: &str, name: &StorageAccountName) -> String {
    format!("{group}/providers/{STORAGE_ACCOUNTS}/{name}")
}

/// Makes an account that the service itself needs, unless it is there. Returns the account's key in the database.
///
/// # Errors
/// 409 when an account elsewhere has the name.
pub(crate) async fn ensure(
    tx: &mut Tx<'_>,
    group: &str,
    name: &StorageAccountName,
    spec: StorageAccountSpec,
    keys: [SealedKey; 2],
) -> Result<String, ApiError> {
    let id = id_in(group, name);
    if let Some(found) = tx.get::<Value>(&id).await? {
        return Ok(found.key);
    }
    if let Some(message) = taken(tx, name).await? {
        return Err(ApiError::new(409, "StorageAccountAlreadyTaken", message));
    }
    let location = spec.location.to_string();
    let account = StorageAccount::create(name.clone(), spec, keys, tx.now().await?);
    let mut new = Document::new(&id, &location, column_state(&account.provisioning), account)?;
    tx.insert(&mut new).await?;
    Ok(new.key)
}

/// What an account's key is sealed for.
fn purpose(account: &StorageAccountName, name: KeyName) -> String {
    format!("storage account {account} {name:?}")
}

/// An account's keys, opened.
///
/// # Errors
/// [`SealError::Open`].
pub(crate) fn open_keys(state: &AppState, account: &StorageAccount) -> Result<[Vec<u8>; 2], SealError> {
    let open = |name: KeyName| state.sealer.open(&purpose(&account.name, name), &account.key(name).sealed);
    Ok([open(KeyName::Key1)?, open(KeyName::Key2)?])
}

async fn check_name(
    State(state): State<AppState>,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let text = arm::storage_account::parse_check_name(&body)?;
    let availability = match StorageAccountName::parse(&text) {
        Err(violation) => NameAvailability::Invalid(violation.message),
        Ok(name) => {
            let taken = state.store.read(|tx| Box::pin(async { taken(tx, &name).await })).await?;
            taken.map_or(NameAvailability::Free, NameAvailability::Taken)
        }
    };
    Ok(Json(arm::storage_account::render_availability(&availability)))
}

async fn get(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let id = id_of(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<StorageAccount>(tx, &id).await })).await?;
    Ok(Json(render(&state, &document)?))
}

async fn list(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let subscription = path.value("subscriptions")?;
    let group = path.find("resourcegroups");
    let above = group
        .map(|group| ResourceId::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}")));
    let filter = Filter {
        ty: Some(STORAGE_ACCOUNTS.to_string()),
        subscription: Some(subscription.to_owned()),
        resource_group: group.map(str::to_owned),
        ..Filter::default()
    };
    let render = |document: &Document<StorageAccount>| render(&state, document);
    page(&state, &path, &query, filter, above.transpose()?.as_ref(), render).await
}

/// 200 when it was there, 204 when it was not. Everything in it goes with it, as on Azure.
async fn delete(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<StatusCode, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let id = id_of(&path)?;
    let deleted = state
        .store
        .write(|tx| {
            Box::pin(async {
                group(tx, &id).await?;
                let Some(document) = tx.get::<Value>(&id.to_string()).await? else { return Ok(false) };
                begin_delete(tx, &document).await?;
                Ok::<_, ApiError>(true)
            })
        })
        .await?;
    Ok(if deleted { StatusCode::OK } else { StatusCode::NO_CONTENT })
}

/// Deletes an account with its containers and blobs; what they named is removed from the region's store later.
///
/// # Errors
/// [`StoreError::Referenced`] while another resource needs it.
pub(crate) async fn begin_delete(tx: &mut Tx<'_>, document: &Document<Value>) -> Result<(), StoreError> {
    tx.delete_containers(&document.key, None, &document.location, objects::GRACE).await?;
    tx.delete(&document.key).await
}

/// The account in a path that ends in an action.
fn acted_on(path: &ArmPath) -> Result<ResourceId, ApiError> {
    let text = path.text();
    Ok(ResourceId::parse(text.rsplit_once('/').map_or("", |(account, _)| account))?)
}

async fn list_keys(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let id = acted_on(&path)?;
    let document = state.store.read(|tx| Box::pin(async { find::<StorageAccount>(tx, &id).await })).await?;
    Ok(Json(render_keys(&state, &document.data)?))
}

async fn regenerate_key(
    State(state): State<AppState>,
    path: ArmPath,
    Version(version): Version,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    check_version(&state, &version, &STORAGE_ACCOUNTS)?;
    let name = arm::storage_account::parse_regenerate_key(&body)?;
    let id = acted_on(&path)?;
    let document = state
        .store
        .write(|tx| {
            Box::pin(async {
                let mut document = find::<StorageAccount>(tx, &id).await?;
                document.data.set_key(name, new_key(&state, &document.data.name, name)?);
                tx.update(&mut document).await?;
                Ok::<_, ApiError>(document)
            })
        })
        .await?;
    Ok(Json(render_keys(&state, &document.data)?))
}

fn render_keys(state: &AppState, account: &StorageAccount) -> Result<Value, ApiError> {
    let [key1, key2] = open_keys(state, account)?.map(|key| STANDARD.encode(key));
    Ok(arm::storage_account::render_keys(account, [&key1, &key2]))
}

fn render(state: &AppState, document: &Document<StorageAccount>) -> Result<Value, ApiError> {
    let id = ResourceId::parse(&document.id)?;
    let context = Context { id: &id, extra: &document.extra };
    let endpoint = state.endpoint.blob_url(document.data.name.as_str());
    Ok(arm::storage_account::render(&document.data, &context, &endpoint))
}

/// The account with this name, for its blobs.
///
/// # Errors
/// The database's own.
pub(crate) async fn account(
    state: &AppState,
    name: &str,
) -> Result<Option<Document<StorageAccount>>, StoreError> {
    if !StorageAccountName::fits(name) {
        return Ok(None);
    }
    state.store.read(|tx| Box::pin(async { tx.find_by_name(TYPE, name).await })).await
}

/// A moment that is later than `before`: what ETags are made of must differ between two changes.
pub(crate) fn later(now: Timestamp, before: Option<Timestamp>) -> Timestamp {
    match before {
        Some(before) if before >= now => before + chrono::TimeDelta::nanoseconds(1),
        _ => now,
    }
}
