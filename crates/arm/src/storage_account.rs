//! `Microsoft.Storage/storageAccounts`: the account, its keys, and whether a name is free.
//!
//! Only blobs are served, so there is one endpoint. It is path-style (`https://host:port/account/`), as Azurite's is:
//! clients take it from `primaryEndpoints.blob` or from a connection string.

use model::storage_account::{KeyName, StorageAccount, StorageAccountSpec, StorageKind, StorageSku};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_version::ApiVersion;
use crate::common::{self, Context, Object, Parsed, WireTags};
use crate::error::ArmError;
use crate::names::Names;
use crate::shape::{self, Kind, Shape, Strictness};
use crate::time::image_builder as stamp;

const SHAPE: Shape = Shape {
    name: "StorageAccountCreateParameters",
    fields: &[
        ("sku", Kind::Object(&SKU)),
        ("kind", Kind::Typed),
        ("location", Kind::Typed),
        ("tags", Kind::Typed),
        ("properties", Kind::Object(&PROPERTIES)),
        ("identity", Kind::Kept),
        ("extendedLocation", Kind::Kept),
        ("zones", Kind::Kept),
        ("placement", Kind::Kept),
        ("id", Kind::Dropped),
        ("name", Kind::Dropped),
        ("type", Kind::Dropped),
        ("systemData", Kind::Dropped),
    ],
};

const SKU: Shape = Shape { name: "Sku", fields: &[("name", Kind::Typed), ("tier", Kind::Dropped)] };

const PROPERTIES: Shape = Shape {
    name: "StorageAccountPropertiesCreateParameters",
    fields: &[
        ("supportsHttpsTrafficOnly", Kind::Typed),
        ("allowSharedKeyAccess", Kind::Typed),
        ("accessTier", Kind::Kept),
        ("allowedCopyScope", Kind::Kept),
        ("publicNetworkAccess", Kind::Kept),
        ("sasPolicy", Kind::Kept),
        ("keyPolicy", Kind::Kept),
        ("customDomain", Kind::Kept),
        ("encryption", Kind::Kept),
        ("networkAcls", Kind::Kept),
        ("azureFilesIdentityBasedAuthentication", Kind::Kept),
        ("isSftpEnabled", Kind::Kept),
        ("isLocalUserEnabled", Kind::Kept),
        ("enableExtendedGroups", Kind::Kept),
        ("isHnsEnabled", Kind::Kept),
        ("largeFileSharesState", Kind::Kept),
        ("routingPreference", Kind::Kept),
        ("dualStackEndpointPreference", Kind::Kept),
        ("allowBlobPublicAccess", Kind::Kept),
        ("minimumTlsVersion", Kind::Kept),
        ("isNfsV3Enabled", Kind::Kept),
        ("allowCrossTenantReplication", Kind::Kept),
        ("defaultToOAuthAuthentication", Kind::Kept),
        ("immutableStorageWithVersioning", Kind::Kept),
        ("dnsEndpointType", Kind::Kept),
        ("geoPriorityReplicationStatus", Kind::Kept),
        ("allowSharedKeyAccessForServices", Kind::Kept),
        ("dataCollaborationPolicyProperties", Kind::Kept),
        ("provisioningState", Kind::Dropped),
        ("primaryEndpoints", Kind::Dropped),
        ("primaryLocation", Kind::Dropped),
        ("statusOfPrimary", Kind::Dropped),
        ("secondaryEndpoints", Kind::Dropped),
        ("secondaryLocation", Kind::Dropped),
        ("statusOfSecondary", Kind::Dropped),
        ("creationTime", Kind::Dropped),
        ("keyCreationTime", Kind::Dropped),
        ("privateEndpointConnections", Kind::Dropped),
    ],
};

/// The newest version whose properties the shape has.
const KNOWN_UNTIL: (u16, u8, u8) = (2025, 8, 1);

const SKUS: Names<StorageSku> = Names(&[
    ("Standard_LRS", StorageSku::StandardLrs),
    ("Standard_GRS", StorageSku::StandardGrs),
    ("Standard_RAGRS", StorageSku::StandardRagrs),
    ("Standard_ZRS", StorageSku::StandardZrs),
    ("Standard_GZRS", StorageSku::StandardGzrs),
    ("Standard_RAGZRS", StorageSku::StandardRagzrs),
    ("Premium_LRS", StorageSku::PremiumLrs),
    ("Premium_ZRS", StorageSku::PremiumZrs),
]);

