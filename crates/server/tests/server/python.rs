//! Real Python clients, installed once below the cache folder from PyPI.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

/// One installation at a time in this process.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Bytes of a client's output that are kept for a failed test's message.
const SHOWN_BYTES: usize = 4000;

/// A virtual environment with one package at one version, such as "azure-storage-blob" "12.31.1".
pub(crate) fn environment(package: &str, version: &str) -> PathBuf {
    let _one = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let cache = std::env::var_os("TINTYPE_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache/tintype"));
    let folder = cache.join("py").join(format!("{package}-{version}"));
    let complete = folder.join(".complete");
    if !complete.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        run(Command::new(folder.join("bin/pip")).args([
            "install",
            "--quiet",
            &format!("{package}=={version}"),
        ]));
        std::fs::write(&complete, "").expect("marks the environment as complete");
    }
    folder
}

/// Runs a script with arguments under the unmodified client; its output must be text.
pub(crate) fn script(environment: &Path, ca_pem: &Path, script: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(environment.join("bin/python"));
    command.arg(script).args(arguments).env("REQUESTS_CA_BUNDLE", ca_pem).env_remove("PYTHONPATH");
    text(&command.output().expect("Python starts"))
}

/// Whether it worked, and what it said.
pub(crate) fn text(output: &Output) -> (bool, String) {
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        let from = said.len().saturating_sub(SHOWN_BYTES);
        said = said.chars().skip(from).collect();
    }
    (output.status.success(), said)
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    let (worked, said) = text(&output);
    assert!(worked, "{command:?}: {said}");
}
