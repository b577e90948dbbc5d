//! Everything asynchronous. To add a job: a variant of [`JobKind`], its lines in the four matches below,
//! and a file beside this one with its handler.

pub(crate) mod commit_disk_upload;
pub mod context;
pub(crate) mod create_disk;
pub(crate) mod create_image_template;
pub(crate) mod create_image_version;
pub(crate) mod create_managed_image;
pub(crate) mod create_virtual_machine;
pub(crate) mod delete_disk;
pub(crate) mod delete_image_template;
pub(crate) mod delete_image_version;
pub(crate) mod delete_managed_image;
pub(crate) mod delete_resource_group;
pub(crate) mod delete_virtual_machine;
pub mod engine;
pub(crate) mod fetch;
pub(crate) mod import_vhd;
pub(crate) mod look_after_store;
pub(crate) mod make_platform_image;
pub(crate) mod replicate_image_version;
pub(crate) mod run_image_template;
pub(crate) mod vhd_target;
pub(crate) mod write_vhd;

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use store::{Job, NewJob, OperationEnd, StoreError, Tx};

use context::{JobContext, JobFailure};
use engine::Handlers;

/// The kinds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Deletes a resource group and everything in it.
    DeleteResourceGroup,
    /// Finds the content of an image version and stores it in the home region.
    CreateImageVersion,
    /// Brings an image version to every target region.
    ReplicateImageVersion,
    /// Releases an image version everywhere, then deletes it.
    DeleteImageVersion,
    /// Fetches a template's scripts and checks its references.
    CreateImageTemplate,
    /// Builds, validates and distributes an image.
    RunImageTemplate,
    /// Deletes a template with its staging resource group.
    DeleteImageTemplate,
    /// Makes a VM's disk, starts it and waits for its agent.
    CreateVirtualMachine,
    /// Ends a VM and removes what it had.
    DeleteVirtualMachine,
    /// Makes a platform image on first use.
    MakePlatformImage,
    /// Frees, checks or repairs a region's store.
    LookAfterStore,
    /// Brings a disk or snapshot its bytes, or lets it grow.
    CreateDisk,
    /// Checks and stores the VHD that was uploaded to a disk.
    CommitDiskUpload,
    /// Lets go of a disk's bytes, then deletes it.
    DeleteDisk,
    /// Brings a managed image its bytes.
    CreateManagedImage,
    /// Lets go of a managed image's bytes, then deletes it.
    DeleteManagedImage,
}

/// What becomes of a job whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLost {
    /// Run it again: running it twice does what running it once does.
    Retry,
    /// Fail it, with this reason for the client.
    Fail(&'static str),
}

/// Which places a job takes. A job that waits for others must not take the places that those need, or
/// enough of them would wait for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Waits for jobs of the other lane.
    Waiting,
    /// Waits for no job.
    Working,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Waiting, Lane::Working];

    /// The kinds in this lane, as the database names them.
    pub(crate) fn kinds(self) -> Vec<&'static str> {
        JobKind::ALL.into_iter().filter(|kind| kind.lane() == self).map(JobKind::as_str).collect()
    }
}

impl JobKind {
    /// Every kind.
    pub const ALL: [JobKind; 16] = [
        JobKind::DeleteResourceGroup,
        JobKind::CreateImageVersion,
        JobKind::ReplicateImageVersion,
        JobKind::DeleteImageVersion,
        JobKind::CreateImageTemplate,
        JobKind::RunImageTemplate,
        JobKind::DeleteImageTemplate,
        JobKind::CreateVirtualMachine,
        JobKind::DeleteVirtualMachine,
        JobKind::MakePlatformImage,
        JobKind::LookAfterStore,
        JobKind::CreateDisk,
        JobKind::CommitDiskUpload,
        JobKind::DeleteDisk,
        JobKind::CreateManagedImage,
        JobKind::DeleteManagedImage,
    ];

