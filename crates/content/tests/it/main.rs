//! The store through its public API, with real files, real object stores and QEMU's own tools (which must be installed).

mod damage;
mod nbd;
mod store;
mod support;
