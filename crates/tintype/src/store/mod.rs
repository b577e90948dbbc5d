//! `tintype store`: work on a store of images without a server. A store describes itself, so its place is all that these
//! commands need.
//!
//! What a person reads goes to standard output as text, or as one JSON object with `--json`; progress goes to standard
//! error when that is a terminal. Exit status: 0 done, 1 failed (or damage was found), 2 wrong usage.

mod export_nbd;
mod format;
mod gc;
mod get;
mod images;
mod output;
mod place;
mod put;
mod raw;
mod replicate;
mod stats;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use output::Output;

/// Looks after a store of images: puts disks in, gets them out, replicates, verifies, frees space.
///
/// A store is a folder, or a prefix of a bucket: /path, file:///path, s3://bucket/prefix,
/// az://account/container/prefix, gs://bucket/prefix. The commands work without a server. A store that a running server uses is only read: what would change it is refused, and the
/// message says how to ask the server for the same.
///
/// Exit status: 0 done, 1 failed or damage found, 2 wrong usage.
///
/// Examples:
///   tintype store put disk.raw --region /srv/images
///   tintype store ls --region /srv/images
///   tintype store get MANIFEST copy.raw --region /srv/images --format raw
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object on standard output instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Put(put::Arguments),
    Get(get::Arguments),
    Replicate(replicate::Arguments),
    Ls(images::Ls),
    Rm(images::Rm),
    Stats(stats::Arguments),
    Verify(verify::Arguments),
    Gc(gc::Arguments),
    ExportNbd(export_nbd::Arguments),
}

/// How a command that ran to its end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Done,
    /// It did its work and found damage.
    Damaged,
}

pub(crate) fn main(arguments: Arguments) -> ExitCode {
    let output = Output { json: arguments.json };
    match crate::block_on(interruptible(run(arguments.command, output))) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Damaged) => ExitCode::FAILURE,
        Err(error) => crate::failed(&error),
    }
}

async fn run(command: Command, output: Output) -> anyhow::Result<Ending> {
    match command {
        Command::Put(arguments) => put::run(arguments, output).await,
        Command::Get(arguments) => get::run(arguments, output).await,
        Command::Replicate(arguments) => replicate::run(arguments, output).await,
        Command::Ls(arguments) => images::ls(arguments, output).await,
        Command::Rm(arguments) => images::rm(arguments, output).await,
        Command::Stats(arguments) => stats::run(arguments, output).await,
        Command::Verify(arguments) => verify::run(arguments, output).await,
        Command::Gc(arguments) => gc::run(arguments, output).await,
        Command::ExportNbd(arguments) => export_nbd::run(arguments, output).await,
    }
}

/// Drops the work on Ctrl-C, so that what it had not finished is removed. `export-nbd` listens for itself, and first.
async fn interruptible(work: impl Future<Output = anyhow::Result<Ending>>) -> anyhow::Result<Ending> {
    tokio::select! {
        biased;
        result = work => result,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; nothing of it is visible, and it can be run again"),
    }
}
