//! What we write, read by qemu-img, and by ourselves where qemu-img ends.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{
    Content, GIB, MIB, TIB, assert_same, bytes, convert, folder, join, make_raw, open_here, program, run,
};
use disk::vhd::{MAX_PUBLISHED_BYTES, fixed_footer, published_size};
use disk::write::{Existing, Layout, write};
use disk::{BlockSource, Error, Extent, ExtentKind, Extents, Format, Packing, RawFile};

const LAYOUTS: [(Layout, Format); 6] = [
    (Layout::Raw, Format::Raw),
    (Layout::VhdFixed, Format::Vhd),
    (Layout::VhdDynamic, Format::Vhd),
    (Layout::Vhdx, Format::Vhdx),
    (Layout::Qcow2, Format::Qcow2),
    (Layout::Vmdk, Format::Vmdk),
];

fn quietly(source: &dyn BlockSource, path: &str, layout: Layout) -> disk::Result<()> {
    write(source, Path::new(path), layout, Existing::Refuse, &mut |_| {})
}

fn virtual_size(format: Format, path: &str) -> u64 {
    let info = run("qemu-img", &["info", "--output=json", "-f", format.qemu_name(), path]);
    let (_, rest) = info.split_once("\"virtual-size\": ").expect("a size");
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
}

#[test]
fn qemu_reads_every_layout() {
    let folder = folder();
    let (raw, back) = (join(&folder, "source.raw"), join(&folder, "back.raw"));
    let sizes = [
        (1, Content::Full),
        (512, Content::Full),
        (3 * MIB + 333, Content::Full),
        (20 * MIB, Content::Sparse),
        (67 * MIB + 100, Content::Sparse),
        (64 * MIB, Content::Full),
    ];
    for (number, (size, content)) in sizes.into_iter().enumerate() {
        make_raw(&raw, size, content, 20 + number as u64);
        let expected = std::fs::read(&raw).expect("raw");
        let source = RawFile::open(Path::new(&raw)).expect("opens");
        for (layout, format) in LAYOUTS {
            let what = format!("{layout:?} of {size} bytes, {content:?}");
            let path = join(&folder, &format!("{layout:?}-{number}"));
            let mut done = 0;
            write(&source, Path::new(&path), layout, Existing::Refuse, &mut |bytes| {
                assert!(bytes >= done && bytes <= size, "{what}: {done}, then {bytes}");
                done = bytes;
            })
            .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(done, size, "{what}");
            convert((format.qemu_name(), &path), ("raw", &back), &[]);
            assert_same(&std::fs::read(&back).expect("back"), &expected, &what);
            // And by the sandboxed reader.
            let ours =
                disk::sandbox::open(program(), Path::new(&path), format, Packing::None).expect("opens");
            assert_same(&bytes(&*ours).expect("bytes"), &expected, &what);
            match layout {
                Layout::VhdFixed | Layout::VhdDynamic => {
                    let published = published_size(size).expect("fits");
                    assert!(published.is_multiple_of(MIB) && published >= 20 * MIB, "{what}");
                    assert_eq!(virtual_size(format, &path), published, "{what}");
                    assert_eq!(ours.logical_size(), published, "{what}");
                }
                Layout::Raw => assert_eq!(ours.logical_size(), size, "{what}"),
                _ => assert_eq!(virtual_size(format, &path), size.next_multiple_of(512), "{what}"),
            }
            if layout == Layout::VhdFixed {
                let len = std::fs::metadata(&path).expect("metadata").len();
                assert_eq!(len, published_size(size).expect("fits") + 512, "{what}");
            }
            if content == Content::Sparse {
                let stored =
                    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).expect("metadata"));
                assert!(stored * 512 < 12 * MIB, "{what}: {stored} blocks");
            }
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}

