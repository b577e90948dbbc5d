//! `Microsoft.VirtualMachineImages/imageTemplates/runOutputs`.

use model::run_output::{Artifact, RunOutput};
use serde_json::Value;

use crate::common::Object;
use crate::resource_id::ResourceId;

/// A run output as image builder answers it.
pub fn render(output: &RunOutput, id: &ResourceId) -> Value {
    let (artifact_id, artifact_uri) = match &output.artifact {
        Artifact::Resource(id) => (Some(id.as_str()), None),
        Artifact::Uri(uri) => (None, Some(uri.as_str())),
    };
    let properties = Object::new()
        .maybe("artifactId", artifact_id)
        .maybe("artifactUri", artifact_uri)
        .set("provisioningState", output.provisioning.name());
    Object::new()
        .set("properties", properties)
        .set("id", id.to_image_builder_string())
        .set("name", output.name.as_str())
        .set("type", id.resource_type().as_str())
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ProvisioningState, ResourceRef, RunOutputName};

    #[test]
    fn an_output_names_its_artifact() {
        let output = RunOutput {
            name: RunOutputName::parse("out").unwrap(),
            artifact: Artifact::Resource(ResourceRef::parse("/subscriptions/s/x", "id").unwrap()),
            provisioning: ProvisioningState::Succeeded,
        };
        let id = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t/runOutputs/out";
        insta::assert_json_snapshot!(render(&output, &ResourceId::parse(id).unwrap()), @r#"
        {
          "properties": {
            "artifactId": "/subscriptions/s/x",
            "provisioningState": "Succeeded"
          },
          "id": "/subscriptions/s/resourcegroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t/runOutputs/out",
          "name": "out",
          "type": "Microsoft.VirtualMachineImages/imageTemplates/runOutputs"
        }
        "#);
    }
}
