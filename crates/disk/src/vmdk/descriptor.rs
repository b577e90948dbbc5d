//! The text that says what a VMDK consists of.

use std::collections::HashSet;

use crate::input::Input;
use crate::{Error, MAX_DISK_BYTES};

/// The largest descriptor that is read: 512 extents of a long name each.
pub(super) const MAX_DESCRIPTOR_BYTES: u64 = 128 << 10;
/// Extents of one disk: 1 TiB in pieces of 2 GiB. Each is an open file.
const MAX_EXTENTS: usize = 512;
/// The longest name of an extent's file, as file systems have it.
const MAX_NAME_BYTES: usize = 255;
const SIGNATURE: &str = "# Disk DescriptorFile";
const NO_PARENT: &str = "ffffffff";
const KNOWN_TYPES: [&str; 5] =
    ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"];

/// Why a descriptor is not used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Damaged(String),
    Unsupported(String),
}

impl Refusal {
    pub(super) fn about(self, input: &Input) -> Error {
        match self {
            Self::Damaged(reason) => input.damaged(reason),
            Self::Unsupported(reason) => input.unsupported(reason),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Plain bytes from this sector of the file on.
    Flat {
        offset_sectors: u64,
    },
    Sparse,
    Zero,
}

/// One `RW 4192256 SPARSE "disk-s001.vmdk"`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) sectors: u64,
    pub(super) kind: Kind,
    /// A plain file name; none for zeros.
    pub(super) file: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) extents: Vec<ExtentLine>,
}

impl Descriptor {
    /// Reads a descriptor with its extents.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let text = check(bytes)?;
        let mut extents = Vec::new();
        let mut names = HashSet::new();
        for line in text.lines().map(str::trim) {
            let access = line.split_whitespace().next().unwrap_or_default();
            match access {
                "RW" | "RDONLY" => {}
                "NOACCESS" => {
                    return Err(Refusal::Unsupported(format!("an extent may not be read: {line:?}")));
                }
                _ => continue,
            }
            let extent = extent_line(line)?;
            if let Some(name) = &extent.file
                && !names.insert(name.clone())
            {
                return Err(Refusal::Damaged(format!("it names the file {name:?} twice")));
            }
            extents.push(extent);
            if extents.len() > MAX_EXTENTS {
                return Err(Refusal::Unsupported(format!(
                    "it has more than {MAX_EXTENTS} extents; `qemu-img convert -O vmdk` makes one file of them"
                )));
            }
        }
        if extents.is_empty() {
            return Err(Refusal::Damaged("its descriptor has no extents".to_owned()));
        }
        Ok(Self { extents })
    }

    /// The names of other files, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.extents.iter().filter_map(|extent| extent.file.as_deref())
    }

    /// The disk's size, if it is a number.
    pub(super) fn bytes(&self) -> Option<u64> {
        // A sum of 512 numbers of at most 32 TiB cannot overflow.
        Some(self.extents.iter().map(|extent| extent.sectors * super::SECTOR).sum())
    }
}

/// Checks what is true of the descriptor inside a sparse file as well: a known kind of disk, without a parent.
pub(super) fn check(bytes: &[u8]) -> Result<&str, Refusal> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = str::from_utf8(&bytes[..end])
        .map_err(|_| Refusal::Damaged("its descriptor is not UTF-8 text".to_owned()))?;
    if !text.trim_start().starts_with(SIGNATURE) {
        return Err(Refusal::Damaged(format!(
            "it is neither a sparse VMDK nor a descriptor: it begins neither with `KDMV` nor with `{SIGNATURE}`"
        )));
    }
    let mut kind = None;
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "parentCID" if !value.eq_ignore_ascii_case(NO_PARENT) => {
                return Err(Refusal::Unsupported(
                    "it holds only what differs from a parent disk; consolidate the snapshots or clone the disk, and use \
                     the result"
                        .to_owned(),
                ));
            }
            "createType" => kind = Some(value),
            _ => {}
        }
    }
    match kind {
        Some(kind) if KNOWN_TYPES.contains(&kind) => Ok(text),
        Some(kind) => Err(Refusal::Unsupported(format!(
            "createType {kind:?}; read are {}. `qemu-img convert -O vmdk` or VMware's `vmkfstools -i` makes such a file",
            KNOWN_TYPES.join(", ")
        ))),
        None => Err(Refusal::Damaged("its descriptor has no createType".to_owned())),
    }
}