/// The footer of the rules, field by field.
#[test]
fn the_footer_that_azure_takes() {
    let size = 30 * GIB;
    let footer = fixed_footer(size, [7; 16]);
    assert_eq!(footer, fixed_footer(size, [7; 16]));
    let be = |at: usize, len: usize| footer[at..at + len].iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!((be(8, 4), be(12, 4), be(16, 8)), (2, 0x1_0000, u64::MAX));
    // A creator whose size is the current size, not the geometry's.
    assert_eq!(&footer[28..32], b"win ");
    assert_eq!((be(40, 8), be(48, 8), be(60, 4)), (size, size, 2));
    assert_eq!(&footer[68..84], &[7; 16]);
    assert!(footer[84..].iter().all(|byte| *byte == 0));
    let others: u64 = footer.iter().map(|b| u64::from(*b)).sum::<u64>()
        - footer[64..68].iter().map(|b| u64::from(*b)).sum::<u64>();
    assert_eq!(be(64, 4), u64::from(!(others as u32)));

    assert_eq!(published_size(0), Some(20 * MIB));
    assert_eq!(published_size(20 * MIB + 1), Some(21 * MIB));
    assert_eq!(MAX_PUBLISHED_BYTES + 512, 35_183_298_347_520);
    assert_eq!(published_size(MAX_PUBLISHED_BYTES), Some(MAX_PUBLISHED_BYTES));
    assert_eq!(published_size(MAX_PUBLISHED_BYTES + 1), None);
}

/// A disk of any size with a few bytes, which no file needs to hold.
struct Made {
    size: u64,
    places: Vec<u64>,
}

impl BlockSource for Made {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(self.places.iter().map(|at| Ok(Extent { start: *at, len: 512, kind: ExtentKind::Data })))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        for (n, byte) in buf.iter_mut().enumerate() {
            let at = offset + n as u64;
            *byte = if self.places.contains(&(at / 512 * 512)) { (at % 251) as u8 } else { 0 };
        }
        Ok(buf.len())
    }
}

#[test]
fn the_largest_disks_come_back() {
    let folder = folder();
    for size in [5 * TIB, MAX_PUBLISHED_BYTES] {
        let made = Made { size, places: vec![0, TIB, size / 2 / 512 * 512, size - 512] };
        for layout in [Layout::VhdFixed, Layout::VhdDynamic, Layout::Raw] {
            let path = join(&folder, &format!("{layout:?}"));
            quietly(&made, &path, layout).expect("writes");
            let format = if layout == Layout::Raw { Format::Raw } else { Format::Vhd };
            let source =
                disk::sandbox::open(program(), Path::new(&path), format, Packing::None).expect("opens");
            assert_eq!(source.logical_size(), size);
            let extents: Vec<Extent> = source.extents().collect::<disk::Result<_>>().expect("extents");
            assert!(extents.iter().map(|e| e.len).sum::<u64>() <= 4 * 2 * MIB, "{layout:?}: {extents:?}");
            for at in &made.places {
                let (mut ours, mut theirs) = ([1; 4096], [2; 4096]);
                let at = (*at).min(size - 4096);
                source.read_onto(at, &mut ours).expect("read");
                made.read_onto(at, &mut theirs).expect("read");
                assert!(ours == theirs, "{layout:?} at {at}");
            }
            std::fs::remove_file(&path).expect("remove");
        }
    }
    let over = Made { size: MAX_PUBLISHED_BYTES + 1, places: Vec::new() };
    let error = quietly(&over, &join(&folder, "over"), Layout::VhdFixed).expect_err("refused");
    assert!(matches!(&error, Error::Write { reason, .. } if reason.contains("32,767 GiB")), "{error}");
    // 5 TiB through qemu-img too, where its format goes so far.
    let made = Made { size: 5 * TIB, places: vec![0, 5 * TIB - 512] };
    for (layout, format) in
        [(Layout::Vhdx, Format::Vhdx), (Layout::Qcow2, Format::Qcow2), (Layout::Vmdk, Format::Vmdk)]
    {
        let path = join(&folder, "large");
        quietly(&made, &path, layout).expect("writes");
        assert_eq!(virtual_size(format, &path), made.size);
        let source = open_here(format, &[path.clone().into()]).expect("opens");
        let mut buf = [0; 512];
        source.read_onto(made.size - 512, &mut buf).expect("read");
        assert_eq!(buf[1], ((made.size - 511) % 251) as u8);
        std::fs::remove_file(&path).expect("remove");
    }
}

