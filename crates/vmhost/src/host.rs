//! The VM process: puts the parts together, waits, and says how it ended.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use content::{StoreLocation, StoreOptions};
use machine::{DiskLayers, Firmware, Machine, MachineEvent, MachineSpec, NetSockets, RunState};
use provision::identity::Generation;
use provision::{GuestEvent, NetConfig, Network};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::{self, Control};
use crate::protocol::{ENDED_FILE, Ended, Phase, Provisioning, VmStatus};
use crate::spec::{Lifetime, VmSpec};

const NBD_SOCKET: &str = "nbd.sock";
const QEMU_NET_SOCKET: &str = "net-qemu.sock";
const STACK_NET_SOCKET: &str = "net-stack.sock";
const QMP_SOCKET: &str = "qmp.sock";
/// The guest's serial console, appended over its whole life.
const SERIAL_LOG: &str = "serial.log";
/// Azure's addresses inside a default subnet.
const GUEST_IP: [u8; 4] = [10, 0, 0, 4];
const GATEWAY: [u8; 4] = [10, 0, 0, 1];
/// How soon reads that had to go to another store are told.
const DAMAGE_POLL: Duration = Duration::from_secs(2);
/// How long a start waits for further stores once one is open. The image is read from those which are there then.
const OTHER_STORES_WAIT: Duration = Duration::from_secs(2);
/// Refused destinations that a status shows.
const DENIED_MAX: usize = 16;

/// Runs the VM in `dir` until it ends. Changes the working directory of the process. Must be polled on the
/// main thread, because QEMU dies with the thread that spawned it.
///
/// # Errors
/// Only when `dir` cannot be used at all; everything later ends up in `ended.json`.
pub async fn run(dir: &Path) -> std::io::Result<()> {
    std::env::set_current_dir(dir)?;
    let here = Path::new(".");
    let spec = VmSpec::read(here)?;
    let (status, _) = watch::channel(status());
    let status = Arc::new(status);
    let stop = CancellationToken::new();
    let (control, mut asked) = Control::bind(Arc::clone(&status), stop.clone())?;
    let lease = control.lease();
    let ended = tokio::select! {
        ended = live(&spec, &status, &control, &stop) => ended,
        () = lease.runs_out(spec.lifetime) => Ended::LeaseExpired,
        _ = asked.recv() => Ended::PoweredOff,
    };
    if let Some(machine) = control.take_machine() {
        machine.power_off().await;
    }
    tracing::info!(%ended, "the VM ended");
    let text = serde_json::to_vec(&ended).map_err(std::io::Error::other)?;
    std::fs::write("ended.tmp", text)?;
    std::fs::rename("ended.tmp", ENDED_FILE)?;
    status.send_modify(|status| status.phase = Phase::Ended(ended));
    control.close().await;
    stop.cancel();
    Ok(())
}

/// Of a VM that begins.
fn status() -> VmStatus {
    VmStatus {
        vmhost_pid: std::process::id(),
        qemu_pid: None,
        started_at: Utc::now(),
        phase: Phase::Starting,
        provisioning: Provisioning::Silent,
        agent: None,
        forwards: Default::default(),
        outbound_denied: Vec::new(),
        damaged_reads: 0,
    }
}

/// From nothing to a running guest, and on until it ends.
async fn live(
    spec: &VmSpec,
    status: &Arc<watch::Sender<VmStatus>>,
    control: &Control,
    stop: &CancellationToken,
) -> Ended {
    let (machine, guest) = match start(spec, status, control, stop).await {
        Ok(started) => started,
        Err(reason) => return Ended::StartFailed { reason },
    };
    status.send_modify(|status| {
        status.qemu_pid = Some(machine.pid());
        status.phase = Phase::Running;
    });
    follow(&machine, guest, status).await
}

