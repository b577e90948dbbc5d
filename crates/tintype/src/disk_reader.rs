//! `tintype disk-reader`: the confined process that parses a disk file. This program starts itself so; people have no use
//! for it.

use std::process::ExitCode;

/// Reads the disk whose descriptors come over standard input, for the process on its other end.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn main(Arguments {}: Arguments) -> ExitCode {
    disk::sandbox::reader_main()
}
