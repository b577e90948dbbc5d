//! The child's side: takes its files, gives up everything else, parses, answers.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::confine::{self, Limits};
use super::protocol::{CHUNK, FILES_PER_MESSAGE, Failure, Landlock, MAX_EXTENTS, Reply, Request, Setup};
use crate::input::Input;
use crate::packed::MAX_UNPACKED_BYTES;
use crate::{BlockSource, Chain, Error, Extents, Packing, image};

/// Standard input, output and error.
const STANDARD_FILES: u64 = 3;

/// The whole of a `disk-reader` process: serves the parent on standard input, a socket, until it closes it.
pub fn reader_main() -> ExitCode {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    match serve(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::ParentGone) => ExitCode::SUCCESS,
        Err(Stop::Because(reason)) => {
            eprintln!("disk-reader: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Why serving ends early.
enum Stop {
    ParentGone,
    Because(String),
}

fn serve(socket: BorrowedFd<'_>) -> Result<(), Stop> {
    let (setup, mut files) = receive(socket)?;
    let memory = files.remove(0);
    let temporary = (setup.packing != Packing::None).then(|| files.remove(0));
    // Asking for a length is among what is given up. The parent puts its own name for the disk into messages.
    let opened = files.into_iter().map(|file| Input::from_file(PathBuf::from("the disk"), file));
    let inputs = match opened.collect::<crate::Result<Vec<_>>>() {
        Ok(inputs) => inputs,
        Err(error) => return send_error(socket, &error),
    };
    let landlock = give_up(&temporary, &inputs).map_err(Stop::Because)?;
    let opened = match temporary {
        None if setup.overlay => Chain::from_inputs(inputs).map(Disk::Changes),
        None => image::open(setup.format, inputs).map(Disk::Whole),
        Some(temporary) => unpacked(socket, setup, inputs, temporary).map(Disk::Whole),
    };
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => return send_error(socket, &error),
    };
    send(socket, &Reply::Opened { size: disk.source().logical_size(), landlock })?;
    answer(socket, &disk, &memory)
}

/// What is read.
enum Disk {
    /// All of a disk.
    Whole(Box<dyn BlockSource>),
    /// What overlays changed of one.
    Changes(Chain),
}

impl Disk {
    fn source(&self) -> &dyn BlockSource {
        match self {
            Self::Whole(disk) => &**disk,
            Self::Changes(chain) => chain,
        }
    }

    /// Reads what there is of `offset ..`, and says which parts of `buf` that is.
    fn read(&self, offset: u64, buf: &mut [u8]) -> crate::Result<Vec<Range<u32>>> {
        let ranges = match self {
            Self::Whole(disk) => {
                // It fills all of it.
                disk.read_onto(offset, buf)?;
                let all = 0..buf.len();
                vec![all]
            }
            Self::Changes(chain) => chain.read_covered(offset, buf)?,
        };
        // A read has at most `CHUNK` bytes.
        Ok(ranges.into_iter().map(|range| range.start as u32..range.end as u32).collect())
    }
}

/// The setup and its files.
fn receive(socket: BorrowedFd<'_>) -> Result<(Setup, Vec<File>), Stop> {
    let setup = Setup::decode(&receive_message(socket)?)
        .ok_or_else(|| Stop::Because("standard input is not a parent's socket".to_owned()))?;
    let needed = if setup.packing == Packing::None { 2 } else { 3 };
    let mut files = Vec::new();
    while files.len() < usize::from(setup.files) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_MESSAGE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags));
        if got.map_err(|errno| Stop::Because(format!("no files came: {errno}")))?.bytes == 0 {
            return Err(Stop::ParentGone);
        }
        let before = files.len();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                files.extend(received.map(|fd: OwnedFd| File::from(fd)));
            }
        }
        if files.len() == before {
            return Err(Stop::Because("a message came without its files".to_owned()));
        }
    }
    if files.len() < needed {
        return Err(Stop::Because(format!("{} files came, and {needed} are needed", files.len())));
    }
    Ok((setup, files))
}

fn give_up(temporary: &Option<File>, inputs: &[Input]) -> Result<Landlock, String> {
    let limits = Limits {
        input_bytes: inputs.iter().fold(0, |sum, input| input.file_len().saturating_add(sum)),
        file_bytes: if temporary.is_some() { MAX_UNPACKED_BYTES } else { CHUNK as u64 },
        files: STANDARD_FILES + 2 + inputs.len() as u64,
    };
    // Landlock opens a file of its own for a moment, so it comes before the limit on files.
    let landlock = confine::landlock().map_err(|error| format!("cannot be confined by Landlock: {error}"))?;
    confine::limit(&limits).map_err(|error| format!("cannot be limited: {error}"))?;
    confine::seccomp().map_err(|error| format!("cannot be confined by seccomp: {error}"))?;
    Ok(landlock)
}

