//! What qemu-img writes, read by the sandboxed reader, byte for byte.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{
    Content, GIB, KIB, MIB, Random, TIB, assert_same, bytes, convert, folder, join, make_raw, program, run,
};
use disk::sandbox::{Options, Reader};
use disk::{BlockSource, Error, Extent, Format, Packing};

/// A format with options of `qemu-img convert`.
struct Variant {
    name: &'static str,
    format: Format,
    options: &'static [&'static str],
}

const fn variant(name: &'static str, format: Format, options: &'static [&'static str]) -> Variant {
    Variant { name, format, options }
}

const VARIANTS: &[Variant] = &[
    variant("raw", Format::Raw, &[]),
    variant("vhd-fixed", Format::Vhd, &["-o", "subformat=fixed,force_size=on"]),
    variant("vhd-dynamic", Format::Vhd, &["-o", "subformat=dynamic,force_size=on"]),
    // The size is rounded to cylinders; what is behind the raw disk's end is zeros.
    variant("vhd-chs", Format::Vhd, &["-o", "subformat=dynamic"]),
    variant("vhdx", Format::Vhdx, &[]),
    variant("vhdx-fixed", Format::Vhdx, &["-o", "subformat=fixed"]),
    variant("vhdx-1m", Format::Vhdx, &["-o", "block_size=1M"]),
    variant("qcow2-v2", Format::Qcow2, &["-o", "compat=0.10"]),
    variant("qcow2-v2-zlib", Format::Qcow2, &["-c", "-o", "compat=0.10"]),
    variant("qcow2", Format::Qcow2, &[]),
    variant("qcow2-512", Format::Qcow2, &["-o", "cluster_size=512"]),
    variant("qcow2-2m-zlib", Format::Qcow2, &["-c", "-o", "cluster_size=2M"]),
    variant("qcow2-zlib", Format::Qcow2, &["-c", "-o", "compression_type=zlib"]),
    variant("qcow2-zstd", Format::Qcow2, &["-c", "-o", "compression_type=zstd"]),
    variant("qcow2-extended", Format::Qcow2, &["-o", "extended_l2=on,cluster_size=128k"]),
    variant("qcow2-extended-zstd", Format::Qcow2, &["-c", "-o", "extended_l2=on,compression_type=zstd"]),
    variant("vmdk", Format::Vmdk, &[]),
    variant("vmdk-zeroed", Format::Vmdk, &["-o", "zeroed_grain=on"]),
    variant("vmdk-stream", Format::Vmdk, &["-o", "subformat=streamOptimized"]),
    variant("vmdk-flat", Format::Vmdk, &["-o", "subformat=monolithicFlat"]),
    variant("vmdk-2g-sparse", Format::Vmdk, &["-o", "subformat=twoGbMaxExtentSparse"]),
    variant("vmdk-2g-flat", Format::Vmdk, &["-o", "subformat=twoGbMaxExtentFlat"]),
];

fn open(path: &str, format: Format, packing: Packing) -> disk::Result<Arc<dyn BlockSource>> {
    disk::sandbox::open(program(), Path::new(path), format, packing)
}

#[test]
fn every_variant_of_every_format() {
    let folder = folder();
    let raw = join(&folder, "source.raw");
    // qemu-img's own smallest sizes: a sector, where a format has no larger unit.
    let sizes = [
        (512, Content::Full),
        (1536, Content::Full),
        (3 * MIB + 512, Content::Full),
        (20 * MIB, Content::Sparse),
        (67 * MIB + 7 * 512, Content::Sparse),
    ];
    for (number, (size, content)) in sizes.into_iter().enumerate() {
        make_raw(&raw, size, content, 10 + number as u64);
        let expected = std::fs::read(&raw).expect("raw");
        for Variant { name, format, options } in VARIANTS {
            let what = format!("{name} of {size} bytes, {content:?}");
            let path = join(&folder, &format!("{name}-{number}"));
            convert(("raw", &raw), (format.qemu_name(), &path), options);
            let source =
                open(&path, *format, Packing::None).unwrap_or_else(|error| panic!("{what}: {error}"));
            let sizes_agree =
                source.logical_size() == size || (*name == "vhd-chs" && source.logical_size() > size);
            assert!(sizes_agree, "{what}: {} bytes", source.logical_size());
            assert_same(&bytes(&*source).expect("bytes"), &expected, &what);
            // VHDX has blocks of 8 MiB and more.
            if size > 60 * MIB {
                let data: u64 = source.extents().map(|extent| extent.expect("extent").len).sum();
                assert!(
                    data < size || options.iter().any(|option| option.contains("=fixed")),
                    "{what}: {data}"
                );
            }
        }
    }
}

#[test]
fn raw_disks_may_have_odd_sizes() {
    let folder = folder();
    let raw = join(&folder, "odd.raw");
    make_raw(&raw, 3 * MIB + 77, Content::Sparse, 5);
    let source = open(&raw, Format::Raw, Packing::None).expect("opens");
    assert_same(&bytes(&*source).expect("bytes"), &std::fs::read(&raw).expect("raw"), "odd");
    assert_eq!(source.logical_size(), 3 * MIB + 77);
    // A disk of no bytes.
    File::create(&raw).expect("create");
    assert_eq!(open(&raw, Format::Raw, Packing::None).expect("opens").logical_size(), 0);
}

#[test]
fn large_sparse_disks_are_quick() {
    let folder = folder();
    let raw = join(&folder, "large.raw");
    let size = 5 * TIB;
    let file = File::create(&raw).expect("create");
    file.set_len(size).expect("size");
    let places = [0, TIB + 12_345 * 512, 3 * TIB, size - 4096];
    for place in places {
        file.write_all_at(&[7; 4096], place).expect("write");
    }
    let large: &[(&str, Format, u64, &[&str])] = &[
        ("raw", Format::Raw, size, &[]),
        ("vhdx", Format::Vhdx, size, &[]),
        ("qcow2", Format::Qcow2, size, &[]),
        ("qcow2-extended", Format::Qcow2, size, &["-o", "extended_l2=on"]),
        ("vmdk", Format::Vmdk, size, &[]),
        ("vmdk-stream", Format::Vmdk, size, &["-o", "subformat=streamOptimized"]),
        ("vmdk-flat", Format::Vmdk, size, &["-o", "subformat=monolithicFlat"]),
    ];
    for (name, format, size, options) in large {
        let path = join(&folder, name);
        convert(("raw", &raw), (format.qemu_name(), &path), options);
        let started = std::time::Instant::now();
        let source = open(&path, *format, Packing::None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(source.logical_size(), *size, "{name}");
        let extents: Vec<Extent> = source.extents().collect::<disk::Result<_>>().expect("extents");
        for place in places {
            let mut buf = [0; 4096];
            source.read_onto(place, &mut buf).expect("read");
            assert_eq!(buf, [7; 4096], "{name} at {place}");
            assert!(extents.iter().any(|e| e.start <= place && place + 4096 <= e.end()), "{name} at {place}");
        }
        let data: u64 = extents.iter().map(|extent| extent.len).sum();
        assert!(data <= 4 * 64 * MIB, "{name} says {data} bytes of data");
        assert!(started.elapsed().as_secs() < 5, "{name} took {:?}", started.elapsed());
        std::fs::remove_file(&path).expect("remove");
    }
}

/// qemu-img's VHD ends here.
#[test]
fn the_largest_vhd_of_qemu() {
    let folder = folder();
    let path = join(&folder, "large.vhd");
    let size = 2040 * GIB;
    for subformat in ["fixed", "dynamic"] {
        let options = format!("subformat={subformat},force_size=on");
        run("qemu-img", &["create", "-q", "-f", "vpc", "-o", &options, &path, &size.to_string()]);
        run("qemu-io", &["-f", "vpc", "-c", &format!("write -P 9 {} 64k", size - 64 * KIB), &path]);
        let source = open(&path, Format::Vhd, Packing::None).expect("opens");
        assert_eq!(source.logical_size(), size);
        let mut buf = [0; 65_536];
        source.read_onto(size - 64 * KIB, &mut buf).expect("read");
        assert_eq!(buf, [9; 65_536]);
    }
}

#[test]
fn a_chain_is_read_when_it_is_given() {
    let folder = folder();
    let (base, middle, top) = (join(&folder, "base"), join(&folder, "middle"), join(&folder, "top"));
    let raw = join(&folder, "raw");
    make_raw(&raw, 20 * MIB, Content::Sparse, 3);
    convert(("raw", &raw), ("qcow2", &base), &["-c"]);
    for (below, above, write) in [(&base, &middle, "write -P 3 1M 100k"), (&middle, &top, "write -z 6M 1M")] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", above, "24M"]);
        run("qemu-io", &["-f", "qcow2", "-c", write, above]);
    }
    convert(("qcow2", &top), ("raw", &raw), &[]);
    let source = Reader::open_chain(program(), &[&base, &middle, &top], &Options::default()).expect("opens");
    assert_same(&bytes(&*source).expect("bytes"), &std::fs::read(&raw).expect("raw"), "chain");

    let refused = |result: disk::Result<Arc<dyn BlockSource>>| result.err().expect("refused").to_string();
    let error = refused(open(&top, Format::Qcow2, Packing::None));
    assert!(error.contains("overlay of") && error.contains("middle"), "{error}");
    let error = Reader::open_chain(program(), &[&middle, &top], &Options::default()).expect_err("refused");
    assert!(error.to_string().contains("base"), "{error}");
}

/// As changes, an overlay says which bytes are its own; the others stay what the caller had.
#[test]
fn an_overlay_is_read_as_what_it_changed() {
    let folder = folder();
    let (base, top) = (join(&folder, "base"), join(&folder, "top"));
    make_raw(&base, 12 * MIB, Content::Full, 3);
    for options in ["cluster_size=512", "cluster_size=64k", "extended_l2=on,cluster_size=16k"] {
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, "-b", &base, "-F", "raw", &top, "16M"],
        );
        // Small writes, many of them in one MiB, zeros, and some behind the base's end.
        let mut writes: Vec<String> =
            (0..200).map(|n| format!("write -P {} {} 512", n + 1, MIB + n * 4096)).collect();
        writes.extend(["write -z 3M 100k", "write -P 9 5000k 2M", "write -P 8 15M 512"].map(str::to_owned));
        let commands: Vec<&str> = writes.iter().flat_map(|write| ["-c", write]).collect();
        run("qemu-io", &[&["-f", "qcow2"], &commands[..], &[&top]].concat());

        let source = disk::sandbox::open_overlay(program(), Path::new(&top)).expect("opens");
        let here = disk::Chain::open(&[&top]).expect("opens");
        let extents = |source: &dyn BlockSource| source.extents().collect::<disk::Result<Vec<Extent>>>();
        assert_eq!(extents(&*source).expect("extents"), extents(&here).expect("extents"), "{options}");
        let mut random = Random(4);
        let mut partly = 0;
        for _ in 0..100 {
            let at = random.below(15 * MIB);
            let len = 1 + random.below(3 * MIB).min(16 * MIB - at - 1) as usize;
            let (mut theirs, mut ours) = (vec![0xaa; len], vec![0xaa; len]);
            let held = source.read_onto(at, &mut theirs).expect("read");
            assert_eq!(held, here.read_onto(at, &mut ours).expect("read"), "{options} at {at}");
            assert!(theirs == ours, "{options} at {at}");
            partly += usize::from(held > 0 && held < len);
        }
        assert!(partly > 10, "{partly} reads of both");
        // Over its base, it is the disk.
        let mut whole = std::fs::read(&base).expect("base");
        whole.resize(16 * MIB as usize, 0);
        source.read_onto(0, &mut whole).expect("read");
        convert(("qcow2", &top), ("raw", &join(&folder, "whole")), &[]);
        assert!(whole == std::fs::read(join(&folder, "whole")).expect("whole"), "{options}");
    }
}

