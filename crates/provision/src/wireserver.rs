//! The wireserver at 168.63.129.16:80: the goal state for agents, and their reports.
//!
//! There is no `<Certificates>` URL in our goal state. It would exist to deliver SSH keys by fingerprint, which needs
//! the user's certificate; ARM gives us keys as text, and agents get them from IMDS and from the media. An agent that
//! asks all the same is answered 404.

mod documents;
mod health;

use std::net::Ipv4Addr;

use http::{Method, StatusCode};

use crate::event::{GuestEvent, clean_text};
use crate::host_plugin;
use crate::http::{Reply, Request};
use crate::identity::{INCARNATION, VmIdentity};
use health::{Report, Verdict};

const INCARNATION_HEADER: &str = "x-ms-latest-goal-state-incarnation-number";

pub(crate) fn answer(vm: &VmIdentity, guest_ip: Ipv4Addr, request: &Request) -> Reply {
    let path = request.path.trim_end_matches('/');
    let (get, post) = (request.method == Method::GET, request.method == Method::POST);
    let put = request.method == Method::PUT;
    match path {
        "" if get && request.query_is("comp", "versions") => Reply::xml(documents::versions()),
        "/provisioning/health" if post => provisioning_health(request),
        "/HealthService" if post => Reply::empty(StatusCode::OK),
        _ if put && path.strip_prefix("/status-blob/") == Some(&vm.container_id.to_string()) => {
            status_blob(request)
        }
        _ if path == "/machine" || path.starts_with("/machine/") => match request.query("comp") {
            Some(comp) => machine(vm, guest_ip, request, path, &comp.to_ascii_lowercase()),
            None => Reply::empty(StatusCode::BAD_REQUEST),
        },
        _ => Reply::empty(StatusCode::NOT_FOUND),
    }
}