    /// As the database names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::DeleteResourceGroup => "deleteResourceGroup",
            JobKind::CreateImageVersion => "createImageVersion",
            JobKind::ReplicateImageVersion => "replicateImageVersion",
            JobKind::DeleteImageVersion => "deleteImageVersion",
            JobKind::CreateImageTemplate => "createImageTemplate",
            JobKind::RunImageTemplate => "runImageTemplate",
            JobKind::DeleteImageTemplate => "deleteImageTemplate",
            JobKind::CreateVirtualMachine => "createVirtualMachine",
            JobKind::DeleteVirtualMachine => "deleteVirtualMachine",
            JobKind::MakePlatformImage => "makePlatformImage",
            JobKind::LookAfterStore => "lookAfterStore",
            JobKind::CreateDisk => "createDisk",
            JobKind::CommitDiskUpload => "commitDiskUpload",
            JobKind::DeleteDisk => "deleteDisk",
            JobKind::CreateManagedImage => "createManagedImage",
            JobKind::DeleteManagedImage => "deleteManagedImage",
        }
    }

    /// Reads a name from the database.
    #[must_use]
    pub fn parse(name: &str) -> Option<JobKind> {
        JobKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What becomes of it when its worker died.
    #[must_use]
    pub fn on_lost(self) -> OnLost {
        match self {
            JobKind::RunImageTemplate => OnLost::Fail(
                "The run was interrupted: the service stopped while it was under way. Nothing of it is left; run the \
                 template again.",
            ),
            _ => OnLost::Retry,
        }
    }

    /// Which places it takes: runs wait for platform images and replication, VMs and disks for platform images, and
    /// the deletion of a group for the deletions in it.
    #[must_use]
    pub fn lane(self) -> Lane {
        match self {
            JobKind::DeleteResourceGroup
            | JobKind::RunImageTemplate
            | JobKind::CreateVirtualMachine
            | JobKind::CreateDisk => Lane::Waiting,
            JobKind::CreateImageVersion
            | JobKind::ReplicateImageVersion
            | JobKind::DeleteImageVersion
            | JobKind::CreateImageTemplate
            | JobKind::DeleteImageTemplate
            | JobKind::DeleteVirtualMachine
            | JobKind::MakePlatformImage
            | JobKind::LookAfterStore
            | JobKind::CommitDiskUpload
            | JobKind::DeleteDisk
            | JobKind::CreateManagedImage
            | JobKind::DeleteManagedImage => Lane::Working,
        }
    }

    /// How often it is claimed at most.
    #[must_use]
    pub fn max_attempts(self) -> u32 {
        match self {
            JobKind::DeleteResourceGroup => 5,
            JobKind::CreateImageVersion => 5,
            JobKind::ReplicateImageVersion => 20,
            JobKind::DeleteImageVersion => 20,
            JobKind::CreateImageTemplate => 5,
            JobKind::RunImageTemplate => 2,
            JobKind::DeleteImageTemplate => 20,
            JobKind::CreateVirtualMachine => 5,
            JobKind::DeleteVirtualMachine => 20,
            JobKind::MakePlatformImage => 3,
            JobKind::LookAfterStore => 3,
            JobKind::CreateDisk => 5,
            JobKind::CommitDiskUpload => 5,
            JobKind::DeleteDisk => 20,
            JobKind::CreateManagedImage => 5,
            JobKind::DeleteManagedImage => 20,
        }
    }
}

/// Enqueues a job with its operation. Call it in the transaction that makes the change.
///
/// # Errors
/// The database's own.
pub async fn enqueue(
    tx: &mut Tx<'_>,
    kind: JobKind,
    payload: &(impl Serialize + Sync),
    resource_id: &str,
    operation_id: Option<&str>,
) -> Result<String, StoreError> {
    tx.enqueue(NewJob {
        kind: kind.as_str().to_owned(),
        payload: json!(payload),
        operation_id: operation_id.map(str::to_owned),
        resource_id: Some(resource_id.to_owned()),
        delay: std::time::Duration::ZERO,
        max_attempts: kind.max_attempts(),
    })
    .await
}

