//! One running QEMU: launch, pause, snapshot, save, resume, stop. The driver task owns the child process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, broadcast, watch};

use crate::qmp::{Qmp, QmpEvent};
use crate::{MachineError, MachineSpec, QEMU_SYSTEM, StateKey, args, state};

const QMP_APPEARS_TIMEOUT: Duration = Duration::from_secs(20);
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);
/// The stream goes through a pipe to a local file: QEMU's default limit would only slow it down.
const MIGRATION_BANDWIDTH_BYTES_S: u64 = 10 << 30;
/// What QEMU gets of our environment.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR"];
const EVENTS_MAX: usize = 64;
/// How much of QEMU's standard error is kept for messages.
const STDERR_BYTES_MAX: usize = 4096;

/// What a machine tells its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest asked to power off.
    GuestShutdown,
    /// The guest rebooted; the same QEMU goes on.
    GuestReset,
    /// The guest opened the tray: it has read the provisioning media.
    MediaEjected,
    /// A disk error paused the guest.
    DiskError {
        /// QEMU's reason, e.g. `No space left on device`.
        reason: String,
    },
}

/// Whether QEMU lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// The process runs.
    Alive,
    /// The process ended.
    Ended {
        /// Exit status or signal, in words.
        status: String,
        /// True for exit status 0, which QEMU gives after a guest's power-off.
        clean: bool,
        /// The last lines of its standard error.
        stderr: String,
    },
}

/// A machine. Dropping it kills QEMU.
pub struct Machine {
    qmp: Qmp,
    pid: u32,
    events: broadcast::Sender<MachineEvent>,
    run: watch::Receiver<RunState>,
    kill: watch::Sender<bool>,
    /// The node that the guest writes to, and how many snapshots were taken.
    top: Mutex<(String, u32)>,
}

