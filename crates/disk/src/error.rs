//! Why a disk file cannot be read or written.

use std::path::PathBuf;

/// The result of reading or writing a disk file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A disk file that could not be read or written. Each message names the file, the cause and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot *open* x".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A valid file that uses something we do not read.
    #[error("{} is not supported: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it uses, and what to do instead.
        reason: String,
    },
    /// The bytes contradict the format.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },
    /// A read past the end of a disk: a mistake of the caller.
    #[error("read of {len} bytes at {offset} is outside of a disk of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// A disk that is not a file could not be read.
    #[error("cannot read the disk: {source}")]
    Source {
        /// Why; its message names the disk.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Layers which cannot be one chain.
    #[error("these layers are not one chain: {reason}")]
    Chain {
        /// Why.
        reason: String,
    },
    /// The process that parses a file failed, or was ended for what it did.
    #[error("the sandboxed reader of {} failed: {reason}", path.display())]
    Reader {
        /// The file.
        path: PathBuf,
        /// What happened; a limit or a signal by name.
        reason: String,
    },
    /// There is a file where one was to be written.
    #[error("{} exists; remove it, or ask for it to be replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A format cannot hold this disk, or the program that writes it failed.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why, and what to do instead.
        reason: String,
    },
}
