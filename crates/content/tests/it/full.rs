//! A disk that is full: a real one, a tmpfs of 40 MiB (mounting it needs root, as the project's other tests do).

use content::GcOptions;

use crate::support::{MIB, Place, noise, put, run};

/// A file system of its own, unmounted when the test ends.
struct Mount(String);

impl Mount {
    fn new(folder: String) -> Self {
        std::fs::create_dir(&folder).expect("folder");
        run("mount", &["-t", "tmpfs", "-o", "size=40m", "tmpfs", &folder]);
        Self(folder)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["--lazy", &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_survived() {
    let place = Place::new();
    let _mount = Mount::new(place.text("full"));
    let store = place.store("full/store").await;
    let small = place.raw("small.raw", &noise(1, 8 * MIB as usize));
    let large = place.raw("large.raw", &noise(2, 60 * MIB as usize));
    let kept = put(&store, &small).await.manifest;

    for _ in 0..2 {
        let error = store.put_raw(&large, "large", |_| {}).await.expect_err("there is no room");
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        assert!(text.contains("No space left on device"), "{text}");
        assert_eq!(store.images().await.expect("images").len(), 1);
        assert_eq!(store.verify(&kept).await.expect("verify").damaged_blocks, 0);
    }

    // What the last of them had written goes beside what comes after it.
    let room = || run("df", &["--output=avail", "-B1", &place.text("full")]);
    let avail = || room().lines().last().and_then(|line| line.trim().parse::<u64>().ok()).expect("a number");
    for _ in 0..500 {
        if avail() > 30 * MIB {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    // What nobody needs is freed, also while not a byte more can be written.
    let garbage = put(&store, &place.raw("garbage.raw", &noise(4, 4 * MIB as usize))).await.manifest;
    // A pack of which half is needed goes as well, but its half has to be written first.
    let half = noise(5, 4 * MIB as usize);
    let whole = [half.clone(), noise(6, 4 * MIB as usize)].concat();
    let whole = put(&store, &place.raw("whole.raw", &whole)).await.manifest;
    let half = put(&store, &place.raw("half.raw", &half)).await.manifest;
    let more = put(&store, &place.raw("more.raw", &noise(7, 2 * MIB as usize))).await.manifest;
    for manifest in [&garbage, &whole] {
        store.remove_ref(manifest, "test").await.expect("remove");
    }
    let filler = place.path("full/filler");
    std::fs::write(&filler, vec![7; 64 << 20]).expect_err("the filler fills it");
    assert_eq!(avail(), 0);
    let report = store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert_eq!((report.packs_removed, report.packs_damaged, report.images), (1, 0, 3), "{report:?}");
    // The same with room enough to condemn that pack, and too little to write its half.
    store.remove_ref(&more, "test").await.expect("remove");
    let filler2 = place.path("full/filler2");
    std::fs::write(&filler2, vec![7; 64 << 20]).expect_err("the filler fills it");
    let file = std::fs::File::options().write(true).open(&filler2).expect("open");
    file.set_len(file.metadata().expect("size").len() - MIB).expect("cut");
    let report = store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert_eq!((report.packs_removed, report.packs_damaged, report.images), (1, 0, 2), "{report:?}");
    for filler in [&filler, &filler2] {
        std::fs::remove_file(filler).expect("remove");
    }
    let report = store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert_eq!((report.packs_removed, report.packs_damaged), (1, 0), "{report:?}");
    let second = put(&store, &place.raw("second.raw", &noise(3, 20 * MIB as usize))).await.manifest;
    for manifest in [kept, half, second] {
        assert_eq!(store.verify(&manifest).await.expect("verify").damaged_blocks, 0);
    }
}
