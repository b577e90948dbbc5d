//! The instance metadata service at 169.254.169.254:80.
//!
//! What is behind it on Azure and not here answers as Azure's does when the feature is absent: a VM without an identity
//! gets 400 `Identity not found`; there are no scheduled events, so the list is empty; no attested document can be
//! signed as Microsoft, so there is none (404).

mod tree;

use std::net::Ipv4Addr;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http::{Reply, Request};
use crate::identity::VmIdentity;

/// Every version that Azure lists. An unknown one gets 400, upon which cloud-init falls back to 2019-06-01.
const VERSIONS: [&str; 31] = [
    "2017-03-01",
    "2017-04-02",
    "2017-08-01",
    "2017-12-01",
    "2018-02-01",
    "2018-04-02",
    "2018-10-01",
    "2019-02-01",
    "2019-03-11",
    "2019-04-30",
    "2019-06-01",
    "2019-06-04",
    "2019-08-01",
    "2019-08-15",
    "2019-11-01",
    "2020-06-01",
    "2020-07-15",
    "2020-09-01",
    "2020-10-01",
    "2020-12-01",
    "2021-01-01",
    "2021-02-01",
    "2021-03-01",
    "2021-05-01",
    "2021-08-01",
    "2021-10-01",
    "2021-11-01",
    "2021-11-15",
    "2021-12-13",
    "2023-07-01",
    "2023-11-15",
];
const NEWEST_SHOWN: usize = 3;

/// The VM's one network card as IMDS shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkFacts {
    pub(crate) address: Ipv4Addr,
    pub(crate) subnet: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl NetworkFacts {
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { address: Ipv4Addr::new(10, 0, 0, 4), subnet: Ipv4Addr::new(10, 0, 0, 0), prefix: 24 }
    }
}

pub(crate) fn answer(vm: &VmIdentity, network: &NetworkFacts, request: &Request) -> Reply {
    if request.method != Method::GET {
        return error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed. Only GET is supported");
    }
    // A proxy that a web server in the guest can be talked into adds one and not the other.
    let metadata =
        request.headers.get("metadata").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
    if !metadata {
        return error(StatusCode::BAD_REQUEST, "Bad request. Required metadata header not specified");
    }
    if request.headers.contains_key("x-forwarded-for") {
        return error(
            StatusCode::BAD_REQUEST,
            "Bad request. Requests with an X-Forwarded-For header are not allowed",
        );
    }
    let path = request.path.trim_end_matches('/').to_ascii_lowercase();
    if path == "/metadata/versions" {
        return Reply::json(StatusCode::OK, &json!({ "apiVersions": VERSIONS }));
    }
    let endpoint = path.strip_prefix("/metadata/").and_then(|rest| rest.split('/').next()).unwrap_or("");
    if !["instance", "scheduledevents", "attested", "identity"].contains(&endpoint) {
        return error(StatusCode::NOT_FOUND, "Not found");
    }
    let version = match api_version(request) {
        Ok(version) => version,
        Err(text) => {
            let newest: Vec<_> = VERSIONS.into_iter().rev().take(NEWEST_SHOWN).collect();
            return Reply::json(
                StatusCode::BAD_REQUEST,
                &json!({ "error": text, "newest-versions": newest }),
            );
        }
    };
    match (endpoint, path.as_str()) {
        ("instance", _) => instance(vm, network, request, version),
        ("scheduledevents", "/metadata/scheduledevents") => {
            Reply::json(StatusCode::OK, &json!({ "DocumentIncarnation": 1, "Events": [] }))
        }
        ("identity", _) => Reply::json(
            StatusCode::BAD_REQUEST,
            &json!({ "error": "invalid_request", "error_description": "Identity not found" }),
        ),
        _ => error(StatusCode::NOT_FOUND, "Not found"),
    }
}

fn error(status: StatusCode, text: &str) -> Reply {
    Reply::json(status, &json!({ "error": text }))
}

/// The version asked for, or why there is none.
fn api_version(request: &Request) -> Result<&'static str, &'static str> {
    let asked = request.query("api-version").ok_or(
        "Bad request. api-version was not specified in the request. For more information refer to aka.ms/azureimds",
    )?;
    VERSIONS
        .into_iter()
        .find(|version| *version == asked)
        .ok_or("Bad request. api-version is invalid. For more information refer to aka.ms/azureimds")
}