impl Machine {
    /// Starts QEMU, paused, and connects to it. Must be called on a thread that lives as long as the
    /// process: QEMU gets `PR_SET_PDEATHSIG`, and that signal follows the *thread* that spawned it.
    ///
    /// # Errors
    /// When QEMU is missing, ends at once, or does not open its QMP socket in time.
    pub async fn launch(spec: &MachineSpec) -> Result<Arc<Self>, MachineError> {
        drop(std::fs::remove_file(&spec.qmp_socket));
        drop(std::fs::remove_file(&spec.net.qemu));
        if let crate::Firmware::Uefi { vars } = &spec.firmware
            && !vars.exists()
        {
            std::fs::copy(args::OVMF_VARS, vars).map_err(MachineError::io(format!(
                "copy {} (install the distribution's ovmf package)",
                args::OVMF_VARS
            )))?;
        }
        let stderr_path = spec.serial_log.with_file_name("qemu.stderr");
        let stderr = File::create(&stderr_path).map_err(MachineError::io("create qemu.stderr"))?;
        let child = spawn_bound_to_this_thread(args::arguments(spec), stderr)?;
        let pid = child.id().unwrap_or_default();
        let (run_sender, run) = watch::channel(RunState::Alive);
        let (kill, killed) = watch::channel(false);
        tokio::spawn(drive_child(child, stderr_path, run_sender, killed));
        let qmp = match connect(&spec.qmp_socket, &run).await {
            Ok(qmp) => qmp,
            Err(error) => {
                kill.send_replace(true);
                return Err(error);
            }
        };
        let (events, _) = broadcast::channel(EVENTS_MAX);
        tokio::spawn(translate_events(qmp.events(), events.clone()));
        let top = Mutex::new((args::TOP_NODE.to_owned(), 0));
        Ok(Arc::new(Self { qmp, pid, events, run, kill, top }))
    }

    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    /// Watches the process.
    pub fn run_state(&self) -> watch::Receiver<RunState> {
        self.run.clone()
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub async fn resume(&self) -> Result<(), MachineError> {
        self.qmp.execute("cont", json!({})).await.map(drop)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QEMU refuses or is gone.
    pub async fn press_power_button(&self) -> Result<(), MachineError> {
        self.qmp.execute("system_powerdown", json!({})).await.map(drop)
    }

    /// Ends QEMU at once, as pulling the plug does; its disks are flushed first.
    pub async fn power_off(&self) {
        // An answer need not come, since the process ends.
        drop(tokio::time::timeout(Duration::from_secs(5), self.qmp.execute("quit", json!({}))).await);
        if tokio::time::timeout(Duration::from_secs(5), self.ended()).await.is_err() {
            self.kill.send_replace(true);
            self.ended().await;
        }
    }

    /// Waits until the process has ended and says how.
    pub async fn ended(&self) -> RunState {
        let mut run = self.run.clone();
        let state = run.wait_for(|state| *state != RunState::Alive).await;
        state.map(|state| state.clone()).unwrap_or(RunState::Ended {
            status: "unknown".into(),
            clean: false,
            stderr: String::new(),
        })
    }

    /// Freezes the disk: what was written so far stays in the layers below, and the guest goes on writing
    /// into `overlay`, an empty qcow2 file of the disk's size. With `state`, the machine state of the same
    /// instant is saved too. The guest is paused meanwhile and runs again afterwards, also after an error.
    ///
    /// # Errors
    /// When QEMU refuses or the state cannot be written; a partial state file is removed.
    pub async fn snapshot(
        &self,
        overlay: &Path,
        state: Option<(&Path, &StateKey)>,
    ) -> Result<(), MachineError> {
        self.qmp.execute("stop", json!({})).await?;
        let taken = self.snapshot_paused(overlay, state).await;
        let resumed = self.resume().await;
        taken.and(resumed)
    }

    async fn snapshot_paused(
        &self,
        overlay: &Path,
        state: Option<(&Path, &StateKey)>,
    ) -> Result<(), MachineError> {
        let mut top = self.top.lock().await;
        let node = format!("disk{}", top.1 + 1);
        self.qmp.execute("blockdev-add", args::qcow2_node(&node, overlay, None, false)).await?;
        self.qmp.execute("blockdev-snapshot", json!({"node": top.0, "overlay": node})).await?;
        *top = (node, top.1 + 1);
        match state {
            Some((path, key)) => self.save_state(path, key).await,
            None => Ok(()),
        }
    }

    async fn save_state(&self, path: &Path, key: &StateKey) -> Result<(), MachineError> {
        let (ours, theirs) = pipe()?;
        self.allow_fast_migration().await?;
        self.qmp.give_fd("state", theirs.as_fd()).await?;
        drop(theirs);
        let writer = spawn_sealer(ours, path.to_owned(), key.clone());
        let migrated = async {
            self.qmp.execute("migrate", json!({"uri": "fd:state"})).await?;
            self.migration_ends().await
        }
        .await;
        if migrated.is_err() {
            // QEMU closes its end only when the migration has ended in some way.
            drop(self.qmp.execute("migrate_cancel", json!({})).await);
        }
        let written =
            writer.await.map_err(|_| MachineError::State { reason: "its writer panicked".into() })?;
        let result = migrated.and(written.map_err(MachineError::io("write the saved machine state")));
        if result.is_err() {
            drop(std::fs::remove_file(path));
        }
        result
    }

    /// Loads a saved state into a machine that was launched with `incoming`, still paused afterwards.
    ///
    /// # Errors
    /// [`MachineError::State`] when the file is damaged or not ours; otherwise when QEMU refuses it.
    pub async fn load_state(&self, path: &Path, key: &StateKey) -> Result<(), MachineError> {
        let file = File::open(path).map_err(MachineError::io("open the saved machine state"))?;
        let (theirs, ours) = pipe()?;
        self.allow_fast_migration().await?;
        self.qmp.give_fd("state", theirs.as_fd()).await?;
        drop(theirs);
        self.qmp.execute("migrate-incoming", json!({"uri": "fd:state"})).await?;
        let key = key.clone();
        let feed = tokio::task::spawn_blocking(move || {
            state::open(io::BufReader::with_capacity(1 << 20, file), File::from(ours), &key)
        });
        feed.await.map_err(|_| MachineError::State { reason: "its reader panicked".into() })??;
        self.migration_ends().await
    }

    async fn allow_fast_migration(&self) -> Result<(), MachineError> {
        let arguments = json!({"max-bandwidth": MIGRATION_BANDWIDTH_BYTES_S});
        self.qmp.execute("migrate-set-parameters", arguments).await.map(drop)
    }

    async fn migration_ends(&self) -> Result<(), MachineError> {
        let started = Instant::now();
        loop {
            let status = self.qmp.execute("query-migrate", json!({})).await?;
            match status["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let desc = status["error-desc"].as_str().unwrap_or("no reason given").to_owned();
                    return Err(MachineError::State { reason: format!("QEMU could not move it: {desc}") });
                }
                _ if started.elapsed() > MIGRATION_TIMEOUT => {
                    return Err(MachineError::Timeout {
                        what: "moving the machine state".into(),
                        after: MIGRATION_TIMEOUT,
                    });
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill.send_replace(true);
    }
}

#[expect(unsafe_code, reason = "the parent-death signal must be set between fork and exec")]
fn spawn_bound_to_this_thread(arguments: Vec<String>, stderr: File) -> Result<Child, MachineError> {
    let parent = rustix::process::getpid();
    let mut command = Command::new(QEMU_SYSTEM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).kill_on_drop(true);
    // What serves the guest's disk may have credentials in its environment; what runs the guest has no business with them.
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| PASSED_ON.iter().any(|known| name == known)));
    // SAFETY: the closure makes two system calls and allocates nothing, so it is safe after fork.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the call above.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::other("the parent process is gone"))
            }
        });
    }
    command.spawn().map_err(|source| MachineError::QemuMissing { source })
}

