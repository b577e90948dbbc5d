//! Platform images: the catalogue that says how each comes to be, and the making of them.
//!
//! Azure has a marketplace; here `catalog/*.toml` says for each publisher, offer and sku whether its disk is
//! bootstrapped from a distribution's packages or downloaded. An image is made once, on first use.

mod bootstrap;
mod catalog;
mod grub;
mod layout;

pub use bootstrap::bootstrap;
pub use catalog::{Bootstrap, Catalog, CatalogError, Download, DownloadFormat, PlatformImage, Recipe};
