//! Processes that are killed in the middle of whatever changes a store: nothing that was finished is lost, nothing that was
//! not is visible, and what they left is freed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use content::{GcOptions, ManifestId, Store, VerifyOptions, replicate};

use crate::support::{BLOCK, MIB, Place, noise, put, qcow2, text};

/// Processes that are killed before they end by themselves.
const KILLS: u64 = 200;
/// Processes that are started for that at most.
const MAX_STARTS: u64 = 700;
/// What they are killed in.
const OPERATIONS: [&str; 7] = ["put", "commit", "replicate", "gc", "repair", "share", "merge"];
/// Rounds between two checks of everything.
const CHECK_EVERY: u64 = 14;
/// Puts of one `merge`, each with a small segment: sixteen become one.
const PUTS: u64 = 17;
/// Index segments of a put of one block are smaller than this, a merged one is larger.
const SMALL_SEGMENT_BYTES: u64 = 2000;
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
    let number = |name: &str| u64::from_str_radix(&blake3::hash(name.as_bytes()).to_hex()[..15], 16);
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
        "repair" => {
            let options = VerifyOptions { replicas: vec![open("spare").await], repair: true };
            let report = west.verify_all(&options, |_, _| {}).await.expect("repair");
            assert_eq!(report.damaged, report.repaired, "{report:?}");
            base()
        }
        "share" => {
            west.add_ref(&base(), owner).await.expect("share");
            for round in 0..10 {
                let other = format!("{owner}-{round}");
                west.add_ref(&base(), &other).await.expect("share");
                west.remove_ref(&base(), &other).await.expect("remove");
            }
            base()
        }
        "merge" => {
            for round in 0..PUTS {
                let file = folder.join(format!("{owner}-{round}.raw"));
                let number = number(&format!("{owner}-{round}")).expect("a number");
                std::fs::write(&file, text(number)).expect("write");
                west.put_raw(&file, owner, |_| {}).await.expect("put");
            }
            base()
        }
        _ => {
            west.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
            base()
        }
    };
    println!("done {manifest}");
}

/// What a process told, unless it was killed before it was done, and how long it took after it had begun.
struct Ended {
    manifest: Option<ManifestId>,
    time: Duration,
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

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Never,
    After(Duration),
    /// When a segment of at least this size has come to the first store since it began.
    Segment(u64),
    /// When any of the first store's segments has come or gone.
    IndexChanges,
}

/// The first store's segments, with their sizes.
fn segments(place: &Place) -> BTreeMap<PathBuf, u64> {
    let files = place.objects("west/index").into_iter();
    files
        .filter_map(|path| Some((path.metadata().ok()?.len(), path)))
        .map(|(len, path)| (path, len))
        .collect()
}

