//! Which process a writer is, so that another one on the same host can tell that it is dead without waiting.

use serde::{Deserialize, Serialize};

/// A process of one boot of one host (or container).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    boot_id: String,
    pid_namespace: String,
    pid: u32,
    /// Clock ticks from boot to its start: a pid is used again, the pair is not.
    started: u64,
}

impl Process {
    /// This process; `None` where `/proc` does not tell.
    pub(crate) fn current() -> Option<Self> {
        let pid = std::process::id();
        let (boot_id, pid_namespace) = surroundings()?;
        Some(Self { boot_id, pid_namespace, pid, started: started(pid)? })
    }

    /// Whether it is known to be dead: it was of this boot and namespace, and is no longer there.
    pub(crate) fn is_dead(&self) -> bool {
        let here = surroundings().is_some_and(|(boot, ns)| boot == self.boot_id && ns == self.pid_namespace);
        here && started(self.pid) != Some(self.started)
    }
}

/// Boot id and pid namespace of this process.
fn surroundings() -> Option<(String, String)> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
    Some((boot_id, namespace))
}

/// Field 22 of `/proc/<pid>/stat`. The second field is the command in parentheses, which may hold anything.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut fields = after_command.split_whitespace();
    // A zombie ended: what it held is nobody's.
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told_from_the_living() {
        let me = Process::current().expect("/proc is there");
        assert!(!me.is_dead());
        assert!(Process { started: me.started + 1, ..me.clone() }.is_dead());
        // Of another boot, nothing is known.
        assert!(!Process { boot_id: "other".to_owned(), started: 1, ..me }.is_dead());
    }
}
