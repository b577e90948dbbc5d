//! The service as clients meet it: a real server over HTTPS.

mod arm;
mod auth;
mod support;
