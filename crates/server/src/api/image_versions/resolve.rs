//! From a reference in a template or a VM to the version that it means in a region.

use arm::ArmError;
use arm::resource_id::{image_definition_id, image_version_id};
use model::image_definition::ImageDefinition;
use model::image_version::{ImageVersion, StorageAccountType, VersionContent};
use model::latest::latest;
use model::{ImageVersionRef, Region, VersionName, VersionSelector};
use store::{Document, Tx};

use super::publish::all_versions;
use crate::http::error::ApiError;

/// A version that may be used in the region that asked.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedImage {
    /// Its id as written.
    pub(crate) version_id: String,
    /// Its name: what `latest` came to.
    pub(crate) exact: VersionName,
    /// Its bytes, which are in the region's store.
    pub(crate) content: VersionContent,
    /// Its definition.
    pub(crate) definition: ImageDefinition,
    /// Whether it is on premium storage in that region.
    pub(crate) premium: bool,
}

/// The version that a reference means, as `region` sees it: `latest` is the highest that is complete there and not
/// excluded (RULES.md 2B).
///
/// # Errors
/// 404 in the words of RULES.md 2D, 44 and 45; `ResourceNotFound` for the definition.
pub(crate) async fn resolve_gallery_image(
    tx: &mut Tx<'_>,
    reference: &ImageVersionRef,
    region: &Region,
) -> Result<ResolvedImage, ApiError> {
    let definition_id = image_definition_id(&reference.definition);
    let definition = tx
        .get::<ImageDefinition>(&definition_id.to_string())
        .await?
        .ok_or_else(|| ArmError::resource_not_found(&definition_id))?;
    let version = match reference.version {
        VersionSelector::Latest => newest(tx, &definition, region).await?,
        VersionSelector::Exact(_) => {
            let id = image_version_id(reference).to_string();
            let found = tx.get::<ImageVersion>(&id).await?;
            found
                .filter(|version| version.data.state.is_available_in(region))
                .ok_or_else(|| not_available(&id, region))?
        }
    };
    let content = version.data.state.content().cloned();
    Ok(ResolvedImage {
        content: content.ok_or_else(|| not_available(&version.id, region))?,
        version_id: version.id,
        exact: version.data.name,
        premium: is_premium(&version.data, region),
        definition: definition.data,
    })
}

fn is_premium(version: &ImageVersion, region: &Region) -> bool {
    let profile = &version.spec.publishing;
    let target = profile.target_regions.iter().find(|target| target.region == *region);
    let storage = target.map(|target| profile.storage_account_type_in(target));
    matches!(storage, Some(StorageAccountType::PremiumLrs | StorageAccountType::PremiumV2Lrs))
}

async fn newest(
    tx: &mut Tx<'_>,
    definition: &Document<ImageDefinition>,
    region: &Region,
) -> Result<Document<ImageVersion>, ApiError> {
    let versions = all_versions(tx, &definition.id).await?;
    let Some(name) = latest(versions.iter().map(|version| &version.data), region).map(|version| version.name)
    else {
        return Err(match versions.is_empty() {
            true => refusal(format!("There is no latest image version exists for \"{}\"", definition.id)),
            false => not_available(&definition.id, region),
        });
    };
    versions
        .into_iter()
        .find(|version| version.data.name == name)
        .ok_or_else(|| not_available(&definition.id, region))
}

/// RULES.md 2D, 45.
fn not_available(id: &str, region: &Region) -> ApiError {
    refusal(format!(
        "The gallery image {id} is not available in {region} region. Please contact image owner to replicate to this \
         region, or change your requested region."
    ))
}

fn refusal(message: String) -> ApiError {
    ArmError::new(404, "GalleryImageNotFound", message).with_target("imageReference").into()
}
