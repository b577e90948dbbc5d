//! What a run tells while it runs: the log in the database, which clients follow; `customization.log` and
//! `validation.log` in the staging group, as Azure keeps them; and the stage in the template's last run.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use build::{BuildEvent, Phase, Stream};
use model::image_template::{ImageTemplate, RunStage};
use store::{Document, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{JobContext, staging_dir};
use crate::api::image_templates::save;
use crate::http::error::chain;
use crate::secret_file;

/// Shortest time between two writes to the database.
const FLUSH_PAUSE: Duration = Duration::from_millis(500);
/// After this many chunks the pause has doubled, after twice as many it is threefold, and so on: a run's log holds
/// 4096 chunks, which so last for the longest build of 16 hours.
const CHUNKS_PER_SLOWING: u32 = 64;
/// Largest log file; what comes later is left out of the file.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Text that is collected before it is written whatever the time.
const PENDING_BYTES_MAX: usize = 1 << 20;

pub(super) struct Journal {
    context: JobContext,
    template: String,
    run_id: String,
    customization: LogFile,
    validation: LogFile,
    pending: Vec<u8>,
    chunks: u32,
    next_flush: Instant,
    /// The database takes no more: the run goes on without.
    full: bool,
}

struct LogFile {
    file: Option<File>,
    bytes: u64,
}

impl Journal {
    pub(super) fn open(
        context: &JobContext,
        template: &Document<ImageTemplate>,
        run_id: &str,
    ) -> std::io::Result<Self> {
        let open = |name: &str| -> std::io::Result<LogFile> {
            let Some(dir) = staging_dir(context, template) else {
                return Ok(LogFile { file: None, bytes: 0 });
            };
            let dir = dir.join("packerlogs").join(run_id);
            secret_file::create_folder(&dir)?;
            let file = File::options().create(true).append(true).open(dir.join(name))?;
            Ok(LogFile { bytes: file.metadata()?.len(), file: Some(file) })
        };
        Ok(Self {
            customization: open("customization.log")?,
            validation: open("validation.log")?,
            context: context.clone(),
            template: template.id.clone(),
            run_id: run_id.to_owned(),
            pending: Vec::new(),
            chunks: 0,
            next_flush: Instant::now(),
            full: false,
        })
    }

    /// Writes what a build says until it has ended.
    pub(super) async fn listen(&mut self, mut events: mpsc::Receiver<BuildEvent>) {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    None => break,
                    Some(BuildEvent::Line(stream, line)) => self.line(stream, &line),
                    Some(BuildEvent::Phase(phase)) => {
                        self.flush().await;
                        self.stage(match phase {
                            Phase::Building => RunStage::Building,
                            Phase::Customizing => RunStage::Customizing,
                            Phase::Validating => RunStage::Validating,
                        })
                        .await;
                    }
                },
                () = tokio::time::sleep_until(self.next_flush), if !self.pending.is_empty() => self.flush().await,
            }
            if self.pending.len() > PENDING_BYTES_MAX {
                self.flush().await;
            }
        }
        self.flush().await;
    }

    /// Adds a line, with the time, to the logs.
    pub(super) fn line(&mut self, stream: Stream, line: &str) {
        let at = arm::time::plain(self.context.state.now());
        let text = format!("{at} {line}\n");
        let file = match stream {
            Stream::Customization => &mut self.customization,
            Stream::Validation => &mut self.validation,
        };
        if let Err(error) = file.write(&text) {
            tracing::warn!(run = self.run_id, %error, "a run's log file cannot be written");
            file.file = None;
        }
        self.pending.extend_from_slice(text.as_bytes());
    }

    /// Writes what was collected to the database. A log that cannot be written ends no build.
    pub(super) async fn flush(&mut self) {
        if self.pending.is_empty() || self.full {
            self.pending.clear();
            return;
        }
        let text = std::mem::take(&mut self.pending);
        let (context, run_id) = (&self.context, &self.run_id);
        let written: Result<i64, StoreError> = context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    tx.append_log(run_id, &text).await
                })
            })
            .await;
        match written {
            Ok(last) => self.chunks = u32::try_from(last).unwrap_or(u32::MAX),
            Err(error) => {
                self.full = matches!(error, StoreError::Limit { .. });
                tracing::warn!(run = self.run_id, error = chain(&error), "a run's log cannot be written");
            }
        }
        self.next_flush = Instant::now() + FLUSH_PAUSE * (1 + self.chunks / CHUNKS_PER_SLOWING);
    }

    /// Shows the stage in the template's last run. A stage that lies behind changes nothing.
    pub(super) async fn stage(&self, stage: RunStage) {
        let written: Result<(), StoreError> = self
            .context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    self.context.hold(tx).await?;
                    let Some(mut document) = tx.get::<ImageTemplate>(&self.template).await? else {
                        return Ok(());
                    };
                    let Some(run) = document.data.last_run.clone() else { return Ok(()) };
                    match run.advance(stage) {
                        Ok(advanced) => {
                            document.data.last_run = Some(advanced);
                            save(tx, &mut document).await
                        }
                        Err(_) => Ok(()),
                    }
                })
            })
            .await;
        if let Err(error) = written {
            tracing::warn!(run = self.run_id, error = chain(&error), "a run's stage cannot be written");
        }
    }
}

impl LogFile {
    fn write(&mut self, text: &str) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        self.bytes += text.len() as u64;
        if self.bytes > FILE_BYTES_MAX {
            return Ok(());
        }
        file.write_all(text.as_bytes())
    }
}
