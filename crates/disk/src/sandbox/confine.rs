//! What the reader gives up before it looks at a disk: memory, time, files, names, sockets, other programs.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::protocol::Landlock;

/// Anonymous memory. Parsers stay far below; a file that makes them need more is hostile.
pub(super) const MEMORY_BYTES: u64 = 256 << 20;
/// Address space, the program's own code included.
const ADDRESS_SPACE_BYTES: u64 = 1 << 30;
/// Processor time that any disk may cost.
const CPU_SECONDS_BASE: u64 = 1800;
/// Bytes of the input for each further second. Even xz of random data is faster.
const CPU_BYTES_PER_SECOND: u64 = 1 << 20;

/// Limits that depend on the input.
pub(super) struct Limits {
    /// Length of all input files together.
    pub(super) input_bytes: u64,
    /// The largest file that is written: the temporary file, or the memory file.
    pub(super) file_bytes: u64,
    /// Files that are open.
    pub(super) files: u64,
}

/// Sets the limits of this process, for good.
pub(super) fn limit(limits: &Limits) -> std::io::Result<()> {
    let seconds = CPU_SECONDS_BASE.saturating_add(limits.input_bytes / CPU_BYTES_PER_SECOND);
    for (resource, limit) in [
        (Resource::Data, MEMORY_BYTES),
        (Resource::As, ADDRESS_SPACE_BYTES),
        (Resource::Cpu, seconds),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, limits.files),
        (Resource::Core, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    Ok(())
}

/// Takes away every file name, every port, and signals to others, as far as the kernel has Landlock.
pub(super) fn landlock() -> Result<Landlock, landlock::RulesetError> {
    // The newest that the crate knows; older kernels take what they have.
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Absent,
    })
}

/// Leaves the system calls that reading, unpacking and answering need; any other ends the process.
pub(super) fn seccomp() -> Result<(), Box<dyn std::error::Error>> {
    let plain = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_fstatfs,
        libc::SYS_close,
        // The standard library looks at what it closes, in debug builds.
        libc::SYS_fcntl,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_restart_syscall,
        // Ending, by abort as well.
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        plain.into_iter().map(|number| (number, Vec::new())).collect();
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = libc::PROT_EXEC.unsigned_abs().into();
        let not_executable =
            SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![not_executable])?]);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
