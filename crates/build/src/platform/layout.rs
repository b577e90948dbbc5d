//! The disk's partitions: GPT with a BIOS-boot partition, an ESP and a root, at fixed places.
//!
//! Numbers 14 and 15 for the boot partitions and 1 for the root are what Azure's Debian and Ubuntu images
//! use, so that growing the root is growing the last partition.

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) number: u32,
    /// `sgdisk`'s type code.
    pub(super) type_code: &'static str,
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// GRUB's core image, without a file system.
pub(super) const BIOS_BOOT: Partition =
    Partition { number: 14, type_code: "ef02", start: MIB, bytes: 3 * MIB };
/// The EFI system partition.
pub(super) const ESP: Partition =
    Partition { number: 15, type_code: "ef00", start: 4 * MIB, bytes: 64 * MIB };

/// The root: the rest of the disk but for the last mebibyte, where the second GPT lives.
pub(super) fn root(disk_bytes: u64) -> Partition {
    let start = ESP.start + ESP.bytes;
    Partition { number: 1, type_code: "8304", start, bytes: disk_bytes - MIB - start }
}

/// Arguments by which `sgdisk` makes the table.
pub(super) fn sgdisk_arguments(disk_bytes: u64) -> Vec<String> {
    let mut arguments = Vec::new();
    for partition in [BIOS_BOOT, ESP, root(disk_bytes)] {
        let Partition { number, type_code, start, bytes } = partition;
        let last = (start + bytes) / SECTOR - 1;
        arguments.extend(["-n".to_owned(), format!("{number}:{}:{last}", start / SECTOR)]);
        arguments.extend(["-t".to_owned(), format!("{number}:{type_code}")]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_on_mebibytes_and_leave_room_for_both_tables() {
        let disk = 4 << 30;
        let root = root(disk);
        assert_eq!(BIOS_BOOT.start + BIOS_BOOT.bytes, ESP.start);
        assert_eq!(ESP.start + ESP.bytes, root.start);
        assert_eq!(root.start + root.bytes + MIB, disk);
        assert_eq!(sgdisk_arguments(disk)[1], "14:2048:8191");
    }
}
