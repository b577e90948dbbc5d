//! What a VM's process heard from the guest, as the resource tells it.

use chrono::Utc;
use model::virtual_machine::AgentReport;
use serde_json::Value;
use vmhost::{Provisioning, VmStatus};

/// Longest text of a guest that is kept, in characters.
const TEXT_CHARS_MAX: usize = 1000;

/// `None` until the guest spoke. waagent's own status wins over what was reported about provisioning.
pub(crate) fn agent_report(status: &VmStatus) -> Option<AgentReport> {
    let agent = status.agent.as_ref().map(|blob| &blob["aggregateStatus"]["guestAgentStatus"]);
    if let Some(agent) = agent.filter(|agent| agent.is_object()) {
        let message = text(&agent["formattedMessage"]["message"]).or_else(|| text(&agent["message"]));
        return Some(AgentReport {
            version: text(&agent["version"]),
            ready: agent["status"].as_str() == Some("Ready"),
            message: message.unwrap_or_default(),
            at: Utc::now(),
        });
    }
    let (ready, message, at) = match &status.provisioning {
        Provisioning::Silent => return None,
        Provisioning::InProgress { text } => (false, shorten(text), Utc::now()),
        Provisioning::Failed { text } => (false, shorten(text), Utc::now()),
        Provisioning::Ready { at } => (true, "The guest reported that provisioning is done.".to_owned(), *at),
    };
    Some(AgentReport { version: None, ready, message, at })
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(shorten).filter(|text| !text.is_empty())
}

fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;
    use vmhost::Phase;

    use super::*;

    fn status(provisioning: Provisioning, agent: Option<Value>) -> VmStatus {
        VmStatus {
            vmhost_pid: 1,
            qemu_pid: None,
            started_at: DateTime::UNIX_EPOCH,
            phase: Phase::Running,
            provisioning,
            agent,
            forwards: Default::default(),
            outbound_denied: Vec::new(),
            damaged_reads: 0,
        }
    }

    #[test]
    fn the_agents_own_words_win_and_are_bounded() {
        assert_eq!(agent_report(&status(Provisioning::Silent, None)), None);
        let at = DateTime::UNIX_EPOCH;
        let report = agent_report(&status(Provisioning::Ready { at }, None)).unwrap();
        assert_eq!((report.ready, report.version, report.at), (true, None, at));
        let blob = json!({"aggregateStatus": {"guestAgentStatus": {
            "version": "2.9.1.1", "status": "Not Ready", "formattedMessage": {"message": "x".repeat(5000)}}}});
        let report = agent_report(&status(Provisioning::Ready { at }, Some(blob))).unwrap();
        assert_eq!((report.ready, report.version.as_deref()), (false, Some("2.9.1.1")));
        assert_eq!(report.message.len(), TEXT_CHARS_MAX);
        let hostile = json!({"aggregateStatus": [1]});
        assert!(agent_report(&status(Provisioning::Ready { at }, Some(hostile))).unwrap().ready);
    }
}
