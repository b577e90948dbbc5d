//! Tokens: getting one, and everything that is refused.

use crate::support::{Bed, SUBSCRIPTION, TENANT, VERSION, header, read};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Every route behind a token. A route that is missing here fails `every_route_is_covered`.
const PROTECTED: &[(&str, &str)] = &[
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/disks"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks"),
    ("PUT", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}"),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}",
    ),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}"),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}/begingetaccess",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/disks/{disk}/endgetaccess",
    ),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/snapshots"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots"),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}/begingetaccess",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/snapshots/{snapshot}/endgetaccess",
    ),
    ("GET", "/tenants"),
    ("GET", "/subscriptions"),
    ("GET", "/subscriptions/{subscription}"),
    ("GET", "/subscriptions/{subscription}/locations"),
    ("GET", "/subscriptions/{subscription}/providers"),
    ("GET", "/subscriptions/{subscription}/providers/{namespace}"),
    ("POST", "/subscriptions/{subscription}/providers/{namespace}/register"),
    ("GET", "/subscriptions/{subscription}/resourcegroups"),
    ("PUT", "/subscriptions/{subscription}/resourcegroups/{group}"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}"),
    ("HEAD", "/subscriptions/{subscription}/resourcegroups/{group}"),
    ("PATCH", "/subscriptions/{subscription}/resourcegroups/{group}"),
    ("DELETE", "/subscriptions/{subscription}/resourcegroups/{group}"),
    ("GET", "/subscriptions/{subscription}/resources"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/resources"),
    ("GET", "/subscriptions/{subscription}/operationresults/{operation}"),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/capsoperations/{operation}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/operations/{operation}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/diskoperations/{operation}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.virtualmachineimages/locations/{location}/operations/{operation}",
    ),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/galleries"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries"),
    ("POST", "/subscriptions/{subscription}/providers/microsoft.storage/checknameavailability"),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.storage/storageaccounts"),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}/listkeys",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}/regeneratekey",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions/{version}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions/{version}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions/{version}",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/galleries/{gallery}/images/{definition}/versions/{version}",
    ),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers"),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions/{version}",
    ),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/vmsizes"),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/virtualmachines"),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.virtualmachineimages/imagetemplates"),
    ("GET", "/subscriptions/{subscription}/providers/microsoft.compute/images"),
    ("GET", "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images"),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images/{image}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images/{image}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images/{image}",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/images/{image}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}/instanceview",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}/{action}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates",
    ),
    (
        "DELETE",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}",
    ),
    (
        "PATCH",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}",
    ),
    (
        "PUT",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/cancel",
    ),
    (
        "POST",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/run",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/runoutputs",
    ),
    (
        "GET",
        "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.virtualmachineimages/imagetemplates/{template}/runoutputs/{output}",
    ),
    ("POST", "/tintype/platformimages/{publisher}/{offer}/{sku}/make"),
    ("GET", "/tintype/runs"),
    ("GET", "/tintype/runs/{run}/log"),
    ("GET", "/tintype/stores/{region}/stats"),
    ("POST", "/tintype/stores/{region}/gc"),
    ("POST", "/tintype/stores/{region}/reconcile"),
    ("POST", "/tintype/stores/{region}/verify"),
    ("GET", "/tintype/virtualmachines/ssh"),
];

/// The routes that need none: each is here for a reason that CLIENTS.md 2 gives.
const PUBLIC: &[(&str, &str)] = &[
    ("GET", "/metadata/endpoints"),
    ("GET", "/{tenant}/v2.0/.well-known/openid-configuration"),
    ("GET", "/{tenant}/.well-known/openid-configuration"),
    ("GET", "/{tenant}/discovery/v2.0/keys"),
    ("GET", "/{tenant}/discovery/keys"),
    ("POST", "/{tenant}/oauth2/v2.0/token"),
    ("POST", "/{tenant}/oauth2/token"),
];