fn extent_line(line: &str) -> Result<ExtentLine, Refusal> {
    let bad = || Refusal::Damaged(format!("its descriptor has an extent that cannot be read: {line:?}"));
    let mut parts = line.splitn(4, ' ').map(str::trim);
    let (_, sectors, kind) = (parts.next(), parts.next(), parts.next());
    let rest = parts.next().unwrap_or_default();
    let sectors: u64 = sectors.and_then(|text| text.parse().ok()).ok_or_else(bad)?;
    if sectors == 0 || sectors > MAX_DISK_BYTES / super::SECTOR {
        return Err(bad());
    }
    if kind == Some("ZERO") {
        return Ok(ExtentLine { sectors, kind: Kind::Zero, file: None });
    }
    let (name, offset) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')).ok_or_else(bad)?;
    let offset = offset.trim();
    let kind = match kind {
        Some("FLAT") => Kind::Flat { offset_sectors: offset.parse().map_err(|_| bad())? },
        Some("SPARSE") if offset.is_empty() => Kind::Sparse,
        Some("SPARSE") | None => return Err(bad()),
        Some(other) => {
            return Err(Refusal::Unsupported(format!(
                "an extent of kind {other:?}; FLAT, SPARSE and ZERO are read"
            )));
        }
    };
    let plain = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control);
    if !plain {
        return Err(Refusal::Unsupported(format!(
            "an extent in the file {name:?}; only plain names in the descriptor's own folder are opened"
        )));
    }
    Ok(ExtentLine { sectors, kind, file: Some(name.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str, extents: &str) -> String {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=12\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
             # Extent description\n{extents}\n\nddb.adapterType = \"ide\"\n"
        )
    }

    fn parse(extents: &str) -> Result<Descriptor, Refusal> {
        Descriptor::parse(descriptor("twoGbMaxExtentFlat", extents).as_bytes())
    }

    #[test]
    fn extents_in_order() {
        let parsed =
            parse("RW 8 FLAT \"a b-f001.vmdk\" 16\nRW 4 ZERO\nRDONLY 1 SPARSE \"c.vmdk\"").expect("reads");
        assert_eq!(parsed.files().collect::<Vec<_>>(), ["a b-f001.vmdk", "c.vmdk"]);
        assert_eq!(parsed.bytes(), Some(13 * 512));
        assert_eq!(parsed.extents[0].kind, Kind::Flat { offset_sectors: 16 });
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["/etc/shadow", "../up.vmdk", "..", "a/b", "a\\b", "", &"x".repeat(256)] {
            let refused = parse(&format!("RW 8 FLAT \"{name}\" 0"));
            assert!(matches!(refused, Err(Refusal::Unsupported(_))), "{name:?}: {refused:?}");
        }
        assert!(matches!(parse("RW 8 SPARSE \"a\"\nRW 8 SPARSE \"a\""), Err(Refusal::Damaged(_))));
        assert!(matches!(parse("RW 99999999999999999999 ZERO"), Err(Refusal::Damaged(_))));
        assert!(matches!(parse("RW 8 FLAT \"a\" -1"), Err(Refusal::Damaged(_))));
        assert!(matches!(parse(""), Err(Refusal::Damaged(_))));
        let many: String = (0..513).map(|n| format!("RW 8 SPARSE \"{n}\"\n")).collect();
        assert!(matches!(parse(&many), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn parents_and_other_kinds_are_refused() {
        let with_parent = descriptor("monolithicSparse", "RW 8 ZERO").replace("ffffffff", "1234abcd");
        let refused = Descriptor::parse(with_parent.as_bytes());
        assert!(matches!(refused, Err(Refusal::Unsupported(reason)) if reason.contains("parent disk")));
        let refused = Descriptor::parse(descriptor("vmfsSparse", "RW 8 ZERO").as_bytes());
        assert!(matches!(refused, Err(Refusal::Unsupported(reason)) if reason.contains("vmfsSparse")));
        assert!(matches!(Descriptor::parse(b"\xff\xfe"), Err(Refusal::Damaged(_))));
    }
}
