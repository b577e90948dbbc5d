//! Tintype: Azure's VM image pipeline as one program that anyone can run.

mod completions;
mod demo;
mod disk_reader;
mod serve;
mod store;
mod vmhost;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

/// Files that this program may have open at a time, if the system lets it.
const MAX_DESCRIPTORS: u64 = 16_384;

/// Azure's VM image pipeline as one program: image templates, galleries and VMs behind the same REST API.
///
/// `az` and the SDKs are the command line for the API; this program runs the service and does what no API
/// call can.
#[derive(Parser)]
#[command(name = "tintype", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Demo(demo::Arguments),
    Store(store::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Vmhost(vmhost::Arguments),
    #[command(hide = true)]
    DiskReader(disk_reader::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_descriptor_limit();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("TINTYPE_LOG")
                .unwrap_or_else(|_| EnvFilter::new(cli.command.log_level())),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let result = match cli.command {
        Command::Serve(arguments) => block_on(serve::run(arguments)),
        Command::Vmhost(arguments) => block_on(vmhost::run(arguments)),
        Command::Demo(arguments) => return demo::main(arguments),
        Command::Store(arguments) => return store::main(arguments),
        Command::Completions(arguments) => return completions::main::<Cli>(&arguments),
        Command::DiskReader(arguments) => return disk_reader::main(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

impl Command {
    /// What is logged unless `TINTYPE_LOG` says otherwise. A command that a person waits for says what went wrong, no more.
    fn log_level(&self) -> &'static str {
        match self {
            Command::Store(_) | Command::Completions(_) => "warn",
            _ => "info,sqlx=warn",
        }
    }
}

/// Says why the program failed. A cause that the message above it repeats is left out.
fn failed(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("tintype: {text}");
    ExitCode::FAILURE
}

/// The usual soft limit of 1024 is for programs that use `select`; the block cache keeps a file open for each MiB.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// The future is polled on the main thread: QEMU dies with the thread that spawned it, so a vmhost must
/// spawn it from the one thread that lives as long as the process.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}
