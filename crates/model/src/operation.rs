//! A long-running operation: the public face of a job.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::provisioning::{Failure, InvalidTransition};

/// Where an operation stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Accepted or running.
    InProgress,
    /// Done; some operations have a result of their own (an access SAS, a captured template).
    Succeeded {
        /// When.
        ended: Timestamp,
        /// `properties.output` of the poll body.
        output: Option<serde_json::Value>,
    },
    /// Ended without effect, or with part of it.
    Failed {
        /// When.
        ended: Timestamp,
        /// Why.
        failure: Failure,
    },
    /// Called off.
    Canceled {
        /// When.
        ended: Timestamp,
        /// Who or what called it off.
        failure: Option<Failure>,
    },
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// When it was accepted.
    pub started: Timestamp,
    /// Where it stands.
    pub state: OperationState,
}

impl Operation {
    /// An operation that has just been accepted.
    pub fn start(now: Timestamp) -> Self {
        Self { started: now, state: OperationState::InProgress }
    }

    /// Ends it. An operation ends once.
    ///
    /// # Errors
    /// When it has ended already, or when `end` is no end.
    pub fn finish(self, end: OperationState) -> Result<Self, InvalidTransition> {
        match (&self.state, &end) {
            (OperationState::InProgress, OperationState::InProgress) => {
                Err(refuse("InProgress", "keep open"))
            }
            (OperationState::InProgress, _) => Ok(Self { state: end, ..self }),
            (OperationState::Succeeded { .. }, _) => Err(refuse("Succeeded", "end")),
            (OperationState::Failed { .. }, _) => Err(refuse("Failed", "end")),
            (OperationState::Canceled { .. }, _) => Err(refuse("Canceled", "end")),
        }
    }

    /// Whether it has ended.
    pub fn is_final(&self) -> bool {
        !matches!(self.state, OperationState::InProgress)
    }
}

fn refuse(from: &'static str, event: &'static str) -> InvalidTransition {
    InvalidTransition { what: "an operation", from, event }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_ends_once() {
        let now = Timestamp::UNIX_EPOCH;
        let done = OperationState::Succeeded { ended: now, output: None };
        let ended = Operation::start(now).finish(done.clone()).unwrap();
        assert!(ended.is_final());
        assert_eq!(ended.finish(done).unwrap_err().to_string(), "cannot end an operation that is Succeeded");
    }
}
