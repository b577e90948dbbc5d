//! The staging resource group: a row with Azure's name and tags, and a folder with the scripts and files that
//! were fetched. A file is named by its digest, so the same content is there once and cannot be mistaken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arm::ResourceId;
use model::image_template::{ImageTemplate, ImageTemplateSpec, ProvisioningErrorCode, Sha256};
use model::resource_group::{ResourceGroup, ResourceGroupSpec};
use model::{ResourceGroupName, Tags, Violation};
use serde_json::Value;
use store::{Document, Filter, Tx};
use uuid::Uuid;

use super::{Stop, refuse};
use crate::api::column_state;
use crate::api::image_templates::save;
use crate::http::error::chain;
use crate::jobs::context::{JobContext, JobFailure};
use crate::jobs::fetch::{FetchError, FetchLimits, fetch_to_file};
use crate::secret_file;

/// Largest script or file (RULES.md 2A: 20 MB).
pub(crate) const STAGED_BYTES_MAX: u64 = 20 << 20;
/// Bounds of fetching one of them.
const LIMITS: FetchLimits =
    FetchLimits { bytes_max: STAGED_BYTES_MAX, attempt_timeout: std::time::Duration::from_secs(5 * 60) };
/// Most bytes of all scripts and files of a template together: a run holds them in memory.
const TEMPLATE_BYTES_MAX: u64 = 256 << 20;
/// Characters of `{resource group}_{template}` in the name of a group (recorded: 40).
const NAME_CHARS: usize = 40;
/// Folder of scripts and files in the staging folder.
const SCRIPTS: &str = "scripts";
/// Tag of a group that its user supplied: which template uses it.
const USED_BY: &str = "usedBy";

/// The group's name in its id, in lower case: the name of its folder.
pub(crate) fn group_name(group_id: &str) -> String {
    group_id.rsplit('/').next().unwrap_or_default().to_ascii_lowercase()
}

/// Where the content with this digest is.
pub(crate) fn staged_file(staging_dir: &Path, sha256: &Sha256) -> PathBuf {
    staging_dir.join(SCRIPTS).join(sha256.to_string())
}

/// The id of the template's staging group, which is made or taken into use.
pub(super) async fn ensure_group(context: &JobContext, template: &str) -> Result<String, Stop> {
    let random = Uuid::new_v4();
    let group = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(mut document) = tx.get::<ImageTemplate>(template).await? else {
                    return Err(refuse(ProvisioningErrorCode::Other, "the template is gone"));
                };
                if let Some(known) = &document.data.resolved.staging_resource_group {
                    return Ok(known.clone());
                }
                let group = match &document.data.spec.staging_resource_group {
                    None => make(tx, &document, &generated_id(&document, random)?, false).await?,
                    Some(id) => supplied(tx, &document, id).await?,
                };
                document.data.resolved.staging_resource_group = Some(group.clone());
                save(tx, &mut document).await?;
                Ok(group)
            })
        })
        .await?;
    let dir = context.state.fabric.staging_dir(&group_name(&group));
    secret_file::create_folder(&dir)
        .and_then(|()| secret_file::create_folder(&dir.join(SCRIPTS)))
        .map_err(|error| unusable(&dir, &error))?;
    Ok(group)
}

fn bad(message: impl Into<String>) -> Stop {
    refuse(ProvisioningErrorCode::BadStagingResourceGroup, message)
}

/// `IT_{resource group}_{template}`, cut, and a UUID (recorded).
fn generated_id(document: &Document<ImageTemplate>, random: Uuid) -> Result<String, Stop> {
    let id = ResourceId::parse(&document.id).map_err(|error| bad(error.to_string()))?;
    let (subscription, group) =
        (id.subscription().unwrap_or_default(), id.resource_group().unwrap_or_default());
    let stem: String = format!("{group}_{}", document.name).chars().take(NAME_CHARS).collect();
    Ok(format!("/subscriptions/{subscription}/resourceGroups/IT_{stem}_{random}"))
}