fn machine(vm: &VmIdentity, guest_ip: Ipv4Addr, request: &Request, path: &str, comp: &str) -> Reply {
    match (&request.method, comp) {
        (&Method::GET, "goalstate") => Reply::xml(documents::goal_state(vm)),
        (&Method::GET, "config") => config(vm, guest_ip, request, path),
        (&Method::GET, "certificates") => {
            Reply::text(StatusCode::NOT_FOUND, "this VM has no certificates: its goal state names none")
        }
        (&Method::POST, "health") => machine_health(vm, request),
        (&Method::POST, "roleproperties") => Reply::empty(StatusCode::ACCEPTED),
        (&Method::POST, "telemetrydata") => Reply::empty(StatusCode::OK),
        (_, "goalstate" | "config" | "certificates" | "health" | "roleproperties" | "telemetrydata") => {
            Reply::empty(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => Reply::empty(StatusCode::NOT_FOUND),
    }
}

/// `/machine/{container}/{instance}?comp=config&type=…`
fn config(vm: &VmIdentity, guest_ip: Ipv4Addr, request: &Request, path: &str) -> Reply {
    if path != format!("/machine/{}/{}", vm.container_id, vm.instance_id) {
        // 410 makes waagent fetch the goal state anew, which has this VM's own addresses.
        return Reply::text(StatusCode::GONE, "not this VM's container and instance: fetch the goal state");
    }
    match request.query("type").map(str::to_ascii_lowercase).as_deref() {
        Some("hostingenvironmentconfig") => Reply::xml(documents::hosting_environment(vm)),
        Some("sharedconfig") => Reply::xml(documents::shared_config(vm, guest_ip)),
        Some("extensionsconfig") => Reply::xml(documents::extensions_config(vm)),
        _ => Reply::empty(StatusCode::NOT_FOUND),
    }
}

/// cloud-init's and waagent's report, XML.
fn machine_health(vm: &VmIdentity, request: &Request) -> Reply {
    let report = match Report::from_xml(&request.body) {
        Ok(report) => report,
        Err(why) => return Reply::text(StatusCode::BAD_REQUEST, why),
    };
    if let Some(reason) = report.mismatch(vm) {
        let event = GuestEvent::ForeignReport { reason: reason.clone() };
        return Reply::text(StatusCode::GONE, reason).with_event(event);
    }
    let mut reply = Reply::empty(StatusCode::OK).with_event(event(report.verdict));
    reply.header = Some((INCARNATION_HEADER, INCARNATION.to_string()));
    reply
}

/// azure-init's report, JSON. It names no VM: the socket does.
fn provisioning_health(request: &Request) -> Reply {
    match health::from_json(&request.body) {
        Ok(verdict) => Reply::empty(StatusCode::OK).with_event(event(verdict)),
        Err(why) => Reply::text(StatusCode::BAD_REQUEST, why),
    }
}

/// The agent's status, put straight to the blob's address instead of through the host plugin.
fn status_blob(request: &Request) -> Reply {
    let reply = Reply::empty(StatusCode::CREATED);
    match host_plugin::agent_status(&request.body) {
        Ok(event) => reply.with_event(event),
        Err(why) => Reply::text(StatusCode::BAD_REQUEST, format!("the status is not JSON: {why}")),
    }
}

fn event(verdict: Verdict) -> GuestEvent {
    match verdict {
        Verdict::Ready => GuestEvent::Ready,
        Verdict::InProgress { text } => GuestEvent::Provisioning { text: clean_text(&text) },
        Verdict::Failed { text } => GuestEvent::ProvisioningFailed { text: clean_text(&text) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::request;
    use crate::testing::identity;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

    fn ask(method: &str, target: &str, body: &str) -> Reply {
        answer(&identity(), IP, &request(method, target, &[], body))
    }

    /// The text of the first element of this name.
    fn text_of(xml: &str, name: &str) -> String {
        let doc = roxmltree::Document::parse(xml).unwrap();
        let node =
            doc.descendants().find(|n| n.tag_name().name() == name).unwrap_or_else(|| panic!("no {name}"));
        node.text().unwrap_or_default().to_owned()
    }

    #[test]
    fn an_agent_walks_the_goal_state() {
        assert_eq!(text_of(&ask("GET", "/?comp=versions", "").body, "Version"), "2015-04-05");
        let goal = ask("GET", "/machine/?comp=goalstate", "").body;
        assert_eq!(goal, ask("GET", "/machine?comp=GoalState", "").body);
        assert_eq!(text_of(&goal, "Incarnation"), "1");
        assert_eq!(text_of(&goal, "ContainerId"), identity().container_id.to_string());
        assert_eq!(text_of(&goal, "InstanceId"), identity().instance_id);
        assert!(!goal.contains("Certificates"));
        for (element, root) in [
            ("HostingEnvironmentConfig", "HostingEnvironmentConfig"),
            ("SharedConfig", "SharedConfig"),
            ("ExtensionsConfig", "Extensions"),
        ] {
            let url = text_of(&goal, element);
            let target = url.strip_prefix("http://168.63.129.16:80").unwrap();
            let reply = ask("GET", target, "");
            assert_eq!(reply.status, StatusCode::OK, "{target}");
            let doc = roxmltree::Document::parse(&reply.body).unwrap();
            assert_eq!(doc.root_element().tag_name().name(), root);
        }
        let full = text_of(&goal, "FullConfig");
        assert_eq!(ask("GET", full.strip_prefix("http://168.63.129.16:80").unwrap(), "").status, 404);
    }

    #[test]
    fn names_with_markup_stay_text() {
        let mut vm = identity();
        vm.name = "<a&\"b\">".into();
        vm.instance_id = "x._<a&b>".into();
        let goal = answer(&vm, IP, &request("GET", "/machine?comp=goalstate", &[], "")).body;
        assert_eq!(text_of(&goal, "InstanceId"), vm.instance_id);
        let url = text_of(&goal, "HostingEnvironmentConfig");
        let url = url.strip_prefix("http://168.63.129.16:80").unwrap();
        let hosting = answer(&vm, IP, &request("GET", url, &[], ""));
        let doc = roxmltree::Document::parse(&hosting.body).unwrap();
        let role = doc.descendants().find(|n| n.has_tag_name("Role")).unwrap();
        assert_eq!(role.attribute("name"), Some(vm.name.as_str()));
    }

    #[test]
    fn refusals() {
        for (method, target, status) in [
            ("GET", "/", 404),
            ("GET", "/machine", 400),
            ("GET", "/machine?comp=unheard", 404),
            ("POST", "/machine?comp=goalstate", 405),
            ("GET", "/machine/other/instance?comp=config&type=sharedConfig", 410),
            ("GET", "/machine?comp=certificates&incarnation=1", 404),
            ("POST", "/machine?comp=health", 400),
            ("POST", "/provisioning/health", 400),
            ("PUT", "/status-blob/other", 404),
            ("GET", "/../../etc/passwd", 404),
        ] {
            let reply = ask(method, target, "");
            assert_eq!((reply.status.as_u16(), reply.event), (status, None), "{method} {target}");
        }
    }

    #[test]
    fn small_posts_are_accepted() {
        assert_eq!(ask("POST", "/HealthService", "{}").status, 200);
        assert_eq!(ask("POST", "/machine?comp=telemetrydata", "<x/>").status, 200);
        assert_eq!(ask("POST", "/machine?comp=roleProperties", "<x/>").status, 202);
        let blob = ask("PUT", &format!("/status-blob/{}", identity().container_id), r#"{"version":"1.1"}"#);
        assert_eq!(blob.status, 201);
        assert_eq!(blob.event, Some(GuestEvent::AgentStatus(serde_json::json!({"version": "1.1"}))));
    }

    #[test]
    fn reports_become_events() {
        let report = |incarnation: &str, container: &str, health: &str| {
            format!(
                "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<Health xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"\n \
                 xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\">\n  <GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\n  \
                 <Container>\n    <ContainerId>{container}</ContainerId>\n    <RoleInstanceList>\n      <Role>\n        \
                 <InstanceId>0ebceeac-e60b-4771-a973-9129ce013632._a2</InstanceId>\n        <Health>\n          {health}\n        \
                 </Health>\n      </Role>\n    </RoleInstanceList>\n  </Container>\n</Health>\n"
            )
        };
        let ours = identity().container_id.to_string();
        let ready = ask("POST", "/machine?comp=health", &report("1", &ours, "<State>Ready</State>"));
        assert_eq!((ready.status, &ready.event), (StatusCode::OK, &Some(GuestEvent::Ready)));
        assert_eq!(ready.header, Some((INCARNATION_HEADER, "1".into())));
        let failed = "<State>NotReady</State><Details><SubStatus>ProvisioningFailed</SubStatus>\
                      <Description> disk &amp; dust </Description></Details>";
        assert_eq!(
            ask("POST", "/machine?comp=health", &report("1", &ours, failed)).event,
            Some(GuestEvent::ProvisioningFailed { text: "disk & dust".into() })
        );
        for (incarnation, container) in [("1", "00000000-0000-0000-0000-000000000000"), ("2", ours.as_str())]
        {
            let foreign =
                ask("POST", "/machine?comp=health", &report(incarnation, container, "<State>Ready</State>"));
            assert_eq!(foreign.status, StatusCode::GONE);
            assert!(matches!(foreign.event, Some(GuestEvent::ForeignReport { .. })), "{:?}", foreign.event);
        }
    }
}