/// `/metadata/instance[/path…]`, as JSON, or with `format=text` a leaf's text or a node's children, one a line.
fn instance(vm: &VmIdentity, network: &NetworkFacts, request: &Request, version: &str) -> Reply {
    let text = match request.query("format").map(str::to_ascii_lowercase).as_deref() {
        None | Some("json") => false,
        Some("text") => true,
        Some(_) => return error(StatusCode::BAD_REQUEST, "Bad request. format is json or text"),
    };
    let tree = tree::instance(vm, network, version, request.query_is("extended", "true"));
    let mut node = &tree;
    for part in request.path.split('/').skip(3).filter(|part| !part.is_empty()) {
        let child = match node {
            Value::Object(fields) => {
                fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(part)).map(|(_, v)| v)
            }
            Value::Array(items) => part.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        match child {
            Some(child) => node = child,
            None => return error(StatusCode::NOT_FOUND, "Not found"),
        }
    }
    match (node, text) {
        (Value::Object(_) | Value::Array(_), false) => Reply::json(StatusCode::OK, node),
        (Value::Object(_) | Value::Array(_), true) => Reply::text(StatusCode::OK, children(node)),
        (leaf, true) => Reply::text(StatusCode::OK, leaf_text(leaf)),
        // Azure's documentation: a leaf has no JSON form, and JSON is the default.
        (_, false) => {
            error(StatusCode::BAD_REQUEST, "Bad request. A leaf has no JSON form; ask with format=text")
        }
    }
}

fn children(node: &Value) -> String {
    let line = |name: String, value: &Value| {
        if matches!(value, Value::Object(_) | Value::Array(_)) { name + "/" } else { name }
    };
    let lines: Vec<String> = match node {
        Value::Object(fields) => fields.iter().map(|(name, value)| line(name.clone(), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(i, value)| line(i.to_string(), value)).collect()
        }
        _ => vec![],
    };
    lines.join("\n")
}

fn leaf_text(leaf: &Value) -> String {
    leaf.as_str().map_or_else(|| leaf.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::request;
    use crate::testing::identity;

    fn ask(target: &str) -> Reply {
        answer(&identity(), &NetworkFacts::for_tests(), &request("GET", target, &[("Metadata", "true")], ""))
    }

    #[test]
    fn headers_are_checked_first() {
        let target = "/metadata/instance?api-version=2021-08-01";
        for (headers, status) in [
            (&[][..], 400),
            (&[("Metadata", "false")][..], 400),
            (&[("metadata", "True")][..], 200),
            (&[("Metadata", "true"), ("X-Forwarded-For", "1.2.3.4")][..], 400),
        ] {
            let reply = answer(&identity(), &NetworkFacts::for_tests(), &request("GET", target, headers, ""));
            assert_eq!(reply.status, status, "{headers:?}");
        }
        let post = request("POST", target, &[("Metadata", "true")], "");
        assert_eq!(answer(&identity(), &NetworkFacts::for_tests(), &post).status, 405);
    }

    #[test]
    fn statuses() {
        for (target, status) in [
            ("/metadata/instance", 400),
            ("/metadata/instance?api-version=1999-01-01", 400),
            ("/metadata/instance?api-version=2021-08-01", 200),
            ("/metadata/instance/?API-version=2021-08-01", 200),
            ("/metadata/instance/compute?api-version=2018-02-01", 200),
            ("/metadata/instance/compute/vmId?api-version=2021-08-01", 400),
            ("/metadata/instance/compute/nothing?api-version=2021-08-01", 404),
            ("/metadata/instance/compute?api-version=2021-08-01&format=yaml", 400),
            ("/metadata/instance/network/interface/1?api-version=2021-08-01", 404),
            ("/metadata/versions", 200),
            ("/metadata/reprovisiondata?api-version=2019-06-01", 404),
            ("/metadata/scheduledevents?api-version=2020-07-01", 400),
            ("/metadata/scheduledevents?api-version=2020-10-01", 200),
            ("/metadata/attested/document?api-version=2020-09-01", 404),
            ("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x", 400),
            ("/", 404),
            ("/metadata", 404),
        ] {
            assert_eq!(ask(target).status, status, "{target}");
        }
        let unknown: Value = serde_json::from_str(&ask("/metadata/instance?api-version=2").body).unwrap();
        assert_eq!(unknown["newest-versions"], json!(["2023-11-15", "2023-07-01", "2021-12-13"]));
        let identity: Value =
            serde_json::from_str(&ask("/metadata/identity?api-version=2018-02-01").body).unwrap();
        assert_eq!(identity["error_description"], "Identity not found");
    }

    #[test]
    fn leaves_and_lists_as_text() {
        for (path, text) in [
            ("compute/vmId", "b0010682-53be-4c97-b76d-be7f6f8fc137"),
            ("COMPUTE/osprofile/adminUsername", "azureuser"),
            ("network/interface/0/ipv4/ipAddress/0/privateIpAddress", "10.0.0.4"),
            ("network/interface/0/macAddress", "002248F8D604"),
            ("compute/tags", "env:dev;owner:me"),
            ("network/interface/0/ipv4", "ipAddress/\nsubnet/"),
            ("", "compute/\nnetwork/"),
        ] {
            let reply = ask(&format!("/metadata/instance/{path}?api-version=2021-08-01&format=text"));
            assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, text), "{path}");
        }
    }
}
