//! Which format a disk file has, and what it is packed in. Both are declared by whoever hands the file over: bytes that
//! a guest could have written never decide how they are read.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes, and nothing else.
    Raw,
    /// Virtual PC's and Azure's format: fixed or dynamic.
    Vhd,
    /// Hyper-V's format.
    Vhdx,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
    /// VMware's format: sparse, stream-optimized or flat, in one file or several.
    Vmdk,
}

impl Format {
    /// Every format, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Vhd, Self::Vhdx, Self::Qcow2, Self::Vmdk];

    /// The name that people and `--format` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }

    /// What qemu-img calls it.
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// What a file's name says: `disk.vhd.xz` is a VHD in xz. A convenience for the command line, where a person reads
    /// the result; everything else is told.
    pub fn from_extension(path: &Path) -> Option<(Self, Packing)> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, packing) = match name.rsplit_once('.') {
            Some((stem, "gz")) => (stem, Packing::Gzip),
            Some((stem, "xz")) => (stem, Packing::Xz),
            Some((stem, "zst")) => (stem, Packing::Zstd),
            _ => (name.as_str(), Packing::None),
        };
        let format = match name.rsplit_once('.')?.1 {
            "raw" | "img" => Self::Raw,
            "vhd" | "vpc" => Self::Vhd,
            "vhdx" => Self::Vhdx,
            "qcow2" => Self::Qcow2,
            "vmdk" => Self::Vmdk,
            _ => return None,
        };
        Some((format, packing))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no format, or no packing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not known; possible are {possible}")]
pub struct UnknownName {
    given: String,
    possible: &'static str,
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(given: &str) -> Result<Self, UnknownName> {
        match given {
            "raw" => Ok(Self::Raw),
            "vhd" | "vpc" => Ok(Self::Vhd),
            "vhdx" => Ok(Self::Vhdx),
            "qcow2" => Ok(Self::Qcow2),
            "vmdk" => Ok(Self::Vmdk),
            _ => {
                Err(UnknownName { given: given.to_owned(), possible: "raw, vhd (or vpc), vhdx, qcow2, vmdk" })
            }
        }
    }
}

/// What a disk file is packed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Nothing.
    #[default]
    None,
    /// gzip, one member or several.
    Gzip,
    /// xz, one stream or several.
    Xz,
    /// Zstandard, one frame or several.
    Zstd,
}

impl Packing {
    /// The name that people and `--packing` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Packing {
    type Err = UnknownName;

    fn from_str(given: &str) -> Result<Self, UnknownName> {
        match given {
            "none" => Ok(Self::None),
            "gzip" | "gz" => Ok(Self::Gzip),
            "xz" => Ok(Self::Xz),
            "zstd" | "zst" => Ok(Self::Zstd),
            _ => Err(UnknownName { given: given.to_owned(), possible: "none, gzip, xz, zstd" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_extensions() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(format.qemu_name().parse(), Ok(format));
        }
        for packing in [Packing::None, Packing::Gzip, Packing::Xz, Packing::Zstd] {
            assert_eq!(packing.to_string().parse(), Ok(packing));
        }
        assert!("vdi".parse::<Format>().unwrap_err().to_string().contains("qcow2"));
        let guess = |name: &str| Format::from_extension(Path::new(name));
        assert_eq!(guess("/a/Disk.VHD"), Some((Format::Vhd, Packing::None)));
        assert_eq!(guess("disk.img.xz"), Some((Format::Raw, Packing::Xz)));
        assert_eq!(guess("disk.vmdk.zst"), Some((Format::Vmdk, Packing::Zstd)));
        assert_eq!(guess("disk.qcow2.gz"), Some((Format::Qcow2, Packing::Gzip)));
        assert_eq!(guess("disk.gz"), None);
        assert_eq!(guess("disk"), None);
    }
}
