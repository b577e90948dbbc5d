//! What can go wrong with a machine, as its users tell it apart.

use std::io;
use std::time::Duration;

/// An error of the machine layer. The text names the cause; `source` keeps the chain.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU is not installed or not executable.
    #[error("cannot start {}: install the distribution's qemu-system-x86 package", crate::QEMU_SYSTEM)]
    QemuMissing {
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// QEMU ended when it should not have.
    #[error("QEMU ended unexpectedly ({status}): {stderr}")]
    Exited {
        /// Exit status or signal.
        status: String,
        /// The last lines that QEMU wrote to standard error.
        stderr: String,
    },
    /// QEMU refused a QMP command.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Qmp {
        /// The QMP command.
        command: String,
        /// QMP error class.
        class: String,
        /// QMP error text.
        desc: String,
    },
    /// The QMP connection broke or spoke something else.
    #[error("the QMP connection is broken while {during}")]
    QmpConnection {
        /// What was going on.
        during: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A saved machine state is damaged, was truncated, or is not ours.
    #[error("the saved machine state is unusable: {reason}")]
    State {
        /// Why.
        reason: String,
    },
    /// An operating-system error.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as an infinitive.
        what: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl MachineError {
    /// Makes an [`MachineError::Io`] in `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
