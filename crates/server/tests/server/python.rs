//! Azure's own clients, unmodified: a virtual environment for each package and version, below the tests' cache, made when
//! it is first needed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Marks an environment whose installation ended well.
const COMPLETE: &str = ".complete";

/// The folder with the programs of a package's environment, such as `python`.
pub(crate) fn environment(package: &str, version: &str) -> PathBuf {
    let cache = std::env::var_os("TINTYPE_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME or TINTYPE_CACHE")).join(".cache/tintype")
    });
    let all = cache.join("py");
    std::fs::create_dir_all(&all).expect("a cache for environments");
    let folder = all.join(format!("{package}-{version}"));
    // Tests run side by side, also in several processes.
    let lock = File::create(all.join(format!("{package}-{version}.lock"))).expect("a lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    if !folder.join(COMPLETE).exists() {
        let _nothing_there = std::fs::remove_dir_all(&folder);
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        let requirement = format!("{package}=={version}");
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &requirement];
        run(Command::new(folder.join("bin/python")).args(install));
        File::create(folder.join(COMPLETE)).expect("marks it complete");
    }
    folder.join("bin")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A command that trusts our authority and goes to no proxy.
pub(crate) fn command(program: &Path, ca: &Path) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("REQUESTS_CA_BUNDLE", ca).env("NO_PROXY", "*").kill_on_drop(true);
    command
}
