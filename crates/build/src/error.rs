//! Why a build failed, told so that the template's author knows what to change.

use std::fmt;
use std::time::Duration;

use vmhost::{MachineError, VmError};

use crate::ssh::SshError;

/// Lines of a failed step's output that the error keeps.
pub(crate) const TAIL_LINES_MAX: usize = 20;

/// Why a build ended without an image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A customizer, a validation or the deprovisioning failed.
    #[error("{0}")]
    Step(StepFailure),
    /// The source image did not become a machine that can be customized.
    #[error("the build VM did not get ready: {reason}")]
    Boot {
        /// What was waited for, what the guest said, and the end of its console.
        reason: String,
    },
    /// Somebody cancelled the run.
    #[error("the run was cancelled")]
    Cancelled,
    /// `buildTimeoutInMinutes` passed.
    #[error("the run did not finish within {} minutes (buildTimeoutInMinutes)", limit.as_secs() / 60)]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The VM's process.
    #[error("the build VM failed: {0}")]
    Vm(#[from] VmError),
    /// QEMU or its tools.
    #[error("the build VM could not be made: {0}")]
    Machine(#[from] MachineError),
    /// The connection to the guest.
    #[error("the connection to the build VM failed: {0}")]
    Ssh(#[from] SshError),
    /// The image store.
    #[error("the image could not be stored: {0}")]
    Store(#[from] content::Error),
    /// Files of the run.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as an infinitive.
        what: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// A step that ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure {
    /// Which list it stands in.
    pub stage: Stage,
    /// The step's name, or its position.
    pub step: String,
    /// Exit status; `None` when the command was killed or the connection broke.
    pub exit_status: Option<u32>,
    /// Last lines of output, both streams.
    pub last_lines: Vec<String>,
}

/// Where in a build a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `properties.customize`.
    Customizer,
    /// The hidden last step.
    Deprovision,
    /// `properties.validate.inVMValidations`.
    Validation,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Customizer => "customizer",
            Stage::Deprovision => "deprovision step",
            Stage::Validation => "validation",
        };
        write!(f, "{stage} '{}' ", self.step)?;
        match self.exit_status {
            Some(status) => write!(f, "exited with status {status}")?,
            None => f.write_str("ended without an exit status: it was killed, or the guest went away")?,
        }
        if !self.last_lines.is_empty() {
            write!(f, "; its last output:\n{}", self.last_lines.join("\n"))?;
        }
        Ok(())
    }
}

impl BuildError {
    /// Makes a [`BuildError::Io`] in `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
