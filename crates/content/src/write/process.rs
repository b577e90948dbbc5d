//! Which process a writer is, so that another one on the same host can tell that it is dead without waiting.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
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
        match state(pid) {
            State::Running { started } => Some(Self { boot_id, pid_namespace, pid, started }),
            State::Ended | State::Unknown => None,
        }
    }

    /// Whether it is known to be dead: it was of this boot and namespace, and is no longer there. A process of which this
    /// user may see nothing is not known to be dead.
    pub(crate) fn is_dead(&self) -> bool {
        let here = surroundings().is_some_and(|(boot, ns)| boot == self.boot_id && ns == self.pid_namespace);
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        if !here {
            return false;
        }
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        match state(self.pid) {
            State::Running { started } => started != self.started,
            State::Ended => true,
            State::Unknown => false,
        }
    }
}

/// What `/proc/<pid>/stat` says of a process.
enum State {
    Running {
        started: u64,
    },
    /// A zombie: what it held is nobody's.
    Ended,
    Unknown,
}

/// Boot id and pid namespace of this process.
fn surroundings() -> Option<(String, String)> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
    Some((boot_id, namespace))
}

/// Fields 3 and 22 of `/proc/<pid>/stat`. The second field is the command in parentheses, which may hold anything.
fn state(pid: u32) -> State {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return State::Unknown };
    let mut fields = stat.rsplit_once(')').map_or("", |(_, after)| after).split_whitespace();
    match fields.next() {
        Some("Z" | "X") => State::Ended,
        _ => match fields.nth(18).and_then(|ticks| ticks.parse().ok()) {
            Some(started) => State::Running { started },
            None => State::Unknown,
        },
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
        // Far above the largest pid that Linux gives.
        assert!(Process { pid: 1 << 30, ..me.clone() }.is_dead());
        // Of another boot, nothing is known.
        assert!(!Process { boot_id: "other".to_owned(), started: 1, ..me }.is_dead());
    }
}
