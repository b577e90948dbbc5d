//! `tintype store` as people and scripts use it: the real program on stores in a temporary folder.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

const BLOCK: usize = 64 << 10;
/// Blocks of the test disk, of which few hold data.
const BLOCKS: usize = 160;
/// Numbers of the blocks that hold data: two pieces of a MiB with a hole between them, and the last block.
const DATA: [usize; 20] = [0, 1, 2, 3, 14, 15, 16, 17, 18, 40, 41, 42, 43, 44, 45, 46, 47, 48, 100, 159];
/// Time in which an export answers.
const EXPORT_TIME: Duration = Duration::from_secs(20);

/// A temporary folder with a disk in it, and the program.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A sparse disk of 10 MiB and a bit less than a block; `seed` makes its contents its own.
    fn disk(&self, name: &str, seed: u64) -> String {
        let file = File::create(self.path(name)).unwrap();
        file.set_len((BLOCKS * BLOCK - 512) as u64).unwrap();
        for number in DATA {
            let len = if number + 1 == BLOCKS { BLOCK - 512 } else { BLOCK };
            file.write_all_at(&noise(seed, number as u64, len), (number * BLOCK) as u64).unwrap();
        }
        self.text(name)
    }

    fn tintype(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tintype")).args(arguments).current_dir(&self.dir).output().unwrap()
    }

    /// Runs a store command that must succeed, and returns its JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.tintype(&[&["store"], arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        one_line(&output)
    }

    fn put(&self, disk: &str, region: &str) -> String {
        self.json(&["put", disk, "--region", region])["manifest"].as_str().unwrap().to_owned()
    }

    /// Runs a store command that must fail with `status`, and checks its message.
    #[track_caller]
    fn refused(&self, status: i32, arguments: &[&str], parts: &[&str]) {
        let output = self.tintype(&[&["store"], arguments].concat());
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed a result");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 32);
    let mut counter = 0_u64;
    while bytes.len() < len {
        let mut hash = Sha256::new();
        for word in [seed, number, counter] {
            hash.update(word.to_le_bytes());
        }
        bytes.extend_from_slice(&hash.finalize());
        counter += 1;
    }
    bytes.truncate(len);
    bytes
}

