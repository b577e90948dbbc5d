//! Processes that are killed in the middle of whatever changes a store: nothing that was finished is lost, nothing that was
//! not is visible, and what they left is freed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use content::{GcOptions, ManifestId, Store, VerifyOptions, replicate};

use crate::support::{BLOCK, MIB, Place, noise, put, qcow2};

/// Processes that are started and killed.
const KILLS: u64 = 200;
/// What they are killed in.
const OPERATIONS: [&str; 4] = ["put", "commit", "replicate", "gc"];
/// Rounds between two checks of everything.
const CHECK_EVERY: u64 = 20;
/// Tells a process of this test what it is to do.
const CHILD: &str = "TINTYPE_KILL_TEST_CHILD";

/// Not a test of its own: what the killed processes run. Returns at once where nobody asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let [operation, folder, file, image, owner] = task.split('|').collect::<Vec<_>>()[..] else {
        panic!("{task}");
    };
    let folder = Path::new(folder);
    let open = |name: &str| {
        let location = content::StoreLocation::folder(&folder.join(name)).expect("location");
        async move { Store::open_or_create(&location, "test").await.expect("open") }
    };
    let (west, east) = (open("west").await, open("east").await);
    let base = || image.parse::<ManifestId>().expect("image");
    println!("begun");
    let manifest = match operation {
        "put" => west.put_raw(Path::new(file), owner, |_| {}).await.expect("put").manifest,
        "commit" => {
            let layers = [PathBuf::from(file)];
            west.commit_overlay(&base(), &layers, owner, |_| {}).await.expect("commit").manifest
        }
        "replicate" => {
            replicate(&west, &east, &base(), owner, |_| {}).await.expect("replicate");
            base()
        }
        _ => {
            west.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
            base()
        }
    };
    println!("done {manifest}");
}

/// What a process was told, and whether it was killed before it was done.
struct Ended {
    manifest: Option<ManifestId>,
}

fn start(task: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, task)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut output = BufReader::new(child.stdout.take().expect("output"));
    let mut line = String::new();
    while !line.ends_with("begun\n") {
        assert!(output.read_line(&mut line).expect("read") > 0, "the process failed: {task}");
    }
    (child, output)
}

