//! Driving a VM process from outside: spawn it, find it again, ask it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use machine::StateKey;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::protocol::{
    Answer, CONTROL_SOCKET, ENDED_FILE, Ended, LINE_BYTES_MAX, Phase, Request, SaveTo, VmStatus, read_ended,
};
use crate::spec::VmSpec;

const APPEARS_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What can go wrong when a VM process is asked something.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM is over.
    #[error("the VM has ended: {0}")]
    Ended(Ended),
    /// It understood and refused.
    #[error("the VM refused: {0}")]
    Refused(String),
    /// It could not be talked to.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It did not get there in time.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
}

/// A VM process, by its directory.
#[derive(Debug, Clone)]
pub struct VmHandle {
    dir: PathBuf,
}

impl VmHandle {
    /// Makes the VM's directory (mode 0700, parents too), writes its specification and starts
    /// `program vmhost <dir>` apart from this process's group. Returns when it answers.
    ///
    /// # Errors
    /// When the directory cannot be made, or the process does not come up.
    pub async fn spawn(program: &Path, dir: &Path, spec: &VmSpec) -> Result<Self, VmError> {
        use std::os::unix::fs::DirBuilderExt;
        let fail = |what: &'static str| move |source| VmError::Io { what: what.into(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fail("make the VM's directory"))?;
        match std::fs::remove_file(dir.join(ENDED_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("forget how the VM ended before")(error));
            }
            _ => {}
        }
        spec.write(dir).map_err(fail("write the VM's specification"))?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("vmhost.log"))
            .map_err(fail("open the VM's log"))?;
        let mut command = std::process::Command::new(program);
        command
            .arg("vmhost")
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let mut child =
            tokio::process::Command::from(command).spawn().map_err(fail("start the VM's process"))?;
        let handle = Self { dir: dir.to_owned() };
        let started = Instant::now();
        loop {
            match handle.status().await {
                Ok(_) => break,
                Err(error) => {
                    if let Some(status) = child.try_wait().map_err(fail("watch the VM's process"))? {
                        let reason = format!("vmhost exited at once ({status}): {}", handle.log_tail());
                        return Err(VmError::Ended(Ended::StartFailed { reason }));
                    }
                    if started.elapsed() > APPEARS_TIMEOUT {
                        return Err(error);
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        // Reaps it when it ends while this process lives; nothing else depends on this task.
        tokio::spawn(async move { child.wait().await });
        Ok(handle)
    }

    /// A VM that may run already. Whether it does, [`VmHandle::status`] tells.
    pub fn attach(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The VM's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VM's status now.
    ///
    /// # Errors
    /// [`VmError::Ended`] when its process is gone.
    pub async fn status(&self) -> Result<VmStatus, VmError> {
        match self.ask(&Request::Status).await? {
            Answer::Status { status } => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until `wanted` gives a value for a status, at most `limit`.
    ///
    /// # Errors
    /// [`VmError::Ended`] as soon as the VM has ended, [`VmError::Timeout`] after `limit`.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&VmStatus) -> Option<T>,
    ) -> Result<T, VmError> {
        let watching = async {
            let mut stream = self.send(&Request::Watch).await?;
            loop {
                let status = match read_answer(&mut stream).await {
                    Ok(Answer::Status { status }) => *status,
                    Ok(other) => return Err(unexpected(&other)),
                    Err(_) => return Err(VmError::Ended(read_ended(&self.dir))),
                };
                if let Some(value) = wanted(&status) {
                    return Ok(value);
                }
                if let Phase::Ended(ended) = status.phase {
                    return Err(VmError::Ended(ended));
                }
            }
        };
        tokio::time::timeout(limit, watching)
            .await
            .unwrap_or_else(|_| Err(VmError::Timeout { what: what.to_owned(), after: limit }))
    }

    /// Waits until the VM has ended.
    ///
    /// # Errors
    /// [`VmError::Timeout`] after `limit`.
    pub async fn wait_ended(&self, limit: Duration) -> Result<Ended, VmError> {
        let ended = self.wait_for::<()>("the VM's end", limit, |_| None).await;
        match ended {
            Ok(()) => unreachable!("no status is a value"),
            Err(VmError::Ended(ended)) => Ok(ended),
            Err(error) => Err(error),
        }
    }

    /// Keeps a leased VM alive until the guard is dropped or this process ends.
    ///
    /// # Errors
    /// When the VM cannot be reached.
    pub async fn keep_alive(&self) -> Result<KeepAlive, VmError> {
        Ok(KeepAlive { _stream: self.send(&Request::KeepAlive).await? })
    }

    /// Freezes the disk; see `machine::Machine::snapshot`.
    ///
    /// # Errors
    /// When the VM refuses; it runs on in any case.
    pub async fn snapshot(&self, overlay: &Path, state: Option<(&Path, &StateKey)>) -> Result<(), VmError> {
        let state = state.map(|(path, key)| SaveTo { path: path.to_owned(), key: key.clone() });
        self.ask_ok(&Request::Snapshot { overlay: overlay.to_owned(), state }).await
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the VM refuses or has ended.
    pub async fn press_power_button(&self) -> Result<(), VmError> {
        self.ask_ok(&Request::PowerButton).await
    }

    /// Ends the VM at once and waits until its process says so. A VM that has ended is no error.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn power_off(&self) -> Result<Ended, VmError> {
        match self.ask_ok(&Request::PowerOff).await {
            Ok(()) => self.wait_ended(APPEARS_TIMEOUT).await,
            Err(VmError::Ended(ended)) => Ok(ended),
            Err(error) => Err(error),
        }
    }

    /// A byte stream to a TCP port of the guest.
    ///
    /// # Errors
    /// [`VmError::Refused`] when the guest does not accept it.
    pub async fn tunnel(&self, port: u16) -> Result<BufReader<UnixStream>, VmError> {
        let mut stream = self.send(&Request::Tunnel { port }).await?;
        match read_answer(&mut stream).await {
            Ok(Answer::Ok) => Ok(stream),
            Ok(other) => Err(unexpected(&other)),
            Err(source) => Err(VmError::Io { what: "open a tunnel".into(), source }),
        }
    }

    /// A loopback address of the host that leads to a TCP port of the guest.
    ///
    /// # Errors
    /// When the VM has ended.
    pub async fn forward(&self, port: u16) -> Result<SocketAddr, VmError> {
        match self.ask(&Request::Forward { port }).await? {
            Answer::Forwarded { address } => Ok(address),
            other => Err(unexpected(&other)),
        }
    }

    /// The end of the serial console, for messages.
    pub fn serial_tail(&self) -> String {
        tail(&self.dir.join("serial.log"))
    }

    fn log_tail(&self) -> String {
        tail(&self.dir.join("vmhost.log"))
    }

    async fn ask_ok(&self, request: &Request) -> Result<(), VmError> {
        match self.ask(request).await? {
            Answer::Ok => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, VmError> {
        let mut stream = self.send(request).await?;
        read_answer(&mut stream)
            .await
            .map_err(|source| VmError::Io { what: "read the VM's answer".into(), source })
    }

    async fn send(&self, request: &Request) -> Result<BufReader<UnixStream>, VmError> {
        let mut stream = match connect(&self.dir).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Err(VmError::Ended(read_ended(&self.dir)));
            }
            Err(source) => return Err(VmError::Io { what: "connect to the VM's process".into(), source }),
        };
        let mut line = serde_json::to_vec(request)
            .map_err(|error| VmError::Io { what: "write the request".into(), source: error.into() })?;
        line.push(b'\n');
        stream
            .write_all(&line)
            .await
            .map_err(|source| VmError::Io { what: "ask the VM's process".into(), source })?;
        Ok(BufReader::new(stream))
    }
}

/// Keeps a leased VM alive while it exists.
#[derive(Debug)]
pub struct KeepAlive {
    _stream: BufReader<UnixStream>,
}

/// Connects through a descriptor of the directory, because the path of a socket holds 108 bytes.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir: OwnedFd = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd())).await
}

async fn read_answer(stream: &mut BufReader<UnixStream>) -> io::Result<Answer> {
    let mut line = String::new();
    if stream.take(LINE_BYTES_MAX).read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

fn unexpected(answer: &Answer) -> VmError {
    match answer {
        Answer::Refused { reason } => VmError::Refused(reason.clone()),
        other => VmError::Refused(format!("an answer to another question: {other:?}")),
    }
}

fn tail(path: &Path) -> String {
    const TAIL_BYTES: usize = 2048;
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).trim().to_owned()
}
