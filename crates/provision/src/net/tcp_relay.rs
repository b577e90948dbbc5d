//! A guest's TCP connection to the outside, joined to one of the host's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

use super::dns_forward::Resolver;
use super::stack::FlowKey;
use super::stream::{GuestStream, Shared};

/// How long the far end may take. Longer than this a guest's own kernel waits, too; it may try again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are moved at a time in each direction.
const COPY_BUFFER: usize = 64 << 10;

/// Connects to where the guest wants to go, lets the guest know how that went, and carries the bytes.
pub(super) async fn run(shared: Arc<Shared>, key: FlowKey) {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::V4(key.far))).await;
    match connected {
        Ok(Ok(host)) => {
            let accepted = shared.lock().accept(key);
            shared.wake.notify_one();
            if let Some(handle) = accepted {
                join(GuestStream::new(shared, handle), host).await;
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(far = %key.far, %error, "the guest's connection fails");
            shared.lock().refuse(key);
            shared.wake.notify_one();
        }
        Err(_) => shared.lock().forget(key),
    }
}

/// A guest that asks the resolver over TCP, as after a truncated answer.
pub(super) async fn dns(guest: GuestStream, resolver: &Resolver) {
    match resolver.connect().await {
        Some(host) => join(guest, host).await,
        None => guest.abort(),
    }
}

/// Copies both ways until both sides have ended, or one breaks; a break is passed on as one.
async fn join(mut guest: GuestStream, mut host: TcpStream) {
    // Small writes of either side matter to somebody who waits.
    if let Err(error) = host.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    if let Err(error) = copy_bidirectional_with_sizes(&mut guest, &mut host, COPY_BUFFER, COPY_BUFFER).await {
        tracing::debug!(%error, "a relayed connection broke");
        guest.abort();
        // Then dropping it resets it. Not possible on a socket that is broken already, and not needed there.
        let _ = host.set_zero_linger();
    }
}
