//! The control socket: who may enter the VM's directory may ask.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine::Machine;
use provision::Network;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::protocol::{Answer, CONTROL_SOCKET, LINE_BYTES_MAX, Phase, Request, VmStatus};

/// Connections served at once: watchers, tunnels and short requests.
const CONNECTIONS_MAX: usize = 64;
/// A client must say what it wants within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last status may take to reach watchers before the process exits.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Granularity at which an unattended lease is noticed.
const LEASE_POLL: Duration = Duration::from_millis(500);

/// The control socket and the parts that it steers.
pub(crate) struct Control {
    parts: Arc<Parts>,
    served: TaskTracker,
    accepting: CancellationToken,
}

struct Parts {
    status: Arc<watch::Sender<VmStatus>>,
    machine: Mutex<Option<Arc<Machine>>>,
    network: Mutex<Option<Arc<Network>>>,
    power_off: mpsc::Sender<()>,
    lease: Lease,
    stop: CancellationToken,
}

/// When somebody last kept the VM alive, and how many hold it alive right now.
#[derive(Clone)]
pub(crate) struct Lease(Arc<Mutex<(Instant, u32)>>);

impl Lease {
    pub(crate) async fn idle_for(&self, limit: Duration) {
        loop {
            let (since, holders) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if holders == 0 && since.elapsed() > limit {
                return;
            }
            tokio::time::sleep(LEASE_POLL).await;
        }
    }

    fn hold(&self) -> Held {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        Held(self.clone())
    }
}

/// A connection that keeps the VM alive; the lease begins to run when it is dropped.
struct Held(Lease);

impl Drop for Held {
    fn drop(&mut self) {
        let mut lease = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *lease = (Instant::now(), lease.1 - 1);
    }
}

impl Control {
    /// Binds the socket in the working directory and serves it. The receiver hears a request to power off.
    pub(crate) fn bind(
        status: Arc<watch::Sender<VmStatus>>,
        stop: CancellationToken,
    ) -> io::Result<(Self, mpsc::Receiver<()>)> {
        match std::fs::remove_file(CONTROL_SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(CONTROL_SOCKET)?;
        let (power_off, asked) = mpsc::channel(1);
        let parts = Arc::new(Parts {
            status,
            machine: Mutex::new(None),
            network: Mutex::new(None),
            power_off,
            lease: Lease(Arc::new(Mutex::new((Instant::now(), 0)))),
            stop,
        });
        let control = Self { parts, served: TaskTracker::new(), accepting: CancellationToken::new() };
        tokio::spawn(accept(
            listener,
            Arc::clone(&control.parts),
            control.served.clone(),
            control.accepting.clone(),
        ));
        Ok((control, asked))
    }

    pub(crate) fn lease(&self) -> Lease {
        self.parts.lease.clone()
    }

    pub(crate) fn set_machine(&self, machine: Arc<Machine>) {
        *self.parts.machine.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
    }

    pub(crate) fn take_machine(&self) -> Option<Arc<Machine>> {
        self.parts.machine.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn set_network(&self, network: Network) {
        *self.parts.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(network));
    }

    /// Stops accepting and lets watchers read the last status.
    pub(crate) async fn close(&self) {
        self.accepting.cancel();
        drop(std::fs::remove_file(CONTROL_SOCKET));
        self.served.close();
        // Tunnels need not end by themselves.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.served.wait()).await);
    }
}

async fn accept(
    listener: UnixListener,
    parts: Arc<Parts>,
    served: TaskTracker,
    accepting: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = accepting.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let parts = Arc::clone(&parts);
        served.spawn(async move {
            if let Err(error) = serve(stream, &parts).await {
                tracing::debug!(%error, "control connection");
            }
            drop(place);
        });
    }
}

