//! The life of a resource as ARM sees it.

use serde::{Deserialize, Serialize};

/// Why something failed, as a client will read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A code that programs branch on, e.g. `OSProvisioningTimedOut`.
    pub code: String,
    /// Cause and remedy.
    pub message: String,
}

impl Failure {
    /// A failure with code and message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// A transition that the present state does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {event} {what} that is {from}")]
pub struct InvalidTransition {
    /// The kind of thing, with its article: `an image version`.
    pub what: &'static str,
    /// The state it is in.
    pub from: &'static str,
    /// What was to happen.
    pub event: &'static str,
}

/// Where a resource stands. `F` is what is known about a failure (image templates have their own codes).
///
/// ```text
///             ┌──────────────▶ Failed ◀────────┐
///  Creating ──┴▶ Succeeded ──▶ Updating ───────┤     every state but Deleting ──▶ Deleting
///                    ▲             └──────────▶┴─▶ Canceled
///                    └─────────────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvisioningState<F = Failure> {
    /// Accepted; not usable yet.
    Creating,
    /// Usable; a change is being carried out.
    Updating,
    /// As asked for.
    Succeeded,
    /// The last change failed.
    Failed(F),
    /// Going away.
    Deleting,
    /// The last change was called off.
    Canceled,
}

impl<F> ProvisioningState<F> {
    /// The work in hand is done.
    ///
    /// # Errors
    /// Unless work was in hand (`Creating`, `Updating`).
    pub fn succeed(self) -> Result<Self, InvalidTransition> {
        if self.is_busy() { Ok(Self::Succeeded) } else { Err(self.refuse("complete")) }
    }

    /// The work in hand failed, or deleting did.
    ///
    /// # Errors
    /// Unless work was in hand (`Creating`, `Updating`, `Deleting`).
    pub fn fail(self, failure: F) -> Result<Self, InvalidTransition> {
        if self.is_busy() || matches!(self, Self::Deleting) {
            Ok(Self::Failed(failure))
        } else {
            Err(self.refuse("fail"))
        }
    }

    /// A change was accepted.
    ///
    /// # Errors
    /// While other work is in hand or the resource is being deleted.
    pub fn update(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Succeeded | Self::Failed(_) | Self::Canceled => Ok(Self::Updating),
            Self::Creating | Self::Updating | Self::Deleting => Err(self.refuse("update")),
        }
    }

    /// Deletion was accepted. Possible in every state but `Deleting` itself.
    ///
    /// # Errors
    /// When it is being deleted already.
    pub fn delete(self) -> Result<Self, InvalidTransition> {
        if matches!(self, Self::Deleting) { Err(self.refuse("delete")) } else { Ok(Self::Deleting) }
    }

    /// Whether a change is being carried out.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Creating | Self::Updating)
    }

    /// Whether nothing more will happen by itself.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed(_) | Self::Canceled)
    }

    /// ARM's word for the state.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::Updating => "Updating",
            Self::Succeeded => "Succeeded",
            Self::Failed(_) => "Failed",
            Self::Deleting => "Deleting",
            Self::Canceled => "Canceled",
        }
    }

    fn refuse(&self, event: &'static str) -> InvalidTransition {
        InvalidTransition { what: "a resource", from: self.name(), event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type State = ProvisioningState<Failure>;

    #[test]
    fn a_life() {
        let state = State::Creating.succeed().unwrap().update().unwrap();
        let state = state.fail(Failure::new("X", "y")).unwrap().update().unwrap().succeed().unwrap();
        let state = state.delete().unwrap();
        assert_eq!(
            state.clone().delete().unwrap_err().to_string(),
            "cannot delete a resource that is Deleting"
        );
        assert_eq!(state.update().unwrap_err().to_string(), "cannot update a resource that is Deleting");
    }

    #[test]
    fn a_final_state_takes_no_result() {
        assert!(State::Succeeded.succeed().is_err());
        assert!(State::Succeeded.fail(Failure::new("X", "y")).is_err());
        assert!(State::Updating.update().is_err());
    }
}
