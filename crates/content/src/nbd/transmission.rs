//! Requests and replies, after the handshake.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::handshake::Agreed;
use super::wire::{
    ALLOCATION_ID, Request, SIMPLE_REPLY_MAGIC, STATE_ZERO_HOLE, STRUCTURED_REPLY_MAGIC, chunk, command,
    errno, invalid,
};
use crate::Error;
use crate::read::Image;

/// The longest read, as the handshake says. The protocol's default.
pub(super) const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// Requests of one connection that are worked on at a time; the next is not read before one is answered.
const MAX_REQUESTS: usize = 64;
/// Bytes of replies of one connection in memory at a time, in units of [`BUDGET_UNIT`].
const MAX_REPLY_UNITS: usize = (64 << 20) / BUDGET_UNIT;
const BUDGET_UNIT: usize = 4 << 10;
/// Extents of one reply to a status request.
const MAX_EXTENTS: usize = 4096;
/// What the reader and the writer buffer.
const BUFFER_BYTES: usize = 128 << 10;

/// Answers a client's requests until it leaves or breaks the protocol.
pub(super) async fn run(stream: UnixStream, image: Image, agreed: Agreed) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let (replies, outgoing) = mpsc::channel(MAX_REQUESTS);
    let mut tasks = JoinSet::new();
    tasks.spawn(write_replies(writer, outgoing));
    // The requests under way belong to the reader: when it ends, they send what they have, then the writer's channel closes.
    let read = read_requests(BufReader::with_capacity(BUFFER_BYTES, reader), image, agreed, replies);
    tokio::pin!(read);
    tokio::select! {
        ended = &mut read => {
            ended?;
            tasks.join_next().await.map_or(Ok(()), |written| written.map_err(io::Error::other)?)
        }
        // The client reads no more: what it still sends does not matter.
        Some(written) = tasks.join_next() => written.map_err(io::Error::other)?,
    }
}

/// A reply on its way out, with what it holds back from other requests.
struct Reply {
    header: Vec<u8>,
    data: Vec<u8>,
    _budget: Vec<OwnedSemaphorePermit>,
}

