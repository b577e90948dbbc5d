//! The host plugin at 168.63.129.16:32526: where waagent puts its status and logs.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::event::GuestEvent;
use crate::http::{Reply, Request};

/// The one version of the plugin's protocol, as Azure's offers it.
const VERSION: &str = "2015-09-01";

pub(crate) fn answer(request: &Request) -> Reply {
    match (&request.method, request.path.trim_end_matches('/')) {
        (&Method::GET, "/versions") => Reply::json(StatusCode::OK, &json!([VERSION])),
        (&Method::GET, "/health") => Reply::empty(StatusCode::OK),
        // "Not supported": the agent falls back to the goal state's extensions configuration.
        (&Method::GET, "/vmSettings") => Reply::empty(StatusCode::NOT_FOUND),
        (&Method::PUT, "/status") => status(request),
        (&Method::PUT, "/vmAgentLog") => Reply::empty(StatusCode::OK),
        (_, "/versions" | "/health" | "/vmSettings" | "/status" | "/vmAgentLog") => {
            Reply::empty(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => Reply::empty(StatusCode::NOT_FOUND),
    }
}

/// `{"content": base64(status blob), "headers": […], "requestUri": …}`; the blob is JSON.
fn status(request: &Request) -> Reply {
    let bad = |why: String| Reply::text(StatusCode::BAD_REQUEST, why);
    let envelope: Value = match serde_json::from_slice(&request.body) {
        Ok(value) => value,
        Err(e) => return bad(format!("the status is not JSON: {e}")),
    };
    let Some(content) = envelope.get("content").and_then(Value::as_str) else {
        return bad("the status has no `content` text".into());
    };
    match STANDARD.decode(content).map_err(|e| e.to_string()).and_then(|blob| agent_status(&blob)) {
        Ok(event) => Reply::empty(StatusCode::OK).with_event(event),
        Err(e) => bad(format!("`content` is not base64 of JSON: {e}")),
    }
}

/// The event for a status blob, however it came.
pub(crate) fn agent_status(blob: &[u8]) -> Result<GuestEvent, String> {
    serde_json::from_slice(blob).map(GuestEvent::AgentStatus).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::request;

    #[test]
    fn what_waagent_asks() {
        let versions = answer(&request("GET", "/versions", &[], ""));
        assert_eq!((versions.status, versions.body.as_str()), (StatusCode::OK, r#"["2015-09-01"]"#));
        for (method, path, status) in [
            ("GET", "/vmSettings", 404),
            ("GET", "/health", 200),
            ("PUT", "/vmAgentLog", 200),
            ("DELETE", "/status", 405),
            ("GET", "/elsewhere", 404),
        ] {
            assert_eq!(answer(&request(method, path, &[], "")).status, status, "{method} {path}");
        }
    }

    #[test]
    fn a_status_becomes_an_event() {
        let blob = json!({"version": "1.1", "aggregateStatus": {"guestAgentStatus": {"status": "Ready"}}});
        let body =
            json!({"content": STANDARD.encode(blob.to_string()), "headers": [], "requestUri": "http://x"});
        let reply = answer(&request("PUT", "/status", &[], &body.to_string()));
        assert_eq!((reply.status, reply.event), (StatusCode::OK, Some(GuestEvent::AgentStatus(blob))));
        for bad in ["", "[]", r#"{"content":1}"#, r#"{"content":"%"}"#, r#"{"content":"eHg="}"#] {
            let reply = answer(&request("PUT", "/status", &[], bad));
            assert_eq!((reply.status, reply.event), (StatusCode::BAD_REQUEST, None), "{bad}");
        }
    }
}
