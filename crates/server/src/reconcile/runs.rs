//! Ends what a killed server left of its builds.

use crate::AppState;

/// Undoes every run that has a directory. Called before jobs are claimed, by the one server that holds the data
/// folder: at that moment no run can be under way, so whatever is there was left behind. What cannot be undone is
/// logged, and tried again at the next start.
pub(crate) async fn undo_left_behind(state: &AppState) {
    let runs_dir = state.fabric.runs_dir();
    let entries = match std::fs::read_dir(&runs_dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::error!(path = %runs_dir.display(), %error, "cannot look for runs that were left behind");
            return;
        }
    };
    for entry in entries.flatten() {
        let Some(run_id) = entry.file_name().to_str().map(str::to_owned) else { continue };
        match build::undo_run(&runs_dir, &run_id).await {
            Ok(()) => tracing::info!(run_id, "undid a run that was left behind"),
            Err(error) => tracing::error!(run_id, %error, "cannot undo a run that was left behind"),
        }
    }
}