async fn read_requests(
    mut reader: impl AsyncRead + Unpin,
    image: Image,
    agreed: Agreed,
    replies: mpsc::Sender<Reply>,
) -> io::Result<()> {
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    let units = Arc::new(Semaphore::new(MAX_REPLY_UNITS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Some(request) = Request::read(&mut reader).await? else { break };
        if request.command == command::DISCONNECT {
            break;
        }
        if request.command == command::WRITE {
            // Refused below, but its data comes first.
            if request.len > MAX_REQUEST_BYTES {
                return Err(invalid("a write is longer than the handshake allows"));
            }
            let mut data = (&mut reader).take(u64::from(request.len));
            if tokio::io::copy(&mut data, &mut tokio::io::sink()).await? < u64::from(request.len) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut budget = vec![acquire(&requests, 1).await?];
        if request.command == command::READ && request.len <= MAX_REQUEST_BYTES {
            let wanted = (request.len as usize).div_ceil(BUDGET_UNIT);
            // At most 8192.
            budget.push(acquire(&units, wanted as u32).await?);
        }
        let (image, replies) = (image.clone(), replies.clone());
        tasks.spawn(async move {
            let (header, data) = answer(&image, agreed, &request).await;
            // An error: the connection is gone, and with it whoever wanted the reply.
            let _gone = replies.send(Reply { header, data, _budget: budget }).await;
        });
    }
    drop(replies);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> io::Result<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(count).await.map_err(io::Error::other)
}

async fn write_replies(
    writer: impl AsyncWrite + Unpin,
    mut replies: mpsc::Receiver<Reply>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
    while let Some(reply) = replies.recv().await {
        writer.write_all(&reply.header).await?;
        writer.write_all(&reply.data).await?;
        // Small replies that are ready together go out together.
        if replies.is_empty() {
            writer.flush().await?;
        }
    }
    writer.flush().await
}

/// Header and data of the reply to one request.
async fn answer(image: &Image, agreed: Agreed, request: &Request) -> (Vec<u8>, Vec<u8>) {
    let reply = Replier { agreed, cookie: request.cookie };
    match perform(image, agreed, request).await {
        Ok(Done::Nothing) => (reply.done(), Vec::new()),
        Ok(Done::Data(data)) => (reply.data(request.offset, data.len()), data),
        Ok(Done::Status(extents)) => (reply.status(extents.len()), extents),
        Err((code, message)) => (reply.error(code, &message), Vec::new()),
    }
}

enum Done {
    Nothing,
    Data(Vec<u8>),
    /// Pairs of length and state, as they go over the wire.
    Status(Vec<u8>),
}

async fn perform(image: &Image, agreed: Agreed, request: &Request) -> Result<Done, (u32, String)> {
    let Request { flags, command, offset, len, .. } = *request;
    let refused = |code, message: &str| Err((code, message.to_owned()));
    let known = match command {
        command::READ => command::FLAG_DF,
        command::BLOCK_STATUS => command::FLAG_REQ_ONE,
        _ => u16::MAX,
    };
    if flags & !known != 0 {
        return refused(errno::EINVAL, "the request has flags that are not known");
    }
    match command {
        command::FLUSH => Ok(Done::Nothing),
        command::WRITE | command::TRIM | command::WRITE_ZEROES => {
            refused(errno::EPERM, "the export is read-only")
        }
        command::READ if len > MAX_REQUEST_BYTES => {
            refused(errno::EOVERFLOW, "the read is longer than the handshake allows")
        }
        command::READ => {
            check(image, request)?;
            let mut data = vec![0; len as usize];
            image.read_at(offset, &mut data).await.map_err(report)?;
            Ok(Done::Data(data))
        }
        command::BLOCK_STATUS if !agreed.allocation => {
            refused(errno::EINVAL, "no context was agreed on in the handshake")
        }
        command::BLOCK_STATUS => {
            check(image, request)?;
            let max = if flags & command::FLAG_REQ_ONE == 0 { MAX_EXTENTS } else { 1 };
            let parts = image.block_status(offset, u64::from(len), max).await.map_err(report)?;
            let mut extents = Vec::with_capacity(8 * parts.len());
            for part in parts {
                // No longer than the request, whose length has 32 bits.
                extents.extend_from_slice(&(part.len as u32).to_be_bytes());
                extents.extend_from_slice(&(if part.zero { STATE_ZERO_HOLE } else { 0 }).to_be_bytes());
            }
            Ok(Done::Status(extents))
        }
        _ => refused(errno::EINVAL, "the command is not known"),
    }
}

fn check(image: &Image, request: &Request) -> Result<(), (u32, String)> {
    let inside = request.offset.checked_add(u64::from(request.len)).is_some_and(|end| end <= image.size());
    if request.len == 0 || !inside {
        return Err((errno::EINVAL, "the request is empty or leaves the disk".to_owned()));
    }
    Ok(())
}

/// The client gets the message too (QEMU logs it); an operator finds it here.
fn report(error: Error) -> (u32, String) {
    tracing::error!(%error, "a read for a guest failed");
    (errno::EIO, error.to_string())
}

/// Forms the headers of replies to one request.
struct Replier {
    agreed: Agreed,
    cookie: u64,
}

impl Replier {
    fn done(&self) -> Vec<u8> {
        if self.agreed.structured { self.chunk(chunk::NONE, 0) } else { self.simple(0) }
    }

    fn data(&self, offset: u64, len: usize) -> Vec<u8> {
        if !self.agreed.structured {
            return self.simple(0);
        }
        let mut header = self.chunk(chunk::OFFSET_DATA, 8 + len);
        header.extend_from_slice(&offset.to_be_bytes());
        header
    }

    /// Only with structured replies: the context cannot be agreed on without them.
    fn status(&self, len: usize) -> Vec<u8> {
        let mut header = self.chunk(chunk::BLOCK_STATUS, 4 + len);
        header.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        header
    }

    fn error(&self, code: u32, message: &str) -> Vec<u8> {
        if !self.agreed.structured {
            return self.simple(code);
        }
        // The protocol's limit on strings is 4096.
        let message = &message.as_bytes()[..message.len().min(4000)];
        let mut header = self.chunk(chunk::ERROR, 6 + message.len());
        header.extend_from_slice(&code.to_be_bytes());
        header.extend_from_slice(&(message.len() as u16).to_be_bytes());
        header.extend_from_slice(message);
        header
    }

    fn simple(&self, code: u32) -> Vec<u8> {
        let mut header = Vec::with_capacity(16);
        header.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        header.extend_from_slice(&code.to_be_bytes());
        header.extend_from_slice(&self.cookie.to_be_bytes());
        header
    }

    /// The header of the only chunk of a reply.
    fn chunk(&self, kind: u16, len: usize) -> Vec<u8> {
        let mut header = Vec::with_capacity(40);
        header.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        header.extend_from_slice(&chunk::FLAG_DONE.to_be_bytes());
        header.extend_from_slice(&kind.to_be_bytes());
        header.extend_from_slice(&self.cookie.to_be_bytes());
        // At most 32 MiB and 12 bytes.
        header.extend_from_slice(&(len as u32).to_be_bytes());
        header
    }
}
