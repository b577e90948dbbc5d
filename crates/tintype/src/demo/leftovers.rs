//! Counts what is left, by looking at the machine and the API. Nothing here is shared with the code that
//! cleans up.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::arm::{Arm, COMPUTE, GALLERY, IMAGE_BUILDER, RESOURCES};
use super::scene::Scene;

/// Processes that work in the demo's folder or were given a path in it; not this one and those that called it.
pub(super) fn count_processes(dir: &Path) -> anyhow::Result<usize> {
    let callers = callers();
    let mut left = 0;
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if callers.contains(&pid) {
            continue;
        }
        // A process may end while it is looked at.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if cwd.starts_with(dir) || command.split('\0').any(|argument| Path::new(argument).starts_with(dir)) {
            eprintln!("left over: process {pid}: {}", command.replace('\0', " "));
            left += 1;
        }
    }
    Ok(left)
}

/// This process, its parent, and so on.
fn callers() -> Vec<u32> {
    let mut chain = vec![std::process::id()];
    while let Some(pid) = chain.last()
        && let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status"))
        && let Some(parent) = status.lines().find_map(|line| line.strip_prefix("PPid:"))
        && let Ok(parent @ 1..) = parent.trim().parse()
    {
        chain.push(parent);
    }
    chain
}

/// Sockets and disks anywhere in the folder, and anything in the folders of runs, VMs and staging groups.
/// The step cache is meant to stay.
pub(super) fn count_files(dir: &Path) -> anyhow::Result<usize> {
    use std::os::unix::fs::FileTypeExt;
    let data = dir.join("data");
    let mut left = 0;
    for path in files(&data)? {
        if path.starts_with(data.join("step-cache")) {
            continue;
        }
        let socket = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        let disk = path.extension().is_some_and(|ending| ending == "qcow2" || ending == "raw");
        let working =
            ["runs", "vms", "staging", "scratch"].iter().any(|name| path.starts_with(data.join(name)));
        if socket || disk || working {
            eprintln!("left over: {}", path.display());
            left += 1;
        }
    }
    Ok(left)
}

/// Everything below a folder that is not a folder. Files that go away meanwhile are not there.
pub(super) fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(format!("cannot list {}", folder.display())),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

/// What the API still lists.
pub(super) async fn count_resources(arm: &Arm, scene: &Scene) -> anyhow::Result<usize> {
    let subscription = format!("/subscriptions/{}", arm.subscription);
    let lists = [
        (format!("{subscription}/resourceGroups"), RESOURCES),
        (format!("{subscription}/providers/Microsoft.Compute/virtualMachines"), COMPUTE),
        (format!("{subscription}/providers/Microsoft.Compute/galleries"), GALLERY),
        (format!("{subscription}/providers/Microsoft.VirtualMachineImages/imageTemplates"), IMAGE_BUILDER),
    ];
    let mut left = 0;
    for (path, version) in lists {
        let list = arm.get(&path, version).await?;
        let items = list["value"].as_array().map(Vec::as_slice).unwrap_or_default();
        for item in items {
            eprintln!("left over: {}", item["id"].as_str().unwrap_or(&scene.group));
        }
        left += items.iter().filter(|item| **item != Value::Null).count();
    }
    Ok(left)
}
