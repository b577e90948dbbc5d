//! A web server on the loopback for the template's scripts, as a company's own would be. The demo's
//! configuration allows its address, which the network policy denies otherwise.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;

type Files = Arc<Mutex<HashMap<String, Vec<u8>>>>;

pub(super) struct ScriptServer {
    address: SocketAddr,
    files: Files,
}

impl ScriptServer {
    /// Serves until the process ends.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr().context("the script server has no address")?;
        let files = Files::default();
        let app = Router::new().route("/{name}", get(file)).with_state(Arc::clone(&files));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, files })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a file and gives its URL.
    pub(super) fn serve(&self, name: &str, content: &[u8]) -> String {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), content.to_owned());
        format!("http://{}/{name}", self.address)
    }
}

async fn file(State(files): State<Files>, Path(name): Path<String>) -> Result<Vec<u8>, StatusCode> {
    let files = files.lock().unwrap_or_else(PoisonError::into_inner);
    files.get(&name).cloned().ok_or(StatusCode::NOT_FOUND)
}
