//! Finding and reading the reference folder.

use std::path::PathBuf;

use model::ManifestRef;
use model::content::DiskContent;
use model::image_version::VersionContent;
use serde_json::Value;

/// The reference folder for Azure, if it is here.
pub(crate) fn azure() -> Option<PathBuf> {
    let shared = std::env::var_os("TINTYPE_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let azure = shared.join("azure");
    if azure.is_dir() {
        return Some(azure);
    }
    eprintln!("no reference data at {}: nothing compared", azure.display());
    None
}

pub(crate) const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";

/// Fills the examples' placeholders: `{subscription-id}` with a UUID, `{imageName}` with `imageName`.
pub(crate) fn fill(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(fill_text(&text)),
        Value::Array(values) => values.into_iter().map(fill).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (fill_text(&key), fill(value))).collect(),
        other => other,
    }
}

pub(crate) fn fill_text(text: &str) -> String {
    text.replace("{subscription-id}", SUBSCRIPTION)
        .replace("{subscriptionId}", SUBSCRIPTION)
        .replace(['{', '}'], "")
}

/// Every leaf with its path: `properties.list[0].name`.
pub(crate) fn leaves(value: &Value) -> Vec<(String, Value)> {
    fn walk(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, found);
                }
            }
            Value::Array(values) if !values.is_empty() => {
                for (index, value) in values.iter().enumerate() {
                    walk(&format!("{path}[{index}]"), value, found);
                }
            }
            leaf => found.push((path.to_owned(), leaf.clone())),
        }
    }
    let mut found = Vec::new();
    walk("", value, &mut found);
    found
}

/// The disks of an answer's storage profile, as if they had been stored.
pub(crate) fn content(storage: &Value) -> VersionContent {
    let disk = |size: &Value| DiskContent {
        manifest: ManifestRef::parse("m").expect("a reference"),
        size_bytes: size.as_u64().unwrap_or(1) << 30,
    };
    let data = storage["dataDiskImages"].as_array().cloned().unwrap_or_default();
    VersionContent {
        os_disk: disk(&storage["osDiskImage"]["sizeInGB"]),
        data_disks: data
            .iter()
            .map(|data| (data["lun"].as_u64().unwrap_or(0) as u8, disk(&data["sizeInGB"])))
            .collect(),
    }
}
