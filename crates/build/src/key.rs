//! Keys of the step cache: a chain of hashes, each over everything that the step's result depends on.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmhost::identity::Generation;

use crate::request::{BuildRequest, Host};

/// Changes when saved entries of older versions must not be used any more.
const KEY_FORMAT: &str = "tintype-step-1";

/// Key of one snapshot: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StepKey(String);

impl StepKey {
    /// Key of the booted, untouched machine.
    pub(crate) fn booted(request: &BuildRequest, host: &Host) -> Self {
        let generation = match request.base.generation {
            Generation::V1 => "V1",
            Generation::V2 => "V2",
        };
        Self::over(&[
            KEY_FORMAT,
            &request.base.manifest.to_string(),
            generation,
            &host.qemu_version,
            &format!("{:?}", host.accelerator),
            &request.vcpus.to_string(),
            &request.memory_mib.to_string(),
            &request.disk_bytes.to_string(),
            &request.rights,
        ])
    }

    /// Key of the machine after one more step.
    pub(crate) fn after(&self, step_digest: &str) -> Self {
        Self::over(&[KEY_FORMAT, &self.0, step_digest])
    }

    /// For file names.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn over(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hex::encode(hash.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(StepKey::over(&["ab", "c"]), StepKey::over(&["a", "bc"]));
    }

    #[test]
    fn every_step_depends_on_those_before_it() {
        let boot = StepKey::over(&["boot"]);
        assert_eq!(boot.after("a").after("b"), boot.after("a").after("b"));
        assert_ne!(boot.after("a").after("b"), boot.after("b").after("a"));
        assert_ne!(boot.after("a"), boot);
    }
}
