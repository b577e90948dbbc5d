//! The catalogue: which platform images there are and how each comes to be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The catalogue that is part of the program; configuration may add folders.
const BUILT_IN: &[(&str, &str)] = &[("catalog/debian.toml", include_str!("../../../../catalog/debian.toml"))];

/// Why a catalogue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or folder.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not a catalogue.
    #[error("{path} is not a catalogue: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// The first thing that is wrong.
        reason: String,
    },
}

/// All known platform images.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    images: BTreeMap<(String, String, String), PlatformImage>,
}

/// One publisher/offer/sku.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformImage {
    /// Publisher, as it is shown.
    pub publisher: String,
    /// Offer, as it is shown.
    pub offer: String,
    /// Sku, as it is shown.
    pub sku: String,
    /// First two numbers of its versions; the third is the day on which the image was made.
    pub version: String,
    /// `V1` (BIOS) or `V2` (UEFI).
    pub hyper_v_generation: String,
    /// How its disk comes to be.
    pub recipe: Recipe,
}

/// How a disk comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Put together from a distribution's packages.
    Bootstrap(Bootstrap),
    /// Fetched as it is.
    Download(Download),
}

/// A Debian-like system made by `mmdebstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Name of the release.
    pub suite: String,
    /// Where packages come from; empty: where `mmdebstrap` takes them from by default.
    #[serde(default)]
    pub mirror: String,
    /// Packages beside the minimal system; dependencies follow.
    pub packages: Vec<String>,
    /// Size of the disk in GiB.
    pub disk_gib: u32,
}

/// A disk from a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// Where it is.
    pub url: String,
    /// SHA-256 of the file as fetched, 64 hexadecimal digits.
    pub sha256: String,
    /// Format of the file. Declared, never probed: a file that a stranger made may say anything.
    pub format: DownloadFormat,
}

/// Disk formats that can be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DownloadFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// Microsoft's fixed or dynamic VHD.
    Vhd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: Vec<PlatformImage>,
}

impl Catalog {
    /// The built-in catalogue and those in `folders` (`*.toml`), which may replace built-in images.
    ///
    /// # Errors
    /// When a file cannot be read or is not a catalogue: the program does not start with half of one.
    pub fn load(folders: &[std::path::PathBuf]) -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        for (path, text) in BUILT_IN {
            catalog.add(path, text)?;
        }
        for folder in folders {
            let read = |source| CatalogError::Read { path: folder.display().to_string(), source };
            let mut files: Vec<_> = std::fs::read_dir(folder)
                .map_err(read)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()
                .map_err(read)?;
            files.sort();
            for path in files.iter().filter(|path| path.extension() == Some("toml".as_ref())) {
                let shown = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .map_err(|source| CatalogError::Read { path: shown.clone(), source })?;
                catalog.add(&shown, &text)?;
            }
        }
        Ok(catalog)
    }

    fn add(&mut self, path: &str, text: &str) -> Result<(), CatalogError> {
        let invalid = |reason: String| CatalogError::Invalid { path: path.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        for image in file.image {
            image.check().map_err(|reason| {
                invalid(format!("{}:{}:{}: {reason}", image.publisher, image.offer, image.sku))
            })?;
            self.images.insert(key(&image.publisher, &image.offer, &image.sku), image);
        }
        Ok(())
    }

    /// One image; names compare without case.
    pub fn find(&self, publisher: &str, offer: &str, sku: &str) -> Option<&PlatformImage> {
        self.images.get(&key(publisher, offer, sku))
    }

    /// All images, ordered by publisher, offer and sku.
    pub fn images(&self) -> impl Iterator<Item = &PlatformImage> {
        self.images.values()
    }
}

impl PlatformImage {
    /// Names the disk: images with equal recipes (two generations of one disk) share it.
    pub fn recipe_digest(&self) -> String {
        let recipe = serde_json::to_vec(&self.recipe).expect("recipes are plain data");
        hex::encode(Sha256::digest(recipe))
    }

    fn check(&self) -> Result<(), String> {
        let numbers: Vec<_> = self.version.split('.').collect();
        if numbers.len() != 2 || numbers.iter().any(|number| number.parse::<u32>().is_err()) {
            return Err(format!("version {:?} is not Major.Minor", self.version));
        }
        if !["V1", "V2"].contains(&self.hyper_v_generation.as_str()) {
            return Err(format!("hyper_v_generation {:?} is neither V1 nor V2", self.hyper_v_generation));
        }
        match &self.recipe {
            Recipe::Bootstrap(recipe) if !(2..=1023).contains(&recipe.disk_gib) => {
                Err(format!("disk_gib {} is not between 2 and 1023", recipe.disk_gib))
            }
            Recipe::Download(recipe) if recipe.sha256.len() != 64 || hex::decode(&recipe.sha256).is_err() => {
                Err("sha256 is not 64 hexadecimal digits".to_owned())
            }
            Recipe::Bootstrap(_) | Recipe::Download(_) => Ok(()),
        }
    }
}

fn key(publisher: &str, offer: &str, sku: &str) -> (String, String, String) {
    (publisher.to_lowercase(), offer.to_lowercase(), sku.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_valid_and_names_compare_without_case() {
        let catalog = Catalog::load(&[]).unwrap();
        let gen2 = catalog.find("debian", "DEBIAN-12", "12-Gen2").unwrap();
        let gen1 = catalog.find("Debian", "debian-12", "12").unwrap();
        assert_eq!((gen2.hyper_v_generation.as_str(), gen1.hyper_v_generation.as_str()), ("V2", "V1"));
        assert_eq!(gen1.recipe_digest(), gen2.recipe_digest(), "both generations start from one disk");
    }

    #[test]
    fn a_bad_catalogue_is_refused_with_the_image_and_the_reason() {
        let check = |text: &str, expected: &str| {
            let error = Catalog::default().add("x.toml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let download = |sha: &str, version: &str| {
            format!(
                "[[image]]\npublisher='P'\noffer='O'\nsku='S'\nversion='{version}'\nhyper_v_generation='V1'\n\
                 [image.recipe.download]\nurl='http://h/d'\nsha256='{sha}'\nformat='raw'\n"
            )
        };
        check(&download("12", "1.0"), "P:O:S: sha256 is not 64 hexadecimal digits");
        check(&download(&"0".repeat(64), "1"), "version \"1\" is not Major.Minor");
        check("[[image]]\nname='x'\n", "unknown field `name`");
    }
}
