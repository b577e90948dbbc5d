//! `Microsoft.Compute/galleries/images/versions`.

mod parse;
mod render;
mod shape;

pub use parse::parse;
pub use render::{Expand, render};

#[cfg(test)]
mod tests;
