//! Disk files are parsed in a child process that has nothing but their open descriptors.
//!
//! ```text
//!  parent: opens the files ──── socket: descriptors, then requests ───▶ `program disk-reader`
//!          BlockSource     ◀─── answers; data in a memory file ───────  limits, Landlock, seccomp, then: parse
//! ```
//!
//! The reader can use 256 MiB of memory and a bounded amount of processor time, can open no file, no socket and no
//! program, and dies when a request takes too long or the source is dropped. What it answers is checked like any other
//! input. Several threads may use one source; they take turns.

mod confine;
mod protocol;
mod reader;

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::input::{Input, check_range};
use crate::{BlockSource, Error, Extent, Extents, Format, MAX_DISK_BYTES, Packing, Result, vmdk};
use protocol::{CHUNK, FILES_PER_MESSAGE, Failure, MAX_MESSAGE, Reply, Request, Setup};

pub use protocol::Landlock;
pub use reader::reader_main;

/// The argument by which a program knows that it is to be a reader.
pub const READER_ARGUMENT: &str = "disk-reader";
/// What a dead reader's standard error may add to a message.
const MAX_LAST_WORDS: u64 = 2048;

/// How a reader is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// An answer that takes longer ends the reader. Opening a packed disk takes longer, and reports in between.
    pub request_timeout: Duration,
    /// Where packed disks are unpacked, into a file without a name.
    pub temporary: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(60), temporary: std::env::temp_dir() }
    }
}

/// Opens the disk in `path`. `program disk-reader` must be a process that calls [`reader_main`]: `program` is our own
/// binary. Blocks until the disk is open, which for a packed one means unpacked. The process ends when the source is
/// dropped.
pub fn open(program: &Path, path: &Path, format: Format, packing: Packing) -> Result<Arc<dyn BlockSource>> {
    Ok(Reader::open(program, path, format, packing, &Options::default())?)
}

/// Opens what an overlay of somebody's changed, a qcow2 file: the bytes that it leaves out are its base's, which the caller
/// knows. The name of a base in the file is ignored. Otherwise as [`open`].
pub fn open_overlay(program: &Path, path: &Path) -> Result<Arc<dyn BlockSource>> {
    Ok(Reader::open_overlay(program, path, &Options::default())?)
}

/// A disk that a child process reads.
#[derive(Debug)]
pub struct Reader {
    /// For messages.
    path: PathBuf,
    size: u64,
    overlay: bool,
    landlock: Landlock,
    memory: File,
    link: Mutex<Link>,
}

impl Reader {
    /// As [`open`], with a choice of options.
    pub fn open(
        program: &Path,
        path: &Path,
        format: Format,
        packing: Packing,
        options: &Options,
    ) -> Result<Arc<Self>> {
        let mut inputs = vec![Input::open(path)?];
        if format == Format::Vmdk && packing == Packing::None {
            for extent in vmdk::extent_files(&inputs[0])? {
                inputs.push(Input::open_no_link(&extent)?);
            }
        }
        Self::start(program, path, &inputs, Shape { format, packing, overlay: false }, options)
    }

    /// As [`open_overlay`], with a choice of options.
    pub fn open_overlay(program: &Path, path: &Path, options: &Options) -> Result<Arc<Self>> {
        let shape = Shape { format: Format::Qcow2, packing: Packing::None, overlay: true };
        Self::start(program, path, &[Input::open(path)?], shape, options)
    }

    /// Opens a chain of qcow2 files, the lowest first. What the files say of each other is not looked at, but for the
    /// lowest, which must not be an overlay of yet another one.
    pub fn open_chain<P: AsRef<Path>>(program: &Path, layers: &[P], options: &Options) -> Result<Arc<Self>> {
        let Some(top) = layers.last() else {
            return Err(Error::Chain { reason: "there is no layer".to_owned() });
        };
        let inputs = layers.iter().map(|layer| Input::open(layer.as_ref())).collect::<Result<Vec<_>>>()?;
        let shape = Shape { format: Format::Qcow2, packing: Packing::None, overlay: false };
        Self::start(program, top.as_ref(), &inputs, shape, options)
    }

    /// How far the kernel's Landlock confines the reader; seccomp and the limits always do.
    pub fn landlock(&self) -> Landlock {
        self.landlock
    }