fn unpacked(
    socket: BorrowedFd<'_>,
    setup: Setup,
    mut inputs: Vec<Input>,
    temporary: File,
) -> crate::Result<Box<dyn BlockSource>> {
    let (Some(packed), true) = (inputs.pop(), inputs.is_empty()) else {
        return Err(Error::Chain { reason: "a packed disk is one file".to_owned() });
    };
    let mut report = |bytes| match send(socket, &Reply::Working { bytes }) {
        Ok(()) => Ok(()),
        Err(_) => Err(Error::Chain { reason: "the parent is gone".to_owned() }),
    };
    image::open_packed(setup.format, setup.packing, &packed, temporary, &mut report)
}

/// Answers requests until the parent closes the socket.
fn answer(socket: BorrowedFd<'_>, disk: &Disk, memory: &File) -> Result<(), Stop> {
    let mut buf = vec![0; CHUNK];
    // The parent asks for extents in order, so the walk goes on where its last answer ended.
    let mut walk = Walk::new(disk.source());
    loop {
        let message = match receive_message(socket) {
            Err(Stop::ParentGone) => return Ok(()),
            other => other?,
        };
        let request = Request::decode(&message).ok_or_else(|| Stop::Because("no such request".to_owned()))?;
        let reply = match request {
            Request::Extents { from } => {
                if from < walk.position {
                    walk = Walk::new(disk.source());
                }
                // A failed walk begins anew, or who asks again would see a disk that ends there.
                walk.batch(from).inspect_err(|_| walk = Walk::new(disk.source()))
            }
            Request::Read { offset, len } => {
                let part = &mut buf[..(len as usize).min(CHUNK)];
                disk.read(offset, part).and_then(|covered| {
                    memory.write_all_at(part, 0).map_err(|source| Error::Io {
                        action: "write the memory file of",
                        path: PathBuf::from("the disk"),
                        source,
                    })?;
                    Ok(Reply::Read { covered })
                })
            }
        };
        match reply {
            Ok(reply) => send(socket, &reply)?,
            Err(error) => send_error(socket, &error)?,
        }
    }
}

struct Walk<'a> {
    extents: Extents<'a>,
    /// Everything before was handed out.
    position: u64,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn new(disk: &'a dyn BlockSource) -> Self {
        Self { extents: disk.extents(), position: 0, ended: false }
    }

    fn batch(&mut self, from: u64) -> crate::Result<Reply> {
        let mut extents = Vec::new();
        while extents.len() < MAX_EXTENTS && !self.ended {
            match self.extents.next() {
                None => self.ended = true,
                Some(extent) => {
                    let extent = extent?;
                    self.position = extent.end();
                    if extent.start >= from {
                        extents.push(extent);
                    }
                }
            }
        }
        Ok(Reply::Extents { extents, more: !self.ended })
    }
}

fn receive_message(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Stop> {
    let mut message = vec![0; 64];
    match retry_on_intr(|| rustix::io::read(socket, &mut message[..])) {
        Ok(0) => Err(Stop::ParentGone),
        Ok(len) => {
            message.truncate(len);
            Ok(message)
        }
        Err(errno) => Err(Stop::Because(format!("cannot read a request: {errno}"))),
    }
}

fn send(socket: BorrowedFd<'_>, reply: &Reply) -> Result<(), Stop> {
    match retry_on_intr(|| rustix::io::write(socket, &reply.encode())) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE) => Err(Stop::ParentGone),
        Err(errno) => Err(Stop::Because(format!("cannot answer: {errno}"))),
    }
}

fn send_error(socket: BorrowedFd<'_>, error: &Error) -> Result<(), Stop> {
    let (kind, reason) = match error {
        Error::Damaged { reason, .. } => (Failure::Damaged, reason.clone()),
        Error::Unsupported { reason, .. } => (Failure::Unsupported, reason.clone()),
        Error::Chain { reason } => (Failure::Chain, reason.clone()),
        other => (Failure::Other, other.to_string()),
    };
    send(socket, &Reply::Failed { kind, reason })
}
