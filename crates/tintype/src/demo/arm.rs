//! A client of the ARM REST API, as small as the demo needs: token, JSON, long-running operations.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::{Method, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

const POLL: Duration = Duration::from_millis(300);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30 * 60);

pub(super) const COMPUTE: &str = "2024-07-01";
pub(super) const GALLERY: &str = "2024-03-03";
pub(super) const IMAGE_BUILDER: &str = "2024-02-01";
pub(super) const RESOURCES: &str = "2021-04-01";

/// What `tintype serve` wrote for its first client.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Credentials {
    client_id: String,
    client_secret: String,
    tenant_id: String,
    subscription_id: String,
}

/// A client with a token.
#[derive(Clone)]
pub(super) struct Arm {
    http: reqwest::Client,
    url: String,
    token: String,
    pub(super) subscription: String,
}

impl Arm {
    /// Trusts the server's own authority, and asks its token endpoint for a token.
    pub(super) async fn log_in(url: &str, ca: &Path, credentials: &Path) -> anyhow::Result<Self> {
        let ca = std::fs::read(ca).context("cannot read the server's authority")?;
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca)?])
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(120))
            .build()?;
        let text = std::fs::read(credentials).context("cannot read the first client's credentials")?;
        let credentials: Credentials = serde_json::from_slice(&text)?;
        #[derive(Deserialize)]
        struct Token {
            access_token: String,
        }
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &credentials.client_id),
            ("client_secret", &credentials.client_secret),
            ("scope", &format!("{url}/.default")),
        ];
        let body = form.map(|(key, value)| format!("{key}={}", percent_encode(value))).join("&");
        let answer = http
            .post(format!("{url}/{}/oauth2/v2.0/token", credentials.tenant_id))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body)
            .send()
            .await?;
        let token: Token = answer.error_for_status().context("the token endpoint refused")?.json().await?;
        Ok(Self {
            http,
            url: url.to_owned(),
            token: token.access_token,
            subscription: credentials.subscription_id,
        })
    }

    /// Id of a resource group.
    pub(super) fn group(&self, name: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{name}", self.subscription)
    }

    pub(super) async fn get(&self, path: &str, version: &str) -> anyhow::Result<Value> {
        Ok(self.send(Method::GET, path, version, None).await?.body)
    }

    /// PUT, and wait until the operation has ended; gives the resource as it is then.
    pub(super) async fn put(&self, id: &str, version: &str, body: Value) -> anyhow::Result<Value> {
        let answer = self.send(Method::PUT, id, version, Some(body)).await?;
        answer.finish(self).await?;
        self.get(id, version).await
    }

    /// POST, and wait until the operation has ended; gives its result.
    pub(super) async fn post(&self, path: &str, version: &str) -> anyhow::Result<Value> {
        self.send(Method::POST, path, version, None).await?.finish(self).await
    }

    pub(super) async fn delete(&self, id: &str, version: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, id, version, None).await?.finish(self).await.map(drop)
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        version: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Answer> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{separator}api-version={version}", self.url);
        let mut request = self.http.request(method.clone(), url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        Answer::read(format!("{method} {path}"), response).await
    }
}

/// An answer that was no error.
pub(super) struct Answer {
    what: String,
    status: StatusCode,
    /// Where to ask how the operation goes.
    pub(super) poll: Option<String>,
    /// The first answer's body, `Null` where there is none.
    pub(super) body: Value,
}

impl Answer {
    async fn read(what: String, response: reqwest::Response) -> anyhow::Result<Self> {
        let status = response.status();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let poll = header("azure-asyncoperation").or_else(|| header("location"));
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(Self { what, status, poll, body });
        }
        let error = &body["error"];
        bail!(
            "{what}: {status} {}: {}",
            error["code"].as_str().unwrap_or("(no code)"),
            error["message"].as_str().unwrap_or(&text)
        )
    }

    /// Polls until the operation has ended.
    pub(super) async fn finish(self, arm: &Arm) -> anyhow::Result<Value> {
        let Some(poll) = self.poll else { return Ok(self.body) };
        let started = Instant::now();
        loop {
            let response = arm.http.get(&poll).bearer_auth(&arm.token).send().await?;
            let answer = Answer::read(format!("polling {}", self.what), response).await?;
            match answer.body["status"].as_str() {
                Some("Succeeded") => return Ok(answer.body),
                Some(status @ ("Failed" | "Canceled")) => {
                    let error = &answer.body["error"];
                    bail!(
                        "{} ended {status}: {}: {}",
                        self.what,
                        error["code"].as_str().unwrap_or("(no code)"),
                        error["message"].as_str().unwrap_or("(no message)")
                    );
                }
                // A Location without a body: 202 goes on, anything else is the end.
                None if answer.status != StatusCode::ACCEPTED => return Ok(answer.body),
                _ => {}
            }
            if started.elapsed() > OPERATION_TIMEOUT {
                bail!("{} did not end within {} s", self.what, OPERATION_TIMEOUT.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Percent-encodes everything but letters and digits.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
