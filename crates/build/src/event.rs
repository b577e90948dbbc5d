//! What a build tells while it runs.

use tokio::sync::mpsc;

/// The longest log line that is passed on; the rest of a longer one is cut.
pub(crate) const LINE_BYTES_MAX: usize = 8 * 1024;

/// Where a run is: Azure's `runSubState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The source becomes a running machine.
    Building,
    /// Customizers run.
    Customizing,
    /// The new image is checked.
    Validating,
}

/// Which log a line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// `customization.log`.
    Customization,
    /// `validation.log`.
    Validation,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum BuildEvent {
    /// The run entered a phase.
    Phase(Phase),
    /// A line for a log.
    Line(Stream, String),
}

/// Sends events; a build waits for a slow listener instead of losing lines.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<BuildEvent>);

impl Events {
    /// A bounded channel of events.
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<BuildEvent>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender), receiver)
    }

    /// Announces a phase.
    pub async fn phase(&self, phase: Phase) {
        // A listener that went away does not stop a build.
        drop(self.0.send(BuildEvent::Phase(phase)).await);
    }

    /// Logs a line if there is room for it: for progress, which nobody misses.
    pub fn try_line(&self, stream: Stream, line: String) {
        // A listener that is behind or went away stops nobody.
        drop(self.0.try_send(BuildEvent::Line(stream, line)));
    }

    /// Logs a line.
    pub async fn line(&self, stream: Stream, line: impl Into<String>) {
        let mut line = line.into();
        if line.len() > LINE_BYTES_MAX {
            let cut = (0..=LINE_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(cut);
            line.push('…');
        }
        drop(self.0.send(BuildEvent::Line(stream, line)).await);
    }
}
