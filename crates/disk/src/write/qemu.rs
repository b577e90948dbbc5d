//! VHDX, qcow2 and VMDK, written by qemu-img from a sparse raw copy. Formats are always named, and so is no option that a
//! file could choose.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::{Target, temporary_beside, write_raw};
use crate::{BlockSource, Format, Result};

/// Of qemu-img's complaint, what goes into a message.
const MAX_COMPLAINT: u64 = 2048;

pub(super) fn convert(
    source: &dyn BlockSource,
    target: &Target<'_>,
    format: Format,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = source.logical_size();
    let raw = Target { path: target.path, partial: temporary_beside(target.path)? };
    // The raw copy is the first half of the work.
    write_raw(source, &raw, &mut |done| progress(done / 2))?;

    let options = match format {
        Format::Vhdx => "subformat=dynamic",
        Format::Vmdk => "subformat=monolithicSparse",
        _ => "compat=1.1",
    };
    let child = Command::new("qemu-img")
        .args(["convert", "-p", "-f", "raw", "-O", format.qemu_name(), "-o", options])
        .arg(absolute(raw.partial.path()).map_err(|source| target.io("find", source))?)
        .arg(absolute(target.partial.path()).map_err(|source| target.io("find", source))?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| {
            target.refused(format!("qemu-img is needed for {format}, and does not start: {source}"))
        })?;
    let mut child = Ended(child);
    if let Some(stdout) = child.0.stdout.take() {
        report(stdout, &mut |percent| progress(size / 2 + (size - size / 2) / 100 * percent));
    }
    let mut complaint = Vec::new();
    if let Some(stderr) = child.0.stderr.take() {
        stderr
            .take(MAX_COMPLAINT)
            .read_to_end(&mut complaint)
            .map_err(|source| target.io("convert", source))?;
    }
    let status = child.0.wait().map_err(|source| target.io("convert", source))?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint);
        return Err(target.refused(format!("qemu-img ended with {status}: {}", complaint.trim())));
    }
    progress(size);
    Ok(())
}

/// qemu-img takes what stands before a colon for a protocol, but not in an absolute path.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

/// Reads `    (12.34/100%)\r` again and again, and hands on the whole percents.
fn report(mut stdout: ChildStdout, progress: &mut dyn FnMut(u64)) {
    let mut buf = [0; 512];
    // An error here means that there is no more to read; the exit status tells the rest.
    while let Ok(len @ 1..) = stdout.read(&mut buf) {
        let text = String::from_utf8_lossy(&buf[..len]);
        let last = text.rsplit('(').next().unwrap_or_default();
        if let Some(percent) = last.split('.').next().and_then(|number| number.parse::<u64>().ok()) {
            progress(percent.min(100));
        }
    }
}

/// Ends qemu-img when we give up before it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only for a process that has been waited for already.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.0.wait();
    }
}
