//! What the blob service refuses, and what is left of an upload that breaks off.

use std::time::Duration;

use aws_lc_rs::hmac;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{API, Lab, error, read};
use crate::azurite::service_sas;

/// `Authorization` for a GET with nothing but `x-ms-date` and `x-ms-version` to sign.
fn shared_key(key: &str, path: &str, query: &str, date: &str) -> String {
    let headers = format!("x-ms-date:{date}\nx-ms-version:2024-05-04\n");
    let text = format!("GET\n\n\n\n\n\n\n\n\n\n\n\n{headers}/acct1{path}{query}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).expect("base64"));
    format!("SharedKey acct1:{}", STANDARD.encode(hmac::sign(&key, text.as_bytes())))
}

fn now() -> String {
    chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_a_key() {
    let lab = Lab::start().await;
    lab.container("con").await;
    lab.put_blob("/con/b", b"secret").await;
    let bed = &lab.bed;
    let get = |url: &str| bed.request("GET", url).header("x-ms-version", "2024-05-04");
    let url = format!("{}/con/b", lab.url);

    let (status, code, text) = error(get(&url).send().await.expect("answers")).await;
    assert_eq!((status, code.as_str()), (401, "NoAuthenticationInformation"), "{text}");
    assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>NoAuth"), "{text}");
    // Without any mark of storage the address alone tells, because the account exists.
    let bare = bed.request("GET", &url).send().await.expect("answers");
    assert!(bare.headers().contains_key("www-authenticate"));
    assert_eq!(error(bare).await.1, "NoAuthenticationInformation");
    let nobody = get(&format!("{}/nobody/con/b", bed.server.url)).send().await.expect("answers");
    assert_eq!(error(nobody).await.1, "ResourceNotFound");

    let date = now();
    let ask = async |key: &str, date: &str| {
        let credential = shared_key(key, "/acct1/con/b", "", date);
        let request = get(&url).header("x-ms-date", date).header("authorization", credential);
        request.send().await.expect("answers")
    };
    let good = ask(&lab.key, &date).await;
    assert_eq!(good.status(), StatusCode::OK);
    assert_eq!(good.headers()["x-ms-blob-type"], "BlockBlob");
    assert_eq!(good.text().await.expect("text"), "secret");
    let other = STANDARD.encode([7; 64]);
    let (status, code, text) = error(ask(&other, &date).await).await;
    assert_eq!((status, code.as_str()), (403, "AuthenticationFailed"), "{text}");
    assert!(text.contains("<AuthenticationErrorDetail>The MAC signature found"), "{text}");
    let old = error(ask(&lab.key, "Sun, 11 Oct 2015 21:49:13 GMT").await).await;
    assert!(old.2.contains("too old"), "{}", old.2);

    // A key that was rotated away opens nothing any more; nor does any when the account refuses keys.
    let second = lab.keys().await[1].clone();
    assert_eq!(ask(&second, &date).await.status(), 200);
    let regenerate = format!("{}/regenerateKey?{API}", lab.path);
    assert_eq!(bed.json("POST", &regenerate, Some(json!({"keyName": "key2"}))).await.0, 200);
    assert_eq!(error(ask(&second, &date).await).await.1, "AuthenticationFailed");
    let patch = json!({"properties": {"allowSharedKeyAccess": false}});
    assert_eq!(bed.json("PATCH", &format!("{}?{API}", lab.path), Some(patch)).await.0, 200);
    assert_eq!(error(ask(&lab.key, &date).await).await.1, "KeyBasedAuthenticationNotPermitted");
    let stranger = get(&url).bearer_auth("not.a.token").send().await.expect("answers");
    assert_eq!(error(stranger).await.1, "AuthenticationFailed");
    assert_eq!(
        lab.blob("GET", "/con/b", &[], Vec::new()).await.status(),
        200,
        "the service's token still does"
    );
    // ARM is where it was.
    assert_eq!(read(bed.request("GET", "/nothing/here").send().await.expect("answers")).await.0, 401);
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_for_accounts_that_allow_it() {
    let lab = Lab::start().await;
    lab.container("con").await;
    lab.put_blob("/con/b", b"bytes").await;
    let address = lab.bed.server.blob_addr.expect("it listens");
    let date = now();
    let get = async |path: &str| {
        let request = lab.bed.client.get(format!("http://{address}{path}"));
        let credential = shared_key(&lab.key, path, "", &date);
        let request = request.header("x-ms-date", &date).header("x-ms-version", "2024-05-04");
        request.header("authorization", credential).send().await.expect("answers")
    };
    assert_eq!(error(get("/acct1/con/b").await).await.1, "AccountRequiresHttps");
    let patch = json!({"properties": {"supportsHttpsTrafficOnly": false}});
    assert_eq!(lab.bed.json("PATCH", &format!("{}?{API}", lab.path), Some(patch)).await.0, 200);
    let got = get("/acct1/con/b").await;
    assert_eq!((got.status().as_u16(), got.text().await.expect("text").as_str()), (200, "bytes"));
    let token = lab.bed.client.get(format!("http://{address}/acct1/con/b")).bearer_auth(&lab.bed.token);
    assert!(error(token.send().await.expect("answers")).await.2.contains("only accepted over HTTPS"));
    // ARM is not there at all.
    let arm = lab.bed.client.get(format!("http://{address}/subscriptions?{API}")).bearer_auth(&lab.bed.token);
    assert_eq!(error(arm.send().await.expect("answers")).await.1, "ResourceNotFound");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_are_told_why() {
    let lab = Lab::start().await;
    lab.container("con").await;
    lab.put_blob("/con/block", b"12345678").await;
    let block = ("x-ms-blob-type", "BlockBlob");
    let page = ("x-ms-blob-type", "PageBlob");
    let append = ("x-ms-blob-type", "AppendBlob");
    for (name, headers) in
        [("/con/page", vec![page, ("x-ms-blob-content-length", "512")]), ("/con/append", vec![append])]
    {
        assert_eq!(lab.blob("PUT", name, &headers, Vec::new()).await.status(), StatusCode::CREATED, "{name}");
    }
    let long = "m".repeat(9000);
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a [u8], u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("PUT", "/con?restype=container", vec![], b"", 409, "ContainerAlreadyExists"),
        ("PUT", "/Con?restype=container", vec![], b"", 400, "InvalidResourceName"),
        (
            "PUT",
            "/open?restype=container",
            vec![("x-ms-blob-public-access", "blob")],
            b"",
            409,
            "PublicAccessNotPermitted",
        ),
        ("PUT", "/none/b", vec![block], b"x", 404, "ContainerNotFound"),
        ("GET", "/none?restype=container&comp=list", vec![], b"", 404, "ContainerNotFound"),
        ("DELETE", "/none?restype=container", vec![], b"", 404, "ContainerNotFound"),
        ("GET", "/con/none", vec![], b"", 404, "BlobNotFound"),
        ("DELETE", "/con/none", vec![], b"", 404, "BlobNotFound"),
        ("PUT", "/con/b", vec![], b"x", 400, "MissingRequiredHeader"),
        ("PUT", "/con/b", vec![("x-ms-blob-type", "Heap")], b"x", 400, "InvalidHeaderValue"),
        ("PUT", "/con/b", vec![block, ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], b"x", 400, "Md5Mismatch"),
        ("PUT", "/con/b", vec![block, ("content-md5", "AA==")], b"x", 400, "InvalidHeaderValue"),
        ("PUT", "/con/b", vec![block, ("x-ms-meta-a-b", "1")], b"x", 400, "InvalidMetadata"),
        ("PUT", "/con/b", vec![block, ("x-ms-meta-a", &long)], b"x", 400, "MetadataTooLarge"),
        ("PUT", "/con/b", vec![block, ("x-ms-lease-id", "1")], b"x", 412, "LeaseNotPresentWithBlobOperation"),
        ("PUT", "/con/block", vec![block, ("if-none-match", "*")], b"x", 409, "BlobAlreadyExists"),
        ("PUT", "/con/block", vec![block, ("if-match", "\"0x1\"")], b"x", 412, "ConditionNotMet"),
        ("PUT", "/con/p", vec![page], b"", 400, "MissingRequiredHeader"),
        ("PUT", "/con/p", vec![page, ("x-ms-blob-content-length", "511")], b"", 400, "InvalidHeaderValue"),
        (
            "PUT",
            "/con/p",
            vec![page, ("x-ms-blob-content-length", "99999999999999999")],
            b"",
            400,
            "InvalidHeaderValue",
        ),
        ("PUT", "/con/block?comp=page", vec![("x-ms-range", "bytes=0-511")], b"", 409, "InvalidBlobType"),
        ("PUT", "/con/page?comp=blocklist", vec![], b"<BlockList/>", 409, "InvalidBlobType"),
        ("PUT", "/con/append?comp=blocklist", vec![], b"<BlockList/>", 409, "InvalidBlobType"),
        ("PUT", "/con/block?comp=appendblock", vec![], b"x", 409, "InvalidBlobType"),
        ("GET", "/con/block?comp=pagelist", vec![], b"", 409, "InvalidBlobType"),
        ("PUT", "/con/block?comp=block&blockid=%25", vec![], b"x", 400, "InvalidQueryParameterValue"),
        (
            "PUT",
            "/con/b?comp=blocklist",
            vec![],
            b"<BlockList><Latest>YQ==</Latest>",
            400,
            "InvalidXmlDocument",
        ),
        (
            "PUT",
            "/con/b?comp=blocklist",
            vec![],
            b"<BlockList><Latest>YQ==</Latest></BlockList>",
            400,
            "InvalidBlockList",
        ),
        ("GET", "/con/block", vec![("x-ms-range", "bytes=8-")], b"", 416, "InvalidRange"),
        ("GET", "/con?restype=container&comp=list&marker=x", vec![], b"", 400, "InvalidQueryParameterValue"),
        (
            "GET",
            "/con?restype=container&comp=list&maxresults=0",
            vec![],
            b"",
            400,
            "InvalidQueryParameterValue",
        ),
        ("PUT", "/con/block?comp=snapshot", vec![], b"", 501, "NotImplemented"),
        ("PUT", "/con/block?comp=lease", vec![], b"", 501, "NotImplemented"),
        ("PATCH", "/con/block", vec![], b"", 405, "UnsupportedHttpVerb"),
        (
            "PUT",
            "/con/c",
            vec![("x-ms-copy-source", "https://example.org/a/b/c")],
            b"",
            501,
            "NotImplemented",
        ),
    ];
    for (method, below, headers, body, status, code) in cases {
        let (found, answered, text) = error(lab.blob(method, below, &headers, body.to_vec()).await).await;
        assert_eq!((found, answered.as_str()), (status, code), "{method} {below} {headers:?}: {text}");
        assert!(text.contains(&format!("<Code>{code}</Code><Message>")), "{text}");
    }
    let fresh = lab.blob("GET", "/con/block", &[("x-ms-range", "bytes=6-100")], Vec::new()).await;
    assert_eq!(fresh.headers()["content-range"], "bytes 6-7/8");
    let etag = fresh.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(fresh.text().await.expect("text"), "78");
    let same = lab.blob("GET", "/con/block", &[("if-none-match", &etag)], Vec::new()).await;
    assert_eq!((same.status().as_u16(), same.text().await.expect("text").as_str()), (304, ""));
    assert_eq!(lab.objects("eastus"), 2, "nothing refused left a file; the append blob has none yet");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let lab = Lab::start().await;
    let patch = json!({"properties": {"supportsHttpsTrafficOnly": false}});
    assert_eq!(lab.bed.json("PATCH", &format!("{}?{API}", lab.path), Some(patch)).await.0, 200);
    lab.container("con").await;
    let address = lab.bed.server.blob_addr.expect("it listens");
    let sas = service_sas(&lab.key, "/blob/acct1/con", "c", "cw");
    let request = format!(
        "PUT /acct1/con/b?{sas} HTTP/1.1\r\nhost: {address}\r\nx-ms-version: 2024-05-04\r\nx-ms-blob-type: BlockBlob\r\n\
         content-length: 10000000\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    stream.write_all(&vec![1; 3_000_000]).await.expect("writes");
    let wait = async |what: &str, wanted: usize| {
        let wait = async {
            while lab.objects("eastus") != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
    };
    wait("the upload is under way", 1).await;
    drop(stream);
    wait("its file goes", 0).await;
    assert_eq!(error(lab.blob("GET", "/con/b", &[], Vec::new()).await).await.1, "BlobNotFound");

    // A length that is a lie is refused by name.
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let lie = request.replace("content-length: 10000000", "content-length: 999999999999999");
    stream.write_all(lie.as_bytes()).await.expect("writes");
    let mut answer = vec![0; 2000];
    let length = stream.read(&mut answer).await.expect("answers");
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("RequestBodyTooLarge"), "{answer}");
    lab.bed.stop().await;
}
