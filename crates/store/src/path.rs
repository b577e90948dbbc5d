//! What a resource's id says about its place: `/subscriptions/{s}/resourceGroups/{rg}/providers/{ns}/{type}/{name}…`.
//! The columns of a row are computed from the id here, so they can never disagree with it.

use crate::StoreError;

/// Longest id in bytes that the store keeps.
pub const MAX_ID_BYTES: usize = 2048;

/// The key of an id: Azure compares ids without regard to case.
#[must_use]
pub fn key_of(id: &str) -> String {
    id.trim_end_matches('/').to_ascii_lowercase()
}

/// The parts of a key (all lower-case).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) ty: String,
    pub(crate) subscription: String,
    pub(crate) resource_group: String,
    pub(crate) parent: Option<String>,
}

/// Reads a key. Subscriptions and providers are no rows: what stands directly in them has no parent.
pub(crate) fn place_of(key: &str) -> Result<Place, StoreError> {
    let refuse = |reason| StoreError::BadId { id: key.chars().take(200).collect(), reason };
    if key.len() > MAX_ID_BYTES {
        return Err(refuse("it is too long"));
    }
    if key.chars().any(char::is_control) {
        return Err(refuse("it contains a control character"));
    }
    let Some(rest) = key.strip_prefix('/') else { return Err(refuse("it does not begin with '/'")) };
    let segments: Vec<&str> = rest.split('/').collect();
    if segments.iter().any(|s| s.is_empty()) {
        return Err(refuse("it has an empty segment"));
    }
    if segments.len() < 2 || segments.len() % 2 == 1 {
        return Err(refuse("its segments do not come in pairs"));
    }
    let pairs: Vec<(&str, &str)> = segments.chunks_exact(2).map(|c| (c[0], c[1])).collect();
    let value_of = |name: &str| {
        pairs.iter().take(2).find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()).unwrap_or_default()
    };
    let ty = match pairs.iter().rposition(|(k, _)| *k == "providers") {
        Some(at) if at + 1 < pairs.len() => {
            let types: Vec<&str> = pairs[at + 1..].iter().map(|(k, _)| *k).collect();
            format!("{}/{}", pairs[at].1, types.join("/"))
        }
        Some(_) => return Err(refuse("it names a provider, not a resource")),
        None => format!("microsoft.resources/{}", pairs[pairs.len() - 1].0),
    };
    let mut above = &pairs[..pairs.len() - 1];
    if let Some(((last, _), before)) = above.split_last()
        && *last == "providers"
    {
        above = before;
    }
    let is_row = above.iter().any(|(k, _)| *k == "resourcegroups" || *k == "providers");
    let parent = is_row.then(|| above.iter().map(|(k, v)| format!("/{k}/{v}")).collect());
    Ok(Place {
        ty,
        subscription: value_of("subscriptions"),
        resource_group: value_of("resourcegroups"),
        parent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, ty: &str, group: &str, parent: Option<&str>) {
        let place = place_of(key).expect(key);
        assert_eq!(place.ty, ty, "{key}");
        assert_eq!(place.resource_group, group, "{key}");
        assert_eq!(place.parent.as_deref(), parent, "{key}");
    }

    #[test]
    fn places() {
        check("/subscriptions/s/resourcegroups/rg", "microsoft.resources/resourcegroups", "rg", None);
        let gallery = "/subscriptions/s/resourcegroups/rg/providers/microsoft.compute/galleries/g";
        check(gallery, "microsoft.compute/galleries", "rg", Some("/subscriptions/s/resourcegroups/rg"));
        check(&format!("{gallery}/images/i"), "microsoft.compute/galleries/images", "rg", Some(gallery));
        check(
            &format!("{gallery}/providers/microsoft.authorization/roleassignments/r"),
            "microsoft.authorization/roleassignments",
            "rg",
            Some(gallery),
        );
        check(
            "/subscriptions/s/providers/microsoft.authorization/roleassignments/r",
            "microsoft.authorization/roleassignments",
            "",
            None,
        );
    }

    #[test]
    fn refuses_what_is_no_resource() {
        for key in ["", "/", "x", "/a", "/a//b/c", "/a/b/c", "/subscriptions/s/providers/p", "/a/b\0"] {
            assert!(matches!(place_of(key), Err(StoreError::BadId { .. })), "{key:?}");
        }
        assert!(place_of(&format!("/a/{}", "b".repeat(MAX_ID_BYTES))).is_err());
    }
}