async fn serve(stream: UnixStream, parts: &Parts) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut stream).take(LINE_BYTES_MAX);
    let reading = limited.read_line(&mut line);
    tokio::time::timeout(REQUEST_TIMEOUT, reading).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return say(&mut stream, &Answer::Refused { reason: error.to_string() }).await,
    };
    match request {
        Request::Status => {
            let status = Box::new(parts.status.borrow().clone());
            say(&mut stream, &Answer::Status { status }).await
        }
        Request::Watch => watch_status(&mut stream, parts).await,
        Request::KeepAlive => {
            let held = parts.lease.hold();
            // Held until the client closes its end, also by being killed.
            let end = stream.read_u8().await;
            drop(held);
            end.map(drop).or(Ok(()))
        }
        Request::Snapshot { overlay, state } => {
            let taken = match parts.machine() {
                Ok(machine) => machine
                    .snapshot(&overlay, state.as_ref().map(|to| (to.path.as_path(), &to.key)))
                    .await
                    .map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            say(&mut stream, &answer(taken)).await
        }
        Request::PowerButton => {
            let pressed = match parts.machine() {
                Ok(machine) => machine.press_power_button().await.map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            say(&mut stream, &answer(pressed)).await
        }
        Request::PowerOff => {
            // A full channel means that it was asked for already.
            let _ = parts.power_off.try_send(());
            say(&mut stream, &Answer::Ok).await
        }
        Request::Tunnel { port } => tunnel(stream, parts, port).await,
        Request::Forward { port } => {
            let answer = match forward(parts, port).await {
                Ok(address) => Answer::Forwarded { address },
                Err(error) => Answer::Refused { reason: error.to_string() },
            };
            say(&mut stream, &answer).await
        }
    }
}

impl Parts {
    fn machine(&self) -> Result<Arc<Machine>, String> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone();
        machine.ok_or_else(|| "the machine has not started yet, or has ended".to_owned())
    }

    fn network(&self) -> io::Result<Arc<Network>> {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).clone();
        network.ok_or_else(|| io::Error::other("the guest's network has not started yet"))
    }
}

fn answer(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => Answer::Ok,
        Err(reason) => Answer::Refused { reason },
    }
}

async fn say(stream: &mut BufReader<UnixStream>, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn watch_status(stream: &mut BufReader<UnixStream>, parts: &Parts) -> io::Result<()> {
    let mut watch = parts.status.subscribe();
    loop {
        let status = watch.borrow_and_update().clone();
        let over = matches!(status.phase, Phase::Ended(_));
        say(stream, &Answer::Status { status: Box::new(status) }).await?;
        if over || watch.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn tunnel(mut stream: BufReader<UnixStream>, parts: &Parts, port: u16) -> io::Result<()> {
    let connected = match parts.network() {
        Ok(network) => network.connect_guest(port).await,
        Err(error) => Err(error),
    };
    let mut guest = match connected {
        Ok(guest) => guest,
        Err(error) => return say(&mut stream, &Answer::Refused { reason: error.to_string() }).await,
    };
    say(&mut stream, &Answer::Ok).await?;
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut stream, &mut guest) => copied.map(drop),
        () = parts.stop.cancelled() => Ok(()),
    }
}

/// Opens the forward once per guest port; asking again gives the same address.
async fn forward(parts: &Parts, port: u16) -> io::Result<SocketAddr> {
    if let Some(address) = parts.status.borrow().forwards.get(&port) {
        return Ok(*address);
    }
    let network = parts.network()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    parts.status.send_modify(|status| {
        status.forwards.insert(port, address);
    });
    let stop = parts.stop.clone();
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((mut host, _)) = accepted else { continue };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let network = Arc::clone(&network);
            tokio::spawn(async move {
                if let Ok(mut guest) = network.connect_guest(port).await {
                    // A broken connection is the two ends' affair.
                    drop(tokio::io::copy_bidirectional(&mut host, &mut guest).await);
                }
                drop(place);
            });
        }
    });
    Ok(address)
}
