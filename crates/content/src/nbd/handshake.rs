//! The options that a client sends before its first request.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::transmission::MAX_REQUEST_BYTES;
use super::wire::{
    ALLOCATION_CONTEXT, ALLOCATION_ID, CLIENT_NO_ZEROES, EXPORT_FLAG_DF, EXPORT_FLAGS, HANDSHAKE_FLAGS,
    NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, invalid, option, reply,
};
use crate::format::BLOCK_BYTES;

/// Options that one client may send; each known client needs fewer than ten.
const MAX_OPTIONS: usize = 64;
/// The longest option that is read: an export's name of 4096 bytes and some contexts.
const MAX_OPTION_BYTES: u32 = 16 << 10;
/// The longest option that is skipped with an error; a longer one ends the connection.
const MAX_SKIPPED_BYTES: u32 = 1 << 20;

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    pub(super) structured: bool,
    /// The client may ask for `base:allocation`.
    pub(super) allocation: bool,
}

/// Goes through the handshake for an export of `size` bytes. `None` if the client ended it without wanting the export.
pub(super) async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    size: u64,
) -> io::Result<Option<Agreed>> {
    stream.write_u64(NBD_MAGIC).await?;
    stream.write_u64(OPTION_MAGIC).await?;
    stream.write_u16(HANDSHAKE_FLAGS).await?;
    let client_flags = stream.read_u32().await?;
    if client_flags & !u32::from(HANDSHAKE_FLAGS) != 0 {
        return Err(invalid("the client sent flags that are not known"));
    }
    let mut agreed = Agreed::default();
    for _ in 0..MAX_OPTIONS {
        if stream.read_u64().await? != OPTION_MAGIC {
            return Err(invalid("an option does not begin with the magic number"));
        }
        let number = stream.read_u32().await?;
        let len = stream.read_u32().await?;
        if len > MAX_OPTION_BYTES {
            if len > MAX_SKIPPED_BYTES || number == option::EXPORT_NAME {
                return Err(invalid("an option is too long"));
            }
            tokio::io::copy(&mut stream.take(u64::from(len)), &mut tokio::io::sink()).await?;
            answer(stream, number, reply::ERR_TOO_BIG, b"the option is too long").await?;
            continue;
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).await?;
        match number {
            // Old style: no reply but the export itself.
            option::EXPORT_NAME => {
                let mut bytes = Vec::with_capacity(134);
                bytes.extend_from_slice(&size.to_be_bytes());
                bytes.extend_from_slice(&flags(agreed).to_be_bytes());
                if client_flags & CLIENT_NO_ZEROES == 0 {
                    bytes.resize(bytes.len() + 124, 0);
                }
                stream.write_all(&bytes).await?;
                return Ok(Some(agreed));
            }
            option::ABORT => {
                answer(stream, number, reply::ACK, &[]).await?;
                return Ok(None);
            }
            option::LIST if data.is_empty() => {
                // One export, whose name is empty.
                answer(stream, number, reply::SERVER, &0_u32.to_be_bytes()).await?;
                answer(stream, number, reply::ACK, &[]).await?;
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                agreed.structured = true;
                answer(stream, number, reply::ACK, &[]).await?;
            }
            option::INFO | option::GO if is_info_request(&data) => {
                describe(stream, number, size, agreed).await?;
                answer(stream, number, reply::ACK, &[]).await?;
                if number == option::GO {
                    return Ok(Some(agreed));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => match contexts(&data) {
                Some(queries) if agreed.structured => {
                    let list = number == option::LIST_META_CONTEXT;
                    let wanted = (list && queries.is_empty())
                        || queries.iter().any(|query| {
                            *query == ALLOCATION_CONTEXT.as_bytes() || (list && *query == b"base:")
                        });
                    if wanted {
                        let mut context = ALLOCATION_ID.to_be_bytes().to_vec();
                        context.extend_from_slice(ALLOCATION_CONTEXT.as_bytes());
                        answer(stream, number, reply::META_CONTEXT, &context).await?;
                    }
                    if !list {
                        agreed.allocation = wanted;
                    }
                    answer(stream, number, reply::ACK, &[]).await?;
                }
                _ => answer(stream, number, reply::ERR_INVALID, b"the option is malformed").await?,
            },
            option::LIST | option::STRUCTURED_REPLY | option::INFO | option::GO => {
                answer(stream, number, reply::ERR_INVALID, b"the option is malformed").await?;
            }
            _ => answer(stream, number, reply::ERR_UNSUPPORTED, b"the option is not known").await?,
        }
    }
    Err(invalid("too many options"))
}

fn flags(agreed: Agreed) -> u16 {
    if agreed.structured { EXPORT_FLAGS | EXPORT_FLAG_DF } else { EXPORT_FLAGS }
}

async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u32,
    kind: u32,
    data: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    // A few dozen bytes.
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes).await
}

async fn describe(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u32,
    size: u64,
    agreed: Agreed,
) -> io::Result<()> {
    let mut export = info::EXPORT.to_be_bytes().to_vec();
    export.extend_from_slice(&size.to_be_bytes());
    export.extend_from_slice(&flags(agreed).to_be_bytes());
    answer(stream, number, reply::INFO, &export).await?;
    let mut block_size = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [1, BLOCK_BYTES as u32, MAX_REQUEST_BYTES] {
        block_size.extend_from_slice(&bytes.to_be_bytes());
    }
    answer(stream, number, reply::INFO, &block_size).await
}

/// Name (any will do), then a list of informations wanted (we send the same to all).
fn is_info_request(data: &[u8]) -> bool {
    take_text(data)
        .and_then(|(_, rest)| rest.split_first_chunk::<2>())
        .is_some_and(|(count, list)| list.len() == 2 * usize::from(u16::from_be_bytes(*count)))
}

/// The queries of a context option, after the export's name.
fn contexts(data: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, rest) = take_text(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    // Each takes 4 bytes at least, so a count that lies ends the loop.
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, after) = take_text(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some(queries)
}

/// A length of 32 bits and as many bytes, and what follows.
fn take_text(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(is_info_request(&[0, 0, 0, 1, b'x', 0, 1, 0, 3]));
        assert!(!is_info_request(&[0, 0, 0, 9, b'x', 0, 0]));
        assert!(!is_info_request(&[0, 0, 0, 0, 0, 2, 0, 3]));
        assert!(!is_info_request(&[]));
        assert_eq!(contexts(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'a']), Some(vec![&b"a"[..]]));
        assert_eq!(contexts(&[0, 0, 0, 0, 255, 255, 255, 255]), None);
        assert_eq!(contexts(&[255, 255, 255, 255]), None);
    }
}
