//! The address under which clients know the service: every URL that it hands out begins with it, and
//! tokens are issued by it and for it.

use std::net::SocketAddr;

use uuid::Uuid;

/// Audiences of Azure itself, which clients ask for when they were pointed here by a proxy.
const AZURE_AUDIENCES: [&str; 3] = [
    "https://management.azure.com",
    "https://management.core.windows.net",
    // What clients of blobs ask for, whatever the account's address is.
    "https://storage.azure.com",
];

/// The service's address.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: String,
    origins: Vec<String>,
    tenant_id: Uuid,
    audiences: Vec<String>,
}

impl Endpoint {
    /// `plain` is where blobs alone are served over HTTP.
    pub(crate) fn new(public_host: &str, port: u16, plain: Option<SocketAddr>, tenant_id: Uuid) -> Endpoint {
        let url = format!("https://{public_host}:{port}");
        let hosts = [public_host, "localhost", "127.0.0.1"];
        let mut origins = hosts.map(|host| format!("https://{host}:{port}")).to_vec();
        // Clients differ in whether the audience ends in a slash.
        let audiences = origins
            .iter()
            .map(String::as_str)
            .chain(AZURE_AUDIENCES)
            .flat_map(|host| [host.to_owned(), format!("{host}/")])
            .collect();
        if let Some(plain) = plain {
            origins.extend(hosts.map(|host| format!("http://{host}:{}", plain.port())));
            origins.push(format!("http://{plain}"));
        }
        Endpoint { url, origins, tenant_id, audiences }
    }

    /// `https://{host}:{port}`, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Addresses that lead here, each without a slash at the end.
    #[must_use]
    pub fn origins(&self) -> &[String] {
        &self.origins
    }

    /// `primaryEndpoints.blob` of a storage account: path-style, because its host has no subdomains.
    #[must_use]
    pub fn blob_url(&self, account: &str) -> String {
        format!("{}/{account}/", self.url)
    }

    /// The `iss` of every token.
    #[must_use]
    pub fn issuer(&self) -> String {
        format!("{}/{}/v2.0", self.url, self.tenant_id)
    }

    /// The audience that clients are told to ask for: the address with a slash.
    #[must_use]
    pub fn audience(&self) -> String {
        format!("{}/", self.url)
    }

    /// Every audience that is accepted.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
}
