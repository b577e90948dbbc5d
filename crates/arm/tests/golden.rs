//! Wire forms against Microsoft's own examples and against recorded answers of real Azure.
//!
//! The data is not part of this repository. Without the folder (`TINTYPE_SHARED`, else `../shared` beside the
//! workspace) each test says so and passes; with it, each counts its cases and fails on none.

#[path = "golden/data.rs"]
mod data;
#[path = "golden/examples.rs"]
mod examples;
#[path = "golden/recordings.rs"]
mod recordings;
