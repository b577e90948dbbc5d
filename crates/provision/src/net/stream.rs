//! A TCP connection with the guest, as a byte stream.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, RecvError, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::stack::Stack;

/// How long a guest may take to answer a connection from the host.
pub(super) const CONNECT_GUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What the driver and the streams share.
#[derive(Debug)]
pub(super) struct Shared {
    stack: Mutex<Stack>,
    /// The driver has something to send.
    pub(super) wake: Notify,
    /// The queue to the guest has room again.
    pub(super) room: Notify,
}

impl Shared {
    pub(super) fn new(stack: Stack) -> Self {
        Self { stack: Mutex::new(stack), wake: Notify::new(), room: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Stack> {
        // A panic elsewhere ends that task; the sockets of the others are still sound.
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame to the guest, waiting for room.
    pub(super) async fn send(&self, frame: Vec<u8>) {
        loop {
            // Registered before looking, so that room made in between is not missed.
            let room = self.room.notified();
            {
                let mut stack = self.lock();
                if stack.has_room() {
                    stack.push(frame);
                    break;
                }
            }
            room.await;
        }
        self.wake.notify_one();
    }
}

/// A TCP connection with the guest. Dropping it closes it properly; [`abort`](Self::abort) resets it.
///
/// Reads end with `ConnectionReset` when the guest resets the connection, its machine is replaced, or nothing has
/// passed for 30 minutes.
#[derive(Debug)]
pub struct GuestStream {
    shared: Arc<Shared>,
    handle: SocketHandle,
    finished: bool,
}

impl GuestStream {
    /// `handle` must be open in the stack and in no other stream.
    pub(super) fn new(shared: Arc<Shared>, handle: SocketHandle) -> Self {
        Self { shared, handle, finished: false }
    }

    pub(super) async fn connect(shared: Arc<Shared>, port: u16) -> io::Result<Self> {
        let handle = shared.lock().connect(port)?;
        let stream = Self::new(shared, handle);
        stream.shared.wake.notify_one();
        let established = std::future::poll_fn(|cx| {
            let mut stack = stream.shared.lock();
            let connected = stack.is_connected();
            let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(stream.handle);
            match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
                State::Closed if connected => {
                    let text = format!("the guest refuses connections to port {port}");
                    Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionRefused, text)))
                }
                State::Closed => {
                    Poll::Ready(Err(io::Error::new(ErrorKind::NotConnected, "the VM's QEMU has gone")))
                }
                _ => Poll::Ready(Ok(())),
            }
        });
        match tokio::time::timeout(CONNECT_GUEST_TIMEOUT, established).await {
            Ok(result) => result.map(|()| stream),
            Err(_) => {
                let text =
                    format!("the guest did not answer on port {port} within {CONNECT_GUEST_TIMEOUT:?}");
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
        }
    }

    /// Ends the connection with a reset. Further reads and writes fail.
    pub fn abort(&self) {
        self.shared.lock().sockets.get_mut::<tcp::Socket<'_>>(self.handle).abort();
        self.shared.wake.notify_one();
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.shared.lock();
        let socket = stack.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        let waiting = socket.recv_queue();
        while out.remaining() > 0 && socket.can_recv() {
            let copied = socket.recv(|data| {
                let len = data.len().min(out.remaining());
                out.put_slice(&data[..len]);
                (len, len)
            });
            if copied.is_err() {
                break;
            }
        }
        if waiting > socket.recv_queue() {
            // The guest was held back by our window; now it has to hear that there is room.
            let was_narrow = waiting * 2 >= socket.recv_capacity();
            stack.touch(self.handle);
            drop(stack);
            if was_narrow {
                self.shared.wake.notify_one();
            }
            return Poll::Ready(Ok(()));
        }
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match (socket.recv(|_| (0, ())), socket.state()) {
            (Err(RecvError::Finished), _) => Poll::Ready(Ok(())),
            (Err(RecvError::InvalidState), State::Closed) => {
                Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
            }
            _ => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let mut stack = self.shared.lock();
        let socket = stack.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        if socket.can_send() {
            let Ok(len) = socket.send_slice(data) else {
                return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
            };
            stack.touch(self.handle);
            drop(stack);
            self.shared.wake.notify_one();
            return Poll::Ready(Ok(len));
        }
        if socket.may_send() || matches!(socket.state(), State::SynSent | State::SynReceived) {
            socket.register_send_waker(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(Err(ErrorKind::BrokenPipe.into()))
    }

    /// Nothing to do: what is written is sent as soon as the guest takes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Sends what is buffered, then the end. Reading goes on.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.shared.lock().finish(self.handle);
            self.shared.wake.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        self.shared.lock().release(self.handle);
        self.shared.wake.notify_one();
    }
}
