//! The program under measurement, a folder to work in, and clocks.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Arguments;

/// Medians are of this many runs.
const RUNS: usize = 5;

pub(super) struct Lab {
    program: PathBuf,
    /// Inputs, kept.
    cache: PathBuf,
    /// Everything else, removed at the end.
    scratch: PathBuf,
    quick: bool,
    pub(super) with_peers: bool,
}

impl Lab {
    pub(super) fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the bench needs root: it makes Debian disks and drops caches"
        );
        let program = match &arguments.program {
            Some(program) => program.canonicalize().with_context(|| format!("no {}", program.display()))?,
            None => build()?,
        };
        let cache = match (std::env::var_os("TINTYPE_CACHE"), std::env::var_os("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => PathBuf::from(home).join(".cache/tintype"),
            (None, None) => bail!("say where inputs may be kept: set TINTYPE_CACHE"),
        }
        .join("bench");
        let scratch = cache.join(format!("scratch-{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let (quick, with_peers) = (arguments.quick, !arguments.without_peers);
        Ok(Self { program, cache, scratch, quick, with_peers })
    }

    /// How often each measurement is repeated.
    pub(super) fn runs(&self) -> usize {
        if self.quick { 1 } else { RUNS }
    }

    /// `count`, or a tenth of it in a hurry.
    pub(super) fn count(&self, count: usize) -> usize {
        if self.quick { count.div_ceil(10) } else { count }
    }

    /// How often a VM is booted: a boot takes half a minute.
    pub(super) fn boots(&self, count: usize) -> usize {
        if self.quick { 1 } else { count }
    }

    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    /// What happens now, for who waits.
    pub(super) fn say(&self, what: &str) {
        eprintln!("bench: {what}");
    }

    /// A new, empty folder of this name.
    pub(super) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.scratch.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// A `tintype store` command with `--json`.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("store").args(arguments).arg("--json");
        command
    }

    /// The process of one VM, which the server starts otherwise.
    pub(super) fn vmhost(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("vmhost").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs a `tintype store` command; its wall time from outside, and what it printed.
    pub(super) fn store(&self, arguments: &[&str]) -> anyhow::Result<(f64, Value)> {
        let started = Instant::now();
        let output = self.command(arguments).output().context("cannot start tintype")?;
        let seconds = started.elapsed().as_secs_f64();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tintype store {}: {}", arguments.join(" "), error.trim());
        Ok((seconds, serde_json::from_slice(&output.stdout).context("tintype printed no JSON")?))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.scratch) {
            eprintln!("bench: cannot remove {}: {error}", self.scratch.display());
        }
    }
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--workspace", "--bin", "tintype"])
        .current_dir(crate::root())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the release build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(crate::root().join("target"), PathBuf::from);
    Ok(target.join("release/tintype"))
}

/// Runs a tool that must succeed, and returns what it printed.
pub(super) fn tool(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new(program).args(arguments))
}

/// As [`tool`], for a command with more to it than arguments.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name} (is its package installed?)"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Wall time of work that must succeed.
pub(super) fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let started = Instant::now();
    let done = work()?;
    Ok((started.elapsed().as_secs_f64(), done))
}

/// Empties the kernel's caches, so that what is read next comes from the disk.
pub(super) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the kernel's caches")
}

/// Where everything is that a put reads, when it begins. The same for every tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caches {
    /// On the disk: the kernel's caches were emptied just before. The input, the store and the programs are read from there.
    Cold,
    /// In memory: all of the input was read just before, its holes too, since some tools read them.
    Warm,
}

impl Caches {
    pub(super) const BOTH: [Self; 2] = [Self::Cold, Self::Warm];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }

    /// Makes it so, with nothing left to be written either.
    pub(super) fn prepare(self, input: &Path) -> anyhow::Result<()> {
        match self {
            Self::Cold => drop_caches(),
            Self::Warm => {
                rustix::fs::sync();
                read_all(input)
            }
        }
    }
}

/// Reads a file to its end, holes included.
fn read_all(path: &Path) -> anyhow::Result<()> {
    let read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// Where a sparse file has data: start and end of each stretch.
pub(super) fn data_extents(file: &File) -> std::io::Result<Vec<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    let mut extents = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(extents),
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        extents.push((start, at));
    }
}

/// The SHA-256 of a file, in hex.
pub(super) fn sha256(path: &Path) -> anyhow::Result<String> {
    let hash = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let len = file.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            hash.update(&buffer[..len]);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    hash().with_context(|| format!("cannot read {}", path.display()))
}

/// Sum of the lengths of all files below a folder.
pub(super) fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&path)? } else { metadata.len() };
    }
    Ok(bytes)
}

/// A child that is ended with this value.
pub(super) struct Running {
    pub(super) child: Child,
}

impl Running {
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self { child: command.spawn().with_context(|| format!("cannot start {name}"))? })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself; then there is nobody to tell, and waiting only collects it.
        let told = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        if let (Err(error), Ok(None)) = (told, self.child.try_wait()) {
            eprintln!("bench: cannot end process {}: {error}", self.child.id());
        }
        if let Err(error) = self.child.wait() {
            eprintln!("bench: cannot wait for process {}: {error}", self.child.id());
        }
    }
}

/// Bytes that look random and are the same for each seed (xorshift*).
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Bytes of which half are random: they compress to a little over half, as a system's files do.
    pub(super) fn half(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 16);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
            bytes.extend_from_slice(b"tintype ");
        }
        bytes.truncate(len);
        bytes
    }
}
