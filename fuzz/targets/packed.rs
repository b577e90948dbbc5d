//! A packed raw disk: a byte that names the packing, and the data.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk_fuzz::packed(data));
