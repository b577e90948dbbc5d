//! QEMU's command line from a [`MachineSpec`]: a pure function, so that tests can pin it.

use std::path::Path;

use serde_json::json;

use crate::{Accelerator, Firmware, MachineSpec};

/// UEFI code of the distribution's `ovmf` package.
pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Template of the UEFI variables.
pub(crate) const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// TCG's translation cache in MiB: without a bound it grows to 1 GiB and is most of a VM's memory.
const TCG_BUFFER_MIB: u32 = 256;
/// How long a lost block export may be away before the guest sees an IO error, in seconds.
const NBD_RECONNECT_S: u32 = 300;

/// The chassis tag by which guest agents recognise Azure (PROTOCOL.md, section 5).
const AZURE_CHASSIS: &str =
    "type=3,manufacturer=Microsoft Corporation,asset=7783-7084-3265-9085-8269-3286-77";
/// With no hypervisor bit this makes systemd see `microsoft`, which Debian's waagent unit asks for.
const AZURE_SYSTEM: &str =
    "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine,version=Hyper-V UEFI Release v4.1";

/// Name of the block node that the guest's disk device starts with.
pub(crate) const TOP_NODE: &str = "disk0";

/// Arguments for one machine.
pub(crate) fn arguments(spec: &MachineSpec) -> Vec<String> {
    let mut args = Args::default();
    args.flag("-nodefaults").flag("-no-user-config");
    args.pair("-name", &spec.name).pair("-display", "none").pair("-M", "q35,usb=off,vmport=off");
    args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    match spec.accelerator {
        Accelerator::Kvm => {
            args.pair("-accel", "kvm");
            args.pair("-cpu", "host,hv_relaxed,hv_vapic,hv_spinlocks=0x1fff,hv_time");
        }
        Accelerator::Tcg => {
            args.pair("-accel", &format!("tcg,thread=multi,tb-size={TCG_BUFFER_MIB}"));
            args.pair("-cpu", "max,hypervisor=off,la57=off");
        }
    }
    args.pair("-smp", &spec.vcpus.to_string()).pair("-m", &spec.memory_mib.to_string());
    args.pair("-uuid", &spec.smbios_uuid.to_string());
    args.pair("-smbios", AZURE_CHASSIS).pair("-smbios", AZURE_SYSTEM);
    if let Firmware::Uefi { vars } = &spec.firmware {
        args.json("-blockdev", file_node("ovmf-code", Path::new(OVMF_CODE), true));
        args.json("-blockdev", file_node("ovmf-vars", vars, false));
        args.pair("-machine", "pflash0=ovmf-code,pflash1=ovmf-vars");
    }
    disk(&mut args, spec);
    if let Some(media) = &spec.media {
        args.json("-blockdev", file_node("media", media, true));
        args.pair("-device", "virtio-scsi-pci,id=scsi0");
        args.pair("-device", "scsi-cd,id=cd0,drive=media,bus=scsi0.0");
    }
    args.json(
        "-netdev",
        json!({"type": "dgram", "id": "net0",
               "local": {"type": "unix", "path": spec.net.qemu},
               "remote": {"type": "unix", "path": spec.net.stack}}),
    );
    args.pair("-device", &format!("virtio-net-pci,id=nic0,netdev=net0,romfile=,mac={}", spec.mac));
    args.pair("-object", "rng-random,id=rng0,filename=/dev/urandom")
        .pair("-device", "virtio-rng-pci,rng=rng0");
    args.pair("-chardev", &format!("file,id=serial0,append=on,path={}", escape(&spec.serial_log)));
    args.pair("-serial", "chardev:serial0");
    args.pair("-chardev", &format!("socket,id=qmp0,server=on,wait=off,path={}", escape(&spec.qmp_socket)));
    args.pair("-mon", "chardev=qmp0,mode=control");
    if spec.incoming {
        args.pair("-incoming", "defer");
    }
    args.flag("-S");
    args.finish()
}