#[test]
fn what_is_refused_says_why() {
    let folder = folder();
    let refused = |path: &str, format: Format, why: &str| {
        let error = open(path, format, Packing::None).err().expect("refused");
        let text = error.to_string();
        assert!(text.contains(why) && text.contains(path), "{text}");
        error
    };
    let (base, path) = (join(&folder, "base"), join(&folder, "disk"));
    // What is not the declared format.
    make_raw(&base, MIB, Content::Full, 4);
    for (format, why) in [
        (Format::Vhd, "conectix"),
        (Format::Vhdx, "vhdxfile"),
        (Format::Qcow2, "magic"),
        (Format::Vmdk, "KDMV"),
    ] {
        assert!(matches!(refused(&base, format, why), Error::Damaged { .. }));
    }
    // A differencing VHD: the footer's disk type, with its checksum.
    run("qemu-img", &["create", "-q", "-f", "vpc", &path, "20M"]);
    let file = File::options().read(true).write(true).open(&path).expect("open");
    let end = file.metadata().expect("metadata").len();
    for at in [0, end - 512] {
        let mut footer = [0; 512];
        file.read_exact_at(&mut footer, at).expect("footer");
        footer[63] = 4;
        footer[64..68].fill(0);
        let sum = !footer.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
        footer[64..68].copy_from_slice(&sum.to_be_bytes());
        file.write_all_at(&footer, at).expect("footer");
    }
    refused(&path, Format::Vhd, "differencing");
    // A dynamic VHD without its last footer still has the copy; a fixed one does not.
    run("qemu-img", &["create", "-q", "-f", "vpc", &path, "20M"]);
    let file = File::options().write(true).open(&path).expect("open");
    file.set_len(file.metadata().expect("metadata").len() - 512).expect("cut");
    open(&path, Format::Vhd, Packing::None).expect("opens by the copy");
    run("qemu-img", &["create", "-q", "-f", "vpc", "-o", "subformat=fixed", &path, "20M"]);
    let file = File::options().write(true).open(&path).expect("open");
    file.set_len(file.metadata().expect("metadata").len() - 512).expect("cut");
    refused(&path, Format::Vhd, "complete");
    // A VMDK with a parent, in both kinds of file; a piece of one; a lost piece; a link in place of one.
    run("qemu-img", &["create", "-q", "-f", "vmdk", &base, "4M"]);
    run("qemu-img", &["create", "-q", "-f", "vmdk", "-b", &base, "-F", "vmdk", &path, "4M"]);
    refused(&path, Format::Vmdk, "parent disk");
    let descriptor = join(&folder, "pieces.vmdk");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", &descriptor, "3G"],
    );
    let piece = join(&folder, "pieces-s002.vmdk");
    refused(&piece, Format::Vmdk, "one extent of a larger disk");
    std::fs::rename(&piece, &path).expect("rename");
    let error = open(&descriptor, Format::Vmdk, Packing::None).err().expect("refused").to_string();
    assert!(error.contains("pieces-s002.vmdk"), "{error}");
    std::os::unix::fs::symlink(&path, &piece).expect("link");
    let error = open(&descriptor, Format::Vmdk, Packing::None).err().expect("refused").to_string();
    assert!(error.contains("pieces-s002.vmdk"), "{error}");
    // qcow2 with its data elsewhere.
    let options = format!("data_file={}", join(&folder, "external"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &path, "1M"]);
    refused(&path, Format::Qcow2, "external file");
    // No file, and no regular one.
    assert!(matches!(open(&join(&folder, "none"), Format::Raw, Packing::None), Err(Error::Io { .. })));
    assert!(matches!(open("/dev/null", Format::Raw, Packing::None), Err(Error::Unsupported { .. })));
}