/// Runs a task, and kills it.
fn run(place: &Place, task: &str, kill: Kill) -> Ended {
    let before: BTreeSet<_> = segments(place).into_keys().collect();
    let (mut child, mut output) = start(task);
    let started = Instant::now();
    match kill {
        Kill::Never => {}
        Kill::After(delay) => std::thread::sleep(delay),
        Kill::Segment(_) | Kill::IndexChanges => loop {
            let now = segments(place);
            let due = match kill {
                Kill::Segment(bytes) => now.iter().any(|(path, len)| *len >= bytes && !before.contains(path)),
                _ => before.len() != now.len() || !now.keys().all(|path| before.contains(path)),
            };
            if due || child.try_wait().expect("look").is_some() {
                break;
            }
        },
    }
    let killed = !matches!(kill, Kill::Never);
    if killed {
        child.kill().expect("kill");
    }
    let mut text = String::new();
    while output.read_line(&mut text).expect("read") > 0 {}
    let (time, status) = (started.elapsed(), child.wait().expect("wait"));
    let panicked = status.code().is_some_and(|code| code != 0);
    assert!(!panicked && (killed || status.success()), "{task}: {text}");
    let manifest = text.lines().find_map(|line| line.strip_prefix("done ")?.parse().ok());
    Ended { manifest, time }
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

    // Has everything that the first store ever needs, and is never written again.
    let spare = place.store("spare").await;
    for disk in &disks {
        put(&spare, disk).await;
    }
    for overlay in &overlays {
        spare.commit_overlay(&base, std::slice::from_ref(overlay), "test", |_| {}).await.expect("commit");
    }

    let count = OPERATIONS.len() as u64;
    let task = |operation: &str, number: u64, owner: &str| {
        let file = match operation {
            "commit" => &overlays[(number / count % 4) as usize],
            _ => &disks[1 + (number / count % 3) as usize],
        };
        format!("{operation}|{}|{}|{base}|{owner}", place.dir.path().display(), file.display())
    };
    let mut promised: BTreeMap<String, ManifestId> = [("test".to_owned(), base)].into();
    let mut usual = BTreeMap::new();
    for (number, operation) in OPERATIONS.iter().enumerate() {
        prepare(&place, &west, &east, &disks[3], operation, number as u64).await;
        let owner = format!("whole-{operation}");
        let ended = run(&place, &task(operation, number as u64, &owner), Kill::Never);
        usual.insert(*operation, ended.time);
        if let ("put" | "commit" | "share", Some(manifest)) = (*operation, ended.manifest) {
            promised.insert(owner, manifest);
        }
    }

    let mut killed = BTreeMap::new();
    let mut halves = 0;
    let mut number = 0;
    while killed.values().sum::<u64>() < KILLS {
        assert!(number < MAX_STARTS, "they end too soon: {killed:?}");
        let operation = OPERATIONS[(number % count) as usize];
        prepare(&place, &west, &east, &disks[3], operation, number).await;
        let owner = format!("owner-{number}");
        let turn = number / count;
        let kill = match (operation, turn % 2) {
            ("merge", _) => Kill::Segment(SMALL_SEGMENT_BYTES),
            ("gc", 1) => Kill::IndexChanges,
            // Spread evenly over the usual time, or its first half: the first of a kind, which was measured, is slow.
            _ => Kill::After(usual[operation] * (turn * 37 % 50) as u32 / (50 + 50 * (turn % 2) as u32)),
        };
        let ended = run(&place, &task(operation, number, &owner), kill);
        match (operation, ended.manifest) {
            (_, None) => *killed.entry((operation, turn % 2)).or_insert(0) += 1,
            ("put" | "commit" | "share", Some(manifest)) => drop(promised.insert(owner, manifest)),
            _ => {}
        }
        if operation == "merge" {
            // The merged one is there, and small ones as well: killed before it removed them.
            let sizes: Vec<u64> = segments(&place).into_values().collect();
            let small = sizes.iter().filter(|len| **len < SMALL_SEGMENT_BYTES).count();
            halves += u64::from(small > 0 && small < sizes.len());
        }
        if operation == "repair" {
            // What it was killed before is done by the next one.
            let options = VerifyOptions { replicas: vec![spare.clone()], repair: true };
            let report = west.verify_all(&options, |_, _| {}).await.expect("repair");
            assert_eq!(report.damaged, report.repaired, "{report:?}");
        }
        if (number + 1) % CHECK_EVERY == 0 {
            check(&west, &promised).await;
            check(&east, &BTreeMap::new()).await;
        }
        number += 1;
    }
    println!("{killed:?}, in the middle of a merge {halves}");
    for operation in OPERATIONS {
        let times: u64 = [0, 1].iter().filter_map(|turn| killed.get(&(operation, *turn))).sum();
        assert!(times >= 2, "hardly killed: {operation}, {killed:?}");
    }
    // Each also while the index was written anew.
    assert!(halves > 0 && killed.contains_key(&("gc", 1)), "{killed:?} {halves}");

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
        assert!(
            left.iter().all(|path| path.ends_with("store.json") || path.ends_with("reserve")),
            "{left:?}"
        );
    }
}

/// Something to replicate, something to collect, and something to repair.
async fn prepare(place: &Place, west: &Store, east: &Store, disk: &Path, operation: &str, number: u64) {
    match operation {
        "replicate" => {
            for (manifest, owners) in east.images().await.expect("images") {
                for owner in owners {
                    east.remove_ref(&manifest, &owner).await.expect("remove");
                }
            }
            if number.is_multiple_of(2) {
                east.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
            }
        }
        "gc" => {
            let garbage = west.put_raw(disk, "garbage", |_| {}).await.expect("put").manifest;
            west.remove_ref(&garbage, "garbage").await.expect("remove");
            // So are the many small ones.
            for (manifest, owners) in west.images().await.expect("images") {
                if west.manifest_info(&manifest).await.expect("image").logical_bytes == BLOCK as u64 {
                    for owner in owners {
                        west.remove_ref(&manifest, &owner).await.expect("remove");
                    }
                }
            }
        }
        "repair" => {
            let packs = place.objects("west/packs");
            let packs: Vec<_> =
                packs.iter().filter(|path| !path.display().to_string().contains('#')).collect();
            let pack = packs[number as usize % packs.len()];
            let len = pack.metadata().expect("size").len();
            let file = std::fs::File::options().read(true).write(true).open(pack).expect("open");
            // Behind the pack's header; the smallest pack has a frame of one block of one byte, 100 bytes in all.
            let (mut byte, at) = ([0], 48 + number * 7919 * 4096 % (len - 48));
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_all_at(&[byte[0] ^ 2], at).expect("write");
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
