//! The stages of CI, in the order in which they fail fastest.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

/// Name and arguments of each cargo call.
const STAGES: [(&str, &[&str]); 5] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    ("documentation", &["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]),
    ("build", &["test", "--workspace", "--locked", "--no-run"]),
    ("tests", &["test", "--workspace", "--locked", "--no-fail-fast"]),
];

/// How long each fuzz target runs, the last stage: a minute for all.
const FUZZ_SECONDS: u32 = 8;

/// The documentation is for maintainers and has the private items: links to them are wanted.
const RUSTDOCFLAGS: &str = "-D warnings -A rustdoc::private-intra-doc-links";

pub(crate) fn run() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut times = Vec::new();
    for (name, arguments) in STAGES {
        println!("\n==> {name}: cargo {}", arguments.join(" "));
        let started = Instant::now();
        let status = Command::new(&cargo)
            .args(arguments)
            .current_dir(crate::root())
            .env("RUSTDOCFLAGS", RUSTDOCFLAGS)
            .status()
            .with_context(|| format!("cannot start cargo for {name}"))?;
        let seconds = started.elapsed().as_secs_f64();
        times.push((name, seconds));
        if !status.success() {
            bail!("{name} failed after {seconds:.0} s");
        }
    }
    println!("\n==> fuzzing: {FUZZ_SECONDS} s each target");
    let started = Instant::now();
    crate::fuzz::run(FUZZ_SECONDS)?;
    times.push(("fuzzing", started.elapsed().as_secs_f64()));
    println!("\nAll stages passed:");
    for (name, seconds) in times {
        println!("  {name:<14} {seconds:>6.0} s");
    }
    Ok(())
}
