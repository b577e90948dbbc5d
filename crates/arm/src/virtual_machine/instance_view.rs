//! What runs now: `…/instanceView`.

use model::ProvisioningState;
use model::image_definition::OsType;
use model::virtual_machine::{PowerState, VirtualMachine};
use serde_json::{Value, json};

use super::render::os_disk_name;
use crate::common::Object;
use crate::names::GENERATIONS;
use crate::time;

/// The instance view of a machine.
pub fn instance_view(vm: &VirtualMachine) -> Value {
    let host = vm.spec.os_profile.as_ref().map(|profile| profile.computer_name.as_str());
    let reported = vm.agent.as_ref().filter(|agent| agent.ready);
    let os_name = vm.os_type().map(|os| match os {
        OsType::Linux => "linux",
        OsType::Windows => "Windows",
    });
    let disk = json!({ "name": os_disk_name(vm), "statuses": [disk_status(vm)] });
    Object::new()
        .maybe("computerName", host.filter(|_| reported.is_some()))
        .maybe("osName", os_name.filter(|_| reported.is_some()))
        .set("vmAgent", vm_agent(vm))
        .set("disks", json!([disk]))
        .maybe("hyperVGeneration", vm.image.as_ref().map(|image| GENERATIONS.name(image.hyper_v_generation)))
        .set("statuses", statuses(vm))
        .into()
}

/// `PowerState/running` and what people read for it.
pub fn power_state_code(power: PowerState) -> (&'static str, &'static str) {
    match power {
        PowerState::Starting => ("PowerState/starting", "VM starting"),
        PowerState::Running => ("PowerState/running", "VM running"),
        PowerState::Stopping => ("PowerState/stopping", "VM stopping"),
        PowerState::Stopped => ("PowerState/stopped", "VM stopped"),
        PowerState::Deallocating => ("PowerState/deallocating", "VM deallocating"),
        PowerState::Deallocated => ("PowerState/deallocated", "VM deallocated"),
    }
}

fn vm_agent(vm: &VirtualMachine) -> Value {
    let Some(agent) = &vm.agent else {
        let status = json!({
            "code": "ProvisioningState/Unavailable",
            "level": "Warning",
            "displayStatus": "Not Ready",
            "message": "VM status blob is found but not yet populated.",
            "time": time::compute(vm.provisioning_changed),
        });
        return json!({ "vmAgentVersion": "Unknown", "statuses": [status] });
    };
    let (code, level, display) = if agent.ready {
        ("ProvisioningState/succeeded", "Info", "Ready")
    } else {
        ("ProvisioningState/Unavailable", "Warning", "Not Ready")
    };
    let status = json!({
        "code": code, "level": level, "displayStatus": display, "message": agent.message, "time": time::compute(agent.at),
    });
    json!({
        "vmAgentVersion": agent.version.as_deref().unwrap_or("Unknown"),
        "statuses": [status],
        "extensionHandlers": [],
    })
}

fn statuses(vm: &VirtualMachine) -> Vec<Value> {
    let mut statuses = vec![provisioning_status(vm)];
    if let Some(power) = vm.power {
        let (code, display) = power_state_code(power);
        statuses.push(json!({ "code": code, "level": "Info", "displayStatus": display }));
    }
    statuses
}

fn provisioning_status(vm: &VirtualMachine) -> Value {
    let (code, level, display, message) = match &vm.provisioning {
        ProvisioningState::Creating => ("ProvisioningState/creating".to_owned(), "Info", "Creating", None),
        ProvisioningState::Updating => ("ProvisioningState/updating".to_owned(), "Info", "Updating", None),
        ProvisioningState::Succeeded => {
            ("ProvisioningState/succeeded".to_owned(), "Info", "Provisioning succeeded", None)
        }
        ProvisioningState::Failed(failure) => (
            format!("ProvisioningState/failed/{}", failure.code),
            "Error",
            "Provisioning failed",
            Some(failure.message.as_str()),
        ),
        ProvisioningState::Deleting => ("ProvisioningState/deleting".to_owned(), "Info", "Deleting", None),
        ProvisioningState::Canceled => {
            ("ProvisioningState/canceled".to_owned(), "Info", "Provisioning canceled", None)
        }
    };
    Object::new()
        .set("code", code)
        .set("level", level)
        .set("displayStatus", display)
        .maybe("message", message)
        .set("time", time::compute(vm.provisioning_changed))
        .into()
}

/// The disk is there once the image was resolved.
fn disk_status(vm: &VirtualMachine) -> Value {
    let (code, display) = match vm.image {
        Some(_) => ("ProvisioningState/succeeded", "Provisioning succeeded"),
        None => ("ProvisioningState/creating", "Creating"),
    };
    json!({ "code": code, "level": "Info", "displayStatus": display, "time": time::compute(vm.created) })
}
