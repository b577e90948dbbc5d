//! The wireserver's XML, as agents were seen to accept it.

use std::net::Ipv4Addr;

use crate::azure_address::WIRESERVER;
use crate::identity::{INCARNATION, VmIdentity};
use crate::xml::escape;

const DECLARATION: &str = r#"<?xml version="1.0" encoding="utf-8"?>"#;
const PREFERRED_VERSION: &str = "2015-04-05";
const SUPPORTED_VERSIONS: [&str; 10] = [
    PREFERRED_VERSION,
    "2012-11-30",
    "2012-09-15",
    "2012-05-15",
    "2011-12-31",
    "2011-10-15",
    "2011-08-31",
    "2011-04-07",
    "2010-12-15",
    "2010-28-10",
];

pub(super) fn versions() -> String {
    let supported: String =
        SUPPORTED_VERSIONS.iter().map(|version| format!("\n    <Version>{version}</Version>")).collect();
    format!(
        "{DECLARATION}\n<Versions>\n  <Preferred>\n    <Version>{PREFERRED_VERSION}</Version>\n  </Preferred>\n  \
         <Supported>{supported}\n  </Supported>\n</Versions>\n"
    )
}

pub(super) fn goal_state(vm: &VmIdentity) -> String {
    let (container, deployment) = (vm.container_id, vm.deployment_id);
    let instance = escape(&vm.instance_id);
    let config = |kind: &str| {
        format!(
            "http://{WIRESERVER}:80/machine/{container}/{}?comp=config&amp;type={kind}&amp;incarnation={INCARNATION}",
            escape(&path_segment(&vm.instance_id))
        )
    };
    let hosting = config("hostingEnvironmentConfig");
    let shared = config("sharedConfig");
    let extensions = config("extensionsConfig");
    let full = config("fullConfig");
    format!(
        r#"{DECLARATION}
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>{INCARNATION}</Incarnation>
  <Machine>
    <ExpectedState>Started</ExpectedState>
    <StopRolesDeadlineHint>300000</StopRolesDeadlineHint>
    <LBProbePorts>
      <Port>16001</Port>
    </LBProbePorts>
    <ExpectHealthReport>FALSE</ExpectHealthReport>
  </Machine>
  <Container>
    <ContainerId>{container}</ContainerId>
    <RoleInstanceList>
      <RoleInstance>
        <InstanceId>{instance}</InstanceId>
        <State>Started</State>
        <Configuration>
          <HostingEnvironmentConfig>{hosting}</HostingEnvironmentConfig>
          <SharedConfig>{shared}</SharedConfig>
          <ExtensionsConfig>{extensions}</ExtensionsConfig>
          <FullConfig>{full}</FullConfig>
          <ConfigName>{deployment}.{INCARNATION}.{deployment}.{INCARNATION}.{instance}.xml</ConfigName>
        </Configuration>
      </RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
"#
    )
}

pub(super) fn hosting_environment(vm: &VmIdentity) -> String {
    let deployment = vm.deployment_id;
    let name = escape(&vm.name);
    format!(
        r#"{DECLARATION}
<HostingEnvironmentConfig version="1.0.0.0" goalStateIncarnation="{INCARNATION}">
  <StoredCertificates />
  <Deployment name="{deployment}" guid="{{{deployment}}}" incarnation="0" isNonCancellableTopologyChangeEnabled="false">
    <Service name="IaaS" guid="{{00000000-0000-0000-0000-000000000000}}" />
    <ServiceInstance name="{deployment}.{INCARNATION}" guid="{{{deployment}}}" />
  </Deployment>
  <Incarnation number="1" instance="{name}" guid="{{{deployment}}}" />
  <Role guid="{{{deployment}}}" name="{name}" settleTimeSeconds="0" />
  <HostingEnvironmentSettings name="full" Runtime="rd_fabric_stable.110217-1402.RuntimePackage_1.0.0.8.zip" />
  <ApplicationSettings />
  <ResourceReferences />
</HostingEnvironmentConfig>
"#
    )
}

pub(super) fn shared_config(vm: &VmIdentity, guest_ip: Ipv4Addr) -> String {
    let deployment = vm.deployment_id;
    let (name, instance) = (escape(&vm.name), escape(&vm.instance_id));
    format!(
        r#"{DECLARATION}
<SharedConfig version="1.0.0.0" goalStateIncarnation="{INCARNATION}">
  <Deployment name="{deployment}" guid="{{{deployment}}}" incarnation="0" isNonCancellableTopologyChangeEnabled="false">
    <Service name="IaaS" guid="{{00000000-0000-0000-0000-000000000000}}" />
    <ServiceInstance name="{deployment}.{INCARNATION}" guid="{{{deployment}}}" />
  </Deployment>
  <Incarnation number="1" instance="{instance}" guid="{{{deployment}}}" />
  <Role guid="{{{deployment}}}" name="{name}" settleTimeSeconds="0" />
  <LoadBalancerSettings timeoutSeconds="32" waitLoadBalancerProbeCount="8" />
  <OutputEndpoints />
  <Instances>
    <Instance id="{instance}" address="{guest_ip}">
      <FaultDomains randomId="0" updateId="0" updateCount="0" />
      <InputEndpoints />
    </Instance>
  </Instances>
</SharedConfig>
"#
    )
}

pub(super) fn extensions_config(vm: &VmIdentity) -> String {
    let container = vm.container_id;
    let location = escape(&vm.location);
    format!(
        r#"{DECLARATION}
<Extensions version="1.0.0.0" goalStateIncarnation="{INCARNATION}">
  <GuestAgentExtension xmlns:i="http://www.w3.org/2001/XMLSchema-instance">
    <GAFamilies>
      <GAFamily>
        <Name>Prod</Name>
        <Uris />
      </GAFamily>
    </GAFamilies>
    <Location>{location}</Location>
  </GuestAgentExtension>
  <StatusUploadBlob statusBlobType="BlockBlob">http://{WIRESERVER}/status-blob/{container}</StatusUploadBlob>
</Extensions>
"#
    )
}

/// Percent-encodes what may not stand in a URL's path segment.
fn path_segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