#[test]
fn every_route_is_covered() {
    let (public, protected) = server::route_lists();
    for (routes, expected) in [(public, PUBLIC), (protected, PROTECTED)] {
        let mut found: Vec<(String, String)> =
            routes.into_iter().map(|r| (r.method, r.path.to_owned())).collect();
        let mut expected: Vec<(String, String)> =
            expected.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "a new route must be added to this test");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_without_a_token() {
    let bed = Bed::start().await;
    let unknown = [("GET", "/"), ("GET", "/nothing/here"), ("DELETE", "/tenants"), ("GET", "/portal")];
    for (method, path) in PROTECTED.iter().chain(&unknown) {
        let path = path.replace("{subscription}", SUBSCRIPTION.rsplit('/').next().expect("an id"));
        let path = path.replace("{group}", "rg").replace("{namespace}", "Microsoft.Compute");
        let path = path
            .replace("{location}", "eastus")
            .replace("{operation}", "00000000-0000-0000-0000-000000000000");
        for query in [format!("?{VERSION}"), String::new()] {
            let response = bed.request(method, &format!("{path}{query}")).send().await.expect("answers");
            assert_eq!(response.status(), 401, "{method} {path}");
            assert!(
                header(&response, "www-authenticate").starts_with("Bearer authorization_uri="),
                "{method} {path}"
            );
            if *method != "HEAD" {
                let (_, body) = read(response).await;
                assert_eq!(body["error"]["code"], "AuthenticationFailed", "{method} {path}");
            }
        }
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_checked() {
    let bed = Bed::start().await;
    let path = format!("/subscriptions?{VERSION}");
    let status = async |authorization: String| {
        bed.request("GET", &path)
            .header("authorization", authorization)
            .send()
            .await
            .expect("answers")
            .status()
            .as_u16()
    };
    let good = &bed.token;
    assert_eq!(status(format!("Bearer {good}")).await, 200);
    assert_eq!(status(format!("bearer {good}")).await, 200, "schemes compare without case");
    let (head, rest) = good.split_once('.').expect("a JWT");
    let (body, signature) = rest.split_once('.').expect("a JWT");
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).expect("base64")).expect("JSON");
    assert_eq!(claims["tid"], TENANT);
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let changed = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        encode(&claims)
    };
    for bad in [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {good}"),
        "Bearer a.b.c".to_owned(),
        format!("Bearer {head}.{body}."),
        format!("Bearer {head}.{body}.AAAA{signature}"),
        format!("Bearer {}.{body}.", encode(&json!({"alg": "none", "typ": "JWT"}))),
        format!("Bearer {}.{body}.{signature}", encode(&json!({"alg": "HS256", "typ": "JWT"}))),
        format!("Bearer {head}.{}.{signature}", changed("exp", json!(9_999_999_999_u64))),
        format!("Bearer {head}.{}.{signature}", changed("aud", json!("https://elsewhere/"))),
        format!("Bearer {}", "a".repeat(9000)),
    ] {
        assert_eq!(status(bad.clone()).await, 401, "{}", bad.chars().take(80).collect::<String>());
    }
    bed.stop().await;
}

