//! The Unix datagram socket to QEMU. A datagram is an Ethernet frame.
//!
//! The socket is *connected* to QEMU's, for three reasons: the kernel then wakes us when QEMU has read (with an
//! unconnected one a full queue is never signalled), QEMU's sends to us are not bound by `max_dgram_qlen` (10 by
//! default), and nobody else can send. The price is that a connected socket refuses another QEMU (it gets EPERM), so
//! the path is looked at regularly for a new one.
//!
//! A datagram socket has no end of file. That QEMU is gone shows when a send is refused, or when its path has become
//! another file.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixDatagram;

use super::NetworkError;

/// A Unix socket's path, without its final zero byte.
pub(super) const MAX_PATH: usize = 107;
/// Bytes that the kernel may hold for us in each direction: some 400 frames.
const SOCKET_BUFFER: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    own: PathBuf,
    qemu: PathBuf,
    /// The QEMU last connected to, even if it has gone since.
    last: Option<FileId>,
    connected: bool,
}

/// Tells one socket file from its successor; inode numbers are used again, times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// What [`Link::refresh`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refreshed {
    Unchanged,
    /// Connected for the first time, or again to the same QEMU.
    Connected,
    /// Connected to another QEMU than before.
    Replaced,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// QEMU has to read first.
    Full,
    /// No QEMU; the frame is lost, as on an unplugged cable.
    Gone,
}

impl Link {
    pub(super) fn bind(own: PathBuf, qemu: PathBuf) -> Result<Self, NetworkError> {
        for path in [&own, &qemu] {
            if path.as_os_str().len() > MAX_PATH {
                return Err(NetworkError::PathTooLong(path.clone()));
            }
        }
        let socket = bind(&own).map_err(|source| NetworkError::Bind { path: own.clone(), source })?;
        Ok(Self { socket, own, qemu, last: None, connected: false })
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Connects to QEMU's socket if there is a new one. Cheap; called often.
    pub(super) fn refresh(&mut self) -> Refreshed {
        // Not there: not yet, or no longer; in the second case a send will tell.
        let Ok(found) = FileId::of(&self.qemu) else { return Refreshed::Unchanged };
        if self.connected && self.last == Some(found) {
            return Refreshed::Unchanged;
        }
        if let Err(error) = self.socket.connect(&self.qemu) {
            // The file of a QEMU that has ended, most likely.
            tracing::trace!(%error, "QEMU's socket cannot be connected to");
            return Refreshed::Unchanged;
        }
        self.connected = true;
        match self.last.replace(found) {
            Some(before) if before != found => Refreshed::Replaced,
            _ => Refreshed::Connected,
        }
    }

    /// The next frame's length in `buffer`, or `None` if there is none now.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        match self.socket.try_recv(buffer) {
            Ok(len) => Some(len),
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    // The peer's end may be reported here; sends find it out for good.
                    tracing::debug!(%error, "receiving from QEMU");
                }
                None
            }
        }
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> Sent {
        if !self.connected {
            return Sent::Gone;
        }
        match self.socket.try_send(frame) {
            Ok(_) => Sent::Yes,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Full,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => Sent::Full,
            Err(error) => {
                tracing::debug!(%error, "QEMU's socket has gone");
                self.connected = false;
                Sent::Gone
            }
        }
    }

    pub(super) async fn readable(&self) {
        if let Err(error) = self.socket.readable().await {
            tracing::debug!(%error, "waiting for QEMU");
        }
    }

    pub(super) async fn writable(&self) {
        if let Err(error) = self.socket.writable().await {
            tracing::debug!(%error, "waiting for QEMU");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(&self.own);
    }
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self { device: meta.dev(), inode: meta.ino(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

fn bind(path: &Path) -> io::Result<UnixDatagram> {
    // A socket of a process that was killed; the directory is this VM's alone.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram as Peer;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (own, qemu) = (dir.path().join("s"), dir.path().join("q"));
        let mut link = Link::bind(own.clone(), qemu.clone()).unwrap();
        assert_eq!((link.refresh(), link.send(b"x")), (Refreshed::Unchanged, Sent::Gone));

        let first = Peer::bind(&qemu).unwrap();
        assert_eq!((link.refresh(), link.refresh()), (Refreshed::Connected, Refreshed::Unchanged));
        first.send_to(b"hello", &own).unwrap();
        link.readable().await;
        let mut buffer = [0; 16];
        assert_eq!(link.receive(&mut buffer), Some(5));
        assert_eq!(link.receive(&mut buffer), None);

        // The old one ends, its file stays.
        drop(first);
        assert_eq!((link.send(b"x"), link.refresh()), (Sent::Gone, Refreshed::Unchanged));
        std::fs::remove_file(&qemu).unwrap();
        let second = Peer::bind(&qemu).unwrap();
        assert_eq!((link.refresh(), link.send(b"again")), (Refreshed::Replaced, Sent::Yes));
        assert_eq!(second.recv(&mut buffer).unwrap(), 5);
        drop(link);
        assert!(!own.exists());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("q");
        let mut link = Link::bind(dir.path().join("s"), qemu.clone()).unwrap();
        let peer = Peer::bind(&qemu).unwrap();
        link.refresh();
        link.writable().await;
        let mut sent = 0;
        while link.send(&[7; 1000]) == Sent::Yes {
            sent += 1;
        }
        assert!(sent > 0);
        let mut buffer = [0; 1000];
        for _ in 0..sent {
            assert_eq!(peer.recv(&mut buffer).unwrap(), 1000);
        }
        // The kernel says so, without a timer.
        tokio::time::timeout(std::time::Duration::from_secs(5), link.writable()).await.unwrap();
        assert_eq!(link.send(b"x"), Sent::Yes);
    }

    #[tokio::test]
    async fn paths_that_are_too_long() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        assert!(matches!(Link::bind(long, "/tmp/q".into()), Err(NetworkError::PathTooLong(_))));
        let error = Link::bind("/nowhere/at/all/s".into(), "/tmp/q".into()).unwrap_err();
        assert!(matches!(error, NetworkError::Bind { .. }), "{error}");
    }
}
