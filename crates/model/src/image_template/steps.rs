//! Customizers and validators: what is run in the machine.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::violation::{Rule, Violation};

/// A SHA-256 digest. 64 hexadecimal digits on the wire, kept in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// A digest from its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Violation`] at `target`.
    pub fn parse(text: &str, target: &str) -> Result<Self, Violation> {
        let mut bytes = [0; 32];
        let well_formed = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !well_formed {
            return Err(Violation::at(
                Rule::Template,
                target,
                format!("{target} is not a SHA-256 checksum: 64 hexadecimal digits are expected."),
            ));
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Self(bytes))
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text, "sha256Checksum").map_err(serde::de::Error::custom)
    }
}

/// Where a script's text is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScriptBody {
    /// In the template, line by line.
    Inline(Vec<String>),
    /// At an address, fetched at submission.
    Uri {
        /// `https://…`
        uri: String,
        /// What it must hash to; `None` leaves it unchecked.
        sha256: Option<Sha256>,
    },
}

/// A shell script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Its text.
    pub body: ScriptBody,
}

/// A PowerShell script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerShellScript {
    /// Its text.
    pub body: ScriptBody,
    /// With elevated rights.
    pub run_elevated: bool,
    /// As Local System; only with `run_elevated`.
    pub run_as_system: bool,
    /// `None`: only 0.
    pub valid_exit_codes: Option<Vec<i32>>,
}

/// A file that is copied into the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCopy {
    /// Where it is fetched, at submission.
    pub source_uri: String,
    /// What it must hash to; `None` leaves it unchecked.
    pub sha256: Option<Sha256>,
    /// Full path in the machine; the parent folder must exist.
    pub destination: String,
}

/// What a customizer does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CustomizerKind {
    /// Runs a shell script (Linux).
    Shell(Script),
    /// Copies a file.
    File(FileCopy),
    /// Runs a PowerShell script (Windows).
    PowerShell(PowerShellScript),
    /// Restarts Windows. There is no restart of Linux.
    WindowsRestart {
        /// `None`: `shutdown /r /f /t 0 /c "packer restart"`.
        command: Option<String>,
        /// `None`: nothing is checked.
        check_command: Option<String>,
        /// `None`: `5m`.
        timeout: Option<String>,
    },
    /// Installs Windows updates.
    WindowsUpdate {
        /// `None`: all updates.
        search_criteria: Option<String>,
        /// Which of them.
        filters: Vec<String>,
        /// 0: 1000.
        update_limit: u32,
    },
}

/// One step of customization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customizer {
    /// For people; need not be unique.
    pub name: Option<String>,
    /// What it does.
    pub kind: CustomizerKind,
}

/// What a validator does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidatorKind {
    /// Runs a shell script (Linux).
    Shell(Script),
    /// Copies a file, for later validators to use.
    File(FileCopy),
    /// Runs a PowerShell script (Windows).
    PowerShell(PowerShellScript),
}

/// One check of the built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// For people; need not be unique.
    pub name: Option<String>,
    /// What it does.
    pub kind: ValidatorKind,
}

impl CustomizerKind {
    /// The address that must be fetched, and its checksum.
    pub fn fetched(&self) -> Option<(&str, Option<&Sha256>)> {
        match self {
            Self::Shell(script) => script.body.fetched(),
            Self::PowerShell(script) => script.body.fetched(),
            Self::File(file) => Some((&file.source_uri, file.sha256.as_ref())),
            Self::WindowsRestart { .. } | Self::WindowsUpdate { .. } => None,
        }
    }

    /// Image builder's word for it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Shell(_) => "Shell",
            Self::File(_) => "File",
            Self::PowerShell(_) => "PowerShell",
            Self::WindowsRestart { .. } => "WindowsRestart",
            Self::WindowsUpdate { .. } => "WindowsUpdate",
        }
    }
}

impl ValidatorKind {
    /// The address that must be fetched, and its checksum.
    pub fn fetched(&self) -> Option<(&str, Option<&Sha256>)> {
        match self {
            Self::Shell(script) => script.body.fetched(),
            Self::PowerShell(script) => script.body.fetched(),
            Self::File(file) => Some((&file.source_uri, file.sha256.as_ref())),
        }
    }

    /// Image builder's word for it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Shell(_) => "Shell",
            Self::File(_) => "File",
            Self::PowerShell(_) => "PowerShell",
        }
    }
}

impl ScriptBody {
    fn fetched(&self) -> Option<(&str, Option<&Sha256>)> {
        match self {
            Self::Inline(_) => None,
            Self::Uri { uri, sha256 } => Some((uri, sha256.as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_compare_without_case() {
        let text = "2C6FF6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8";
        let sum = Sha256::parse(text, "x").unwrap();
        assert_eq!(sum.to_string(), text.to_ascii_lowercase());
        for bad in ["", "2c6f", &"g".repeat(64), &"ä".repeat(32)] {
            assert!(Sha256::parse(bad, "x").is_err(), "{bad:?}");
        }
    }
}
