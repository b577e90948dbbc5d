//! Health reports: XML from cloud-init and waagent, JSON from azure-init.

use serde::Deserialize;

use crate::identity::{INCARNATION, VmIdentity};

/// More than any agent sends; a limit for the parser.
const MAX_XML_NODES: u32 = 1000;

/// What an agent says of its work.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ready,
    /// `NotReady` is not failure: waagent says so when it starts.
    InProgress {
        text: String,
    },
    Failed {
        text: String,
    },
}

impl Verdict {
    /// From state, sub-status and description; all but the state are optional on the wire.
    fn new(state: &str, sub_status: &str, description: String) -> Result<Self, String> {
        match (state, sub_status) {
            ("Ready", _) => Ok(Self::Ready),
            ("NotReady", "ProvisioningFailed") => Ok(Self::Failed { text: description }),
            ("NotReady", _) => Ok(Self::InProgress { text: description }),
            _ => Err("the report's state is neither Ready nor NotReady".into()),
        }
    }
}

/// A report in XML, with the VM that it is about.
#[derive(Debug)]
pub(super) struct Report {
    incarnation: String,
    container: String,
    instance: String,
    pub(super) verdict: Verdict,
}

impl Report {
    pub(super) fn from_xml(body: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(body).map_err(|e| format!("the report is not UTF-8: {e}"))?;
        // No DTD (entities could expand without end), few nodes.
        let options = roxmltree::ParsingOptions { nodes_limit: MAX_XML_NODES, ..Default::default() };
        let doc = roxmltree::Document::parse_with_options(text, options)
            .map_err(|e| format!("the report is not XML: {e}"))?;
        let find = |name: &str| {
            let node = doc.descendants().find(|n| n.is_element() && n.tag_name().name() == name);
            node.and_then(|n| n.text()).map(|t| t.trim().to_owned())
        };
        let need = |name: &str| find(name).ok_or_else(|| format!("the report has no {name}"));
        let description = find("Description").unwrap_or_default();
        Ok(Self {
            incarnation: need("GoalStateIncarnation")?,
            container: need("ContainerId")?,
            instance: need("InstanceId")?,
            verdict: Verdict::new(&need("State")?, &find("SubStatus").unwrap_or_default(), description)?,
        })
    }

    /// Why this report is not about `vm`, if it is not. A second check: the socket is the first.
    pub(super) fn mismatch(&self, vm: &VmIdentity) -> Option<String> {
        let differs = |what: &str, got: &str, want: &str| {
            let got: String = got.chars().take(100).collect();
            (!got.eq_ignore_ascii_case(want))
                .then(|| format!("the report's {what} is `{got}`, this VM's is `{want}`"))
        };
        differs("ContainerId", &self.container, &vm.container_id.to_string())
            .or_else(|| differs("InstanceId", &self.instance, &vm.instance_id))
            .or_else(|| differs("GoalStateIncarnation", &self.incarnation, &INCARNATION.to_string()))
    }
}

#[derive(Deserialize)]
struct JsonReport {
    state: String,
    #[serde(default)]
    details: JsonDetails,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct JsonDetails {
    sub_status: String,
    description: String,
}

pub(super) fn from_json(body: &[u8]) -> Result<Verdict, String> {
    let report: JsonReport =
        serde_json::from_slice(body).map_err(|e| format!("the report is not as expected: {e}"))?;
    Verdict::new(&report.state, &report.details.sub_status, report.details.description)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// waagent's form: one line, no spaces.
    const WAAGENT_STARTING: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\
        <Health xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><GoalStateIncarnation>1</GoalStateIncarnation>\
        <Container><ContainerId>c</ContainerId><RoleInstanceList><Role><InstanceId>i</InstanceId><Health>\
        <State>NotReady</State><Details><SubStatus>Provisioning</SubStatus><Description>Starting</Description></Details>\
        </Health></Role></RoleInstanceList></Container></Health>";

    /// Every report that a real agent was recorded to send can be read.
    #[test]
    fn recorded_reports() {
        let Some(protocol) = crate::testing::recordings() else { return };
        let reports: Vec<_> = protocol
            .split("```xml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .filter(|xml| xml.contains("<Health "))
            .map(|xml| Report::from_xml(xml.as_bytes()).unwrap().verdict)
            .collect();
        assert_eq!(reports.len(), 4);
        assert_eq!(reports[0], Verdict::Ready);
        assert!(
            matches!(&reports[1], Verdict::Failed { text } if text.starts_with("The VM encountered an error"))
        );
        assert_eq!(reports[2], Verdict::InProgress { text: "Starting".into() });
        assert_eq!(reports[3], Verdict::Ready);
    }

    #[test]
    fn waagent_starting_is_not_failure() {
        let report = Report::from_xml(WAAGENT_STARTING.as_bytes()).unwrap();
        assert_eq!(report.verdict, Verdict::InProgress { text: "Starting".into() });
        assert!(report.mismatch(&crate::testing::identity()).unwrap().contains("ContainerId"));
    }

    #[test]
    fn entities_do_not_expand() {
        let bomb = WAAGENT_STARTING
            .replace("<Health xmlns:xsi", "<!DOCTYPE h [<!ENTITY a \"aaaa\">]><Health xmlns:xsi");
        assert!(Report::from_xml(bomb.as_bytes()).unwrap_err().contains("not XML"));
        let deep = format!("<Health>{}</Health>", "<a/>".repeat(2000));
        assert!(Report::from_xml(deep.as_bytes()).is_err());
        assert!(Report::from_xml(&[0xff]).is_err());
    }

    #[test]
    fn json_reports() {
        let table: [(&str, Option<Verdict>); 6] = [
            (r#"{"state":"Ready"}"#, Some(Verdict::Ready)),
            (
                r#"{"state":"NotReady","details":{"subStatus":"ProvisioningFailed","description":"result=error"}}"#,
                Some(Verdict::Failed { text: "result=error".into() }),
            ),
            (
                r#"{"state":"NotReady","details":{"subStatus":"Provisioning"}}"#,
                Some(Verdict::InProgress { text: String::new() }),
            ),
            (r#"{"state":"Sideways"}"#, None),
            (r#"{}"#, None),
            ("Ready", None),
        ];
        for (body, want) in table {
            assert_eq!(from_json(body.as_bytes()).ok(), want, "{body}");
        }
    }
}
