//! Reads of this service's own blobs by their URLs, as templates name them: without the network, whose policy rightly
//! refuses loopback, and without a certificate to trust. The signature in the URL is checked as for anyone.

use std::net::{IpAddr, Ipv4Addr};

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use reqwest::Url;

use super::{route, service};
use crate::AppState;
use crate::http::serve::Peer;

/// The answer to a GET of `url`, if it is one of this service's blobs.
pub(crate) async fn get(state: &AppState, url: &Url) -> Option<Response> {
    if !is_own(state, url) {
        return None;
    }
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut request = Request::builder().uri(target).body(Body::empty()).ok()?;
    request.headers_mut().insert("x-ms-version", HeaderValue::from_static(service::DEFAULT_VERSION));
    request
        .extensions_mut()
        .insert(Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), secure: url.scheme() == "https" });
    let (parts, body) = request.into_parts();
    if !route::is_blob(state, &parts).await {
        return None;
    }
    Some(service::serve(state.clone(), Request::from_parts(parts, body)).await)
}

/// Whether a URL begins with an address under which this service is known.
fn is_own(state: &AppState, url: &Url) -> bool {
    state
        .endpoint
        .origins()
        .iter()
        .any(|origin| Url::parse(origin).is_ok_and(|ours| ours.origin() == url.origin()))
}
