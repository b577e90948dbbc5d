//! Why a step was not taken from the cache: the first difference to the last run with the same rights.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::request::{BuildRequest, Host, StepAction};

/// The parts of a run that decide about reuse, named as a template's author knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    base: String,
    machine: String,
    steps: Vec<PlannedStep>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PlannedStep {
    name: String,
    kind: String,
    destination: Option<String>,
    content_sha256: String,
}

impl Plan {
    pub(crate) fn of(request: &BuildRequest, host: &Host) -> Self {
        let steps = request
            .steps
            .iter()
            .map(|step| {
                let (kind, destination, content) = match &step.action {
                    StepAction::Shell { script } => ("Shell", None, script),
                    StepAction::File { content, destination } => ("File", Some(destination.clone()), content),
                };
                PlannedStep {
                    name: step.name.clone(),
                    kind: kind.to_owned(),
                    destination,
                    content_sha256: hex::encode(Sha256::digest(content)),
                }
            })
            .collect();
        let machine = format!(
            "{} vCPUs, {} MiB, {} bytes of disk, {:?}, QEMU {}",
            request.vcpus, request.memory_mib, request.disk_bytes, host.accelerator, host.qemu_version
        );
        Self { base: request.base.manifest.to_string(), machine, steps }
    }

    /// What is different from `last`, the first thing first; `None` when nothing is.
    pub(crate) fn first_change(&self, last: &Self) -> Option<String> {
        if self.base != last.base {
            return Some(format!("the source image changed ({} → {})", short(&last.base), short(&self.base)));
        }
        if self.machine != last.machine {
            return Some(format!("the build VM changed ({} → {})", last.machine, self.machine));
        }
        for (n, (new, old)) in self.steps.iter().zip(&last.steps).enumerate() {
            let step = format!("customizer {} '{}'", n + 1, new.name);
            if new.kind != old.kind {
                return Some(format!("{step} is now of type {} ({} before)", new.kind, old.kind));
            }
            if new.destination != old.destination {
                return Some(format!("{step} has another destination"));
            }
            if new.content_sha256 != old.content_sha256 {
                let (old, new) = (short(&old.content_sha256), short(&new.content_sha256));
                return Some(format!("{step} has other content (sha256 {old} → {new})"));
            }
        }
        match self.steps.len().cmp(&last.steps.len()) {
            std::cmp::Ordering::Greater => Some(format!("customizer {} is new", last.steps.len() + 1)),
            std::cmp::Ordering::Less => Some(format!("customizer {} is gone", self.steps.len() + 1)),
            std::cmp::Ordering::Equal => None,
        }
    }
}

/// Names the file that remembers the last plan.
pub(crate) fn rights_digest(rights: &str) -> String {
    hex::encode(&Sha256::digest(rights)[..16])
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(base: &str, steps: &[(&str, &str)]) -> Plan {
        let steps = steps
            .iter()
            .map(|(name, content)| PlannedStep {
                name: (*name).into(),
                kind: "Shell".into(),
                destination: None,
                content_sha256: (*content).into(),
            })
            .collect();
        Plan { base: base.into(), machine: "m".into(), steps }
    }

    #[test]
    fn the_first_difference_is_named() {
        let last = plan("b1", &[("a", "1"), ("b", "2")]);
        let check = |new: Plan, expected: Option<&str>| {
            assert_eq!(new.first_change(&last).as_deref(), expected);
        };
        check(last.clone(), None);
        check(plan("b1", &[("renamed", "1"), ("b", "2")]), None);
        check(plan("b2", &[("a", "1"), ("b", "2")]), Some("the source image changed (b1 → b2)"));
        check(
            plan("b1", &[("a", "1"), ("b", "3")]),
            Some("customizer 2 'b' has other content (sha256 2 → 3)"),
        );
        check(plan("b1", &[("a", "1")]), Some("customizer 2 is gone"));
        check(plan("b1", &[("a", "1"), ("b", "2"), ("c", "4")]), Some("customizer 3 is new"));
    }
}