async fn start(
    spec: &VmSpec,
    status: &Arc<watch::Sender<VmStatus>>,
    control: &Control,
    stop: &CancellationToken,
) -> Result<(Arc<Machine>, mpsc::Receiver<GuestEvent>), String> {
    export_base(spec, status, stop).await?;
    let (network, guest) = start_network(spec)?;
    control.set_network(network);
    let media = "media.iso";
    std::fs::write(media, provision::media::provisioning_media(&spec.identity))
        .map_err(|error| format!("cannot write the provisioning media: {error}"))?;
    if !spec.overlay.exists() {
        machine::create_overlay(&spec.overlay, spec.disk_bytes).await.map_err(|error| error.to_string())?;
    }
    let machine = Machine::launch(&machine_spec(spec, media)).await.map_err(|error| error.to_string())?;
    control.set_machine(Arc::clone(&machine));
    if let Some(resume) = &spec.resume {
        machine.load_state(&resume.state, &resume.key).await.map_err(|error| error.to_string())?;
    }
    machine.resume().await.map_err(|error| error.to_string())?;
    Ok((machine, guest))
}

/// Serves the base image on a Unix socket for QEMU.
async fn export_base(
    spec: &VmSpec,
    status: &Arc<watch::Sender<VmStatus>>,
    stop: &CancellationToken,
) -> Result<(), String> {
    let base = &spec.base;
    let fail =
        |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {}: {error}", base.manifest);
    // Credentials for a remote one are in the environment that this process has from the service.
    let index_dir = base.cache_dir.with_file_name(crate::INDEX_DIR);
    let keys = base.key_file.as_deref().map(content::KeyRing::from_file).transpose();
    let keys = keys.map_err(|error| fail("read the keys of the store of", &error))?;
    let options = StoreOptions { index_dir: Some(index_dir), keys, ..StoreOptions::default() };
    let mut places = Vec::new();
    for place in &base.stores {
        places.push(place.parse().map_err(|error| fail("parse the store location of", &error))?);
    }
    let stores =
        open_stores(places, options).await.map_err(|reason| fail("open a store of image", &reason))?;
    let manifest = base.manifest.parse().map_err(|error| fail("parse the manifest", &error))?;
    let cache = content::BlockCache::open(&base.cache_dir, base.cache_bytes_max)
        .map_err(|error| fail("open the block cache for image", &error))?;
    let image = content::Image::open(&stores, &manifest, Arc::new(cache))
        .await
        .map_err(|error| fail("open image", &error))?;
    if spec.disk_bytes < image.size() {
        return Err(format!(
            "the disk ({} bytes) is smaller than its image ({})",
            spec.disk_bytes,
            image.size()
        ));
    }
    let export =
        content::nbd::Export::bind(Path::new(NBD_SOCKET)).map_err(|error| fail("export image", &error))?;
    tokio::spawn(report_damage(image.clone(), Arc::clone(status), stop.clone()));
    tokio::spawn(export.serve(image, stop.clone()));
    Ok(())
}

/// The stores that can be opened, in their order. Once there is one, a start does not wait long for the others.
async fn open_stores(
    places: Vec<StoreLocation>,
    options: StoreOptions,
) -> Result<Vec<content::Store>, String> {
    let mut opened: Vec<Option<content::Store>> = vec![None; places.len()];
    let mut opening = JoinSet::new();
    for (number, place) in places.into_iter().enumerate() {
        let options = options.clone();
        opening.spawn(async move {
            let store = content::Store::open_read_only_with(&place, &options).await;
            (number, store.map_err(|error| format!("{place}: {error}")))
        });
    }
    let (mut until, mut refused) = (None, None);
    loop {
        let next = match until {
            None => opening.join_next().await,
            Some(until) => tokio::time::timeout_at(until, opening.join_next()).await.unwrap_or_else(|_| {
                tracing::warn!(stores = opening.len(), "stores of the image do not answer and are not used");
                None
            }),
        };
        match next {
            None => break,
            Some(Err(error)) => drop(refused.get_or_insert(error.to_string())),
            Some(Ok((_, Err(reason)))) => {
                tracing::warn!(reason, "a store of the image is not used");
                refused.get_or_insert(reason);
            }
            Some(Ok((number, Ok(store)))) => {
                opened[number] = Some(store);
                until.get_or_insert(Instant::now() + OTHER_STORES_WAIT);
            }
        }
    }
    let stores: Vec<_> = opened.into_iter().flatten().collect();
    match stores.is_empty() {
        true => Err(refused.unwrap_or_else(|| "its specification names none".to_owned())),
        false => Ok(stores),
    }
}

