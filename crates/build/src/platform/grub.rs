//! GRUB for BIOS, embedded by hand: the host need not have GRUB, loop devices, or be asked to mount anything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{BIOS_BOOT, SECTOR};

/// GRUB's boot sector keeps these to itself; the partition table's part of the sector begins at 440.
const BOOT_CODE_END: usize = 440;
/// Where the boot sector holds the place of the core image, an LBA.
const CORE_LBA_AT: usize = 0x5c;
/// Two no-ops here make it read from the drive that the BIOS booted from.
const DRIVE_CHECK_AT: usize = 0x66;
/// The core image's own list of blocks, at the end of its first sector.
const BLOCK_LIST_AT: usize = 0x1f4;
/// Segment at which the rest of the core image is loaded.
const CORE_SEGMENT: u16 = 0x820;

/// Writes GRUB's boot sector around the protective MBR, and its core image into the BIOS-boot partition.
pub(super) fn embed(disk: &File, boot: &[u8], core: &[u8]) -> io::Result<()> {
    let sector = SECTOR as usize;
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    if boot.len() != sector {
        return Err(invalid("GRUB's boot.img is not one sector"));
    }
    if core.len() <= sector || core.len() as u64 > BIOS_BOOT.bytes {
        return Err(invalid("GRUB's core image does not fit its partition"));
    }
    let lba = BIOS_BOOT.start / SECTOR;
    let mut first = vec![0; sector];
    disk.read_exact_at(&mut first, 0)?;
    first[..BOOT_CODE_END].copy_from_slice(&boot[..BOOT_CODE_END]);
    first[CORE_LBA_AT..CORE_LBA_AT + 8].copy_from_slice(&lba.to_le_bytes());
    first[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].copy_from_slice(&[0x90, 0x90]);
    let mut core = core.to_vec();
    core.resize(core.len().next_multiple_of(sector), 0);
    let rest =
        u16::try_from(core.len() / sector - 1).map_err(|_| invalid("GRUB's core image is too large"))?;
    core[BLOCK_LIST_AT..BLOCK_LIST_AT + 8].copy_from_slice(&(lba + 1).to_le_bytes());
    core[BLOCK_LIST_AT + 8..BLOCK_LIST_AT + 10].copy_from_slice(&rest.to_le_bytes());
    core[BLOCK_LIST_AT + 10..BLOCK_LIST_AT + 12].copy_from_slice(&CORE_SEGMENT.to_le_bytes());
    disk.write_all_at(&first, 0)?;
    disk.write_all_at(&core, BIOS_BOOT.start)
}
