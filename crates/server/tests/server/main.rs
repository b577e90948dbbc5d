//! The service as clients meet it: a real server over HTTPS.

mod arm;
mod auth;
mod disks;
mod blobs;
mod galleries;
mod platform_images;
mod python;
mod support;
mod templates;
mod virtual_machines;
