//! Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project). Big endian on the wire.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

pub(super) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Fixed newstyle, and no 124 zeros after the export's name; the client's flags are the same bits.
pub(super) const HANDSHAKE_FLAGS: u16 = 0b11;
pub(super) const CLIENT_NO_ZEROES: u32 = 0b10;

/// Flags of the export: flags are there, read-only, flush is understood, connections show the same.
pub(super) const EXPORT_FLAGS: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 8;
/// Added with structured replies: "do not fragment" is understood (no read ever is).
pub(super) const EXPORT_FLAG_DF: u16 = 1 << 7;

/// Options of the handshake.
pub(super) mod option {
    pub(in crate::nbd) const EXPORT_NAME: u32 = 1;
    pub(in crate::nbd) const ABORT: u32 = 2;
    pub(in crate::nbd) const LIST: u32 = 3;
    pub(in crate::nbd) const INFO: u32 = 6;
    pub(in crate::nbd) const GO: u32 = 7;
    pub(in crate::nbd) const STRUCTURED_REPLY: u32 = 8;
    pub(in crate::nbd) const LIST_META_CONTEXT: u32 = 9;
    pub(in crate::nbd) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub(super) mod reply {
    pub(in crate::nbd) const ACK: u32 = 1;
    pub(in crate::nbd) const SERVER: u32 = 2;
    pub(in crate::nbd) const INFO: u32 = 3;
    pub(in crate::nbd) const META_CONTEXT: u32 = 4;
    pub(in crate::nbd) const ERR_UNSUPPORTED: u32 = 1 << 31 | 1;
    pub(in crate::nbd) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(in crate::nbd) const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// What the reply to GO and INFO tells.
pub(super) mod info {
    pub(in crate::nbd) const EXPORT: u16 = 0;
    pub(in crate::nbd) const BLOCK_SIZE: u16 = 3;
}

/// Commands.
pub(super) mod command {
    pub(in crate::nbd) const READ: u16 = 0;
    pub(in crate::nbd) const WRITE: u16 = 1;
    pub(in crate::nbd) const DISCONNECT: u16 = 2;
    pub(in crate::nbd) const FLUSH: u16 = 3;
    pub(in crate::nbd) const TRIM: u16 = 4;
    pub(in crate::nbd) const WRITE_ZEROES: u16 = 6;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 7;
    /// Flag: do not fragment the reply.
    pub(in crate::nbd) const FLAG_DF: u16 = 1 << 2;
    /// Flag: one extent is enough.
    pub(in crate::nbd) const FLAG_REQ_ONE: u16 = 1 << 3;
}

/// Chunks of structured replies.
pub(super) mod chunk {
    pub(in crate::nbd) const FLAG_DONE: u16 = 1;
    pub(in crate::nbd) const NONE: u16 = 0;
    pub(in crate::nbd) const OFFSET_DATA: u16 = 1;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 5;
    pub(in crate::nbd) const ERROR: u16 = 1 << 15 | 1;
}

/// Errors of commands: the numbers of Linux.
pub(super) mod errno {
    pub(in crate::nbd) const EPERM: u32 = 1;
    pub(in crate::nbd) const EIO: u32 = 5;
    pub(in crate::nbd) const EINVAL: u32 = 22;
    pub(in crate::nbd) const EOVERFLOW: u32 = 75;
}

pub(super) const ALLOCATION_CONTEXT: &str = "base:allocation";
/// The number that we give `base:allocation`.
pub(super) const ALLOCATION_ID: u32 = 1;
/// A hole that reads as zeros.
pub(super) const STATE_ZERO_HOLE: u32 = 0b11;

/// A request, as it comes after the handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    /// `None` if the client closed the connection between requests.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let magic = match stream.read_u32().await {
            Ok(magic) => magic,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if magic != REQUEST_MAGIC {
            return Err(invalid("a request does not begin with the magic number"));
        }
        Ok(Some(Self {
            flags: stream.read_u16().await?,
            command: stream.read_u16().await?,
            cookie: stream.read_u64().await?,
            offset: stream.read_u64().await?,
            len: stream.read_u32().await?,
        }))
    }
}

/// A mistake of the client after which nothing more that it sends can be understood.
pub(super) fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
