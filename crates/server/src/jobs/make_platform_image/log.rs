//! What is printed while an image is made, written to the run's log a few times a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use store::StoreError;

use crate::jobs::context::JobContext;

/// Between two writes to the database.
const FLUSH: Duration = Duration::from_millis(500);
/// Bytes that wait for the next write; what a tool prints beyond is dropped and said so.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Longest line that is kept, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Lines that wait to be written.
pub(super) struct RunLog {
    run: String,
    waiting: Mutex<Vec<u8>>,
}

impl RunLog {
    pub(super) fn new(run: String) -> Self {
        Self { run, waiting: Mutex::new(Vec::new()) }
    }

    /// Adds a line.
    pub(super) fn line(&self, text: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() > WAITING_BYTES_MAX {
            return;
        }
        let bytes = text.as_bytes();
        waiting.extend_from_slice(&bytes[..bytes.len().min(LINE_BYTES_MAX)]);
        waiting.push(b'\n');
        if waiting.len() > WAITING_BYTES_MAX {
            waiting.extend_from_slice(b"(more was printed than the log could take)\n");
        }
    }

    async fn flush(&self, context: &JobContext) {
        let bytes = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if bytes.is_empty() {
            return;
        }
        let written: Result<(), StoreError> = context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    tx.append_log(&self.run, &bytes).await?;
                    Ok(())
                })
            })
            .await;
        // The image matters more than its log.
        if let Err(error) = written {
            tracing::warn!(run = self.run, %error, "cannot write the log");
        }
    }
}

/// Runs `work` and writes the log meanwhile and after it.
pub(super) async fn logged<T>(context: &JobContext, log: &RunLog, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(FLUSH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => {
                log.flush(context).await;
                return done;
            }
            _ = ticks.tick() => log.flush(context).await,
        }
    }
}
