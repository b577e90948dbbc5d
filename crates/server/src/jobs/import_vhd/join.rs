//! The parts of a block blob, one behind the other in a sparse file. A list may name one block as often as it likes, so that
//! small uploads make large blobs: lengths are added up before anything is copied, and room is left to others.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model::managed_disk::UPLOAD_BYTES_MAX;
use tokio_util::sync::CancellationToken;

/// Zeros are left out of the file in pieces of this size.
const PIECE_BYTES: usize = 64 << 10;
/// How often room and cancellation are looked at.
const LOOK_BYTES: u64 = 16 << 20;
/// Room that is left to others in the file system of the file.
const SPACE_LEFT_BYTES: u64 = 512 << 20;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("The blob has {bytes} bytes, and the largest VHD has {UPLOAD_BYTES_MAX}.")]
    Large { bytes: u64 },
    #[error(
        "Putting the blob's blocks together would leave only {free} bytes in {}, where the service works. Make room there, or \
         upload the VHD as a page blob, which needs none.",
        folder.display()
    )]
    Space { free: u64, folder: PathBuf },
    #[error("it was asked to stop")]
    Canceled,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes the parts into a new file at `to`. Blocking.
pub(super) fn join(parts: &[PathBuf], to: &Path, stop: &CancellationToken) -> Result<(), JoinError> {
    let mut bytes: u64 = 0;
    for part in parts {
        bytes = bytes.saturating_add(std::fs::metadata(part)?.len());
        if stop.is_cancelled() {
            return Err(JoinError::Canceled);
        }
    }
    if bytes > UPLOAD_BYTES_MAX {
        return Err(JoinError::Large { bytes });
    }
    let whole = File::create(to)?;
    let mut piece = vec![0; PIECE_BYTES];
    let zeros = vec![0; PIECE_BYTES];
    let (mut at, mut looked) = (0, None);
    for part in parts {
        let mut part = File::open(part)?;
        loop {
            if looked.is_none_or(|looked| at - looked >= LOOK_BYTES) {
                looked = Some(at);
                if stop.is_cancelled() {
                    return Err(JoinError::Canceled);
                }
                check_space(&whole, to)?;
            }
            let len = part.read(&mut piece)?;
            if len == 0 {
                break;
            }
            if piece[..len] != zeros[..len] {
                whole.write_all_at(&piece[..len], at)?;
            }
            at += len as u64;
        }
    }
    Ok(whole.set_len(at)?)
}

fn check_space(file: &File, path: &Path) -> Result<(), JoinError> {
    // A file system that does not say is not one that is full.
    let Ok(stat) = rustix::fs::fstatvfs(file) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < SPACE_LEFT_BYTES {
        let folder = path.parent().unwrap_or(path).to_owned();
        return Err(JoinError::Space { free, folder });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn parts_are_joined_without_their_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let sparse = |name: &str, bytes: u64| {
            let file = File::create(path(name)).unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        sparse("zeros", 100 << 20);
        std::fs::write(path("odd"), [5; 70_001]).unwrap();
        let stop = CancellationToken::new();
        let to = path("whole");
        join(&["odd", "zeros", "odd"].map(path), &to, &stop).unwrap();
        let whole = std::fs::metadata(&to).unwrap();
        assert_eq!(whole.len(), (100 << 20) + 140_002);
        assert!(whole.blocks() * 512 < 1 << 20, "{} blocks", whole.blocks());
        let mut end = [0; 70_002];
        File::open(&to).unwrap().read_exact_at(&mut end, whole.len() - 70_002).unwrap();
        assert!(end[0] == 0 && end[1..].iter().all(|byte| *byte == 5));

        // What one block makes that is named 50,000 times: refused before anything is written.
        std::fs::remove_file(&to).unwrap();
        sparse("large", 4000 << 20);
        let many = vec![path("large"); 50_000];
        let error = join(&many, &to, &stop).unwrap_err();
        assert!(matches!(error, JoinError::Large { bytes } if bytes == 50_000 * (4000 << 20)), "{error}");
        assert!(!to.exists());
        // Within the bound it takes hours, and is asked to stop meanwhile.
        let (parts, target, stopping) = (many[..8000].to_vec(), to.clone(), stop.clone());
        let joining = std::thread::spawn(move || join(&parts, &target, &stopping));
        while !to.exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        stop.cancel();
        assert!(matches!(joining.join().unwrap().unwrap_err(), JoinError::Canceled));
    }
}
