//! A real server on a free port, with a client that trusts its authority.

use std::net::{Ipv4Addr, SocketAddr};

use reqwest::{Certificate, Client, Method, RequestBuilder, Response};
use serde_json::Value;
use server::{Config, Server};

pub(crate) const SUBSCRIPTION: &str = "/subscriptions/22222222-2222-2222-2222-222222222222";
pub(crate) const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub(crate) const VERSION: &str = "api-version=2024-11-01";

pub(crate) struct Bed {
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) token: String,
    pub(crate) credentials: Value,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn config(folder: &std::path::Path) -> Config {
    let mut config = Config::new(folder);
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.limits.shutdown_timeout = std::time::Duration::from_secs(5);
    config
}

impl Bed {
    pub(crate) async fn start() -> Bed {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = config(folder.path());
        Bed::start_with(config, folder).await
    }

    pub(crate) async fn start_with(config: Config, folder: tempfile::TempDir) -> Bed {
        let server = Server::start(config).await.expect("starts");
        let ca =
            Certificate::from_pem(&std::fs::read(&server.ca_pem).expect("ca.pem")).expect("a certificate");
        let client = Client::builder().tls_certs_only([ca]).no_proxy().build().expect("a client");
        let credentials = std::fs::read(&server.credentials).expect("credentials");
        let credentials: Value = serde_json::from_slice(&credentials).expect("JSON");
        let mut bed = Bed { server, client, token: String::new(), credentials, folder };
        let answer = bed.ask_token(&format!("/{TENANT}/oauth2/v2.0/token"), &bed.form(None)).await;
        assert_eq!(answer.0, 200, "{}", answer.1);
        bed.token = answer.1["access_token"].as_str().expect("a token").to_owned();
        bed
    }

    /// A client-credentials form with the right secret.
    pub(crate) fn form(&self, extra: Option<(&str, &str)>) -> String {
        let (id, secret) = (self.text("clientId"), self.text("clientSecret"));
        let extra = extra.map(|(k, v)| format!("&{k}={v}")).unwrap_or_default();
        format!("grant_type=client_credentials&client_id={id}&client_secret={secret}{extra}")
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.credentials[key].as_str().expect(key)
    }

    pub(crate) async fn ask_token(&self, path: &str, form: &str) -> (u16, Value) {
        let response = self
            .client
            .post(format!("{}{path}", self.server.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.to_owned())
            .send()
            .await
            .expect("answers");
        let status = response.status().as_u16();
        (status, response.json().await.expect("JSON"))
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let url =
            if path.starts_with("https:") { path.to_owned() } else { format!("{}{path}", self.server.url) };
        self.client.request(method, url)
    }

    /// With the token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let mut request = self.request(method, path).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.expect("answers")
    }

    /// With the token; status and JSON (null if there is no body).
    pub(crate) async fn json(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        read(self.call(method, path, body).await).await
    }

    pub(crate) async fn stop(self) {
        self.server.shutdown().await;
    }
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
    (status, value)
}

pub(crate) fn header(response: &Response, name: &str) -> String {
    response
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("{name} in {response:?}"))
        .to_str()
        .expect("text")
        .to_owned()
}