    fn start(
        program: &Path,
        path: &Path,
        inputs: &[Input],
        Shape { format, packing, overlay }: Shape,
        options: &Options,
    ) -> Result<Arc<Self>> {
        let memory = memory_file().map_err(|source| io("make a memory file for", path, source))?;
        let temporary = match packing {
            Packing::None => None,
            _ => Some(tempfile::tempfile_in(&options.temporary).map_err(|source| {
                io("make a temporary file for unpacking in", &options.temporary, source)
            })?),
        };
        let files: Vec<&File> =
            [&memory].into_iter().chain(&temporary).chain(inputs.iter().map(Input::file)).collect();
        let mut link = Link::spawn(program, path, options.request_timeout)?;
        let files_count = u16::try_from(files.len()).unwrap_or(u16::MAX);
        link.send(&Setup { format, packing, overlay, files: files_count }.encode())?;
        for part in files.chunks(FILES_PER_MESSAGE) {
            link.send_files(part)?;
        }
        let (size, landlock) = loop {
            match link.receive()? {
                Reply::Working { .. } => {}
                Reply::Opened { size, landlock } if size <= MAX_DISK_BYTES => break (size, landlock),
                Reply::Failed { kind, reason } => return Err(failure(path, kind, reason)),
                _ => return Err(link.confused()),
            }
        };
        Ok(Arc::new(Self { path: path.to_owned(), size, overlay, landlock, memory, link: Mutex::new(link) }))
    }

    /// The next extents from `from` on, and whether there may be more behind them.
    fn batch(&self, from: u64) -> Result<(Vec<Extent>, bool)> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let (extents, more) = match link.ask(Request::Extents { from })? {
            Reply::Extents { extents, more } => (extents, more),
            Reply::Failed { kind, reason } => return Err(failure(&self.path, kind, reason)),
            _ => return Err(link.confused()),
        };
        let mut end = from;
        for extent in &extents {
            let fits = extent.start.checked_add(extent.len).is_some_and(|end| end <= self.size);
            if extent.start < end || extent.len == 0 || !fits {
                return Err(link.confused());
            }
            end = extent.end();
        }
        if more && extents.is_empty() {
            return Err(link.confused());
        }
        Ok((extents, more))
    }
}

