//! What can go wrong with a store, by what a caller can do about it.

use std::path::PathBuf;

use crate::id::{BlockHash, ManifestId, PackId};
use crate::seal::KeyId;

/// The result of working with a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store could not do what it was asked. Each message names the object, the cause and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location's scheme or form is not one that we open.
    #[error("cannot use `{location}` as a store: {reason}")]
    Location {
        /// As it was written.
        location: String,
        /// What is wrong, and what would do.
        reason: String,
    },
    /// There is no store at this place.
    #[error("there is no store at {location} (no store.json); put an image there first")]
    NotAStore {
        /// The place.
        location: String,
    },
    /// The store is of another format or version, or its description is damaged.
    #[error("cannot open the store at {location}: {reason}")]
    Format {
        /// The place.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// The store was created by another owner.
    #[error("the store at {location} belongs to `{owner}`; open it read-only, or work through its owner")]
    OwnedByAnother {
        /// The place.
        location: String,
        /// Who created it.
        owner: String,
    },
    /// A key, or a file of keys, that cannot be used.
    #[error("the store's key cannot be used: {reason}")]
    Key {
        /// What is wrong, and what would do.
        reason: String,
    },
    /// The store is encrypted, and what was created with this key cannot be read without it.
    #[error(
        "the store at {location} is encrypted with key {key_id}, which was not given: set TINTYPE_STORE_KEY_FILE to a file \
         with it (older keys follow the current one), or TINTYPE_STORE_KEY to the key; for a service, `key_file` of its \
         region"
    )]
    KeyNeeded {
        /// The place.
        location: String,
        /// The key.
        key_id: KeyId,
    },
    /// A change to a store that was opened for reading.
    #[error("the store at {location} was opened read-only")]
    ReadOnly {
        /// The place.
        location: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{reason}")]
    Refused {
        /// What, and what would do instead.
        reason: String,
    },
    /// No visible image of this id: it never was here, its write did not finish, or its last reference is gone.
    #[error("the store at {location} has no image {manifest} (absent, incomplete, or without a reference)")]
    ManifestNotFound {
        /// The image.
        manifest: ManifestId,
        /// The place.
        location: String,
    },
    /// A block of an image cannot be read; nothing of it was given out.
    #[error("block {block} at byte {disk_offset} of image {manifest} cannot be read: {source}")]
    Block {
        /// The block's id.
        block: BlockHash,
        /// Where on the disk it was needed.
        disk_offset: u64,
        /// The image.
        manifest: ManifestId,
        /// Why; names the pack.
        #[source]
        source: Box<Error>,
    },
    /// Bytes of a pack are not what they were when they were written.
    #[error("pack {pack} is damaged in its frame at byte {offset}: {reason}")]
    DamagedFrame {
        /// The pack.
        pack: PackId,
        /// Where the frame begins.
        offset: u32,
        /// The contradiction.
        reason: String,
    },
    /// Any other object is not what it was when it was written.
    #[error("`{object}` is damaged: {reason}")]
    DamagedObject {
        /// The object's name in the store, or the file's.
        object: String,
        /// The contradiction.
        reason: String,
    },
    /// No index segment names this block or page.
    #[error("no index segment names {hash}: a segment or a pack was lost")]
    NotIndexed {
        /// The block's or page's id.
        hash: BlockHash,
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
    /// Garbage collections were in the way of a write, each time that it was tried.
    #[error("{reason}")]
    Contended {
        /// What to do.
        reason: String,
    },
    /// The object store refused.
    #[error("cannot {action} `{object}`: {source}")]
    Objects {
        /// What was tried.
        action: &'static str,
        /// The object's name in the store.
        object: String,
        /// Its answer.
        #[source]
        source: object_store::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A disk file cannot be read.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A background task died: the runtime is shutting down, or a defect.
    #[error("a task of the store stopped: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// Whether an object was not there.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Objects { source: object_store::Error::NotFound { .. }, .. })
    }

    /// Whether bytes are wrong, or the disk cannot give them: asking again will hardly help. A store that is out of reach
    /// is not damaged, and neither is what is in another place now.
    pub(crate) fn is_damage(&self) -> bool {
        let bad_sector = || {
            let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
            let mut system = causes.filter_map(|error| error.downcast_ref::<std::io::Error>());
            system.any(|error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
        };
        matches!(self, Self::DamagedFrame { .. } | Self::DamagedObject { .. }) || bad_sector()
    }

    pub(crate) fn objects(
        action: &'static str,
        object: &object_store::path::Path,
    ) -> impl FnOnce(object_store::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Objects { action, object, source }
    }

    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