fn pack(packing: Packing, from: &str, to: &str) {
    let command = match packing {
        Packing::None => "cat",
        Packing::Gzip => "gzip -1 -c",
        Packing::Xz => "xz -1 -T1 -c",
        Packing::Zstd => "zstd -q -1 -c",
    };
    run("sh", &["-c", &format!("{command} < '{from}' > '{to}'")]);
}

#[test]
fn packed_disks() {
    let folder = folder();
    let (raw, plain, packed) = (join(&folder, "raw"), join(&folder, "plain"), join(&folder, "packed"));
    make_raw(&raw, 21 * MIB, Content::Sparse, 8);
    let expected = std::fs::read(&raw).expect("raw");
    let stream = &["-o", "subformat=streamOptimized"][..];
    for (format, options) in [
        (Format::Raw, &[][..]),
        (Format::Vhd, &["-o", "subformat=fixed,force_size=on"]),
        (Format::Vhdx, &[]),
        (Format::Qcow2, &[]),
        (Format::Vmdk, stream),
    ] {
        convert(("raw", &raw), (format.qemu_name(), &plain), options);
        for packing in [Packing::Gzip, Packing::Xz, Packing::Zstd] {
            pack(packing, &plain, &packed);
            let source =
                open(&packed, format, packing).unwrap_or_else(|e| panic!("{format} in {packing}: {e}"));
            assert_same(&bytes(&*source).expect("bytes"), &expected, &format!("{format} in {packing}"));
        }
    }
    for packing in [Packing::Gzip, Packing::Xz, Packing::Zstd] {
        // Two packed files, one behind the other, are one disk.
        pack(packing, &raw, &packed);
        let once = std::fs::read(&packed).expect("packed");
        std::fs::write(&packed, [&once[..], &once[..]].concat()).expect("write");
        let source = open(&packed, Format::Raw, packing).expect("opens");
        assert_same(&bytes(&*source).expect("bytes"), &[&expected[..], &expected[..]].concat(), "twice");
        // A part of one is damage, and so is something else.
        std::fs::write(&packed, &once[..once.len() / 2]).expect("write");
        let error = open(&packed, Format::Raw, packing).err().expect("refused");
        assert!(
            matches!(&error, Error::Damaged { reason, .. } if reason.contains(packing.name())),
            "{error}"
        );
        std::fs::write(&packed, Random(3).bytes(5000)).expect("write");
        assert!(matches!(open(&packed, Format::Raw, packing), Err(Error::Damaged { .. })));
    }
}
