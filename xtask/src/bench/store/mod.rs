//! `cargo xtask bench store`: the figures of the block store, beside their goals and beside other tools.
//!
//! ```text
//!   inputs ── two Debian disks, made once and kept in the cache
//!   lab    ── the program, a scratch folder, clocks
//!     │
//!   puts (with peers) · commit · ready · boot · export · memory · sparse · lineage      each gives rows
//!     │
//!   table  ── medians, goals, verdicts; or one JSON object
//! ```
//!
//! Everything goes through the program's command line, so that starting a process, opening a store and making the result
//! durable are part of each figure. What a put or a VM reads is on the disk or in memory when it begins (`lab::Caches`), the
//! same for every tool.

mod boot;
mod commit;
mod export;
mod inputs;
mod lab;
mod lineage;
mod memory;
mod nbd_client;
mod peers;
mod puts;
mod ready;
mod segments;
mod sparse;
mod table;

use std::path::PathBuf;

use anyhow::bail;

use inputs::Inputs;
use lab::Lab;
use table::{Row, Table};

/// A part of the bench.
struct Part {
    name: &'static str,
    run: fn(&Lab, &Inputs) -> anyhow::Result<Vec<Row>>,
}

const PARTS: [Part; 8] = [
    Part { name: "put", run: puts::run },
    Part { name: "commit", run: commit::run },
    Part { name: "ready", run: ready::run },
    Part { name: "boot", run: boot::run },
    Part { name: "export", run: export::run },
    Part { name: "memory", run: memory::run },
    Part { name: "sparse", run: sparse::run },
    Part { name: "lineage", run: lineage::run },
];

/// Measures the block store: time, bytes and memory of what `tintype store` does, beside the goals and
/// beside qemu-img, borg, restic, casync and cp where they are installed.
///
/// Needs root, mmdebstrap, QEMU and its tools. Inputs are made once, in ${TINTYPE_CACHE:-~/.cache/tintype}/bench;
/// the scratch folder beside them needs 8 GiB and is removed at the end.
///
/// Examples:
///   cargo xtask bench store
///   cargo xtask bench store --quick --only put,ready
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Once instead of five times, and 10 disks instead of 100.
    #[arg(long)]
    quick: bool,
    /// Parts to run, of: put, commit, ready, boot, export, memory, sparse, lineage.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Leave out the other tools, which take most of the time.
    #[arg(long)]
    without_peers: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The program to measure; built in release mode if it is not given.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(unknown) = arguments.only.iter().find(|name| !PARTS.iter().any(|part| part.name == **name)) {
        let known: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        bail!("there is no part `{unknown}`; there are {}", known.join(", "));
    }
    let lab = Lab::new(arguments)?;
    let inputs = Inputs::make_or_find(&lab)?;
    let mut table = Table::begin();
    for part in &PARTS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == part.name) {
            continue;
        }
        lab.say(&format!("part {}", part.name));
        // One part that cannot run (a tool is missing) takes none of the others with it.
        match (part.run)(&lab, &inputs) {
            Ok(rows) => table.add(rows),
            Err(error) => table.add(vec![Row::failed(part.name, &error)]),
        }
    }
    table.print(arguments.json);
    Ok(())
}
