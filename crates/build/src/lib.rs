//! From a source image to a new one: boot, customize over SSH, deprovision, commit, validate.
//!
//! ```text
//!  BuildRequest ─► plan (keys) ─► resume at the last usable step, or boot
//!        for each customizer:  run over SSH ─► freeze disk + machine state ─► step cache
//!        deprovision ─► power off ─► commit the changed clusters ─► validate in a fresh VM ─► BuildOutput
//! ```
//!
//! A run owns one directory. Everything temporary lives below it, its VMs included, so undoing a run after
//! any crash is: end the VMs found there, drop the run's references in the store, remove the directory.
//! The crate knows nothing of ARM or of databases: the server says what to build and hears events.

mod cache;
mod deprovision;
mod error;
mod event;
mod explain;
mod guest_setup;
mod key;
pub mod platform;
mod request;
mod run;
mod ssh;
#[cfg(test)]
mod testing;
mod undo;
mod validate;
mod vm;

pub use cache::{CacheLimits, StepCache};
pub use error::BuildError;
pub use event::{BuildEvent, Events, Phase, Stream};
pub use request::{BaseImage, BuildOutput, BuildRequest, Host, Reuse, Step, StepAction, StepReport};
pub use run::run;
pub use ssh::{ExecOutput, SshError, SshKey, SshSession};
pub use undo::undo_run;
