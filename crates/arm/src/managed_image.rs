//! `Microsoft.Compute/images`: managed images.

mod parse;
mod render;
mod shape;

pub use parse::parse;
pub use render::render;

#[cfg(test)]
mod tests;
