//! The VM of the unit tests, the same as in the recordings of real agents, and those recordings.

use crate::identity::{Generation, ImageReference, OsDisk, SshKey, VmIdentity};

/// The recordings of real agents, where the folder beside the workspace (or `TINTYPE_SHARED`) is present.
pub(crate) fn recordings() -> Option<String> {
    let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("TINTYPE_SHARED").map_or(beside, Into::into);
    std::fs::read_to_string(shared.join("guest/PROTOCOL.md")).ok()
}

/// A VM with nothing unusual.
pub(crate) fn identity() -> VmIdentity {
    VmIdentity {
        vm_id: "b0010682-53be-4c97-b76d-be7f6f8fc137".parse().unwrap(),
        name: "a2".into(),
        resource_id: "/subscriptions/b9b9b7b6-4b73-4063-84eb-8e87644df394/resourceGroups/rg1/providers/\
                      Microsoft.Compute/virtualMachines/a2"
            .into(),
        subscription_id: "b9b9b7b6-4b73-4063-84eb-8e87644df394".into(),
        resource_group: "rg1".into(),
        location: "local".into(),
        vm_size: "Standard_B2s".into(),
        hostname: "a2".into(),
        admin_username: "azureuser".into(),
        admin_password: None,
        disable_password_authentication: true,
        ssh_keys: vec![SshKey {
            path: "/home/azureuser/.ssh/authorized_keys".into(),
            key_data:
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICvpxHxKqPMc1d3RhWd/o7ht8CKXNmPejKpi0/vi989L root@vm"
                    .into(),
        }],
        custom_data: None,
        user_data: None,
        tags: [("env".to_owned(), "dev".to_owned()), ("owner".to_owned(), "me".to_owned())].into(),
        image_reference: ImageReference::default(),
        os_disk: OsDisk { name: "a2_OsDisk_1".into(), size_gb: 30 },
        mac: "00:22:48:f8:d6:04".parse().unwrap(),
        container_id: "e27951f5-8d0f-47b0-804d-2dcdf168b8fb".parse().unwrap(),
        instance_id: "0ebceeac-e60b-4771-a973-9129ce013632._a2".into(),
        deployment_id: "e322a3ee-848a-4257-99a9-f355e7801222".parse().unwrap(),
        generation: Generation::V2,
        provision_guest_agent: true,
    }
}
