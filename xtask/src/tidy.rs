//! Rules of this repository that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which of our crates each may depend on; ARCHITECTURE.md explains why. An edge that is not here fails.
const EDGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("arm", &["model"]),
    ("disk", &[]),
    ("content", &["disk"]),
    ("provision", &[]),
    ("machine", &[]),
    ("vmhost", &["content", "provision", "machine"]),
    ("build", &["model", "disk", "content", "vmhost"]),
    ("store", &["model"]),
    ("server", &["model", "arm", "store", "disk", "content", "vmhost", "build"]),
    ("tintype", &["server", "vmhost", "disk", "content"]),
    ("xtask", &[]),
];

/// What a crate must not see, not even through the registry.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("model", &["tokio", "sqlx", "rand", "reqwest", "tracing"]),
    ("arm", &["tokio", "sqlx", "rand", "reqwest"]),
    ("disk", &["tokio"]),
    ("build", &["axum", "sqlx"]),
    ("store", &["axum"]),
    ("vmhost", &["sqlx", "axum"]),
];

/// Lines that a source file may have. Longer ones are listed below and may only shrink.
const LINES_MAX: usize = 600;
/// Files over the limit with the length that they had when they were listed; see `ratchet`.
const LONG_FILES: &[(&str, usize)] = &[];

fn manifest(path: &Path) -> toml::Table {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn crates() -> BTreeMap<String, toml::Table> {
    let root = crate::root();
    let mut found = BTreeMap::from([("xtask".to_owned(), manifest(&root.join("xtask/Cargo.toml")))]);
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        found.insert(name, manifest(&path.join("Cargo.toml")));
    }
    found
}

fn dependencies(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    let table = manifest.get(section).and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn crates_depend_only_on_what_the_architecture_allows() {
    let crates = crates();
    let ours: BTreeSet<_> = crates.keys().cloned().collect();
    for (name, manifest) in &crates {
        let (_, allowed) = EDGES
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("crate {name} is not in the table of edges"));
        let all = dependencies(manifest, "dependencies");
        for edge in all.intersection(&ours) {
            assert!(allowed.contains(&edge.as_str()), "{name} must not depend on {edge}");
        }
        for (_, banned) in FORBIDDEN.iter().filter(|(known, _)| known == name) {
            for dependency in *banned {
                assert!(!all.contains(*dependency), "{name} must not depend on {dependency}");
            }
        }
    }
}

/// Every file under version control: what `git ls-files` prints.
fn tracked() -> Vec<PathBuf> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(crate::root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files failed");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

#[test]
fn no_source_file_outgrows_one_concept() {
    for path in tracked().iter().filter(|path| path.extension() == Some("rs".as_ref())) {
        let Ok(text) = std::fs::read_to_string(crate::root().join(path)) else { continue };
        let lines = text.lines().count();
        let shown = path.display().to_string();
        let ratchet = LONG_FILES.iter().find(|(known, _)| *known == shown);
        let limit = ratchet.map_or(LINES_MAX, |(_, length)| *length);
        assert!(lines <= limit, "{shown} has {lines} lines; the limit is {limit}: split it by concept");
    }
}

#[test]
fn paths_named_in_the_documents_exist() {
    let root = crate::root();
    let documents = tracked().into_iter().filter(|path| path.extension() == Some("md".as_ref()));
    let mut checked = 0;
    for document in documents {
        let text = std::fs::read_to_string(root.join(&document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let roots = ["crates/", "docs/", "catalog/", "xtask/", "tools/", ".ci/"];
            let is_path = roots.iter().any(|prefix| quoted.starts_with(prefix));
            if is_path && !quoted.contains(['*', '<', '{', ' ', '…']) {
                assert!(root.join(quoted).exists(), "{} names {quoted}", document.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 0, "no document names a path: is this test looking at the right place?");
}

#[test]
fn registries_are_used_by_package_name_alone() {
    // Addresses of package registries belong to the machine's configuration, not to the project.
    let hosts = [["deb", "debian", "org"], ["index", "crates", "io"], ["registry", "npmjs", "org"]];
    for path in tracked() {
        let Ok(text) = std::fs::read_to_string(crate::root().join(&path)) else { continue };
        if path == Path::new("Cargo.lock") {
            continue;
        }
        for host in hosts {
            assert!(!text.contains(&host.join(".")), "{} names a package registry", path.display());
        }
    }
}
