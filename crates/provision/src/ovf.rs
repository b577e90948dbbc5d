//! `ovf-env.xml`: what the provisioning media say, in the form that cloud-init, waagent and azure-init all accept
//! (PROTOCOL.md 3 has the table of who needs which element). Each element appears once: duplicates are an error there.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::identity::VmIdentity;
use crate::xml::escape;

/// The shape of a certificate's SHA-1, naming none: agents look at it only when there is no value, and some need it there.
const NO_FINGERPRINT: &str = "0000000000000000000000000000000000000000";

/// The document for `vm`. The same identity gives the same bytes.
pub(crate) fn environment(vm: &VmIdentity) -> String {
    let hostname = escape(&vm.hostname);
    let username = escape(&vm.admin_username);
    let disable_password = vm.disable_password_authentication;
    let provision_agent = vm.provision_guest_agent;
    let password = optional("UserPassword", vm.admin_password.as_deref().map(escape));
    let custom_data = optional("CustomData", vm.custom_data.as_deref().map(|data| STANDARD.encode(data)));
    let keys = public_keys(vm);
    format!(
        r#"<?xml version="1.0" encoding="utf-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" xmlns:wa="http://schemas.microsoft.com/windowsazure" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <wa:ProvisioningSection>
    <wa:Version>1.0</wa:Version>
    <LinuxProvisioningConfigurationSet xmlns="http://schemas.microsoft.com/windowsazure" xmlns:i="http://www.w3.org/2001/XMLSchema-instance">
      <ConfigurationSetType>LinuxProvisioningConfiguration</ConfigurationSetType>
      <HostName>{hostname}</HostName>
      <UserName>{username}</UserName>{password}
      <DisableSshPasswordAuthentication>{disable_password}</DisableSshPasswordAuthentication>{custom_data}{keys}
    </LinuxProvisioningConfigurationSet>
  </wa:ProvisioningSection>
  <wa:PlatformSettingsSection>
    <wa:Version>1.0</wa:Version>
    <PlatformSettings xmlns="http://schemas.microsoft.com/windowsazure" xmlns:i="http://www.w3.org/2001/XMLSchema-instance">
      <KmsServerHostname>azkms.core.windows.net</KmsServerHostname>
      <ProvisionGuestAgent>{provision_agent}</ProvisionGuestAgent>
      <GuestAgentPackageName i:nil="true" />
      <RetainWindowsPEPassInUnattend>true</RetainWindowsPEPassInUnattend>
      <RetainOfflineServicingPassInUnattend>true</RetainOfflineServicingPassInUnattend>
      <PreprovisionedVm>false</PreprovisionedVm>
      <PreprovisionedVMType>None</PreprovisionedVMType>
      <EnableTrustedImageIdentifier>false</EnableTrustedImageIdentifier>
    </PlatformSettings>
  </wa:PlatformSettingsSection>
</Environment>
"#
    )
}

fn optional(element: &str, escaped: Option<String>) -> String {
    escaped.map(|text| format!("\n      <{element}>{text}</{element}>")).unwrap_or_default()
}

/// Keys by value. Fingerprints would need a certificate from the wireserver; no agent asks for one when there is a value,
/// and waagent accepts a value only if it starts with `ssh-`.
fn public_keys(vm: &VmIdentity) -> String {
    if vm.ssh_keys.is_empty() {
        return String::new();
    }
    let mut xml = String::from("\n      <SSH>\n        <PublicKeys>");
    for key in &vm.ssh_keys {
        let (path, value) = (escape(&key.path), escape(key.key_data.trim()));
        xml += &format!(
            "\n          <PublicKey>\n            <Fingerprint>{NO_FINGERPRINT}</Fingerprint>\n            <Path>{path}</Path>\n            \
             <Value>{value}</Value>\n          </PublicKey>"
        );
    }
    xml + "\n        </PublicKeys>\n      </SSH>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    const WA: &str = "http://schemas.microsoft.com/windowsazure";

    /// The texts of every `name` in waagent's namespace.
    fn texts(xml: &str, name: &str) -> Vec<String> {
        let doc = roxmltree::Document::parse(xml).unwrap();
        let found = doc.descendants().filter(|n| n.has_tag_name((WA, name)));
        found.map(|n| n.text().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn says_what_the_agents_need() {
        let mut vm = identity();
        vm.custom_data = Some(b"#cloud-config\n".to_vec());
        vm.admin_password = Some("a<b>&\"c\"".into());
        vm.disable_password_authentication = false;
        let xml = environment(&vm);
        for (name, value) in [
            ("HostName", "a2"),
            ("UserName", "azureuser"),
            ("UserPassword", "a<b>&\"c\""),
            ("DisableSshPasswordAuthentication", "false"),
            ("CustomData", "I2Nsb3VkLWNvbmZpZwo="),
            ("Path", "/home/azureuser/.ssh/authorized_keys"),
            ("Value", vm.ssh_keys[0].key_data.as_str()),
            ("ProvisionGuestAgent", "true"),
            ("PreprovisionedVm", "false"),
        ] {
            assert_eq!(texts(&xml, name), [value], "{name}");
        }
        assert_eq!(texts(&xml, "Version"), ["1.0", "1.0"]);
    }

    #[test]
    fn leaves_out_what_is_absent() {
        let mut vm = identity();
        vm.ssh_keys.clear();
        let xml = environment(&vm);
        for name in ["UserPassword", "CustomData", "SSH", "Fingerprint"] {
            assert_eq!(texts(&xml, name), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn markup_in_names_stays_text() {
        let mut vm = identity();
        vm.hostname = "</HostName><UserName>root</UserName>".into();
        let xml = environment(&vm);
        assert_eq!(texts(&xml, "HostName"), [vm.hostname.as_str()]);
        assert_eq!(texts(&xml, "UserName"), ["azureuser"]);
    }
}