/// Tokens with a good signature and a wrong issuer: those of another server with the same key.
#[tokio::test(flavor = "multi_thread")]
async fn another_servers_token_is_refused() {
    let first = Bed::start().await;
    let second = Bed::start().await;
    let response = first
        .request("GET", &format!("/subscriptions?{VERSION}"))
        .bearer_auth(&second.token)
        .send()
        .await
        .expect("answers");
    assert_eq!(response.status(), 401);

    // The same folder, hence the same key, on another port, hence another issuer and audience.
    let (token, secret) = (first.token.clone(), first.text("clientSecret").to_owned());
    let Bed { server, folder, .. } = first;
    server.shutdown().await;
    let again = Bed::start_with(crate::support::config(folder.path()), folder).await;
    assert_eq!(again.text("clientSecret"), secret, "credentials are kept");
    let response = again
        .request("GET", &format!("/subscriptions?{VERSION}"))
        .bearer_auth(token)
        .send()
        .await
        .expect("answers");
    assert_eq!(response.status(), 401);
    again.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_speaks_every_dialect() {
    let bed = Bed::start().await;
    let v2 = format!("/{TENANT}/oauth2/v2.0/token");
    let scope = format!("{}//.default", bed.server.url);
    for (path, extra) in [
        (v2.clone(), Some(("scope", scope.as_str()))),
        (
            format!("/{TENANT}/oauth2/token?api-version=1.0"),
            Some(("resource", "https://management.azure.com/")),
        ),
        ("/adfs/oauth2/token".to_owned(), None),
        (format!("//{}//OAUTH2/v2.0/Token", TENANT.to_uppercase()), None),
    ] {
        let (status, body) = bed.ask_token(&path, &bed.form(extra)).await;
        assert_eq!(status, 200, "{path}: {body}");
        let token = body["access_token"].as_str().expect("a token");
        assert!(
            body["expires_on"].is_string() && body["not_before"].is_string() && body["resource"].is_string()
        );
        let response = bed
            .request("GET", &format!("/subscriptions?{VERSION}"))
            .bearer_auth(token)
            .send()
            .await
            .expect("answers");
        assert_eq!(response.status(), 200, "{path}");
    }
    let basic = STANDARD.encode(format!("{}:{}", bed.text("clientId"), bed.text("clientSecret")));
    let response = bed
        .request("POST", &v2)
        .header("authorization", format!("Basic {basic}"))
        .body("grant_type=client_credentials")
        .send()
        .await
        .expect("answers");
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "cache-control"), "no-store");

    let id = bed.text("clientId");
    let other = "00000000-0000-0000-0000-000000000000";
    for (path, form, status, error) in [
        (
            v2.as_str(),
            format!("grant_type=client_credentials&client_id={id}&client_secret=wrong"),
            401,
            "invalid_client",
        ),
        (
            &v2,
            format!("grant_type=client_credentials&client_id={other}&client_secret=x"),
            401,
            "invalid_client",
        ),
        (
            &v2,
            "grant_type=client_credentials&client_id=..%2F&client_secret=x".to_owned(),
            401,
            "invalid_client",
        ),
        (&v2, format!("grant_type=client_credentials&client_id={id}"), 400, "invalid_request"),
        (&v2, "grant_type=password".to_owned(), 400, "unsupported_grant_type"),
        (&v2, String::new(), 400, "invalid_request"),
        (&v2, "grant_type=%ff".to_owned(), 400, "invalid_request"),
        (&v2, bed.form(Some(("scope", "https://vault.azure.net/.default"))), 400, "invalid_resource"),
        ("/other-tenant/oauth2/v2.0/token", bed.form(None), 400, "invalid_request"),
    ] {
        let (found, body) = bed.ask_token(path, &form).await;
        assert_eq!((found, body["error"].as_str()), (status, Some(error)), "{form}: {body}");
        assert!(body["error_description"].as_str().is_some_and(|text| text.starts_with("AADSTS")), "{body}");
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_leads_to_the_token() {
    let bed = Bed::start().await;
    let get = async |path: &str| read(bed.request("GET", path).send().await.expect("answers")).await;
    let url = format!("{}/", bed.server.url);
    let (status, cloud) = get("//Metadata/Endpoints?api-version=2022-09-01").await;
    assert_eq!(status, 200);
    assert_eq!(cloud["resourceManager"], url);
    assert_eq!(cloud["authentication"]["loginEndpoint"], url);
    assert!(cloud["suffixes"].is_object() && cloud["microsoftGraphResourceId"].is_string());
    let (_, old) = get("/metadata/endpoints?api-version=2015-01-01").await;
    assert_eq!(old["authentication"]["audiences"], json!([url]));
    assert_eq!(old["galleryEndpoint"], url);

    for (tenant, v2) in [(TENANT, "/v2.0"), (TENANT, ""), ("adfs", ""), ("organizations", "/v2.0")] {
        let (status, found) = get(&format!("/{tenant}{v2}/.well-known/openid-configuration")).await;
        assert_eq!(status, 200, "{tenant}");
        let endpoint =
            found["token_endpoint"].as_str().expect("text").strip_prefix(&bed.server.url).expect("ours");
        let (status, body) = bed.ask_token(endpoint, &bed.form(None)).await;
        assert_eq!(status, 200, "{tenant}: {body}");
        let keys = found["jwks_uri"].as_str().expect("text").strip_prefix(&bed.server.url).expect("ours");
        let (_, keys) = get(keys).await;
        assert_eq!(keys["keys"][0]["kty"], "RSA");
        let kid = URL_SAFE_NO_PAD.decode(bed.token.split('.').next().expect("a header")).expect("base64");
        let kid: Value = serde_json::from_slice(&kid).expect("JSON");
        assert_eq!(keys["keys"][0]["kid"], kid["kid"]);
        let modulus = URL_SAFE_NO_PAD.decode(keys["keys"][0]["n"].as_str().expect("text")).expect("base64");
        assert_eq!(modulus.len(), 256);
    }
    let (status, body) = get(&format!("/{TENANT}/oauth2/v2.0/token")).await;
    assert_eq!((status, body["error"]["code"].as_str()), (405, Some("MethodNotAllowed")));
    bed.stop().await;
}
