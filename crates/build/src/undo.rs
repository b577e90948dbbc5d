//! Leaving nothing behind: the same code ends a run that succeeded, failed, was cancelled, or whose server
//! was killed.

use std::path::Path;

use vmhost::VmHandle;

use crate::error::BuildError;

/// The reference by which a run holds its result in the store.
pub(crate) fn run_reference(run_id: &str) -> String {
    format!("run-{run_id}")
}

/// Ends every VM below the run's directory and removes the directory. Doing it again does nothing.
///
/// # Errors
/// When a VM does not end or the directory cannot be removed; what was done stays done.
pub async fn undo_run(runs_dir: &Path, run_id: &str) -> Result<(), BuildError> {
    let dir = runs_dir.join(run_id);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BuildError::io("list the run's directory")(error)),
    };
    for entry in entries {
        let path = entry.map_err(BuildError::io("list the run's directory"))?.path();
        if path.is_dir() {
            VmHandle::attach(&path).power_off().await?;
        }
    }
    std::fs::remove_dir_all(&dir).map_err(BuildError::io("remove the run's directory"))
}
