//! `tintype completions`: what a shell needs to complete our commands.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// Prints a script that completes tintype's commands and options in a shell.
///
/// Examples:
///   source <(tintype completions bash)
///   tintype completions zsh > ~/.zfunc/_tintype
///   tintype completions fish > ~/.config/fish/completions/tintype.fish
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn main<C: CommandFactory>(arguments: &Arguments) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut C::command(), "tintype", &mut script);
    match std::io::Write::write_all(&mut std::io::stdout().lock(), &script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::failed(&anyhow::Error::new(error).context("cannot print the script")),
    }
}
