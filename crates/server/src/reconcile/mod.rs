//! What makes actual state follow desired state, without input: at the start, and from time to time.

pub(crate) mod runs;
pub(crate) mod virtual_machines;
