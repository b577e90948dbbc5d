//! The guest that the test boots: the catalogue's own Debian, bootstrapped once and kept as a compressed
//! qcow2 in a cache folder, keyed by its recipe. The test serves it to the product as a download.

use std::path::{Path, PathBuf};
use std::process::Command;

use build::platform::{Catalog, Recipe};

/// A disk file and its SHA-256.
pub(crate) struct BaseImage {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
}

/// The image from the cache, made if it is not there.
pub(crate) async fn base_image() -> BaseImage {
    let catalog = Catalog::load(&[]).unwrap();
    let image = catalog.find("Debian", "debian-12", "12-gen2").unwrap();
    let Recipe::Bootstrap(recipe) = &image.recipe else { panic!("the catalogue's Debian is bootstrapped") };
    let dir = cache_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{}.qcow2", image.recipe_digest()));
    if !path.exists() {
        let scratch = tempfile::tempdir_in(&dir).unwrap();
        let disk =
            build::platform::bootstrap(recipe, &scratch.path().join("tree"), |line| println!("{line}"))
                .await
                .unwrap();
        let compressed = scratch.path().join("disk.qcow2");
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"])
            .args([&disk, &compressed]));
        std::fs::rename(&compressed, &path).unwrap();
    }
    let sum = run(Command::new("sha256sum").arg(&path));
    BaseImage { sha256: sum[..64].to_owned(), path }
}

fn cache_dir() -> PathBuf {
    let root = std::env::var_os("TINTYPE_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache/tintype"));
    root.join("images")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
