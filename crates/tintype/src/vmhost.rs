//! `tintype vmhost`: the process of one VM. The server starts it; people have no use for it.

use std::path::PathBuf;

use anyhow::Context;

/// Runs the VM in a directory until it ends.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The VM's directory, with its spec.json.
    dir: PathBuf,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    ::vmhost::run(&arguments.dir)
        .await
        .with_context(|| format!("the VM directory {} cannot be used", arguments.dir.display()))
}
