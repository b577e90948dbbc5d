//! The store through its public API, with real files, real object stores and QEMU's own tools (which must be installed).

mod damage;
mod faults;
mod faults_away;
mod faults_upkeep;
mod faulty;
mod full;
mod gc;
mod kill;
mod nbd;
mod remote;
mod repair;
mod schedules;
mod sealed;
mod sealed_cache;
mod servers;
mod store;
mod support;
