//! A vhd disk, as a list of sectors.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::sectors(disk::Format::Vhd, data));
