//! What people see of the demo: log lines while it runs, a table and one JSON line at the end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::arm::{Arm, COMPUTE, percent_encode};

const FOLLOW_POLL: Duration = Duration::from_millis(500);
/// How long the rest of a log may take.
const FOLLOW_ENDS: Duration = Duration::from_secs(5);

/// The figures of the last line; README explains them.
pub(super) struct Figures {
    pub(super) bootstrap_s: f64,
    pub(super) first_build_s: f64,
    pub(super) second_build_s: f64,
    pub(super) second_validate_s: f64,
    pub(super) resume_s: f64,
    pub(super) steps_cached: usize,
    pub(super) version: String,
    pub(super) regions: Vec<String>,
    pub(super) replicated_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) logical_bytes: u64,
    pub(super) vm_ready_s: f64,
    pub(super) leftovers: usize,
}

impl Figures {
    pub(super) fn line(&self) -> String {
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        json!({
            "demo": if self.leftovers == 0 { "ok" } else { "failed" },
            "bootstrap_s": tenths(self.bootstrap_s),
            "first_build_s": tenths(self.first_build_s),
            "second_build_s": tenths(self.second_build_s),
            "second_validate_s": tenths(self.second_validate_s),
            "resume_s": tenths(self.resume_s),
            "steps_cached": self.steps_cached,
            "version": self.version,
            "regions": self.regions,
            "replicated_bytes": self.replicated_bytes,
            "stored_bytes": self.stored_bytes,
            "logical_bytes": self.logical_bytes,
            "vm_ready_s": tenths(self.vm_ready_s),
            "leftovers": self.leftovers,
        })
        .to_string()
    }
}

/// Prints as the demo goes on, unless only the last line is wanted.
pub(super) struct Report {
    quiet: bool,
    started: Instant,
    rows: Mutex<Vec<[String; 4]>>,
}

impl Report {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, started: Instant::now(), rows: Mutex::default() }
    }

    /// A line of the demo's own.
    pub(super) fn say(&self, line: &str) {
        if !self.quiet {
            println!("{:>6.1}s  {line}", self.started.elapsed().as_secs_f64());
        }
    }

    /// A line that somebody else wrote.
    pub(super) fn log(&self, line: &str) {
        log(self.quiet, line);
    }

    /// Begins a row of the table.
    pub(super) fn step(&self, name: &str) -> Step<'_> {
        self.say(&format!("== {name}"));
        Step { report: self, name: name.to_owned(), started: Instant::now() }
    }

    pub(super) fn table(&self) {
        if self.quiet {
            return;
        }
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["step", "seconds", "bytes stored", "bytes moved"]);
        for row in self.rows.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("\n{table}\n");
    }

    /// Shows the log of a run until stopped.
    pub(super) fn follow_run(&self, arm: &Arm, run: String) -> Following {
        let (stop, stopped) = oneshot::channel();
        Following { task: tokio::spawn(follow(arm.clone(), run, self.quiet, stopped)), stop }
    }

    /// Shows the log of a template's newest run, once there is one that has not ended, until stopped.
    pub(super) fn follow_newest_run(&self, arm: &Arm, template: &str) -> Following {
        let list = format!("/tintype/runs?template={}", percent_encode(template));
        let (arm, quiet) = (arm.clone(), self.quiet);
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            while !stop_asked(&mut stopped) {
                tokio::time::sleep(FOLLOW_POLL).await;
                // Showing progress is no reason to fail: what is wrong shows in the operation itself.
                let Ok(runs) = arm.get(&list, COMPUTE).await else { continue };
                let newest = &runs["value"][0];
                if let Some(run) = newest["runId"].as_str()
                    && !newest["endTime"].is_string()
                {
                    return follow(arm, run.to_owned(), quiet, stopped).await;
                }
            }
        });
        Following { task, stop }
    }
}

/// Shows a log until told to stop, and then what it still holds.
async fn follow(arm: Arm, run: String, quiet: bool, mut stopped: oneshot::Receiver<()>) {
    let (mut seen, mut last) = (0, false);
    loop {
        let path = format!("/tintype/runs/{run}/log?after={seen}");
        let chunks = arm.get(&path, COMPUTE).await.unwrap_or_default();
        let chunks = chunks["chunks"].as_array().map(Vec::as_slice).unwrap_or_default();
        for chunk in chunks {
            seen = chunk["seq"].as_u64().unwrap_or(seen);
            for line in chunk["text"].as_str().unwrap_or_default().lines() {
                log(quiet, line);
            }
        }
        if last && chunks.is_empty() {
            return;
        }
        last = last || tokio::time::timeout(FOLLOW_POLL, &mut stopped).await.is_ok();
    }
}

/// Whether the other end said so, by being dropped.
fn stop_asked(stopped: &mut oneshot::Receiver<()>) -> bool {
    !matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

fn log(quiet: bool, line: &str) {
    if !quiet {
        println!("         | {line}");
    }
}

/// A log that is being shown.
pub(super) struct Following {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Following {
    /// Returns when the rest was shown.
    pub(super) async fn stop(self) {
        drop(self.stop);
        // What is missing of a log is no reason to fail.
        drop(tokio::time::timeout(FOLLOW_ENDS, self.task).await);
    }
}

/// A row that has begun.
pub(super) struct Step<'a> {
    report: &'a Report,
    name: String,
    started: Instant,
}

impl Step<'_> {
    pub(super) fn done(self) {
        self.row(String::new(), String::new());
    }

    pub(super) fn done_stored(self, stored: u64) {
        self.row(stored.to_string(), String::new());
    }

    pub(super) fn done_moved(self, stored: u64, moved: u64) {
        self.row(stored.to_string(), moved.to_string());
    }

    fn row(self, stored: String, moved: String) {
        let seconds = format!("{:.1}", self.started.elapsed().as_secs_f64());
        self.report.say(&format!("   {}: {seconds} s", self.name));
        let row = [self.name, seconds, stored, moved];
        self.report.rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }
}
