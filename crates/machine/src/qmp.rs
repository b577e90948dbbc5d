//! A small QMP client: one connection, commands matched to answers by id, events broadcast.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

use crate::MachineError;

/// The longest line that QEMU may send.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// How long QEMU may take to answer one command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Events that a slow listener may lag behind.
const EVENTS_MAX: usize = 256;

type Answer = Result<Value, (String, String)>;
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A QMP event: its name and data.
#[derive(Debug, Clone)]
pub(crate) struct QmpEvent {
    pub(crate) name: String,
    pub(crate) data: Value,
}

pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next_id: AtomicU64,
    events: broadcast::Sender<QmpEvent>,
}

impl Qmp {
    /// Connects, reads the greeting and leaves capability negotiation.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, MachineError> {
        let stream =
            UnixStream::connect(socket).await.map_err(MachineError::io("connect to QEMU's QMP socket"))?;
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = read_line(&mut reader).await.map_err(MachineError::io("read QEMU's greeting"))?;
        if !greeting.is_some_and(|value| value["QMP"].is_object()) {
            return Err(MachineError::QmpConnection { during: "waiting for the greeting".into() });
        }
        let pending = Pending::default();
        let (events, _) = broadcast::channel(EVENTS_MAX);
        tokio::spawn(dispatch(reader, Arc::clone(&pending), events.clone()));
        let qmp =
            Self { writer: tokio::sync::Mutex::new(writer), pending, next_id: AtomicU64::new(1), events };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Runs one command and returns its `return` value.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, MachineError> {
        self.send(command, arguments, None).await
    }

    /// Gives QEMU a file descriptor under `name` (`getfd`).
    pub(crate) async fn give_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), MachineError> {
        self.send("getfd", json!({"fdname": name}), Some(fd)).await.map(drop)
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, MachineError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({"execute": command, "id": id});
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            line["arguments"] = arguments;
        }
        let line = format!("{line}\n");
        let (answer, answered) = oneshot::channel();
        self.lock_pending().insert(id, answer);
        let sent = {
            let mut writer = self.writer.lock().await;
            match fd {
                None => writer.write_all(line.as_bytes()).await,
                Some(fd) => send_with_fd(&writer, line.as_bytes(), fd).await,
            }
        };
        let broken = || MachineError::QmpConnection { during: format!("executing {command}") };
        if sent.is_err() {
            self.lock_pending().remove(&id);
            return Err(broken());
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, desc)))) => Err(MachineError::Qmp { command: command.into(), class, desc }),
            Ok(Err(_)) => Err(broken()),
            Err(_) => {
                self.lock_pending().remove(&id);
                Err(MachineError::Timeout {
                    what: format!("QEMU's answer to {command}"),
                    after: ANSWER_TIMEOUT,
                })
            }
        }
    }

    fn lock_pending(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Reads until the connection ends; then every pending command fails, because its sender is dropped.
async fn dispatch(
    mut reader: BufReader<OwnedReadHalf>,
    pending: Pending,
    events: broadcast::Sender<QmpEvent>,
) {
    while let Ok(Some(mut value)) = read_line(&mut reader).await {
        if let Some(name) = value["event"].as_str() {
            // No listener is not an error.
            drop(events.send(QmpEvent { name: name.to_owned(), data: value["data"].take() }));
            continue;
        }
        let Some(id) = value["id"].as_u64() else { continue };
        let answer = if value.get("return").is_some() {
            Ok(value["return"].take())
        } else {
            let text = |key: &str| value["error"][key].as_str().unwrap_or_default().to_owned();
            Err((text("class"), text("desc")))
        };
        let sender = pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
        if let Some(sender) = sender {
            drop(sender.send(answer));
        }
    }
    pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Value>> {
    let mut line = Vec::new();
    let length = reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
}

async fn send_with_fd(writer: &OwnedWriteHalf, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let stream: &UnixStream = writer.as_ref();
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let fds = [fd];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let bytes = [io::IoSlice::new(bytes)];
            sendmsg(stream.as_fd(), &bytes, &mut ancillary, SendFlags::empty()).map_err(io::Error::from)
        })
        .await?;
    // A command is shorter than any socket buffer; a partial write means that the connection is in trouble.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::other("QEMU's QMP socket took part of a command"))
    }
}