impl BlockSource for Reader {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        let mut batch = Vec::new().into_iter();
        let mut from = Some(0);
        Box::new(std::iter::from_fn(move || {
            loop {
                if let Some(extent) = batch.next() {
                    return Some(Ok(extent));
                }
                match self.batch(from.take()?) {
                    Ok((extents, more)) => {
                        from = extents.last().filter(|_| more).map(Extent::end);
                        batch = extents.into_iter();
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
        }))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        check_range(offset, buf.len() as u64, self.size)?;
        let (mut at, mut held) = (offset, 0);
        for part in buf.chunks_mut(CHUNK) {
            // The memory file holds one answer, so it is read before another thread asks.
            let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            let covered = match link.ask(Request::Read { offset: at, len: part.len() as u32 })? {
                Reply::Read { covered } => covered,
                Reply::Failed { kind, reason } => return Err(failure(&self.path, kind, reason)),
                _ => return Err(link.confused()),
            };
            let mut end = 0;
            for range in covered {
                let range = range.start as usize..range.end as usize;
                if range.start < end || range.is_empty() || range.end > part.len() {
                    return Err(link.confused());
                }
                end = range.end;
                held += range.len();
                let read = self.memory.read_exact_at(&mut part[range.clone()], range.start as u64);
                read.map_err(|source| io("read", &self.path, source))?;
            }
            at += part.len() as u64;
        }
        if held < buf.len() && !self.overlay {
            return Err(self.link.lock().unwrap_or_else(PoisonError::into_inner).confused());
        }
        Ok(held)
    }
}

/// What the files are.
struct Shape {
    format: Format,
    packing: Packing,
    /// Not a whole disk, but what was changed of one.
    overlay: bool,
}

/// The process and the socket to it.
#[derive(Debug)]
struct Link {
    path: PathBuf,
    socket: OwnedFd,
    child: Child,
    timeout: Duration,
    /// Why the reader is gone, once it is.
    gone: Option<String>,
}

impl Link {
    fn spawn(program: &Path, path: &Path, timeout: Duration) -> Result<Self> {
        let failed = |source| io("start a reader for", path, source);
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| failed(errno.into()))?;
        let child = Command::new(program)
            .arg(READER_ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), socket, child, timeout, gone: None })
    }

    fn ask(&mut self, request: Request) -> Result<Reply> {
        self.send(&request.encode())?;
        self.receive()
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.check()?;
        // Requests are answered one by one, so the socket has room. A reader that is gone must not end us: no SIGPIPE.
        match retry_on_intr(|| rustix::net::send(&self.socket, message, SendFlags::NOSIGNAL)) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.lost(errno)),
        }
    }

    fn send_files(&mut self, files: &[&File]) -> Result<()> {
        self.check()?;
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_MESSAGE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        let sent =
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL);
        sent.map(drop).map_err(|errno| self.lost(errno))
    }

    fn receive(&mut self) -> Result<Reply> {
        self.check()?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = format!("it did not answer within {:?}, and was ended", self.timeout);
                return Err(self.end(reason));
            }
            let timespec =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timespec)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(self.lost(errno)),
            }
        }
        let mut message = vec![0; MAX_MESSAGE];
        match retry_on_intr(|| rustix::io::read(&self.socket, &mut message[..])) {
            Ok(0) => Err(self.lost(Errno::PIPE)),
            Ok(len) => Reply::decode(&message[..len]).map_or_else(|| Err(self.confused()), Ok),
            Err(errno) => Err(self.lost(errno)),
        }
    }

    fn check(&self) -> Result<()> {
        match &self.gone {
            None => Ok(()),
            Some(reason) => Err(Error::Reader { path: self.path.clone(), reason: reason.clone() }),
        }
    }

    /// The answer is not one that our reader gives: it has been taken over, or is another program.
    fn confused(&mut self) -> Error {
        self.end("its answer makes no sense, and it was ended".to_owned())
    }

    /// The socket failed, which means that the process is gone, or about to be.
    fn lost(&mut self, errno: Errno) -> Error {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    let reason = format!("{}{}", ending(status), self.last_words());
                    return self.end(reason);
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => return self.end(format!("the connection to it broke: {errno}")),
            }
        }
    }

    fn end(&mut self, reason: String) -> Error {
        self.kill();
        self.gone = Some(reason.clone());
        Error::Reader { path: self.path.clone(), reason }
    }

    fn kill(&mut self) {
        // Both fail only for a process that has been waited for already.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<ExitStatus> = self.child.wait();
    }

    /// What the ended process wrote to its standard error.
    fn last_words(&mut self) -> String {
        let Some(stderr) = self.child.stderr.take() else { return String::new() };
        let mut words = Vec::new();
        if stderr.take(MAX_LAST_WORDS).read_to_end(&mut words).is_err() || words.is_empty() {
            return String::new();
        }
        format!(": {}", String::from_utf8_lossy(&words).trim())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a reader ended, in terms of the limits that end one.
fn ending(status: ExitStatus) -> String {
    let named = |signal: i32| {
        let meaning = match rustix::process::Signal::from_named_raw(signal)? {
            rustix::process::Signal::XCPU => "it used all of its processor time",
            rustix::process::Signal::XFSZ => "it wrote more than its limit",
            rustix::process::Signal::SYS => "it tried what it may not do",
            rustix::process::Signal::ABORT => "it gave up, as for more memory than its limit",
            rustix::process::Signal::KILL => "it was killed, perhaps for want of memory",
            _ => return None,
        };
        Some(format!("{meaning} (signal {signal})"))
    };
    match status.signal() {
        Some(signal) => named(signal).unwrap_or_else(|| format!("signal {signal} ended it")),
        None => format!("it ended with {status}"),
    }
}

fn memory_file() -> std::io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(
        "tintype-disk-reader",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    file.set_len(CHUNK as u64)?;
    // Its size stays what it is, whatever the reader does.
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

fn failure(path: &Path, kind: Failure, reason: String) -> Error {
    let path = path.to_owned();
    match kind {
        Failure::Damaged => Error::Damaged { path, reason },
        Failure::Unsupported => Error::Unsupported { path, reason },
        Failure::Chain => Error::Chain { reason },
        Failure::Other => Error::Reader { path, reason },
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}
