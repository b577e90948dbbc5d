//! The service as clients meet it: a real server over HTTPS.

mod arm;
mod auth;
mod galleries;
mod platform_images;
mod stores;
mod support;
mod templates;
mod virtual_machines;