const KINDS: Names<StorageKind> = Names(&[
    ("Storage", StorageKind::Storage),
    ("StorageV2", StorageKind::StorageV2),
    ("BlobStorage", StorageKind::BlobStorage),
    ("BlockBlobStorage", StorageKind::BlockBlobStorage),
]);

const KEY_NAMES: Names<KeyName> = Names(&[("key1", KeyName::Key1), ("key2", KeyName::Key2)]);

#[derive(Deserialize)]
struct Wire {
    sku: Option<WireSku>,
    kind: Option<String>,
    location: Option<String>,
    tags: Option<WireTags>,
    #[serde(default)]
    properties: WireProperties,
}

#[derive(Deserialize)]
struct WireSku {
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    supports_https_traffic_only: Option<bool>,
    allow_shared_key_access: Option<bool>,
}

/// Reads a PUT.
///
/// # Errors
/// What is wrong with the body.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<StorageAccountSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let sku = wire.sku.and_then(|sku| sku.name).ok_or_else(|| ArmError::missing_parameter("sku.name"))?;
    let kind = wire.kind.ok_or_else(|| ArmError::missing_parameter("kind"))?;
    let data = StorageAccountSpec {
        location: common::location(wire.location.as_deref())?,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        sku: SKUS.parse(&sku, "sku.name")?,
        kind: KINDS.parse(&kind, "kind")?,
        https_only: wire.properties.supports_https_traffic_only.unwrap_or(true),
        shared_key_access: wire.properties.allow_shared_key_access.unwrap_or(true),
    };
    Ok(Parsed { data, extra: read.extra })
}

/// An account as Storage answers it. `blob_endpoint` is the URL of its blobs.
pub fn render(account: &StorageAccount, context: &Context<'_>, blob_endpoint: &str) -> Value {
    let spec = &account.spec;
    let properties = Object::new()
        .set(
            "keyCreationTime",
            json!({ "key1": stamp(account.key1.created_at), "key2": stamp(account.key2.created_at) }),
        )
        .set("allowSharedKeyAccess", spec.shared_key_access)
        .set("supportsHttpsTrafficOnly", spec.https_only)
        .set("provisioningState", account.provisioning.name())
        .set("creationTime", stamp(account.created_at))
        .set("primaryEndpoints", json!({ "blob": blob_endpoint }))
        .set("primaryLocation", spec.location.as_str())
        .set("statusOfPrimary", "available");
    let sku = SKUS.name(spec.sku);
    Object::new()
        .set("sku", json!({ "name": sku, "tier": sku.split('_').next() }))
        .set("kind", KINDS.name(spec.kind))
        .set("id", context.id.to_string())
        .set("name", account.name.as_str())
        .set("type", context.id.resource_type().as_str())
        .set("location", spec.location.as_str())
        .set("tags", common::tags_json(&spec.tags))
        .set("properties", properties)
        .with_extra(context.extra)
        .into()
}

/// `sku.name` as Azure writes it.
pub fn sku_name(sku: StorageSku) -> &'static str {
    SKUS.name(sku)
}

/// `kind` as Azure writes it.
pub fn kind_name(kind: StorageKind) -> &'static str {
    KINDS.name(kind)
}

/// The answer to listKeys and regenerateKey. `values`: the two keys in base64.
pub fn render_keys(account: &StorageAccount, values: [&str; 2]) -> Value {
    let keys = KeyName::ALL.into_iter().zip(values).map(|(name, value)| {
        json!({
            "keyName": KEY_NAMES.name(name),
            "value": value,
            "permissions": "FULL",
            "creationTime": stamp(account.key(name).created_at),
        })
    });
    json!({ "keys": keys.collect::<Value>() })
}

/// The key that a regenerateKey names.
///
/// # Errors
/// When the body names none of the two.
pub fn parse_regenerate_key(body: &Value) -> Result<KeyName, ArmError> {
    let name = body.get("keyName").and_then(Value::as_str);
    KEY_NAMES.parse(name.ok_or_else(|| ArmError::missing_parameter("keyName"))?, "keyName")
}

/// The name that a checkNameAvailability asks about.
///
/// # Errors
/// When the body has no name, or is about another type.
pub fn parse_check_name(body: &Value) -> Result<String, ArmError> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    if !text("type").is_some_and(|ty| ty.eq_ignore_ascii_case("Microsoft.Storage/storageAccounts")) {
        let message = "The value of parameter 'type' must be Microsoft.Storage/storageAccounts.";
        return Err(ArmError::invalid_parameter("type", message));
    }
    text("name").map(str::to_owned).ok_or_else(|| ArmError::missing_parameter("name"))
}

