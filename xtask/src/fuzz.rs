//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, each for a few seconds, from seeds that qemu-img makes.
//!
//! The flags are those of cargo-fuzz but for the sanitizer, which needs a nightly compiler: the readers are safe Rust, so
//! that what can go wrong is a panic, a hang or too much memory, and libFuzzer sees those without. A stable compiler and
//! a C++ compiler (for libFuzzer) are all that it takes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Coverage for libFuzzer, and `cfg(fuzzing)`, which skips checksums.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// One input may take so long, and so much memory in one piece and in all (the fuzzer's own included).
const LIMITS: [&str; 3] = ["-timeout=10", "-malloc_limit_mb=256", "-rss_limit_mb=1024"];
const SECTOR: usize = 512;

/// A target, and the images that are its first inputs: format and options for qemu-img.
const TARGETS: [(&str, Seeds); 7] = [
    ("raw", Seeds::Sectors(&[("raw", &[])])),
    ("vhd", Seeds::Sectors(&[("vpc", &["subformat=dynamic"]), ("vpc", &["subformat=fixed,force_size=on"])])),
    ("vhdx", Seeds::Sectors(&[("vhdx", &["block_size=1M,log_size=1M"])])),
    (
        "qcow2",
        Seeds::Sectors(&[
            ("qcow2", &["cluster_size=4k"]),
            ("qcow2", &["compat=0.10,cluster_size=4k", "-c"]),
            ("qcow2", &["compression_type=zstd,cluster_size=4k", "-c"]),
            ("qcow2", &["extended_l2=on,cluster_size=16k"]),
        ]),
    ),
    ("vmdk", Seeds::Sectors(&[("vmdk", &["zeroed_grain=on"]), ("vmdk", &["subformat=streamOptimized"])])),
    ("descriptor", Seeds::Descriptors),
    ("packed", Seeds::Packed),
];

enum Seeds {
    /// Images as the list of their sectors.
    Sectors(&'static [(&'static str, &'static [&'static str])]),
    Descriptors,
    Packed,
}

/// Builds the targets and runs each for `seconds`; one that finds something fails, and says where the input is.
pub(crate) fn run(seconds: u32) -> anyhow::Result<()> {
    let folder = crate::root().join("fuzz");
    let triple = host()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With a target named, build scripts and macros do not get the flags.
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--bins", "--target", &triple, "--target-dir"])
        .arg(folder.join("target"))
        .current_dir(&folder)
        .env("RUSTFLAGS", RUSTFLAGS)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    let artifacts = folder.join("artifacts");
    std::fs::create_dir_all(&artifacts)?;
    for (name, seeds) in TARGETS {
        let corpus = folder.join("target/corpus").join(name);
        std::fs::create_dir_all(&corpus)?;
        write_seeds(&seeds, &corpus).with_context(|| format!("cannot make seeds for {name}"))?;
        println!("\n==> fuzz {name}: {seconds} s");
        let status = Command::new(folder.join("target").join(&triple).join("release").join(name))
            .args(LIMITS)
            .args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()])
            .args(["-seed=1", "-max_len=262144", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/{name}-", artifacts.display()))
            .arg(&corpus)
            .status()
            .with_context(|| format!("cannot start the target {name}"))?;
        if !status.success() {
            bail!("the target {name} found something ({status}); its input is in {}", artifacts.display());
        }
    }
    Ok(())
}

/// The compiler's own target.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn write_seeds(seeds: &Seeds, corpus: &Path) -> anyhow::Result<()> {
    let work = Work::new()?;
    match seeds {
        Seeds::Sectors(images) => {
            for (number, (format, options)) in images.iter().enumerate() {
                let image = work.image(format, options)?;
                std::fs::write(corpus.join(format!("seed-{number}")), as_sectors(&std::fs::read(&image)?))?;
                if *format == "vhdx" {
                    leave_log_open(&image)?;
                    std::fs::write(corpus.join("seed-open-log"), as_sectors(&std::fs::read(&image)?))?;
                }
            }
        }
        Seeds::Descriptors => {
            for (number, kind) in ["monolithicFlat", "twoGbMaxExtentSparse"].iter().enumerate() {
                let image = work.image("vmdk", &[&format!("subformat={kind}")])?;
                std::fs::copy(image, corpus.join(format!("seed-{number}")))?;
            }
        }
        Seeds::Packed => {
            for (number, packer) in ["gzip", "xz", "zstd"].iter().enumerate() {
                let output = Command::new(packer).args(["-c"]).arg(&work.raw).output();
                let output = output.with_context(|| format!("cannot start {packer}"))?;
                ensure!(output.status.success(), "{packer} failed");
                std::fs::write(
                    corpus.join(format!("seed-{number}")),
                    [&[number as u8], &output.stdout[..]].concat(),
                )?;
            }
        }
    }
    Ok(())
}

/// Makes a VHDX, and has a write to it fail between its log and its block allocation table, so that the log must be replayed.
fn leave_log_open(image: &Path) -> anyhow::Result<()> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "vhdx", "-o", "block_size=1M,log_size=1M"]).arg(image).arg("4M");
    ensure!(
        create.status().context("cannot start qemu-img")?.success(),
        "qemu-img could not make a vhdx image"
    );
    // The table as qemu-img lays it out behind a log of 1 MiB: sectors of 512 bytes.
    let table = 4096;
    let options = format!(
        "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={},file.inject-error.0.event=none,\
         file.inject-error.0.iotype=write,file.inject-error.0.sector={table},file.inject-error.0.errno=5",
        image.display()
    );
    let mut qemu = Command::new("qemu-io");
    let output = qemu.args(["--image-opts", &options, "-c", "write -P 7 0 64k"]).output();
    let output = output.context("cannot start qemu-io")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("Input/output error"), "qemu-io did not stop at the table: {said}");
    Ok(())
}

/// An image as the targets take it: its length in sectors, and each sector that is not zero behind its number.
fn as_sectors(image: &[u8]) -> Vec<u8> {
    let mut seed = (image.len().div_ceil(SECTOR) as u32).to_le_bytes().to_vec();
    for (number, sector) in image.chunks(SECTOR).enumerate().filter(|(_, s)| s.iter().any(|byte| *byte != 0))
    {
        seed.extend((number as u32).to_le_bytes());
        seed.extend(sector);
        seed.resize(seed.len() + SECTOR - sector.len(), 0);
    }
    seed
}

/// A folder with a small raw disk, removed at the end.
struct Work {
    folder: PathBuf,
    raw: PathBuf,
}

impl Work {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("tintype-fuzz-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let raw = folder.join("raw");
        // Made at once, so that dropping it removes the folder whatever comes next.
        let work = Self { folder, raw };
        let mut disk = vec![0; 300 << 10];
        disk[..16].fill(0x55);
        disk[200_000..200_700].copy_from_slice(&b"tintype".repeat(100));
        std::fs::write(&work.raw, disk)?;
        Ok(work)
    }

    fn image(&self, format: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
        let image = self.folder.join("image");
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", format]);
        if let Some((options, flags)) = options.split_first() {
            command.args(["-o", options]).args(flags);
        }
        let status = command.arg(&self.raw).arg(&image).status().context("cannot start qemu-img")?;
        ensure!(status.success(), "qemu-img could not make a {format} image");
        Ok(image)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("xtask: {} is left: {error}", self.folder.display());
        }
    }
}
