//! Values that several tests of this crate need.

use vmhost::VmIdentity;
use vmhost::identity::{Generation, ImageReference, OsDisk};

pub(crate) fn identity() -> VmIdentity {
    VmIdentity {
        vm_id: uuid::Uuid::nil(),
        name: "vm".into(),
        resource_id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
            .into(),
        subscription_id: "s".into(),
        resource_group: "g".into(),
        location: "local".into(),
        vm_size: "Standard_D2ds_v4".into(),
        hostname: "vm".into(),
        admin_username: "builder".into(),
        admin_password: None,
        disable_password_authentication: true,
        ssh_keys: Vec::new(),
        custom_data: None,
        user_data: None,
        tags: Default::default(),
        image_reference: ImageReference::default(),
        os_disk: OsDisk { name: "os".into(), size_gb: 4 },
        mac: vmhost::MacAddress([0, 0x22, 0x48, 0, 0, 1]),
        container_id: uuid::Uuid::nil(),
        instance_id: "i".into(),
        deployment_id: uuid::Uuid::nil(),
        generation: Generation::V2,
        provision_guest_agent: true,
    }
}
