//! How long a VM takes from the start of its process to its agent's report, with its disk read lazily from a folder store,
//! beside the same VM whose disk lies on a local raw file. All caches are cold.
//!
//! Both are `tintype vmhost` on the same specification, so that network, provisioning media, firmware and report are the
//! same. The second finds a QEMU in front of the real one that puts the raw file in the export's place and hands everything
//! else on.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::inputs::Inputs;
use super::lab::{Lab, Running, drop_caches, tool};
use super::table::{Row, median};

const BOOTS: usize = 3;
const QEMU: &str = "qemu-system-x86_64";
/// Everywhere the same, and slower: a working KVM would leave the disk a larger share.
const ACCELERATOR: &str = "tcg";
const MEMORY_MIB: u32 = 2048;
const BLOCK_CACHE_BYTES: u64 = 8 << 30;
/// A guest that has not reported by then will not.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// A bench that is killed leaves no VM.
const LEASE_S: u64 = 5;

/// The QEMU in front of the real one: `{base}` is a block node, `{qemu}` the real one's path.
const FRONT: &str = r#"#!/bin/sh
left=$# replaced=0
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    case $argument in
        *'"driver":"nbd"'*) argument='{base}' replaced=$((replaced + 1)) ;;
    esac
    set -- "$@" "$argument"
    left=$((left - 1))
done
if [ "$replaced" != 1 ]; then
    echo "the bench found $replaced exports among QEMU's arguments" >&2
    exit 1
fi
exec '{qemu}' "$@"
"#;

pub(super) fn run(lab: &Lab, _: &Inputs) -> anyhow::Result<Vec<Row>> {
    let image = bootable(lab)?;
    let folder = lab.fresh("boot")?;
    let raw = folder.join("disk.raw").display().to_string();
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &image.display().to_string(), &raw])?;
    let region = folder.join("west").display().to_string();
    let (_, put) = lab.store(&["put", &raw, "--region", &region])?;
    let manifest = put["manifest"].as_str().context("a put without a manifest")?;
    let disk_bytes = put["logical_bytes"].as_u64().context("a put without a size")?;
    let front = front(&folder, &raw)?;
    let (mut lazy, mut local) = (Vec::new(), Vec::new());
    for turn in 0..lab.boots(BOOTS) {
        for (name, path, times) in [("lazy", None, &mut lazy), ("local", Some(front.as_str()), &mut local)] {
            lab.say(&format!("boot, {name} disk, turn {}", turn + 1));
            let dir = lab.fresh("boot-vm")?;
            let spec = spec(&dir, &region, manifest, disk_bytes);
            fs::write(dir.join("spec.json"), spec.to_string()).context("cannot write a specification")?;
            times.push(boot(lab, &dir, path).with_context(|| format!("the VM with the {name} disk"))?);
        }
    }
    lab.fresh("boot-vm")?;
    lab.fresh("boot")?;
    let (lazy_s, local_s) = (median(&lazy), median(&local));
    Ok(vec![Row::goal(
        &format!(
            "boot to ready over the lazy disk, all caches cold, {ACCELERATOR}, median of {}",
            lazy.len()
        ),
        format!("{lazy_s:.1} s, {:.2} × a local raw file's {local_s:.1} s", lazy_s / local_s),
        "1.2 ×",
        lazy_s <= 1.2 * local_s,
        json!({ "lazy_s": lazy, "local_s": local }),
    )])
}

/// The catalogue's Debian as a disk that boots, from where the pipeline's test keeps it.
fn bootable(lab: &Lab) -> anyhow::Result<PathBuf> {
    let folder = lab.cache().with_file_name("images");
    let listing = fs::read_dir(&folder).into_iter().flatten().flatten();
    let disks =
        listing.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "qcow2"));
    let newest = disks.max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok());
    newest.with_context(|| {
        format!("no bootable disk in {}: `cargo test -p tintype --test pipeline` makes one", folder.display())
    })
}

/// A folder with the QEMU that takes `raw` for the export, in front of the usual ones.
fn front(folder: &Path, raw: &str) -> anyhow::Result<String> {
    let path = std::env::var("PATH").context("no PATH")?;
    let real = std::env::split_paths(&path).map(|folder| folder.join(QEMU)).find(|file| file.is_file());
    let real = real.with_context(|| format!("no {QEMU}: install qemu-system-x86"))?;
    let base = json!({"driver": "raw", "node-name": "base", "read-only": true,
                      "file": {"driver": "file", "filename": raw, "read-only": true}});
    let text = FRONT.replace("{base}", &base.to_string()).replace("{qemu}", &real.display().to_string());
    let folder = folder.join("bin");
    fs::create_dir(&folder).context("cannot make a folder")?;
    let file = folder.join(QEMU);
    fs::write(&file, text).context("cannot write a script")?;
    fs::set_permissions(&file, Permissions::from_mode(0o755)).context("cannot make a script executable")?;
    Ok(format!("{}:{path}", folder.display()))
}

