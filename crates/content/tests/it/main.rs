//! The store through its public API, with real files, real object stores and QEMU's own tools (which must be installed).

mod damage;
mod gc;
mod nbd;
mod repair;
mod schedules;
mod faults;
mod faulty;
mod remote;
mod sealed;
mod servers;
mod store;
mod support;