fn disk(args: &mut Args, spec: &MachineSpec) {
    args.json(
        "-blockdev",
        json!({"driver": "nbd", "node-name": "base", "read-only": true, "export": "",
               "server": {"type": "unix", "path": spec.disk.base_socket},
               "reconnect-delay": NBD_RECONNECT_S}),
    );
    let mut below = "base".to_owned();
    for (n, layer) in spec.disk.frozen.iter().enumerate() {
        let node = format!("frozen{n}");
        args.json("-blockdev", qcow2_node(&node, layer, Some(&below), true));
        below = node;
    }
    args.json("-blockdev", qcow2_node(TOP_NODE, &spec.disk.overlay, Some(&below), false));
    // A full host disk pauses the guest instead of corrupting its file system.
    args.pair(
        "-device",
        &format!(
            "virtio-blk-pci,id=osdisk,drive={TOP_NODE},bootindex=1,write-cache=on,werror=stop,rerror=stop"
        ),
    );
}

/// A qcow2 node; the chain is given explicitly and the backing name in the file is never read.
pub(crate) fn qcow2_node(node: &str, path: &Path, backing: Option<&str>, frozen: bool) -> serde_json::Value {
    json!({"driver": "qcow2", "node-name": node, "backing": backing, "read-only": frozen,
           "discard": "unmap", "detect-zeroes": if frozen { "off" } else { "unmap" },
           "file": {"driver": "file", "filename": path, "read-only": frozen, "discard": "unmap"}})
}

fn file_node(node: &str, path: &Path, read_only: bool) -> serde_json::Value {
    json!({"driver": "raw", "node-name": node, "read-only": read_only,
           "file": {"driver": "file", "filename": path, "read-only": read_only}})
}

/// QEMU's key=value options escape a comma by doubling it.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }
    fn pair(&mut self, flag: &str, value: &str) -> &mut Self {
        self.flag(flag).flag(value)
    }
    fn json(&mut self, flag: &str, value: serde_json::Value) -> &mut Self {
        self.pair(flag, &value.to_string())
    }
    fn finish(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskLayers, NetSockets};

    fn spec() -> MachineSpec {
        MachineSpec {
            name: "vm1".into(),
            smbios_uuid: uuid::Uuid::nil(),
            vcpus: 2,
            memory_mib: 1024,
            firmware: Firmware::Bios,
            accelerator: Accelerator::Tcg,
            disk: DiskLayers {
                base_socket: "nbd.sock".into(),
                frozen: vec!["/c/a.qcow2".into(), "/c/b,c.qcow2".into()],
                overlay: "disk.qcow2".into(),
            },
            media: None,
            net: NetSockets { qemu: "net-qemu.sock".into(), stack: "net-stack.sock".into() },
            mac: "00:22:48:00:00:01".into(),
            qmp_socket: "qmp.sock".into(),
            serial_log: "serial.log".into(),
            incoming: false,
        }
    }

    fn node(args: &[String], name: &str) -> serde_json::Value {
        args.iter()
            .filter_map(|arg| serde_json::from_str::<serde_json::Value>(arg).ok())
            .find(|value| value["node-name"] == name)
            .unwrap_or_else(|| panic!("no node {name}"))
    }

    #[test]
    fn the_chain_is_spelled_out_and_only_the_top_is_writable() {
        let args = arguments(&spec());
        assert_eq!(node(&args, "base")["read-only"], true);
        assert_eq!(node(&args, "frozen0")["backing"], "base");
        assert_eq!(node(&args, "frozen1")["backing"], "frozen0");
        assert_eq!(node(&args, "frozen1")["read-only"], true);
        assert_eq!(node(&args, "frozen1")["file"]["filename"], "/c/b,c.qcow2");
        assert_eq!(node(&args, "disk0")["backing"], "frozen1");
        assert_eq!(node(&args, "disk0")["read-only"], false);
    }

    #[test]
    fn a_saved_state_changes_nothing_but_incoming() {
        let fresh = arguments(&spec());
        let resumed = arguments(&MachineSpec { incoming: true, ..spec() });
        let extra: Vec<_> = resumed.iter().filter(|arg| !fresh.contains(arg)).collect();
        assert_eq!(extra, ["-incoming", "defer"]);
    }

    #[test]
    fn uefi_adds_code_and_its_own_variables() {
        let args = arguments(&MachineSpec { firmware: Firmware::Uefi { vars: "vars.fd".into() }, ..spec() });
        assert_eq!(node(&args, "ovmf-code")["read-only"], true);
        assert_eq!(node(&args, "ovmf-vars")["file"]["filename"], "vars.fd");
    }
}
