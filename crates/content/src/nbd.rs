//! An image as a network block device on a Unix socket, for QEMU: read-only, one export, whatever name it is asked by.
//!
//! Speaks the fixed newstyle handshake with structured replies and the `base:allocation` context, as the NBD protocol says
//! (doc/proto.md of the NetworkBlockDevice project). Requests of one connection run beside each other; replies go out as
//! they are ready.
//!
//! ```text
//!  accept ── same user? ── handshake ──┬── reader: requests ── one task each: Image ──┐
//!                                      └── writer: replies  ◄─────────────────────────┘
//! ```

mod handshake;
mod transmission;
mod wire;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::read::Image;
use crate::{Error, Result};

/// Connections to one export at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// Time that a client has from connecting to its last option.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// Pause after an accept failed (out of file descriptors), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A socket that clients can connect to already; [`Export::serve`] answers them. Removes the socket when it is dropped.
#[derive(Debug)]
pub struct Export {
    listener: UnixListener,
    socket: PathBuf,
}

impl Export {
    /// Listens on a socket of mode 0600, in place of a socket that a dead process left there. The folder should be of mode
    /// 0700. Needs a tokio runtime.
    pub fn bind(socket: &Path) -> Result<Self> {
        match std::fs::symlink_metadata(socket) {
            Ok(left) if left.file_type().is_socket() => {
                std::fs::remove_file(socket).map_err(Error::io("remove the old socket", socket))?;
            }
            // Anything else in its place is not ours to remove; binding says so.
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(Error::io("listen on", socket))?;
        let this = Self { listener, socket: socket.to_owned() };
        // Who connected before this line is judged by user id, as everyone is.
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
            .map_err(Error::io("set the mode of", socket))?;
        Ok(this)
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves an image until `shutdown`, then cuts the connections. What a client does wrong ends its connection alone.
    pub async fn serve(self, image: Image, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                // Only collected, so that the set does not grow.
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            match accepted {
                Ok((stream, slot)) => {
                    let image = image.clone();
                    connections.spawn(async move {
                        let _slot = slot;
                        if let Err(error) = connection(stream, image).await {
                            tracing::debug!(%error, "an NBD connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, socket = %self.socket.display(), "cannot accept an NBD connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        connections.shutdown().await;
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.socket)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, socket = %self.socket.display(), "cannot remove an NBD socket");
        }
    }
}

/// Binds `socket` and serves `image` on it until `shutdown`. A caller who must know when clients can connect uses
/// [`Export::bind`] and [`Export::serve`].
pub async fn serve(image: Image, socket: &Path, shutdown: CancellationToken) -> Result<()> {
    Export::bind(socket)?.serve(image, shutdown).await;
    Ok(())
}

async fn accept(
    listener: &UnixListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(mut stream: UnixStream, image: Image) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(std::io::Error::other(format!("user {peer} is neither this process's nor root")));
    }
    let agreed =
        tokio::time::timeout(HANDSHAKE_TIME, handshake::negotiate(&mut stream, image.size())).await??;
    match agreed {
        Some(agreed) => transmission::run(stream, image, agreed).await,
        None => Ok(()),
    }
}
