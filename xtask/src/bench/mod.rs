//! Measurements. Each drives the release program from outside, as a person or a script would.

mod store;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    Store(store::Arguments),
}

pub(crate) fn run(bench: Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Store(arguments) => store::run(&arguments),
    }
}
