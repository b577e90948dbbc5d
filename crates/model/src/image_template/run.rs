//! The last run of a template.
//!
//! ```text
//!  (none or ended) ──start──▶ Running(stage) ──cancel──▶ Canceling
//!                               │  stage only goes forward  │
//!                               └────────finish─────────────┴──▶ Ended(outcome)
//! ```

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::provisioning::InvalidTransition;

/// Longest message of an ended run; longer ones are cut in front, because the cause stands at the end.
pub const RUN_MESSAGE_CHARS_MAX: usize = 4096;

/// What a run is doing. In order: a run never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// Waiting for a worker.
    Queued,
    /// Resolving the source, starting the machine.
    Building,
    /// Customizing.
    Customizing,
    /// Preparing for quick starts.
    Optimizing,
    /// Validating in a machine of its own.
    Validating,
    /// Publishing.
    Distributing,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// All done.
    Succeeded,
    /// Distributed to some of the targets.
    PartiallySucceeded,
    /// Nothing, or not all, was done.
    Failed,
    /// Called off.
    Canceled,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRun {
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// How.
    pub outcome: RunOutcome,
    /// Why; empty for a success.
    pub message: String,
}

/// The last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastRun {
    /// Under way.
    Running {
        /// When it began.
        started: Timestamp,
        /// What it is doing.
        stage: RunStage,
    },
    /// Under way, and asked to stop.
    Canceling {
        /// When it began.
        started: Timestamp,
        /// What it was doing.
        stage: RunStage,
    },
    /// Over.
    Ended(FinishedRun),
}

impl LastRun {
    /// Begins a run after `last`.
    ///
    /// # Errors
    /// While `last` is under way.
    pub fn start(last: Option<&Self>, now: Timestamp) -> Result<Self, InvalidTransition> {
        match last {
            Some(run) if run.is_active() => Err(run.refuse("start")),
            _ => Ok(Self::Running { started: now, stage: RunStage::Queued }),
        }
    }

    /// Goes on to a stage. While it is being canceled the stage is recorded and nothing else changes.
    ///
    /// # Errors
    /// When it has ended, or when the stage lies behind.
    pub fn advance(self, to: RunStage) -> Result<Self, InvalidTransition> {
        match self {
            Self::Running { started, stage } if stage <= to => Ok(Self::Running { started, stage: to }),
            Self::Canceling { started, stage } if stage <= to => Ok(Self::Canceling { started, stage: to }),
            other => Err(other.refuse("advance")),
        }
    }

    /// Asks it to stop. Asking twice is allowed.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cancel(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Running { started, stage } | Self::Canceling { started, stage } => {
                Ok(Self::Canceling { started, stage })
            }
            Self::Ended(_) => Err(self.refuse("cancel")),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn finish(
        self,
        outcome: RunOutcome,
        message: &str,
        now: Timestamp,
    ) -> Result<Self, InvalidTransition> {
        match self {
            Self::Running { started, .. } | Self::Canceling { started, .. } => {
                let excess = message.chars().count().saturating_sub(RUN_MESSAGE_CHARS_MAX);
                let message = message.chars().skip(excess).collect();
                Ok(Self::Ended(FinishedRun { started, ended: now, outcome, message }))
            }
            Self::Ended(_) => Err(self.refuse("finish")),
        }
    }

    /// Whether it is under way.
    pub fn is_active(&self) -> bool {
        !matches!(self, Self::Ended(_))
    }

    /// When it began.
    pub fn started(&self) -> Timestamp {
        match self {
            Self::Running { started, .. } | Self::Canceling { started, .. } => *started,
            Self::Ended(run) => run.started,
        }
    }

    /// Image builder's word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running { .. } => "Running",
            Self::Canceling { .. } => "Canceling",
            Self::Ended(run) => match run.outcome {
                RunOutcome::Succeeded => "Succeeded",
                RunOutcome::PartiallySucceeded => "PartiallySucceeded",
                RunOutcome::Failed => "Failed",
                RunOutcome::Canceled => "Canceled",
            },
        }
    }

    fn refuse(&self, event: &'static str) -> InvalidTransition {
        InvalidTransition { what: "a run", from: self.name(), event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn a_run_goes_forward_and_ends_once() {
        let run = LastRun::start(None, at(0)).unwrap().advance(RunStage::Building).unwrap();
        let run = run.advance(RunStage::Customizing).unwrap();
        assert!(run.clone().advance(RunStage::Queued).is_err());
        assert_eq!(
            LastRun::start(Some(&run), at(1)).unwrap_err().to_string(),
            "cannot start a run that is Running"
        );
        let ended = run.finish(RunOutcome::Failed, "exit status 3", at(9)).unwrap();
        assert!(
            ended.clone().cancel().is_err() && ended.clone().finish(RunOutcome::Failed, "", at(10)).is_err()
        );
        let again = LastRun::start(Some(&ended), at(11)).unwrap();
        assert_eq!(again.started(), at(11));
    }

    #[test]
    fn cancelling_lets_the_run_end_as_it_must() {
        let run = LastRun::start(None, at(0)).unwrap().cancel().unwrap().cancel().unwrap();
        let run = run.advance(RunStage::Distributing).unwrap();
        assert_eq!(run.name(), "Canceling");
        assert_eq!(run.finish(RunOutcome::Canceled, "by request", at(2)).unwrap().name(), "Canceled");
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let text = format!("{}the cause", "x".repeat(RUN_MESSAGE_CHARS_MAX));
        let run = LastRun::start(None, at(0)).unwrap().finish(RunOutcome::Failed, &text, at(1)).unwrap();
        let LastRun::Ended(run) = run else { panic!("ended") };
        assert!(run.message.ends_with("the cause") && run.message.chars().count() == RUN_MESSAGE_CHARS_MAX);
    }
}
