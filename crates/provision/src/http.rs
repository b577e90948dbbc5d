//! HTTP/1.1 for the services that a guest sees, on any byte stream.
//!
//! The services are plain functions from [`Request`] to [`Reply`]; this module is all of their IO and limits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::event::GuestEvent;
use crate::identity::VmIdentity;
use crate::{host_plugin, imds, wireserver};

/// Longest request body in bytes. waagent's status blobs are a few KiB; its log archives may be refused.
const MAX_BODY: usize = 1 << 20;
const MAX_HEADER_BYTES: usize = 64 << 10;
const MAX_QUERY_PAIRS: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an agent waits when nobody reads the events; then its report is answered 503 and it tries again.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

const XML: &str = "text/xml; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// The services; one address and port each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Wireserver,
    HostPlugin,
    Imds,
}

/// What the services know: one VM, its network, and where its events go.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) identity: Arc<VmIdentity>,
    pub(crate) network: imds::NetworkFacts,
    pub(crate) events: mpsc::Sender<GuestEvent>,
}

/// A request, read whole.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Decoded; names in lower case, in order.
    query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn new(method: Method, path: &str, query: &str, headers: HeaderMap, body: Bytes) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).take(MAX_QUERY_PAIRS);
        let query = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode(name).to_ascii_lowercase(), percent_decode(value))
            })
            .collect();
        Self { method, path: percent_decode(path), query, headers, body }
    }

    /// The first value of a query parameter; names compare without case.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the query parameter has this value, without case.
    pub(crate) fn query_is(&self, name: &str, value: &str) -> bool {
        self.query(name).is_some_and(|v| v.eq_ignore_ascii_case(value))
    }
}

/// An answer, and what it means for the host.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    content_type: &'static str,
    pub(crate) header: Option<(&'static str, String)>,
    pub(crate) body: String,
    pub(crate) event: Option<GuestEvent>,
}

impl Reply {
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self { status, content_type: XML, header: None, body: String::new(), event: None }
    }

    pub(crate) fn xml(body: String) -> Self {
        Self { body, ..Self::empty(StatusCode::OK) }
    }

    pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { content_type: TEXT, body: body.into(), ..Self::empty(status) }
    }

    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self { content_type: JSON, body: body.to_string(), ..Self::empty(status) }
    }

    pub(crate) fn with_event(mut self, event: GuestEvent) -> Self {
        self.event = Some(event);
        self
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, service: Service, world: Arc<World>) {
    let handler = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let world = world.clone();
        async move { Ok::<_, Infallible>(answer(service, &world, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), handler);
    if let Err(error) = connection.await {
        tracing::debug!(?service, %error, "guest connection ended");
    }
}

async fn answer(
    service: Service,
    world: &World,
    request: hyper::Request<hyper::body::Incoming>,
) -> http::Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reply = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Err(_) => Reply::text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Reply::text(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {MAX_BODY} bytes"))
        }
        Ok(Err(error)) => Reply::text(StatusCode::BAD_REQUEST, error.to_string()),
        Ok(Ok(body)) => {
            let query = head.uri.query().unwrap_or("");
            let request = Request::new(head.method, head.uri.path(), query, head.headers, body.to_bytes());
            let reply = match service {
                Service::Wireserver => wireserver::answer(&world.identity, world.network.address, &request),
                Service::HostPlugin => host_plugin::answer(&request),
                Service::Imds => imds::answer(&world.identity, &world.network, &request),
            };
            tracing::debug!(?service, method = %request.method, path = request.path, status = %reply.status, "guest");
            reply
        }
    };
    publish(world, reply).await.into_response()
}

/// Hands the reply's event over before the guest gets its answer: an agent that was told 200 never reports again.
async fn publish(world: &World, mut reply: Reply) -> Reply {
    let Some(event) = reply.event.take() else { return reply };
    if event.may_be_lost() {
        // Full or closed: the next one says the same.
        let _ = world.events.try_send(event);
        return reply;
    }
    match world.events.send_timeout(event, EVENT_TIMEOUT).await {
        Ok(()) | Err(mpsc::error::SendTimeoutError::Closed(_)) => reply,
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
            Reply::text(StatusCode::SERVICE_UNAVAILABLE, "the host is busy; report again")
        }
    }
}

impl Reply {
    fn into_response(self) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::builder()
            .status(self.status)
            .header(http::header::CONTENT_TYPE, self.content_type)
            .header(http::header::SERVER, "Microsoft-IIS/10.0");
        if let Some((name, value)) = self.header {
            response = response.header(name, value);
        }
        response.body(Full::new(Bytes::from(self.body))).unwrap_or_else(|error| {
            tracing::error!(%error, "a header of ours is not valid");
            http::Response::new(Full::new(Bytes::new()))
        })
    }
}

/// Decodes `%41`; anything malformed stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            (byte, ..) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// `method` and `path?query` as a service sees them.
    pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = headers
            .iter()
            .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse::<http::HeaderValue>().unwrap()))
            .collect();
        Request::new(method.parse().unwrap(), path, query, headers, Bytes::from(body.to_owned()))
    }

    #[test]
    fn percent_decoding() {
        for (text, decoded) in
            [("a%20b", "a b"), ("%", "%"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(percent_decode(text), decoded);
        }
    }

    fn world() -> (Arc<World>, mpsc::Receiver<GuestEvent>) {
        let (events, receiver) = mpsc::channel(4);
        let identity = Arc::new(crate::testing::identity());
        (Arc::new(World { identity, network: imds::NetworkFacts::for_tests(), events }), receiver)
    }

    async fn exchange(world: Arc<World>, service: Service, bytes: &str) -> String {
        let (mut guest, host) = tokio::io::duplex(4 << 20);
        let server = tokio::spawn(serve(host, service, world));
        guest.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        guest.read_to_string(&mut answer).await.unwrap();
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn azure_init_reports_ready_as_recorded() {
        let (world, mut events) = world();
        let answer = exchange(
            world,
            Service::Wireserver,
            "POST /provisioning/health HTTP/1.1\r\nuser-agent: azure-init v0.1.1\r\nx-ms-guest-agent-name: azure-init v0.1.1\r\n\
             content-type: application/json\r\naccept: */*\r\nhost: 168.63.129.16\r\nconnection: close\r\n\
             content-length: 17\r\n\r\n{\"state\":\"Ready\"}",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(events.recv().await, Some(GuestEvent::Ready));
    }

    #[tokio::test]
    async fn a_large_body_is_refused() {
        let (world, _events) = world();
        let body = "x".repeat(MAX_BODY + 1);
        let head = format!(
            "PUT /vmAgentLog HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = exchange(world, Service::HostPlugin, &(head + &body)).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{}", &answer[..60.min(answer.len())]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_is_disconnected() {
        let (world, _events) = world();
        let answer = exchange(world, Service::Imds, "GET /meta").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_nobody_takes_is_asked_for_again() {
        let (world, _events) = world();
        for _ in 0..4 {
            world.events.try_send(GuestEvent::Ready).unwrap();
        }
        let report = "POST /provisioning/health HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 17\r\n\r\n{\"state\":\"Ready\"}";
        let answer = exchange(world, Service::Wireserver, report).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
}