/// The driver: owns the child until it has ended.
async fn drive_child(
    mut child: Child,
    stderr: PathBuf,
    run: watch::Sender<RunState>,
    mut killed: watch::Receiver<bool>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        // The sender only ever says "kill", or is dropped with the machine: both mean the same.
        _ = killed.changed() => { drop(child.start_kill()); child.wait().await }
    };
    let (status, clean) = match status {
        Ok(status) => (status.to_string(), status.success()),
        Err(error) => (error.to_string(), false),
    };
    drop(run.send(RunState::Ended { status, clean, stderr: tail(&stderr) }));
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(STDERR_BYTES_MAX)..]).trim().to_owned()
}

async fn connect(socket: &Path, run: &watch::Receiver<RunState>) -> Result<Qmp, MachineError> {
    let started = Instant::now();
    loop {
        if let RunState::Ended { status, stderr, .. } = &*run.borrow() {
            return Err(MachineError::Exited { status: status.clone(), stderr: stderr.clone() });
        }
        match Qmp::connect(socket).await {
            Ok(qmp) => return Ok(qmp),
            Err(MachineError::Io { .. }) if started.elapsed() < QMP_APPEARS_TIMEOUT => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn translate_events(mut from: broadcast::Receiver<QmpEvent>, to: broadcast::Sender<MachineEvent>) {
    loop {
        let event = match from.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let translated = match event.name.as_str() {
            "RESET" if event.data["guest"] == true => MachineEvent::GuestReset,
            "SHUTDOWN" if event.data["guest"] == true => MachineEvent::GuestShutdown,
            "DEVICE_TRAY_MOVED" if event.data["tray-open"] == true => MachineEvent::MediaEjected,
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => MachineEvent::DiskError {
                reason: event.data["reason"].as_str().unwrap_or("unknown").to_owned(),
            },
            _ => continue,
        };
        // No listener is not an error.
        drop(to.send(translated));
    }
}

/// A pipe: (reading end, writing end).
fn pipe() -> Result<(OwnedFd, OwnedFd), MachineError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| MachineError::Io { what: "make a pipe".into(), source: errno.into() })
}

fn spawn_sealer(from: OwnedFd, path: PathBuf, key: StateKey) -> tokio::task::JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        state::seal(File::from(from), io::BufWriter::with_capacity(1 << 20, file), &key).map(drop)
    })
}
