use std::path::Path;

use super::*;

const NAME: &[u8] = b"test\0one";
const FRAME: usize = 512;

fn ring(seeds: &[u8]) -> KeyRing {
    let mut keys = seeds.iter().map(|seed| Key::from_bytes([*seed; 32]));
    KeyRing::new(keys.next().expect("a key"), keys.collect()).expect("ring")
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3) as u8).collect()
}

fn framed(content: &[u8], keys: Option<&KeyRing>) -> Vec<u8> {
    let mut writer = FramedWriter::new(Vec::new(), keys, NAME, FRAME).expect("begin");
    content.chunks(700).for_each(|part| writer.write(part).expect("write"));
    writer.finish().expect("finish")
}

fn open(path: &Path, bytes: &[u8], keys: Option<&KeyRing>, name: &[u8]) -> Result<FramedFile, FramedError> {
    std::fs::write(path, bytes).expect("write");
    FramedFile::open(File::open(path).expect("open"), keys, name)
}

fn read(file: &FramedFile) -> Result<Vec<u8>, FramedError> {
    let mut bytes = vec![0; file.size() as usize];
    file.read_exact_at(&mut bytes, 0).map(|()| bytes)
}

#[test]
fn every_range_reads_what_was_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("f");
    for keys in [None, Some(ring(&[1]))] {
        for len in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 5000] {
            let content = content(len);
            let stored = framed(&content, keys.as_ref());
            assert_eq!(stored.len(), HEADER_BYTES + len + len.div_ceil(FRAME).max(1) * CHECK_BYTES);
            let file = open(&path, &stored, keys.as_ref(), NAME).expect("open");
            assert_eq!(file.size(), len as u64);
            for start in (0..len).step_by(97).chain([len.saturating_sub(1)]) {
                for end in [start + 1, start + FRAME, start + 1500, len] {
                    let end = end.clamp(start, len);
                    let mut part = vec![0; end - start];
                    file.read_exact_at(&mut part, start as u64).expect("read");
                    assert!(part == content[start..end], "{start}..{end} of {len}");
                }
            }
            assert!(file.read_exact_at(&mut [0; 2], (len as u64).saturating_sub(1)).is_err());
        }
    }
    // Larger than what is read at a time.
    let content = content(3_000_001);
    let mut writer = FramedWriter::new(Vec::new(), None, NAME, 4096).expect("begin");
    writer.write(&content).expect("write");
    let file = open(&path, &writer.finish().expect("finish"), None, NAME).expect("open");
    assert!(read(&file).expect("read") == content);
}

#[test]
fn whatever_was_changed_is_noticed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("f");
    for keys in [None, Some(ring(&[1]))] {
        let keys = keys.as_ref();
        let whole = content(3 * FRAME);
        let good = framed(&whole, keys);
        let check = |what: &str, bytes: &[u8]| {
            let opened = open(&path, bytes, keys, NAME).and_then(|file| read(&file));
            assert!(opened.is_err(), "{what}");
        };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            check(&format!("byte {at}"), &bad);
        }
        for len in 0..good.len() {
            check(&format!("cut off after {len}"), &good[..len]);
        }
        let frame = FRAME + CHECK_BYTES;
        let swapped =
            [&good[..64], &good[64 + frame..64 + 2 * frame], &good[64..64 + frame], &good[64 + 2 * frame..]];
        check("swapped frames", &swapped.concat());
        check("a frame more", &[&good[..], &good[good.len() - frame..]].concat());
        // The same content in another file, and this file under another name.
        check(
            "a frame of another file",
            &[&framed(&whole, keys)[..64 + frame], &good[64 + frame..]].concat(),
        );
        assert!(open(&path, &good, keys, b"test\0two").and_then(|file| read(&file)).is_err());
    }
}

#[test]
fn keys_are_needed_rotated_and_not_circumvented() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("f");
    let secret = b"nobody may read this without the key".repeat(40);
    let (plain, sealed) = (framed(&secret, None), framed(&secret, Some(&ring(&[1]))));
    let shows = |bytes: &[u8]| bytes.windows(20).any(|part| part == &secret[..20]);
    assert!(shows(&plain) && !shows(&sealed));
    for keys in [ring(&[1]), ring(&[2, 1])] {
        assert!(read(&open(&path, &sealed, Some(&keys), NAME).expect("open")).expect("read") == secret);
    }
    let first = ring(&[1]).current().id();
    for keys in [None, Some(ring(&[2]))] {
        let refused = open(&path, &sealed, keys.as_ref(), NAME);
        assert!(matches!(refused, Err(FramedError::KeyMissing(id)) if id == first));
    }
    assert!(matches!(open(&path, &plain, Some(&ring(&[1])), NAME), Err(FramedError::Form(_))));
    assert!(matches!(open(&path, &secret, None, NAME), Err(FramedError::Form(_))));
    // The flag alone makes nothing of it.
    let mut stripped = sealed.clone();
    stripped[12] = 0;
    assert!(open(&path, &stripped, None, NAME).and_then(|file| read(&file)).is_err());
}
