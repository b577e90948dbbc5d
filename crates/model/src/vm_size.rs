//! VM sizes: processors and memory.

/// What a VM size gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// Azure's name for it.
    pub name: &'static str,
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Most data disks.
    pub data_disks_max: u32,
}

/// The size of a build VM for a generation 1 image when the template names none (RULES.md 2A).
pub const BUILD_SIZE_GEN1: &str = "Standard_D1_v2";
/// The size of a build VM for a generation 2 image when the template names none (RULES.md 2A).
pub const BUILD_SIZE_GEN2: &str = "Standard_D2ds_v4";

const fn size(name: &'static str, vcpus: u32, memory_mib: u32, data_disks_max: u32) -> VmSize {
    VmSize { name, vcpus, memory_mib, data_disks_max }
}

/// The sizes that are offered, smallest first.
pub const VM_SIZES: &[VmSize] = &[
    size("Standard_B1ls", 1, 512, 2),
    size("Standard_B1s", 1, 1024, 2),
    size("Standard_A1_v2", 1, 2048, 2),
    size("Standard_B1ms", 1, 2048, 2),
    size("Standard_D1_v2", 1, 3584, 4),
    size("Standard_DS1_v2", 1, 3584, 4),
    size("Standard_A2_v2", 2, 4096, 4),
    size("Standard_B2s", 2, 4096, 4),
    size("Standard_F2s_v2", 2, 4096, 4),
    size("Standard_D2_v2", 2, 7168, 8),
    size("Standard_DS2_v2", 2, 7168, 8),
    size("Standard_B2ms", 2, 8192, 4),
    size("Standard_D2_v3", 2, 8192, 4),
    size("Standard_D2s_v3", 2, 8192, 4),
    size("Standard_D2ds_v4", 2, 8192, 4),
    size("Standard_D2s_v4", 2, 8192, 4),
    size("Standard_D2s_v5", 2, 8192, 4),
    size("Standard_D2as_v5", 2, 8192, 4),
    size("Standard_D2ds_v5", 2, 8192, 4),
    size("Standard_E2s_v3", 2, 16384, 4),
    size("Standard_F4s_v2", 4, 8192, 8),
    size("Standard_DS3_v2", 4, 14336, 16),
    size("Standard_B4ms", 4, 16384, 8),
    size("Standard_D4s_v3", 4, 16384, 8),
    size("Standard_D4ds_v4", 4, 16384, 8),
    size("Standard_D4s_v5", 4, 16384, 8),
    size("Standard_D4ds_v5", 4, 16384, 8),
    size("Standard_E4s_v3", 4, 32768, 8),
    size("Standard_D8s_v3", 8, 32768, 16),
    size("Standard_D8ds_v4", 8, 32768, 16),
    size("Standard_D8s_v5", 8, 32768, 16),
];

/// The size of that name; names compare without case.
pub fn vm_size(name: &str) -> Option<&'static VmSize> {
    VM_SIZES.iter().find(|size| size.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found_in_any_case() {
        for (index, size) in VM_SIZES.iter().enumerate() {
            assert!(
                VM_SIZES[..index].iter().all(|other| !other.name.eq_ignore_ascii_case(size.name)),
                "{}",
                size.name
            );
            assert_eq!(vm_size(&size.name.to_ascii_uppercase()), Some(size));
        }
        assert!(vm_size(BUILD_SIZE_GEN1).is_some() && vm_size(BUILD_SIZE_GEN2).is_some());
        assert_eq!(vm_size("Standard_Nope"), None);
    }
}