pub(crate) fn handlers() -> Handlers {
    Handlers {
        run: Arc::new(|kind, context| Box::pin(run(kind, context))),
        failed: |tx, kind, job, failure| Box::pin(failed(tx, kind, job, failure)),
    }
}

async fn run(kind: JobKind, context: JobContext) -> Result<(), JobFailure> {
    match kind {
        JobKind::DeleteResourceGroup => delete_resource_group::run(context).await,
        JobKind::CreateImageVersion => create_image_version::run(context).await,
        JobKind::ReplicateImageVersion => replicate_image_version::run(context).await,
        JobKind::DeleteImageVersion => delete_image_version::run(context).await,
        JobKind::CreateImageTemplate => create_image_template::run(context).await,
        JobKind::RunImageTemplate => run_image_template::run(context).await,
        JobKind::DeleteImageTemplate => delete_image_template::run(context).await,
        JobKind::CreateVirtualMachine => create_virtual_machine::run(context).await,
        JobKind::DeleteVirtualMachine => delete_virtual_machine::run(context).await,
        JobKind::MakePlatformImage => make_platform_image::run(context).await,
        JobKind::LookAfterStore => look_after_store::run(context).await,
        JobKind::CreateDisk => create_disk::run(context).await,
        JobKind::CommitDiskUpload => commit_disk_upload::run(context).await,
        JobKind::DeleteDisk => delete_disk::run(context).await,
        JobKind::CreateManagedImage => create_managed_image::run(context).await,
        JobKind::DeleteManagedImage => delete_managed_image::run(context).await,
    }
}

/// What a job that failed for good leaves behind, in the transaction that ends it. The engine itself ends
/// the job and its operation.
async fn failed(tx: &mut Tx<'_>, kind: JobKind, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    match kind {
        JobKind::DeleteResourceGroup => delete_resource_group::failed(tx, job, failure).await,
        JobKind::CreateImageVersion => create_image_version::failed(tx, job, failure).await,
        JobKind::ReplicateImageVersion => replicate_image_version::failed(tx, job, failure).await,
        JobKind::DeleteImageVersion => delete_image_version::failed(tx, job, failure).await,
        JobKind::CreateImageTemplate => create_image_template::failed(tx, job, failure).await,
        JobKind::RunImageTemplate => run_image_template::failed(tx, job, failure).await,
        JobKind::DeleteImageTemplate => delete_image_template::failed(tx, job, failure).await,
        JobKind::CreateVirtualMachine => create_virtual_machine::failed(tx, job, failure).await,
        JobKind::DeleteVirtualMachine => delete_virtual_machine::failed(tx, job, failure).await,
        JobKind::MakePlatformImage => make_platform_image::failed(tx, job, failure).await,
        JobKind::LookAfterStore => look_after_store::failed(tx, job, failure).await,
        JobKind::CreateDisk => create_disk::failed(tx, job, failure).await,
        JobKind::CommitDiskUpload => commit_disk_upload::failed(tx, job, failure).await,
        JobKind::DeleteDisk => delete_disk::failed(tx, job, failure).await,
        JobKind::CreateManagedImage => create_managed_image::failed(tx, job, failure).await,
        JobKind::DeleteManagedImage => delete_managed_image::failed(tx, job, failure).await,
    }
}

/// Ends the operation of a job, if it has one that has not ended.
pub(crate) async fn end_operation(tx: &mut Tx<'_>, job: &Job, end: &OperationEnd) -> Result<(), StoreError> {
    let Some(id) = &job.operation_id else { return Ok(()) };
    match tx.end_operation(id, end).await {
        // A handler may have ended it in an earlier attempt.
        Err(StoreError::OperationEnded { .. }) => Ok(()),
        other => other,
    }
}