/// Tells when blocks had to be read from another store than the first: the service looks at the status, and repairs.
async fn report_damage(image: content::Image, status: Arc<watch::Sender<VmStatus>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DAMAGE_POLL) => {}
        }
        let damaged = image.damaged_reads();
        status.send_if_modified(|status| {
            let news = damaged > status.damaged_reads;
            if news {
                tracing::warn!(
                    damaged,
                    "blocks of the image could not be read from one store, and were from another"
                );
                status.damaged_reads = damaged;
            }
            news
        });
    }
}

fn start_network(spec: &VmSpec) -> Result<(Network, mpsc::Receiver<GuestEvent>), String> {
    let allow = spec
        .outbound
        .allow
        .iter()
        .map(|entry| entry.parse().map_err(|error| format!("allow entry {entry:?}: {error}")))
        .collect::<Result<Vec<_>, _>>()?;
    let resolvers = match spec.outbound.resolvers.as_slice() {
        [] => host_resolvers(),
        given => given.to_vec(),
    };
    Network::start(NetConfig {
        stack_socket: STACK_NET_SOCKET.into(),
        qemu_socket: QEMU_NET_SOCKET.into(),
        identity: Arc::new(spec.identity.clone()),
        guest_ip: GUEST_IP.into(),
        gateway: GATEWAY.into(),
        policy: provision::NetPolicy { allow, deny_all_outbound: false },
        resolvers,
        own_addrs: provision::host_addresses().unwrap_or_default(),
    })
    .map_err(|error| format!("cannot start the guest's network: {error}"))
}

/// Resolvers of the host, for the guest's DNS forwarder.
fn host_resolvers() -> Vec<SocketAddr> {
    std::fs::read_to_string("/etc/resolv.conf")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .map(|address: std::net::IpAddr| SocketAddr::new(address, 53))
        .collect()
}