/// A source that fails in the middle.
struct Failing;

impl BlockSource for Failing {
    fn logical_size(&self) -> u64 {
        8 * MIB
    }

    fn extents(&self) -> Extents<'_> {
        Box::new([Ok(Extent { start: 0, len: 8 * MIB, kind: ExtentKind::Data })].into_iter())
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        if offset >= 4 * MIB {
            return Err(Error::Chain { reason: "on purpose".to_owned() });
        }
        buf.fill(1);
        Ok(buf.len())
    }
}

#[test]
fn nothing_is_left_of_a_failure_and_nothing_is_overwritten() {
    let folder = folder();
    let path = join(&folder, "disk");
    for (layout, _) in LAYOUTS {
        let error = quietly(&Failing, &path, layout).expect_err("fails");
        assert!(error.to_string().contains("on purpose"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0, "{layout:?}");
    }
    let small = Made { size: MIB, places: vec![0] };
    quietly(&small, &path, Layout::Raw).expect("writes");
    let before = std::fs::read(&path).expect("read");
    for (layout, _) in LAYOUTS {
        assert!(matches!(quietly(&small, &path, layout), Err(Error::Exists { .. })), "{layout:?}");
    }
    // A failed replacement leaves what was there.
    assert!(write(&Failing, Path::new(&path), Layout::Raw, Existing::Replace, &mut |_| {}).is_err());
    assert_eq!(std::fs::read(&path).expect("read"), before);
    write(&small, Path::new(&path), Layout::VhdFixed, Existing::Replace, &mut |_| {}).expect("replaces");
    assert_eq!(std::fs::metadata(&path).expect("metadata").len(), 20 * MIB + 512);
    // A link is not followed to what it names.
    let link = join(&folder, "link");
    std::os::unix::fs::symlink(join(&folder, "elsewhere"), &link).expect("link");
    assert!(matches!(quietly(&small, &link, Layout::Raw), Err(Error::Exists { .. })));
    assert!(matches!(quietly(&small, &join(&folder, "no/such/folder"), Layout::Raw), Err(Error::Io { .. })));
}

/// A file larger than the file system's largest is refused by that name; small data makes a small dynamic VHD.
#[test]
fn what_does_not_fit_says_so() {
    let folder = folder();
    // ext4's largest file has a little less than 16 TiB.
    let size = 32_000 * GIB;
    let on_ext4 = tempfile::tempdir().expect("folder");
    let path = on_ext4.path().join("disk");
    let made = Made { size, places: vec![0] };
    match quietly(&made, path.to_str().expect("text"), Layout::VhdFixed) {
        Err(Error::Write { reason, .. }) => assert!(reason.contains("file system"), "{reason}"),
        // A file system with larger files.
        Ok(()) => assert_eq!(File::open(&path).and_then(|f| f.metadata()).expect("file").len(), size + 512),
        Err(error) => panic!("{error}"),
    }
    // Footer and copy agree in what we write.
    let path = join(&folder, "dynamic");
    quietly(&Made { size: GIB, places: vec![0, 512 * MIB] }, &path, Layout::VhdDynamic).expect("writes");
    let file = File::open(&path).expect("open");
    let len = file.metadata().expect("metadata").len();
    let (mut first, mut last) = ([0; 512], [0; 512]);
    file.read_exact_at(&mut first, 0).expect("read");
    file.read_exact_at(&mut last, len - 512).expect("read");
    assert!(first == last);
    assert!(len < 5 * MIB, "{len}");
    run("qemu-img", &["compare", "-f", "vpc", "-F", "vpc", &path, &path]);
}
