//! A VMDK's text that names other files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::descriptor(data));
