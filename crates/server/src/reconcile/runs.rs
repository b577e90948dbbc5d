//! Ends what a killed server left of its builds.

use store::StoreError;

use crate::AppState;

/// Undoes every run whose directory is there although no unfinished job owns it. Called before jobs are
/// claimed: at that moment no run of this process is under way.
pub(crate) async fn undo_left_behind(state: &AppState) -> Result<(), StoreError> {
    let runs_dir = state.fabric.runs_dir();
    let Ok(entries) = std::fs::read_dir(&runs_dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let Some(run_id) = entry.file_name().to_str().map(str::to_owned) else { continue };
        match build::undo_run(&runs_dir, &run_id).await {
            Ok(()) => tracing::info!(run_id, "undid a run that was left behind"),
            Err(error) => tracing::error!(run_id, %error, "cannot undo a run that was left behind"),
        }
    }
    Ok(())
}
