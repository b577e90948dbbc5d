use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::*;

/// A server on loopback; gives its port.
async fn serve() -> u16 {
    let redirect = |to: &'static str| {
        get(move || async move { (StatusCode::FOUND, [(header::LOCATION, to)]).into_response() })
    };
    let app = Router::new()
        .route("/file", get(|| async { "hello\n" }))
        .route("/away", redirect("/file"))
        .route("/loop", redirect("/loop"))
        .route("/metadata", redirect("http://169.254.169.254/metadata/instance"))
        .route("/local", redirect("file:///etc/passwd"))
        .route("/large", get(|| async { vec![7u8; 4096] }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

async fn fetched(allow: &[String], url: &str) -> Result<(Fetched, Vec<u8>), String> {
    crate::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let outbound = Outbound { allow: allow.to_vec(), resolvers: Vec::new() };
    let limits = FetchLimits { bytes_max: 1024, attempt_timeout: Duration::from_secs(60) };
    let fetched = super::fetch(Source { outbound: &outbound, own: None }, url, &path, limits, |_, _| {})
        .await
        .map_err(|error| error.to_string())?;
    Ok((fetched, std::fs::read(&path).unwrap()))
}

#[tokio::test]
async fn what_is_allowed_is_fetched_and_hashed() {
    let port = serve().await;
    let allow = [format!("127.0.0.1:{port}")];
    for path in ["file", "away"] {
        let (fetched, bytes) =
            fetched(&allow, &format!("http://127.0.0.1:{port}/{path}?sig=secret")).await.unwrap();
        assert_eq!((fetched.bytes, bytes.as_slice()), (6, b"hello\n".as_slice()));
        // `printf 'hello\n' | sha256sum`
        assert_eq!(
            fetched.sha256.to_string(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}

#[tokio::test]
async fn every_hop_is_judged_and_bounded() {
    let port = serve().await;
    let allow = [format!("127.0.0.1:{port}")];
    for (path, expected) in [
        ("metadata", "169.254.169.254"),
        ("local", "not http or https"),
        ("loop", "redirects more than 5 times"),
        ("large", "more than 1024 bytes"),
        ("nothing", "404"),
    ] {
        let error = fetched(&allow, &format!("http://127.0.0.1:{port}/{path}?sig=secret")).await.unwrap_err();
        assert!(error.contains(expected) && !error.contains("secret"), "{path}: {error}");
    }
    let error = fetched(&[], &format!("http://u:secret@127.0.0.1:{port}/file")).await.unwrap_err();
    assert!(error.contains("loopback") && error.contains(&format!("127.0.0.1:{port}`")), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_silent_port_is_tried_again_and_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error =
        fetched(&[format!("127.0.0.1:{port}")], &format!("http://127.0.0.1:{port}/x")).await.unwrap_err();
    assert!(error.contains("in 3 attempts") && error.contains("refused"), "{error}");
}
