//! `Microsoft.Compute/disks` and `Microsoft.Compute/snapshots`, and the access that both grant.
//!
//! The two differ in a handful of properties ([`shape`]), so each function takes the kind.

mod access;
mod parse;
mod render;
mod shape;

pub use access::{AccessRequest, parse_access, render_access};
pub use parse::parse;
pub use render::{Form, render};

#[cfg(test)]
mod tests;