/// A group that the user named: absent, it is made; else it must be empty, in the region, and nobody else's.
async fn supplied(tx: &mut Tx<'_>, document: &Document<ImageTemplate>, id: &str) -> Result<String, Stop> {
    let parsed = ResourceId::parse(id).ok();
    let parsed = parsed.filter(|parsed| parsed.resource_type() == arm::resource_type::RESOURCE_GROUPS);
    let same = |parsed: &ResourceId| {
        parsed
            .subscription()
            .is_some_and(|subscription| subscription.eq_ignore_ascii_case(&document.subscription))
    };
    let Some(parsed) = parsed.filter(same) else {
        return Err(bad(
            "stagingResourceGroup must be the id of a resource group in the template's subscription: /subscriptions/{id}/resourceGroups/{name}.",
        ));
    };
    let id = parsed.to_string();
    let Some(mut group) = tx.get::<ResourceGroup>(&id).await? else {
        return make(tx, document, &id, true).await;
    };
    let name = &group.name;
    if group.data.spec.location != document.data.spec.location {
        return Err(bad(format!(
            "The staging resource group '{name}' is in '{}'. It must be in the template's region '{}'.",
            group.data.spec.location, document.data.spec.location
        )));
    }
    let used_by = group.data.spec.tags.iter().find(|(tag, _)| tag.eq_ignore_ascii_case(USED_BY));
    if let Some((_, other)) = used_by.filter(|(_, other)| !other.eq_ignore_ascii_case(&document.id)) {
        return Err(bad(format!(
            "The staging resource group '{name}' is used by '{other}'. Give each template its own."
        )));
    }
    let filter = Filter {
        subscription: Some(group.subscription.clone()),
        resource_group: Some(group.resource_group.clone()),
        limit: 2,
        ..Filter::default()
    };
    let members = tx.list::<Value>(&filter).await?.items;
    if let Some(member) = members.iter().find(|member| member.key != group.key) {
        return Err(bad(format!(
            "The staging resource group '{name}' is not empty: it contains '{}'.",
            member.id
        )));
    }
    group.data.spec.tags = group_tags(document, Some(&group.data.spec.tags), true)?;
    tx.update(&mut group).await?;
    Ok(group.id)
}

/// A new group, which the template owns: it goes with it.
async fn make(
    tx: &mut Tx<'_>,
    document: &Document<ImageTemplate>,
    id: &str,
    supplied: bool,
) -> Result<String, Stop> {
    let name = ResourceGroupName::parse(id.rsplit('/').next().unwrap_or_default())
        .map_err(|violation| bad(violation.message))?;
    let spec = ResourceGroupSpec {
        location: document.data.spec.location.clone(),
        tags: group_tags(document, None, supplied)?,
        managed_by: Some(document.id.clone()),
    };
    let group = ResourceGroup::create(name, spec);
    let state = column_state(&group.provisioning);
    tx.insert(&mut Document::new(id, document.location.as_str(), state, group)?).await?;
    Ok(id.to_owned())
}

/// Azure's tags (RULES.md 2A, staging resource group), over the group's own and the template's for such things.
pub(super) fn tags(
    document: &Document<ImageTemplate>,
    own: Option<&Tags>,
    supplied: bool,
) -> Result<Tags, Violation> {
    let managed = document.data.spec.managed_resource_tags.as_ref();
    let before = own.into_iter().chain(managed).flat_map(Tags::iter);
    let mut all: BTreeMap<String, String> =
        before.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let group = ResourceId::parse(&document.id).ok();
    let group = group.as_ref().and_then(ResourceId::resource_group).unwrap_or_default();
    let azures = [
        ("createdBy", "AzureVMImageBuilder"),
        ("imageTemplateName", document.name.as_str()),
        ("imageTemplateResourceGroupName", group),
    ];
    let used_by = supplied.then_some((USED_BY, document.id.as_str()));
    for (name, value) in azures.into_iter().chain(used_by) {
        all.retain(|known, _| !known.eq_ignore_ascii_case(name));
        // A tag's value has at most 256 characters; ids can be longer.
        all.insert(name.to_owned(), value.chars().take(model::tags::TAG_VALUE_CHARS_MAX).collect());
    }
    Tags::new(all)
}