fn sha256(path: impl AsRef<Path>) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command printed: one JSON object on one line.
fn one_line(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_disk_comes_back_as_it_went_in() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    let put = place.json(&["put", &disk, "--region", "west"]);
    assert_eq!(
        keys(&put),
        ["manifest", "logical_bytes", "data_bytes", "new_blocks_bytes", "stored_bytes", "seconds"]
    );
    assert_eq!(put["logical_bytes"], BLOCKS * BLOCK - 512);
    assert_eq!(put["data_bytes"], DATA.len() * BLOCK);
    assert_eq!(put["new_blocks_bytes"], DATA.len() * BLOCK);
    // Noise does not compress: the data and some bytes about it.
    let stored = put["stored_bytes"].as_u64().unwrap() as usize;
    assert!((DATA.len() * BLOCK - 512..DATA.len() * BLOCK + 20_000).contains(&stored), "{stored}");

    // The same disk again, by the store's URL: nothing new.
    let url = format!("file://{}", place.text("west"));
    let again = place.json(&["put", &disk, "--region", &url, "--format", "raw"]);
    assert_eq!(again["manifest"], put["manifest"]);
    assert_eq!(again["new_blocks_bytes"], 0);

    let manifest = put["manifest"].as_str().unwrap();
    let got = place.json(&["get", manifest, "copy.raw", "--region", "west", "--format", "raw"]);
    assert_eq!(keys(&got), ["manifest", "file", "format", "logical_bytes", "seconds"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(&disk));
    let allocated = std::os::unix::fs::MetadataExt::blocks(&place.path("copy.raw").metadata().unwrap()) * 512;
    assert!(allocated < (DATA.len() + 8) as u64 * BLOCK as u64, "holes were filled: {allocated}");

    // A file that is there is not replaced unasked, and nothing half-written stays.
    place.refused(1, &["get", manifest, "copy.raw", "--region", "west"], &["copy.raw exists", "--force"]);
    place.json(&["get", manifest, "copy.raw", "--region", "west", "--force"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(&disk));
    let left: Vec<_> = std::fs::read_dir(&place.dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn only_what_changed_moves_and_is_kept() {
    let place = Place::new();
    let first = place.put(&place.disk("one.raw", 1), "west");
    let moved = place.json(&["replicate", &first, "--from", "west", "--to", "east"]);
    assert_eq!(keys(&moved), ["manifest", "blocks_moved", "bytes_moved", "blocks_present", "seconds"]);
    assert_eq!(moved["blocks_moved"], DATA.len());

    // One block changed.
    let disk = place.disk("two.raw", 1);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&noise(2, 0, BLOCK), (41 * BLOCK) as u64).unwrap();
    let put = place.json(&["put", &disk, "--region", "west", "--owner", "nightly"]);
    assert_eq!(put["new_blocks_bytes"], BLOCK);
    let second = put["manifest"].as_str().unwrap();
    let moved = place.json(&["replicate", second, "--from", "west", "--to", "east"]);
    assert_eq!((&moved["blocks_moved"], &moved["blocks_present"]), (&1.into(), &(DATA.len() - 1).into()));
    place.json(&["get", second, "copy.raw", "--region", "east"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(&disk));

    let listed = place.json(&["ls", "--region", "west"]);
    let mut expected = [(first.as_str(), "cli"), (second, "nightly")];
    expected.sort_unstable();
    let images = listed["images"].as_array().unwrap();
    let found: Vec<_> = images
        .iter()
        .map(|image| (image["manifest"].as_str().unwrap(), image["owners"][0].as_str().unwrap()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(images[0]["data_bytes"], DATA.len() * BLOCK);

    let stats = place.json(&["stats", "--region", "west"]);
    assert_eq!(stats["images"], 2);
    assert_eq!(stats["owner"], "cli");
    // Blocks, a page and a manifest of the first disk; a block, a page and a manifest of the second.
    assert_eq!(stats["indexed"], DATA.len() + 2 + 3);

    place.refused(1, &["rm", second, "--region", "west"], &["`cli` does not refer", "nightly", "--owner"]);
    let removed = place.json(&["rm", second, "--region", "west", "--owner", "nightly"]);
    assert_eq!(removed["owners_left"], serde_json::json!([]));
    assert_eq!(place.json(&["ls", "--region", "west"])["images"].as_array().unwrap().len(), 1);
    place.refused(1, &["get", second, "x.raw", "--region", "west"], &["has no image", second]);
}

#[test]
fn what_nobody_refers_to_is_freed() {
    let place = Place::new();
    let kept = place.put(&place.disk("one.raw", 1), "west");
    let before = place.json(&["stats", "--region", "west"])["stored_bytes"].as_u64().unwrap();
    let gone = place.put(&place.disk("two.raw", 2), "west");
    place.json(&["rm", &gone, "--region", "west"]);
    let full = place.json(&["stats", "--region", "west"])["stored_bytes"].as_u64().unwrap();
    assert!(full > before + (DATA.len() * BLOCK / 2) as u64, "{before} {full}");

    let plan = place.json(&["gc", "--region", "west", "--dry-run"]);
    assert_eq!((&plan["dry_run"], &plan["images"]), (&true.into(), &1.into()));
    assert!(plan["bytes_removed"].as_u64().unwrap() > (DATA.len() * BLOCK / 2) as u64, "{plan}");
    assert_eq!(place.json(&["stats", "--region", "west"])["stored_bytes"], full);

    let done = place.json(&["gc", "--region", "west"]);
    assert_eq!(done["bytes_removed"], plan["bytes_removed"]);
    let after = place.json(&["stats", "--region", "west"])["stored_bytes"].as_u64().unwrap();
    assert!(after <= before + 10_000, "{before} became {after}");
    place.json(&["get", &kept, "copy.raw", "--region", "west"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(place.path("one.raw")));
}

#[test]
fn an_overlay_is_put_on_its_base() {
    let place = Place::new();
    let disk = place.disk("base.raw", 1);
    let base = place.put(&disk, "west");
    let overlay = place.text("overlay.qcow2");
    let size = (BLOCKS * BLOCK - 512).to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &disk, "-F", "raw", &overlay, &size]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 0xa5 3000000 70000", &overlay]);

    let whole = ["put", &overlay, "--region", "west", "--format", "qcow2"];
    place.refused(1, &whole, &["is an overlay of", "base.raw"]);
    place.refused(1, &["put", &overlay, "--region", "west", "--base", &base], &["--format qcow2"]);
    let put = place.json(&[&whole[..], &["--base", &base]].concat());
    assert_eq!(put["new_blocks_bytes"], 2 * BLOCK);

    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &overlay, &place.text("expected.raw")]);
    let manifest = put["manifest"].as_str().unwrap();
    place.json(&["get", manifest, "copy.raw", "--region", "west"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(place.path("expected.raw")));
}

#[test]
fn a_chain_of_files_is_put_when_it_is_given() {
    let place = Place::new();
    let disk = place.disk("base.raw", 1);
    let [base, middle, top] = ["base", "middle", "top"].map(|name| place.text(&format!("{name}.qcow2")));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", &disk, &base]);
    for (below, above, at) in [(&base, &middle, "3000000"), (&middle, &top, "5000000")] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", above]);
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -q -P 0xa5 {at} 70000"), above]);
    }
    let put = ["put", &top, "--region", "west"];
    place.refused(1, &put, &["is an overlay of", "middle.qcow2", "--backing"]);
    place.refused(1, &[&put[..], &["--backing", &middle]].concat(), &["is an overlay of", "base.qcow2"]);
    let put = place.json(&[&put[..], &["--backing", &middle, "--backing", &base]].concat());

    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &top, &place.text("expected.raw")]);
    place.json(&["get", put["manifest"].as_str().unwrap(), "copy.raw", "--region", "west"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(place.path("expected.raw")));
}

#[test]
fn damage_is_named_and_fails() {
    let place = Place::new();
    let manifest = place.put(&place.disk("disk.raw", 1), "west");
    place.json(&["replicate", &manifest, "--from", "west", "--to", "east"]);
    let sound = place.json(&["verify", "--region", "west"]);
    // Blocks, a page, a manifest.
    assert_eq!((&sound["needed"], &sound["damaged"]), (&(DATA.len() + 2).into(), &0.into()));

    // A byte in the middle of the pack, which is one of a block's.
    let pack = find_file(&place.path("west/packs"));
    let file = File::options().read(true).write(true).open(&pack).unwrap();
    let middle = file.metadata().unwrap().len() / 3;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();

    let output = place.tintype(&["store", "verify", "--region", "west", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report = one_line(&output);
    assert_ne!(report["damaged"], 0);
    let damage = &report["damages"][0];
    assert_eq!(damage["hash"].as_str().unwrap().len(), 64);
    assert_eq!(damage["needed_by"][0]["manifest"], manifest.as_str());
    assert_eq!(damage["needed_by"][0]["owners"], serde_json::json!(["cli"]));
    let number = damage["needed_by"][0]["disk_offset"].as_u64().unwrap() as usize / BLOCK;
    assert!(DATA.contains(&number), "{number}");
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(damage["reason"].as_str().unwrap().contains(name), "{damage}");

    let output = place.tintype(&["store", "verify", "--region", "west"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [damage["hash"].as_str().unwrap(), &manifest, "--replica"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }

    // What is damaged is not given out, and leaves no file.
    place.refused(1, &["get", &manifest, "copy.raw", "--region", "west"], &["cannot be read", name]);
    assert!(!place.path("copy.raw").exists());
    assert_eq!(std::fs::read_dir(&place.dir).unwrap().count(), 3);

    let repaired = place.json(&["verify", "--region", "west", "--replica", "east", "--repair"]);
    assert_eq!(repaired["repaired"], repaired["damaged"]);
    assert_eq!(place.json(&["verify", "--region", "west"])["damaged_frames"], 0);
    place.json(&["get", &manifest, "copy.raw", "--region", "west"]);
    assert_eq!(sha256(place.path("copy.raw")), sha256(place.path("disk.raw")));
}

#[test]
fn an_export_is_what_qemu_reads() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    let manifest = place.put(&disk, "west");
    let socket = place.text("nbd.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tintype"))
        .args(["store", "export-nbd", &manifest, "--region", "west", "--socket", &socket, "--json"])
        .current_dir(&place.dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let result = std::panic::catch_unwind(|| {
        let started = Instant::now();
        while !Path::new(&socket).exists() {
            assert!(started.elapsed() < EXPORT_TIME, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &disk, &format!("nbd+unix:///?socket={socket}")],
        );
    });
    terminate(&child);
    let status = wait(&mut child);
    result.unwrap();
    assert_eq!(status, Some(0), "SIGTERM ends it as asked");
    assert!(!Path::new(&socket).exists(), "the socket stayed");
    let mut ready = String::new();
    child.stdout.take().unwrap().read_to_string(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["socket"], socket.as_str());
}

#[test]
fn the_word_of_a_server_holds_for_five_minutes() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    let manifest = place.put(&disk, "west");
    let say = |ago: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let id = "0e8e9b5a-6c9f-4d0e-9f5e-3b8f5f0c7a11";
        let said = serde_json::json!({"id": id, "region": "westeurope", "url": "https://h:1", "renewed_unix_s": now - ago});
        std::fs::write(place.path("west/server"), said.to_string()).unwrap();
    };
    say(30);
    let server = "a server at https://h:1 said 3";
    let rm = ["rm", &manifest, "--region", "west"];
    place.refused(1, &["put", &disk, "--region", "west"], &[server, "image version", "--force"]);
    place.refused(1, &rm, &[server, "DELETE"]);
    place.refused(1, &["verify", "--region", "west", "--repair"], &[server, "stores/westeurope/verify"]);
    place.refused(1, &["gc", "--region", "west"], &[server, "stores/westeurope/gc"]);
    place.put(&disk, "east");
    let replicate = ["replicate", &manifest, "--from", "east", "--to", "west"];
    place.refused(1, &replicate, &[server, "targetRegions"]);
    place.json(&["verify", "--region", "west"]);
    place.json(&["gc", "--dry-run", "--region", "west"]);
    place.json(&["gc", "--region", "west", "--force"]);
    say(400);
    place.put(&disk, "west");
    std::fs::write(place.path("west/server"), "not understood").unwrap();
    place.json(&rm);
}

#[test]
fn a_store_that_a_server_uses_is_left_to_it() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    let manifest = place.put(&disk, "west");
    let lock = File::create(place.path("west/.tintype-server.lock")).unwrap();
    lock.lock_shared().unwrap();
    std::fs::write(place.path("west/.tintype-server.lock"), r#"{"pid":4711,"region":"westeurope"}"#).unwrap();

    let server = "the server (pid 4711) uses this store for region westeurope; use its API";
    place.refused(1, &["put", &disk, "--region", "west"], &[server, "image version"]);
    place.refused(1, &["rm", &manifest, "--region", "west"], &[server, "DELETE"]);
    let repair = ["verify", "--region", "west", "--repair"];
    place.refused(1, &repair, &[server, "POST /tintype/stores/westeurope/verify"]);
    place.refused(1, &["gc", "--region", "west"], &[server, "POST /tintype/stores/westeurope/gc"]);
    place.put(&disk, "east");
    let replicate = ["replicate", &manifest, "--from", "east", "--to", "west"];
    place.refused(1, &replicate, &[server, "targetRegions"]);
    // Reading is no harm.
    place.json(&["replicate", &manifest, "--from", "west", "--to", "south"]);
    place.json(&["get", &manifest, "copy.raw", "--region", "west"]);
    place.json(&["verify", "--region", "west"]);
    place.json(&["gc", "--dry-run", "--region", "west"]);
    // A server that died left its file, and no lock.
    drop(lock);
    place.put(&disk, "west");
}

#[test]
fn mistakes_are_explained() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    let manifest = place.put(&disk, "west");
    let unknown = "ab".repeat(32);

    // Wrong usage: status 2, before anything is opened.
    for region in ["ftp://host/x", "file://host/x", ""] {
        place.refused(2, &["put", &disk, "--region", region], &["--region", "cannot use"]);
    }
    place.refused(2, &["get", "abc", "x.raw", "--region", "west"], &["`abc`", "64 hex digits"]);
    place.refused(2, &["put", &disk], &["--region"]);
    place.refused(2, &["put", &disk, "--region", "west", "--format", "floppy"], &["floppy", "raw", "qcow2"]);
    place.refused(2, &["frobnicate"], &["frobnicate"]);

    // Failures: status 1.
    place.refused(1, &["get", &unknown, "x.raw", "--region", "west"], &["has no image", &unknown]);
    place.refused(1, &["rm", &unknown, "--region", "west"], &["has no image", "store ls"]);
    place.refused(1, &["put", "absent.raw", "--region", "new"], &["absent.raw", "No such file"]);
    place.refused(1, &["replicate", &unknown, "--from", "west", "--to", "new"], &["has no image"]);
    assert!(!place.path("new").exists(), "a failed put or replicate made a store");
    for command in ["ls", "stats", "verify", "gc"] {
        place.refused(1, &[command, "--region", "nowhere"], &["no store at", "nowhere"]);
    }
    assert!(!place.path("nowhere").exists());
    place.refused(
        1,
        &["get", &manifest, "no/folder/x.raw", "--region", "west"],
        &["cannot create", "No such file"],
    );

    // A format that the file is not, and one that nobody declared.
    place.refused(1, &["put", &disk, "--region", "west", "--format", "qcow2"], &["disk.raw", "qcow2"]);
    let qcow2 = place.text("unnamed");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &disk, &qcow2]);
    let undeclared = ["does not look like a raw disk", "--format qcow2", "--format raw"];
    place.refused(1, &["put", &qcow2, "--region", "west"], &undeclared);
}

#[test]
fn disks_go_in_and_out_in_every_format() {
    let place = Place::new();
    let disk = place.disk("disk.raw", 1);
    // The smallest disk that Azure takes, so that a VHD need not be larger.
    File::options().write(true).open(&disk).unwrap().set_len(20 << 20).unwrap();
    let manifest = place.put(&disk, "west");
    for (name, qemu) in
        [("a.raw", "raw"), ("a.vhd", "vpc"), ("a.vhdx", "vhdx"), ("a.qcow2", "qcow2"), ("a.vmdk", "vmdk")]
    {
        let got = place.json(&["get", &manifest, name, "--region", "west"]);
        let own = if qemu == "vpc" { "vhd" } else { qemu };
        assert_eq!(got["format"], own);
        run("qemu-img", &["compare", "-f", "raw", "-F", qemu, &disk, &place.text(name)]);
        assert_eq!(place.put(name, "west"), manifest, "{name} by its name");
        place.json(&["get", &manifest, "unnamed", "--region", "west", "--format", own, "--force"]);
        let put = place.json(&["put", "unnamed", "--region", "west", "--format", own]);
        assert_eq!(put["manifest"], manifest.as_str(), "{own}, declared");
    }
    place.json(&["get", &manifest, "b.vhd", "--region", "west", "--format", "vhd-dynamic"]);
    let sizes = [place.path("b.vhd"), place.path("a.vhd")].map(|path| path.metadata().unwrap().len());
    assert!(sizes[0] < sizes[1], "dynamic {} against fixed {}", sizes[0], sizes[1]);
    assert_eq!(place.put("b.vhd", "west"), manifest);

    run("xz", &["-0", "--keep", &place.text("a.vhdx")]);
    assert_eq!(place.put("a.vhdx.xz", "west"), manifest);
    std::fs::rename(place.path("a.vhdx.xz"), place.path("packed")).unwrap();
    place.refused(1, &["put", "packed", "--region", "west"], &["--packing xz"]);
    let packed = ["put", "packed", "--region", "west", "--format", "vhdx", "--packing", "xz"];
    assert_eq!(place.json(&packed)["manifest"], manifest.as_str());
    // Everything that was half written on the way is gone.
    let left = std::fs::read_dir(&place.dir)
        .unwrap()
        .filter(|file| file.as_ref().is_ok_and(|file| file.file_name().as_encoded_bytes().starts_with(b".")));
    assert_eq!(left.count(), 0);
}

#[test]
fn shells_get_completions_and_people_get_examples() {
    let place = Place::new();
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef tintype"), ("fish", "complete -c tintype")]
    {
        let output = place.tintype(&["completions", shell]);
        assert!(output.status.success(), "{shell}: {}", stderr(&output));
        let script = String::from_utf8(output.stdout).unwrap();
        for part in [part, "export-nbd"] {
            assert!(script.contains(part), "{shell} lacks {part}");
        }
    }
    for command in ["put", "get", "replicate", "ls", "rm", "stats", "verify", "gc", "export-nbd"] {
        let output = place.tintype(&["store", command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("tintype store {command}")), "{command}: {help}");
        assert!(help.contains("Examples:") && help.contains("--json"), "{command}: {help}");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {arguments:?}: {said}{}", stderr(&output));
}

/// The only file below a folder.
fn find_file(folder: &Path) -> PathBuf {
    let mut folder = folder.to_owned();
    loop {
        let entry = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap();
        folder = entry.path();
        if folder.is_file() {
            return folder;
        }
    }
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// The exit status of a child that was told to end.
fn wait(child: &mut Child) -> Option<i32> {
    let started = Instant::now();
    while started.elapsed() < EXPORT_TIME {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the export ignored SIGTERM");
}
