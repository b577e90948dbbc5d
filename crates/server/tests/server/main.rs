//! The service as clients meet it: a real server over HTTPS.

mod arm;
mod auth;
mod azurite;
mod blobs;
mod disks;
mod galleries;
mod moto;
mod platform_images;
mod python;
mod stores;
mod support;
mod templates;
mod virtual_machines;