fn machine_spec(spec: &VmSpec, media: &str) -> MachineSpec {
    MachineSpec {
        name: spec.identity.name.clone(),
        smbios_uuid: spec.identity.smbios_uuid(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        firmware: match spec.identity.generation {
            Generation::V1 => Firmware::Bios,
            Generation::V2 => Firmware::Uefi { vars: "uefi-vars.fd".into() },
        },
        accelerator: spec.accelerator,
        disk: DiskLayers {
            base_socket: NBD_SOCKET.into(),
            frozen: spec.frozen.clone(),
            overlay: spec.overlay.clone(),
        },
        media: Some(media.into()),
        net: NetSockets { qemu: QEMU_NET_SOCKET.into(), stack: STACK_NET_SOCKET.into() },
        mac: spec.identity.mac.to_string(),
        qmp_socket: QMP_SOCKET.into(),
        serial_log: SERIAL_LOG.into(),
        incoming: spec.resume.is_some(),
    }
}

/// Keeps the status true until QEMU ends.
async fn follow(
    machine: &Machine,
    mut guest: mpsc::Receiver<GuestEvent>,
    status: &watch::Sender<VmStatus>,
) -> Ended {
    let mut events = machine.events();
    let mut powered_off = false;
    loop {
        tokio::select! {
            ended = machine.ended() => {
                while let Ok(event) = events.try_recv() {
                    powered_off |= event == MachineEvent::GuestShutdown;
                }
                return how_it_ended(ended, powered_off);
            }
            event = events.recv() => match event {
                Ok(MachineEvent::GuestShutdown) => powered_off = true,
                Ok(MachineEvent::DiskError { reason }) => {
                    tracing::error!(%reason, "a disk error paused the guest");
                    status.send_modify(|status| status.phase = Phase::DiskError { reason });
                }
                Ok(event @ (MachineEvent::GuestReset | MachineEvent::MediaEjected)) => tracing::info!(?event),
                // The channel closes together with the connection; `ended` follows.
                Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(event) = guest.recv() => status.send_modify(|status| note(status, event)),
        }
    }
}

fn how_it_ended(ended: RunState, powered_off: bool) -> Ended {
    match ended {
        RunState::Ended { clean: true, .. } if powered_off => Ended::GuestPoweredOff,
        RunState::Ended { status, stderr, .. } => Ended::QemuFailed { reason: format!("{status}: {stderr}") },
        RunState::Alive => Ended::QemuFailed { reason: "its process could not be watched".into() },
    }
}

fn note(status: &mut VmStatus, event: GuestEvent) {
    tracing::info!(?event, "guest");
    match event {
        GuestEvent::Provisioning { text } if status.provisioning == Provisioning::Silent => {
            status.provisioning = Provisioning::InProgress { text };
        }
        // Two agents in one image both report: the first report counts.
        GuestEvent::Ready if !matches!(status.provisioning, Provisioning::Ready { .. }) => {
            status.provisioning = Provisioning::Ready { at: Utc::now() };
        }
        GuestEvent::ProvisioningFailed { text } => status.provisioning = Provisioning::Failed { text },
        GuestEvent::AgentStatus(agent) => status.agent = Some(agent),
        GuestEvent::OutboundDenied { destination, reason } if status.outbound_denied.len() < DENIED_MAX => {
            status.outbound_denied.push(format!("{destination}: {reason}"));
        }
        // Logged above; nothing else follows from them.
        _ => {}
    }
}

impl control::Lease {
    /// Ends when nobody kept the VM alive for its lease; never for a virtual machine.
    async fn runs_out(&self, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Virtual => std::future::pending().await,
            Lifetime::Leased { lease_s } => self.idle_for(Duration::from_secs(lease_s)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overwrites a store's packs, keeping their sizes.
    fn damage(folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => damage(&entry),
                false => {
                    let len = entry.metadata().unwrap().len();
                    std::fs::write(&entry, vec![0xa5; len as usize]).unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_does_not_answer_keeps_no_vm_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let here = StoreLocation::Folder(dir.path().join("here"));
        let id = content::Store::open_or_create(&here, "test").await.unwrap().id();
        // It takes connections, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let away = format!("s3://bucket/zone?endpoint=http://{}", silent.local_addr().unwrap());
        let variables = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_REGION", "r")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = StoreOptions {
            index_dir: Some(dir.path().join("index")),
            credentials: Some(content::Credentials::from_variables(variables)),
            ..StoreOptions::default()
        };
        let started = Instant::now();
        let places = vec![away.parse().unwrap(), here];
        let stores = open_stores(places, options.clone()).await.unwrap();
        assert!(started.elapsed() < 5 * OTHER_STORES_WAIT, "{:?}", started.elapsed());
        assert_eq!(stores.iter().map(content::Store::id).collect::<Vec<_>>(), [id]);

        let none = StoreLocation::Folder(dir.path().join("none"));
        let error = open_stores(vec![none], options).await.unwrap_err();
        assert!(error.contains("none") && error.contains("no store"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_one_store_cannot_give_is_read_from_another_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        std::fs::write(&raw, (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
        let mut stores = Vec::new();
        for name in ["one", "two"] {
            let location = content::StoreLocation::Folder(dir.path().join(name));
            stores.push(content::Store::open_or_create(&location, "test").await.unwrap());
        }
        let manifest = stores[0].put_raw(&raw, "vm", |_| {}).await.unwrap().manifest;
        content::replicate(&stores[0], &stores[1], &manifest, "vm", |_| {}).await.unwrap();
        let cache = Arc::new(content::BlockCache::in_memory());
        let image = content::Image::open(&stores, &manifest, cache).await.unwrap();
        damage(&dir.path().join("one/packs"));

        let (status, mut told) = watch::channel(status());
        let stop = CancellationToken::new();
        let reporting = tokio::spawn(report_damage(image.clone(), Arc::new(status), stop.clone()));
        let mut read = vec![0; 1 << 20];
        image.read_at(0, &mut read).await.unwrap();
        assert!(read == std::fs::read(&raw).unwrap());
        let heard = told.wait_for(|status| status.damaged_reads > 0);
        tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap().unwrap();
        stop.cancel();
        reporting.await.unwrap();
    }
}
