//! What makes actual state follow desired state, without input: at the start, and from time to time.

mod desired;
pub(crate) mod gc;
pub(crate) mod owners;
pub(crate) mod references;
pub(crate) mod runs;
pub(crate) mod virtual_machines;