/// Whether a name is free, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameAvailability {
    /// It is free.
    Free,
    /// It is no account's name.
    Invalid(String),
    /// Somebody has it.
    Taken(String),
}

/// The answer to checkNameAvailability.
pub fn render_availability(availability: &NameAvailability) -> Value {
    match availability {
        NameAvailability::Free => json!({ "nameAvailable": true }),
        NameAvailability::Invalid(message) => {
            json!({ "nameAvailable": false, "reason": "AccountNameInvalid", "message": message })
        }
        NameAvailability::Taken(message) => {
            json!({ "nameAvailable": false, "reason": "AlreadyExists", "message": message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource_id::ResourceId;
    use model::Timestamp;
    use model::storage_account::{SealedKey, StorageAccountName};

    fn version() -> ApiVersion {
        ApiVersion::parse("2025-08-01").unwrap()
    }

    #[test]
    fn an_account_comes_back_with_what_it_does_not_understand() {
        // What az 2.91 sends for `az storage account create`.
        let body = json!({
            "sku": {"name": "Standard_RAGRS"}, "kind": "StorageV2", "location": "eastus", "tags": null,
            "properties": {
                "encryption": {"services": {"blob": {}}, "keySource": "Microsoft.Storage"},
                "allowBlobPublicAccess": false, "minimumTlsVersion": "TLS1_2", "supportsHttpsTrafficOnly": null
            }
        });
        let parsed = parse(body, &version()).unwrap();
        let key = |sealed: &str| SealedKey { sealed: sealed.to_owned(), created_at: Timestamp::UNIX_EPOCH };
        let name = StorageAccountName::parse("acct1").unwrap();
        let keys = [key("a"), key("b")];
        let account = StorageAccount::create(name, parsed.data, keys, Timestamp::UNIX_EPOCH);
        let id = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/acct1";
        let id = ResourceId::parse(id).unwrap();
        let context = Context { id: &id, extra: &parsed.extra };
        let rendered = render(&account, &context, "https://localhost:8443/acct1/");
        insta::assert_json_snapshot!(rendered, @r#"
        {
          "sku": {
            "name": "Standard_RAGRS",
            "tier": "Standard"
          },
          "kind": "StorageV2",
          "id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/acct1",
          "name": "acct1",
          "type": "Microsoft.Storage/storageAccounts",
          "location": "eastus",
          "tags": {},
          "properties": {
            "keyCreationTime": {
              "key1": "1970-01-01T00:00:00.0000000Z",
              "key2": "1970-01-01T00:00:00.0000000Z"
            },
            "allowSharedKeyAccess": true,
            "supportsHttpsTrafficOnly": true,
            "provisioningState": "Succeeded",
            "creationTime": "1970-01-01T00:00:00.0000000Z",
            "primaryEndpoints": {
              "blob": "https://localhost:8443/acct1/"
            },
            "primaryLocation": "eastus",
            "statusOfPrimary": "available",
            "encryption": {
              "services": {
                "blob": {}
              },
              "keySource": "Microsoft.Storage"
            },
            "allowBlobPublicAccess": false,
            "minimumTlsVersion": "TLS1_2"
          }
        }
        "#);
        // A client that sends back what it read changes nothing.
        let again = parse(rendered.clone(), &version()).unwrap();
        assert_eq!(again.data, account.spec);
        assert_eq!(
            render(&account, &Context { id: &id, extra: &again.extra }, "https://localhost:8443/acct1/"),
            rendered
        );
        let shown = render_keys(&account, ["one", "two"]).to_string();
        assert!(shown.contains(r#""keyName":"key2","value":"two","permissions":"FULL""#), "{shown}");
    }

    #[test]
    fn mistakes_are_named() {
        let check = |body: Value, code: &str, target: &str| {
            let error = parse(body, &version()).unwrap_err();
            assert_eq!((error.code.as_str(), error.target.as_deref().unwrap_or_default()), (code, target));
        };
        check(json!({"location": "x", "kind": "StorageV2"}), "InvalidParameter", "sku.name");
        check(json!({"location": "x", "sku": {"name": "Standard_LRS"}}), "InvalidParameter", "kind");
        let files = json!({"location": "x", "sku": {"name": "Premium_LRS"}, "kind": "FileStorage"});
        check(files, "InvalidParameter", "kind");
        assert!(parse_regenerate_key(&json!({"keyName": "kerb1"})).is_err());
        assert_eq!(parse_regenerate_key(&json!({"keyName": "key2"})), Ok(KeyName::Key2));
        assert!(parse_check_name(&json!({"name": "x", "type": "Microsoft.Compute/disks"})).is_err());
    }
}
