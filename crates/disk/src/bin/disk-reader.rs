//! The sandboxed reader as a program of its own. The product runs its one binary (`tintype disk-reader`); this one lets
//! the tests of this crate, which lies below the product, drive a real process.

fn main() -> std::process::ExitCode {
    disk::sandbox::reader_main()
}
