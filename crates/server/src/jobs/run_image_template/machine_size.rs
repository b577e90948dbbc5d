//! How large a build VM is on this host. Azure has a machine of the asked size for each build; here builds share
//! one host, and a saved machine costs disk and time by its memory. So the size that the template names is the
//! upper bound, and the host sets another.

use model::image_definition::HyperVGeneration;
use model::vm_size::{BUILD_SIZE_GEN1, BUILD_SIZE_GEN2, VmSize, vm_size};

/// Memory of a build VM on a small host, in MiB: enough for a package manager, and two of them fit beside the
/// service into 8 GiB.
const SMALL_HOST_BUILD_MEMORY_MIB: u32 = 2048;
/// vCPUs of a build VM on a small host.
const SMALL_HOST_BUILD_VCPUS: u32 = 2;
/// A host with less memory than this is small.
const SMALL_HOST_BELOW_MIB: u64 = 32 * 1024;
/// On other hosts a build VM takes at most this part of the memory.
const HOST_MEMORY_PART: u64 = 8;

/// vCPUs and memory of a build VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MachineSize {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
}

/// The size for a template's `vmSize` (`None`: Azure's default for the generation), on this host.
pub(super) fn build_machine_size(name: Option<&str>, generation: HyperVGeneration) -> MachineSize {
    let default = match generation {
        HyperVGeneration::V1 => BUILD_SIZE_GEN1,
        HyperVGeneration::V2 => BUILD_SIZE_GEN2,
    };
    let size = vm_size(name.unwrap_or(default)).or_else(|| vm_size(default));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    bounded(size, u32::try_from(cpus).unwrap_or(u32::MAX), host_memory_mib())
}

fn bounded(size: Option<&VmSize>, host_cpus: u32, host_memory_mib: u64) -> MachineSize {
    let small = MachineSize { vcpus: SMALL_HOST_BUILD_VCPUS, memory_mib: SMALL_HOST_BUILD_MEMORY_MIB };
    let bound = if host_memory_mib < SMALL_HOST_BELOW_MIB {
        small
    } else {
        let memory_mib = u32::try_from(host_memory_mib / HOST_MEMORY_PART).unwrap_or(u32::MAX);
        MachineSize { vcpus: host_cpus, memory_mib }
    };
    let wanted = size.map_or(small, |size| MachineSize { vcpus: size.vcpus, memory_mib: size.memory_mib });
    MachineSize {
        vcpus: wanted.vcpus.min(bound.vcpus).min(host_cpus.max(1)),
        memory_mib: wanted.memory_mib.min(bound.memory_mib),
    }
}

/// `MemTotal` of the host; 0, which is a small host, if the kernel does not say.
fn host_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bounded_by_the_host() {
        let check = |name: &str, cpus, memory, expected: (u32, u32)| {
            let MachineSize { vcpus, memory_mib } = bounded(vm_size(name), cpus, memory);
            assert_eq!((vcpus, memory_mib), expected, "{name} on {cpus} CPUs and {memory} MiB");
        };
        check("Standard_D2ds_v4", 2, 8 << 10, (2, 2048));
        check("Standard_D2ds_v4", 1, 8 << 10, (1, 2048));
        check("Standard_B1s", 2, 8 << 10, (1, 1024));
        check("Standard_D8s_v3", 8, 16 << 10, (2, 2048));
        check("Standard_D2ds_v4", 64, 512 << 10, (2, 8192));
        check("Standard_D8s_v3", 16, 64 << 10, (8, 8192));
        check("Standard_D8s_v3", 16, 0, (2, 2048));
    }

    #[test]
    fn this_host_says_how_much_memory_it_has() {
        assert!(host_memory_mib() > 64, "{}", host_memory_mib());
    }
}