fn group_tags(document: &Document<ImageTemplate>, own: Option<&Tags>, supplied: bool) -> Result<Tags, Stop> {
    tags(document, own, supplied).map_err(|violation| bad(violation.message))
}

/// Something that must be fetched.
struct Wanted<'a> {
    /// What the template fails with if it cannot.
    code: ProvisioningErrorCode,
    /// Where the template names it.
    path: String,
    uri: &'a str,
    expected: Option<&'a Sha256>,
}

fn wanted(spec: &ImageTemplateSpec) -> Vec<Wanted<'_>> {
    let mut wanted = Vec::new();
    for (index, step) in spec.customize.iter().enumerate() {
        if let Some((uri, expected)) = step.kind.fetched() {
            let path = format!("properties.customize[{index}]");
            wanted.push(Wanted { code: ProvisioningErrorCode::NoCustomizerScript, path, uri, expected });
        }
    }
    for (index, step) in spec.validate.iter().flat_map(|validate| &validate.validators).enumerate() {
        if let Some((uri, expected)) = step.kind.fetched() {
            let path = format!("properties.validate.inVMValidations[{index}]");
            wanted.push(Wanted { code: ProvisioningErrorCode::NoValidatorScript, path, uri, expected });
        }
    }
    wanted
}

/// Fetches every address of the template once, checks its checksum, and keeps it in the staging folder.
pub(super) async fn fetch_all(
    context: &JobContext,
    spec: &ImageTemplateSpec,
    group: &str,
    checksums: &mut BTreeMap<String, Sha256>,
) -> Result<(), Stop> {
    let dir = context.state.fabric.staging_dir(&group_name(group));
    let mut total = 0;
    for Wanted { code, path, uri, expected } in wanted(spec) {
        let known = checksums.get(uri).filter(|sum| staged_file(&dir, sum).exists());
        let found = match known {
            Some(known) => *known,
            None => fetch_one(context, &dir, uri, &mut total).await.map_err(|error| match error {
                FetchError::Io(_) => Stop::Job(JobFailure::transient("InternalServerError", chain(&error))),
                FetchError::Refused { .. } | FetchError::Unreachable { .. } => {
                    refuse(code, format!("{path}: {error}"))
                }
            })?,
        };
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            return Err(refuse(
                code,
                format!(
                    "{path}: the content of '{}' has the SHA-256 checksum {found}, but sha256Checksum is {expected}. Correct the checksum, or the file.",
                    crate::jobs::fetch::shown(uri)
                ),
            ));
        }
        if total > TEMPLATE_BYTES_MAX {
            return Err(refuse(
                code,
                format!(
                    "{path}: the template's scripts and files together have more than {TEMPLATE_BYTES_MAX} bytes."
                ),
            ));
        }
        checksums.insert(uri.to_owned(), found);
    }
    // What a PATCH took out of the template is not shown any more.
    checksums.retain(|uri, _| spec.fetched().any(|(fetched, _)| fetched == uri));
    Ok(())
}

async fn fetch_one(
    context: &JobContext,
    dir: &Path,
    uri: &str,
    total: &mut u64,
) -> Result<Sha256, FetchError> {
    let partial = dir.join(SCRIPTS).join(format!("partial-{}", context.job.id));
    let fetched = fetch_to_file(&context.state, uri, &partial, LIMITS, |_, _| {}).await;
    let fetched = match fetched {
        Ok(fetched) => fetched,
        Err(error) => {
            // Nothing may be there: the connection was refused.
            let _absent = tokio::fs::remove_file(&partial).await;
            return Err(error);
        }
    };
    *total += fetched.bytes;
    tokio::fs::rename(&partial, staged_file(dir, &fetched.sha256)).await?;
    Ok(fetched.sha256)
}

fn unusable(dir: &Path, error: &std::io::Error) -> Stop {
    let message = format!("the staging folder {} cannot be used: {error}", dir.display());
    Stop::Job(JobFailure::transient("InternalServerError", message))
}