/// Boots the VM of a directory to its agent's report; the wall time of that, from the start of its process.
fn boot(lab: &Lab, dir: &Path, path: Option<&str>) -> anyhow::Result<f64> {
    let log = fs::File::create(dir.join("vmhost.log")).context("cannot make a log")?;
    let mut command = lab.vmhost(dir);
    command.stderr(log);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    drop_caches()?;
    let started = Instant::now();
    let mut vm = Running::start(&mut command)?;
    let watched = watch(&mut vm, dir, started);
    // It ends by itself when it was asked; `vm` ends it otherwise.
    if watched.is_ok() {
        let mut answer = ask(dir, "power_off")?;
        answer.read_line(&mut String::new()).context("cannot end the VM")?;
    }
    watched.with_context(|| {
        let log = fs::read_to_string(dir.join("vmhost.log")).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    })
}

fn watch(vm: &mut Running, dir: &Path, started: Instant) -> anyhow::Result<f64> {
    while !dir.join("control.sock").exists() {
        ensure!(vm.child.try_wait()?.is_none(), "its process ended at once");
        ensure!(started.elapsed() < CONTROL_TIMEOUT, "its process does not answer");
        std::thread::sleep(POLL);
    }
    let _alive = ask(dir, "keep_alive")?;
    for line in ask(dir, "watch")?.lines() {
        let line: Value = serde_json::from_str(&line.context("cannot read its status")?)?;
        let status = &line["status"];
        match (status["provisioning"]["provisioning"].as_str(), status["phase"]["phase"].as_str()) {
            (Some("ready"), _) => return Ok(started.elapsed().as_secs_f64()),
            (Some("failed"), _) | (_, Some("ended" | "disk_error")) => bail!("it failed: {status}"),
            _ => {}
        }
    }
    bail!("it ended before its agent reported")
}

fn ask(dir: &Path, request: &str) -> anyhow::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(dir.join("control.sock")).context("cannot connect to the VM")?;
    stream.set_read_timeout(Some(READY_TIMEOUT)).context("cannot bound a wait")?;
    writeln!(stream, "{}", json!({ "request": request })).context("cannot ask the VM")?;
    Ok(BufReader::new(stream))
}

/// What the server writes for a VM (`crates/vmhost/src/spec.rs`), with a lease.
fn spec(dir: &Path, region: &str, manifest: &str, disk_bytes: u64) -> Value {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "lifetime": { "leased": { "lease_s": LEASE_S } },
        "identity": {
            "vm_id": "b0010682-53be-4c97-b76d-be7f6f8fc137",
            "name": "bench",
            "resource_id": "/subscriptions/bench/resourceGroups/bench/providers/Microsoft.Compute/virtualMachines/bench",
            "subscription_id": "bench",
            "resource_group": "bench",
            "location": "west",
            "vm_size": "Standard_B2s",
            "hostname": "bench",
            "admin_username": "azureuser",
            "disable_password_authentication": true,
            "os_disk": { "name": "bench_OsDisk_1", "size_gb": disk_bytes.div_ceil(1 << 30) },
            "mac": "00:22:48:f8:d6:04",
            "container_id": "e27951f5-8d0f-47b0-804d-2dcdf168b8fb",
            "instance_id": "0ebceeac-e60b-4771-a973-9129ce013632._bench",
            "deployment_id": "e322a3ee-848a-4257-99a9-f355e7801222",
            "generation": "V2",
            "provision_guest_agent": true,
        },
        "base": {
            "stores": [region],
            "manifest": manifest,
            "cache_dir": dir.join("blocks"),
            "cache_bytes_max": BLOCK_CACHE_BYTES,
        },
        "frozen": [],
        "overlay": "disk.qcow2",
        "disk_bytes": disk_bytes,
        "vcpus": cores.min(2),
        "memory_mib": MEMORY_MIB,
        "accelerator": ACCELERATOR,
        "outbound": { "allow": [], "resolvers": [] },
        "resume": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The front hands on everything but the export's node, and refuses arguments in which there is none.
    #[test]
    fn only_the_export_is_replaced() {
        let text = FRONT.replace("{base}", "RAW").replace("{qemu}", "/bin/echo");
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new("sh");
            let output = command.arg("-c").arg(&text).arg("front").args(arguments).output().unwrap();
            (output.status.success(), String::from_utf8(output.stdout).unwrap())
        };
        let node = r#"{"driver":"nbd","node-name":"base"}"#;
        assert_eq!(run(&["-a", node, "b  c"]), (true, "-a RAW b  c\n".to_owned()));
        assert!(!run(&["-a"]).0);
    }
}
