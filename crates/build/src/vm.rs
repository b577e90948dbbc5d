//! VMs of a build: the machine that is customized and the one that validates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;
use vmhost::identity::{ImageReference, OsDisk, SshKey as AuthorizedKey};
use vmhost::{
    BaseDisk, Lifetime, MacAddress, Provisioning, ResumeFrom, VmError, VmHandle, VmIdentity, VmSpec,
};

use crate::cache::Snapshot;
use crate::error::BuildError;
use crate::guest_setup;
use crate::request::{BuildRequest, Host};
use crate::ssh::{SshKey, SshSession};

/// The account that customizers run under, with sudo, as Packer's user on Azure.
pub(crate) const BUILDER: &str = "packer";
/// A build VM that nobody keeps alive ends after this time: a killed server leaves nothing behind.
const LEASE_S: u64 = 5;
/// Azure gives up on a silent guest after 20 minutes (RULES.md 2A, connect waits).
const READY_TIMEOUT: Duration = Duration::from_secs(20 * 60);
const SSH_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// A resumed guest answers within seconds or not at all.
const RESUMED_SSH_TIMEOUT: Duration = Duration::from_secs(60);

/// A running build VM with a login.
pub(crate) struct BuildVm {
    pub(crate) vm: VmHandle,
    pub(crate) session: SshSession,
    pub(crate) identity: VmIdentity,
    pub(crate) key: SshKey,
    /// All layers from the bottom to the top; the last is the one being written.
    pub(crate) layers: Vec<PathBuf>,
    _alive: vmhost::KeepAlive,
}

/// What a new VM goes on from.
pub(crate) enum From<'a> {
    /// The image alone.
    Image(&'a content::ManifestId),
    /// A cached machine over the request's base.
    Snapshot(&'a content::ManifestId, &'a Snapshot),
    /// A cached disk without its machine state, which did not fit.
    CachedDisk(&'a content::ManifestId, &'a Snapshot),
}

impl BuildVm {
    /// Starts a VM in `dir` and logs in.
    pub(crate) async fn start(
        dir: &Path,
        name: &str,
        request: &BuildRequest,
        host: &Host,
        from: From<'_>,
    ) -> Result<Self, BuildError> {
        let (manifest, snapshot, resume) = match from {
            From::Image(manifest) => (manifest, None, false),
            From::Snapshot(manifest, snapshot) => (manifest, Some(snapshot), true),
            From::CachedDisk(manifest, snapshot) => (manifest, Some(snapshot), false),
        };
        let (identity, key) = match snapshot {
            Some(snapshot) => (snapshot.entry.identity.clone(), snapshot.entry.builder_key.clone()),
            None => {
                let key = SshKey::generate()?;
                (identity(name, request, &key)?, key)
            }
        };
        let frozen = snapshot.map(|snapshot| snapshot.layers.clone()).unwrap_or_default();
        let overlay = dir.join("disk-0.qcow2");
        let spec = VmSpec {
            lifetime: Lifetime::Leased { lease_s: LEASE_S },
            identity: identity.clone(),
            base: BaseDisk {
                stores: host.store_locations.clone(),
                key_file: host.store_key_file.clone(),
                manifest: manifest.to_string(),
                cache_dir: host.block_cache_dir.clone(),
                cache_bytes_max: host.block_cache_bytes_max,
            },
            frozen: frozen.clone(),
            overlay: overlay.clone(),
            disk_bytes: request.disk_bytes,
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            accelerator: host.accelerator,
            outbound: host.outbound.clone(),
            resume: snapshot.filter(|_| resume).map(|snapshot| ResumeFrom {
                state: snapshot.state.clone(),
                key: snapshot.entry.state_key.clone(),
            }),
        };
        let vm = VmHandle::spawn(&host.program, dir, &spec).await?;
        let alive = vm.keep_alive().await?;
        let session = if resume {
            running(&vm).await?;
            let session = SshSession::connect(&vm, BUILDER, &key, RESUMED_SSH_TIMEOUT).await?;
            guest_setup::after_resume(&session).await?;
            session
        } else {
            ready(&vm, snapshot.is_some()).await?;
            let session = SshSession::connect(&vm, BUILDER, &key, SSH_TIMEOUT)
                .await
                .map_err(|error| boot(&vm, error))?;
            guest_setup::wait_for_boot(&session).await?;
            session
        };
        let layers = frozen.into_iter().chain([overlay]).collect();
        Ok(Self { vm, session, identity, key, layers, _alive: alive })
    }

    /// Freezes the disk and goes on in a new layer, with the machine state in `state` if one is wanted.
    pub(crate) async fn freeze(
        &mut self,
        disk_bytes: u64,
        state: Option<(&Path, &vmhost::StateKey)>,
    ) -> Result<(), BuildError> {
        let next = self.vm.dir().join(format!("disk-{}.qcow2", self.layers.len()));
        vmhost::create_overlay(&next, disk_bytes).await?;
        self.vm.snapshot(&next, state).await?;
        self.layers.push(next);
        Ok(())
    }
}

async fn running(vm: &VmHandle) -> Result<(), VmError> {
    vm.wait_for("the resumed guest", READY_TIMEOUT, |status| {
        matches!(status.phase, vmhost::Phase::Running).then_some(())
    })
    .await
}

/// Waits for the agent. A guest that was provisioned before it was frozen does not report again.
async fn ready(vm: &VmHandle, provisioned_before: bool) -> Result<(), BuildError> {
    if provisioned_before {
        return Ok(running(vm).await?);
    }
    let outcome = vm
        .wait_for("the guest agent's report that provisioning is done", READY_TIMEOUT, |status| match &status
            .provisioning
        {
            Provisioning::Ready { .. } => Some(Ok(())),
            Provisioning::Failed { text } => Some(Err(text.clone())),
            Provisioning::Silent | Provisioning::InProgress { .. } => None,
        })
        .await
        .map_err(|error| boot(vm, error))?;
    outcome.map_err(|text| BuildError::Boot { reason: format!("its agent reported: {text}") })
}

fn boot(vm: &VmHandle, error: impl std::fmt::Display) -> BuildError {
    BuildError::Boot { reason: format!("{error}; the end of its console:\n{}", vm.serial_tail()) }
}

fn identity(name: &str, request: &BuildRequest, key: &SshKey) -> Result<VmIdentity, BuildError> {
    let vm_id = Uuid::new_v4();
    let random: [u8; 3] = rand::random();
    Ok(VmIdentity {
        vm_id,
        name: name.to_owned(),
        resource_id: format!("/tintype/runs/{}/{name}", request.run_id),
        subscription_id: String::new(),
        resource_group: String::new(),
        location: "local".into(),
        vm_size: format!("{} vCPUs, {} MiB", request.vcpus, request.memory_mib),
        hostname: name.to_owned(),
        admin_username: BUILDER.into(),
        admin_password: None,
        disable_password_authentication: true,
        ssh_keys: vec![AuthorizedKey {
            path: format!("/home/{BUILDER}/.ssh/authorized_keys"),
            key_data: key.public()?,
        }],
        custom_data: None,
        user_data: None,
        tags: Default::default(),
        image_reference: ImageReference::default(),
        os_disk: OsDisk {
            name: format!("{name}_OsDisk"),
            size_gb: u32::try_from(request.disk_bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX),
        },
        mac: MacAddress([0x00, 0x22, 0x48, random[0], random[1], random[2]]),
        container_id: Uuid::new_v4(),
        instance_id: format!("{}._{name}", Uuid::new_v4()),
        deployment_id: Uuid::new_v4(),
        generation: request.base.generation,
        provision_guest_agent: true,
    })
}
