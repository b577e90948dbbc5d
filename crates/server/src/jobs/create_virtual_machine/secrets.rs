//! Password, custom data and user data of a VM: in its directory, and nowhere else.
//!
//! `secrets.json` (0600, in a directory of 0700) is written before the VM's document, so that a document whose
//! secrets were lost cannot exist, and goes with the directory. It holds nothing that `spec.json`, which the
//! VM's process reads, does not hold as well.

use std::io;
use std::path::Path;

use model::virtual_machine::VmSecrets;

const FILE: &str = "secrets.json";
/// Custom and user data (87 KB each) and a password fit many times.
const BYTES_MAX: u64 = 1 << 20;

/// Makes the VM's directory and writes its secrets.
///
/// # Errors
/// What the operating system says.
pub(crate) fn write(dir: &Path, secrets: &VmSecrets) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    crate::secret_file::create_folder(dir)?;
    let path = dir.join(FILE);
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(secrets)?)?;
    file.sync_all()
}

/// Reads them.
///
/// # Errors
/// When they are not there or are no secrets.
pub(crate) fn read(dir: &Path) -> io::Result<VmSecrets> {
    let file = std::fs::File::open(dir.join(FILE))?;
    serde_json::from_reader(io::Read::take(file, BYTES_MAX)).map_err(io::Error::other)
}
