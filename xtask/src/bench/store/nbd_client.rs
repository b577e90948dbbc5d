//! A small NBD client that keeps many reads under way on one connection: what a busy guest does, without a guest.

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_EXPORT_NAME: u32 = 1;
/// Fixed newstyle, and no zeros after the export's description.
const CLIENT_FLAGS: u32 = 3;
const COMMAND_READ: u16 = 0;

pub(super) struct NbdClient {
    replies: BufReader<UnixStream>,
    requests: BufWriter<UnixStream>,
}

impl NbdClient {
    /// Connects and asks for the only export. Without structured replies, as the simplest client does.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let mut replies = BufReader::with_capacity(1 << 18, stream.try_clone()?);
        let mut requests = BufWriter::with_capacity(1 << 14, stream);
        let mut greeting = [0; 18];
        replies.read_exact(&mut greeting)?;
        if greeting[..8] != NBD_MAGIC.to_be_bytes() || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
            return Err(invalid("this is no NBD server"));
        }
        requests.write_all(&CLIENT_FLAGS.to_be_bytes())?;
        requests.write_all(&OPTION_MAGIC.to_be_bytes())?;
        requests.write_all(&OPTION_EXPORT_NAME.to_be_bytes())?;
        requests.write_all(&0_u32.to_be_bytes())?;
        requests.flush()?;
        // Size and flags.
        replies.read_exact(&mut [0; 10])?;
        Ok(Self { replies, requests })
    }

    /// Reads each of `places` (offset and length), at most `depth` at a time, and shows the bytes of each as they come.
    pub(super) fn read_all(
        &mut self,
        places: impl IntoIterator<Item = (u64, u32)>,
        depth: usize,
        mut see: impl FnMut(u64, &[u8]),
    ) -> io::Result<u64> {
        let mut places = places.into_iter();
        let mut under_way = HashMap::with_capacity(depth);
        let mut buffer = Vec::new();
        let (mut handle, mut done) = (0_u64, 0_u64);
        loop {
            while under_way.len() < depth {
                let Some((offset, len)) = places.next() else { break };
                self.request(handle, offset, len)?;
                under_way.insert(handle, (offset, len));
                handle += 1;
            }
            if under_way.is_empty() {
                return Ok(done);
            }
            // Requests go out together, when there is nothing more to read without waiting.
            if self.replies.buffer().is_empty() {
                self.requests.flush()?;
            }
            let mut head = [0; 16];
            self.replies.read_exact(&mut head)?;
            let (magic, error) = (be32(&head, 0), be32(&head, 4));
            let mut answered = [0; 8];
            answered.copy_from_slice(&head[8..]);
            let place = under_way.remove(&u64::from_be_bytes(answered));
            let Some((offset, len)) = place.filter(|_| magic == REPLY_MAGIC) else {
                return Err(invalid("a reply that nobody asked for"));
            };
            if error != 0 {
                return Err(invalid(&format!(
                    "the server could not read {len} bytes at {offset}: error {error}"
                )));
            }
            buffer.resize(len as usize, 0);
            // What a request needs may still be in our own buffer.
            if self.replies.buffer().len() < len as usize {
                self.requests.flush()?;
            }
            self.replies.read_exact(&mut buffer)?;
            see(offset, &buffer);
            done += u64::from(len);
        }
    }

    fn request(&mut self, handle: u64, offset: u64, len: u32) -> io::Result<()> {
        let mut request = [0; 28];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[6..8].copy_from_slice(&COMMAND_READ.to_be_bytes());
        request[8..16].copy_from_slice(&handle.to_be_bytes());
        request[16..24].copy_from_slice(&offset.to_be_bytes());
        request[24..].copy_from_slice(&len.to_be_bytes());
        self.requests.write_all(&request)
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}