/// Runs a task, and kills it after `delay` if it is given.
fn run(task: &str, delay: Option<Duration>) -> Ended {
    let (mut child, mut output) = start(task);
    if let Some(delay) = delay {
        std::thread::sleep(delay);
        child.kill().expect("kill");
    }
    let mut text = String::new();
    while output.read_line(&mut text).expect("read") > 0 {}
    let status = child.wait().expect("wait");
    assert!(delay.is_some() || status.success(), "{task}: {text}");
    let manifest = text.lines().find_map(|line| line.strip_prefix("done ")?.parse().ok());
    Ended { manifest }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_processes_lose_and_leave_nothing() {
    let place = Place::new();
    let (west, east) = (place.store("west").await, place.store("east").await);
    // 24 MiB that all share and 12 of its own for each, and 6 MiB of changes on the first.
    let shared = noise(1, 24 * MIB as usize);
    let disks: Vec<PathBuf> = (0..4)
        .map(|n| place.raw(&format!("{n}.raw"), &[shared.clone(), noise(10 + n, 12 * MIB as usize)].concat()))
        .collect();
    let base = put(&west, &disks[0]).await.manifest;
    let overlays: Vec<PathBuf> = (0..4)
        .map(|n| {
            let file = place.text(&format!("{n}.qcow2"));
            let writes: Vec<String> =
                (0..12).map(|part| format!("write -P {} {}M 512k", 1 + n * 12 + part, part * 3)).collect();
            qcow2(&file, Some(&place.text("0.raw")), "36M", "64k", &writes);
            PathBuf::from(file)
        })
        .collect();

    let task = |operation: &str, number: u64, owner: &str| {
        let file = match operation {
            "commit" => &overlays[(number / 4 % 4) as usize],
            _ => &disks[1 + (number / 4 % 3) as usize],
        };
        format!("{operation}|{}|{}|{base}|{owner}", place.dir.path().display(), file.display())
    };
    let mut promised: BTreeMap<String, ManifestId> = [("test".to_owned(), base)].into();
    let mut usual = BTreeMap::new();
    for (number, operation) in OPERATIONS.iter().enumerate() {
        garbage(&west, &east, &disks[3], &base, number as u64).await;
        let started = Instant::now();
        let owner = format!("whole-{operation}");
        let ended = run(&task(operation, number as u64, &owner), None);
        usual.insert(*operation, started.elapsed());
        if let ("put" | "commit", Some(manifest)) = (*operation, ended.manifest) {
            promised.insert(owner, manifest);
        }
    }

    let mut killed = BTreeMap::new();
    for number in 0..KILLS {
        let operation = OPERATIONS[(number % 4) as usize];
        garbage(&west, &east, &disks[3], &base, number).await;
        let owner = format!("owner-{number}");
        // Spread evenly over the usual time.
        let delay = usual[operation] * (number / 4 * 37 % 50) as u32 / 50;
        let ended = run(&task(operation, number, &owner), Some(delay));
        match (operation, ended.manifest) {
            (_, None) => *killed.entry(operation).or_insert(0) += 1,
            ("put" | "commit", Some(manifest)) => drop(promised.insert(owner, manifest)),
            _ => {}
        }
        if (number + 1) % CHECK_EVERY == 0 {
            check(&west, &promised).await;
            check(&east, &BTreeMap::new()).await;
        }
    }
    for operation in OPERATIONS {
        assert!(killed.get(operation).is_some_and(|count| *count >= 5), "hardly killed: {killed:?}");
    }

    // Nothing is left of anything.
    for store in [&west, &east] {
        for (manifest, owners) in store.images().await.expect("images") {
            for owner in owners {
                store.remove_ref(&manifest, &owner).await.expect("remove");
            }
        }
        store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
        let stats = store.stats().await.expect("stats");
        assert_eq!((stats.packs, stats.segments, stats.manifests), (0, 0, 0), "{stats:?}");
    }
    let left = [place.objects("west/packs"), place.objects("east/packs")].concat();
    assert!(left.is_empty(), "{left:?}");
    // Small files that were being written are taken for somebody's until they are old.
    let old = GcOptions { writer_timeout: Duration::ZERO, ..GcOptions::default() };
    for (store, name) in [(&west, "west"), (&east, "east")] {
        store.gc(&old, |_, _, _| {}).await.expect("collect");
        let left = place.objects(name);
        assert!(left.len() == 1 && left[0].ends_with("store.json"), "{left:?}");
    }
}

/// Something to replicate, and something to collect.
async fn garbage(west: &Store, east: &Store, disk: &Path, base: &ManifestId, number: u64) {
    match number % 4 {
        2 => {
            for (manifest, owners) in east.images().await.expect("images") {
                for owner in owners {
                    east.remove_ref(&manifest, &owner).await.expect("remove");
                }
            }
            if number % 8 == 2 {
                east.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
            }
        }
        3 => {
            let garbage = west.put_raw(disk, "garbage", |_| {}).await.expect("put").manifest;
            assert_ne!(garbage, *base);
            west.remove_ref(&garbage, "garbage").await.expect("remove");
        }
        _ => {}
    }
}

/// What was promised is visible, what is visible is whole, and a collection leaves no byte that nobody needs.
async fn check(store: &Store, promised: &BTreeMap<String, ManifestId>) {
    let images = store.images().await.expect("images");
    for (owner, manifest) in promised {
        let owners = images.get(manifest);
        assert!(owners.is_some_and(|owners| owners.contains(owner)), "{owner}'s image was lost");
    }
    store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    let report = store.verify_all(&VerifyOptions::default(), |_, _| {}).await.expect("verify");
    assert_eq!((report.damaged, report.damaged_frames), (0, 0), "{report:?}");
    let dry = GcOptions { dry_run: true, ..GcOptions::default() };
    let left = store.gc(&dry, |_, _, _| {}).await.expect("look");
    assert_eq!(left.packs_removed, 0, "{left:?}");
    // All distinct blocks there can be: 24 MiB, 12 for each of four disks, and the overlays' few.
    let stats = store.stats().await.expect("stats");
    assert!(stats.stored_bytes < (24 + 4 * 12 + 1) * MIB + 100 * BLOCK as u64, "{stats:?}");
}
