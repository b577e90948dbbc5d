//! ARM's common ground: resource groups, providers, operations, and the form of every refusal.

use crate::support::{Bed, SUBSCRIPTION, VERSION, header, read};
use serde_json::{Value, json};
use server::Server;
use store::{Document, NewOperation, OperationEnd, OperationFamily, ProvisioningState, StoreError};

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_group_lives_and_dies() {
    let bed = Bed::start().await;
    let put = |name: &str| format!("{SUBSCRIPTION}/resourcegroups/{name}?{VERSION}");
    let (status, body) =
        bed.json("PUT", &put("My-Rg_1"), Some(json!({"location": "East US", "tags": {"a": "b"}}))).await;
    assert_eq!(status, 201, "{body}");
    let id = format!("{SUBSCRIPTION}/resourceGroups/My-Rg_1");
    assert_eq!(body["id"], id);
    assert_eq!(
        (&body["name"], &body["location"], &body["tags"]),
        (&json!("My-Rg_1"), &json!("eastus"), &json!({"a": "b"}))
    );
    assert_eq!(body["properties"]["provisioningState"], "Succeeded");
    assert_eq!(body["type"], "Microsoft.Resources/resourceGroups");

    // Any spelling finds it; it keeps its own.
    for path in [
        format!("{SUBSCRIPTION}/RESOURCEGROUPS/my-rg_1?{VERSION}"),
        format!("/{SUBSCRIPTION}//resourceGroups/MY-RG_1/?API-VERSION=2024-11-01"),
        format!(
            "/Subscriptions/{}/resourceGroups/My%2DRg_1?{VERSION}",
            &SUBSCRIPTION["/subscriptions/".len()..]
        ),
    ] {
        let (status, found) = bed.json("GET", &path, None).await;
        assert_eq!((status, &found), (200, &body), "{path}");
    }
    let head = bed.call("HEAD", &put("MY-rg_1"), None).await;
    assert_eq!(head.status(), 204);
    assert_eq!(bed.call("HEAD", &put("none"), None).await.status(), 404);

    let (status, body) =
        bed.json("PUT", &put("MY-RG_1"), Some(json!({"location": "eastus", "tags": null}))).await;
    assert_eq!((status, &body["name"], &body["tags"]), (200, &json!("My-Rg_1"), &Value::Null));
    let (status, body) = bed.json("PATCH", &put("my-rg_1"), Some(json!({"tags": {"x": "y"}}))).await;
    assert_eq!((status, &body["tags"]), (200, &json!({"x": "y"})));
    let (_, body) = bed.json("GET", &format!("{SUBSCRIPTION}/resourcegroups?{VERSION}"), None).await;
    assert_eq!(body["value"].as_array().expect("a list").len(), 1);

    add(&bed.server, &format!("{id}/providers/Microsoft.Compute/galleries/G1")).await;
    add(&bed.server, &format!("{id}/providers/Microsoft.Compute/galleries/G1/images/I1")).await;
    for path in [
        format!("{SUBSCRIPTION}/resourceGroups/my-rg_1/resources?{VERSION}"),
        format!("{SUBSCRIPTION}/resources?$filter=resourceGroup%20eq%20%27MY-RG_1%27&{VERSION}"),
    ] {
        let (_, body) = bed.json("GET", &path, None).await;
        let types: Vec<&Value> =
            body["value"].as_array().expect("a list").iter().map(|r| &r["type"]).collect();
        assert_eq!(types, ["Microsoft.Compute/galleries", "Microsoft.Compute/galleries/images"], "{path}");
    }

    let accepted = bed.call("DELETE", &put("mY-rG_1"), None).await;
    assert_eq!(accepted.status(), 202);
    assert_eq!(header(&accepted, "retry-after"), "1");
    let poll = header(&accepted, "location");
    assert!(poll.starts_with(&bed.server.url), "{poll}");
    assert_eq!(until_done(&bed, &poll).await, (200, Value::Null));
    let (status, body) = bed.json("GET", &put("my-rg_1"), None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("ResourceGroupNotFound")));
    assert_eq!(body["error"]["message"], "Resource group 'my-rg_1' could not be found.");
    let (status, _) = bed.json("DELETE", &put("my-rg_1"), None).await;
    assert_eq!(status, 404);
    bed.stop().await;
}

async fn add(server: &Server, id: &str) {
    let written: Result<(), StoreError> = server
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                tx.insert(&mut Document::new(id, "eastus", ProvisioningState::Succeeded, json!({}))?).await
            })
        })
        .await;
    written.expect("insert");
}

async fn until_done(bed: &Bed, url: &str) -> (u16, Value) {
    for _ in 0..200 {
        let answer = bed.json("GET", url, None).await;
        if answer.0 != 202 {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{url} did not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_others_need_stays() {
    let bed = Bed::start().await;
    for name in ["one", "two"] {
        let path = format!("{SUBSCRIPTION}/resourcegroups/{name}?{VERSION}");
        assert_eq!(bed.json("PUT", &path, Some(json!({"location": "eastus"}))).await.0, 201);
    }
    let source = format!(
        "{SUBSCRIPTION}/resourceGroups/one/providers/Microsoft.Compute/proximityPlacementGroups/source"
    );
    let user = format!("{SUBSCRIPTION}/resourceGroups/two/providers/Microsoft.Compute/availabilitySets/user");
    add(&bed.server, &source).await;
    add(&bed.server, &user).await;
    let store = &bed.server.state.store;
    store.write(|tx| Box::pin(async { tx.link(&user, &source, "image").await })).await.expect("link");

    let accepted = bed.call("DELETE", &format!("{SUBSCRIPTION}/resourceGroups/one?{VERSION}"), None).await;
    let (status, body) = until_done(&bed, &header(&accepted, "location")).await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (409, Some("ResourceGroupDeletionBlocked")),
        "{body}"
    );
    assert!(body["error"]["message"].as_str().is_some_and(|m| m.contains("availabilitysets/user")), "{body}");
    let (_, group) = bed.json("GET", &format!("{SUBSCRIPTION}/resourceGroups/one?{VERSION}"), None).await;
    assert_eq!(group["properties"]["provisioningState"], "Succeeded", "it can be used again");

    let accepted = bed.call("DELETE", &format!("{SUBSCRIPTION}/resourceGroups/two?{VERSION}"), None).await;
    let (status, body) = until_done(&bed, &header(&accepted, "location")).await;
    assert_eq!(status, 200, "{body}");
    let accepted = bed.call("DELETE", &format!("{SUBSCRIPTION}/resourceGroups/one?{VERSION}"), None).await;
    let (status, body) = until_done(&bed, &header(&accepted, "location")).await;
    assert_eq!(status, 200, "{body}");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_arms_form() {
    let bed = Bed::start().await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/rg");
    let located = json!({"location": "eastus"});
    assert_eq!(bed.json("PUT", &format!("{group}?{VERSION}"), Some(located)).await.0, 201);
    let cases = [
        ("GET", "/subscriptions".to_owned(), None, 400, "MissingApiVersionParameter"),
        ("GET", "/subscriptions?api-version=latest".to_owned(), None, 400, "InvalidApiVersionParameter"),
        ("GET", format!("/subscriptions/other?{VERSION}"), None, 404, "SubscriptionNotFound"),
        ("GET", format!("/nothing?{VERSION}"), None, 404, "NotFound"),
        ("GET", format!("{group}/providers/Contoso.X/y/z?{VERSION}"), None, 404, "InvalidResourceNamespace"),
        (
            "GET",
            format!("{group}/providers/Microsoft.Compute/y/z?{VERSION}"),
            None,
            404,
            "InvalidResourceType",
        ),
        (
            "GET",
            format!("{SUBSCRIPTION}/providers/Contoso.X?{VERSION}"),
            None,
            404,
            "InvalidResourceNamespace",
        ),
        ("POST", format!("{group}?{VERSION}"), None, 405, "MethodNotAllowed"),
        ("GET", format!("/a%2Fb?{VERSION}"), None, 400, "InvalidRequestUri"),
        (
            "GET",
            format!("{SUBSCRIPTION}/resources?{VERSION}&$filter=x"),
            None,
            400,
            "InvalidFilterInQueryString",
        ),
        ("PUT", format!("{group}2?{VERSION}"), Some("{"), 400, "InvalidRequestContent"),
        ("PUT", format!("{group}2?{VERSION}"), Some(""), 400, "InvalidRequestContent"),
        ("PUT", format!("{group}2?{VERSION}"), Some("[]"), 400, "InvalidRequestContent"),
        ("PUT", format!("{group}2?{VERSION}"), Some("{}"), 400, "LocationRequired"),
        ("PUT", format!("{group}2?{VERSION}"), Some("{\"location\":5}"), 400, "InvalidRequestContent"),
        (
            "PUT",
            format!("{group}2?{VERSION}"),
            Some("{\"location\":\"mars\"}"),
            400,
            "LocationNotAvailableForResourceGroup",
        ),
        ("PUT", format!("{group}.?{VERSION}"), Some("{\"location\":\"eastus\"}"), 400, "InvalidParameter"),
        ("GET", format!("{SUBSCRIPTION}/operationresults/x?{VERSION}"), None, 404, "NotFound"),
    ];
    for (method, path, body, status, code) in cases {
        let mut request = bed.request(method, &path).bearer_auth(&bed.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.expect("answers");
        header(&response, "x-ms-request-id");
        let (found, answer) = read(response).await;
        assert_eq!(
            (found, answer["error"]["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {answer}"
        );
        assert!(answer["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{path}");
    }
    let big = "x".repeat(4 * 1024 * 1024 + 1);
    let response =
        bed.request("PUT", &format!("{group}?{VERSION}")).bearer_auth(&bed.token).body(big).send().await;
    let (status, body) = read(response.expect("answers")).await;
    assert_eq!(status, 413, "{body}");

    let id = "11111111-2222-4333-8444-555555555555";
    let response = bed
        .request("GET", &format!("/subscriptions?{VERSION}"))
        .bearer_auth(&bed.token)
        .header("x-ms-correlation-request-id", id)
        .header("x-ms-client-request-id", "mine")
        .header("x-ms-return-client-request-id", "True")
        .send()
        .await
        .expect("answers");
    assert_eq!(header(&response, "x-ms-correlation-request-id"), id);
    assert_eq!(header(&response, "x-ms-client-request-id"), "mine");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_subscription_is_described() {
    let bed = Bed::start().await;
    let (_, list) = bed.json("GET", &format!("/subscriptions?{VERSION}"), None).await;
    let (_, one) = bed.json("GET", &format!("{SUBSCRIPTION}?{VERSION}"), None).await;
    assert_eq!(list["value"], json!([one]));
    assert_eq!(one["state"], "Enabled");
    let (_, tenants) = bed.json("GET", &format!("/tenants?{VERSION}"), None).await;
    assert_eq!(tenants["value"][0]["tenantId"], crate::support::TENANT);
    let (_, locations) = bed.json("GET", &format!("{SUBSCRIPTION}/locations?{VERSION}"), None).await;
    assert_eq!(locations["value"][0]["displayName"], "East US");
    let (_, providers) = bed.json("GET", &format!("{SUBSCRIPTION}/providers?{VERSION}"), None).await;
    let (_, compute) =
        bed.json("GET", &format!("{SUBSCRIPTION}/providers/microsoft.COMPUTE?{VERSION}"), None).await;
    assert!(providers["value"].as_array().expect("a list").contains(&compute));
    assert_eq!(compute["namespace"], "Microsoft.Compute");
    let (status, registered) = bed
        .json("POST", &format!("{SUBSCRIPTION}/providers/Microsoft.Compute/register?{VERSION}"), None)
        .await;
    assert_eq!((status, registered), (200, compute));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_polled_in_each_familys_way() {
    let bed = Bed::start().await;
    let store = &bed.server.state.store;
    let id = format!("{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.Compute/galleries/g");
    let version = "2024-03-03";
    for (family, path, end) in [
        (
            OperationFamily::Gallery,
            "Microsoft.Compute/locations/eastus/capsOperations",
            OperationEnd::Succeeded(None),
        ),
        (
            OperationFamily::Compute,
            "Microsoft.Compute/locations/eastus/operations",
            OperationEnd::Succeeded(None),
        ),
        (
            OperationFamily::Disk,
            "Microsoft.Compute/locations/eastus/DiskOperations",
            OperationEnd::Succeeded(Some(json!({"accessSAS": "x"}))),
        ),
        (
            OperationFamily::ImageBuilder,
            "Microsoft.VirtualMachineImages/locations/eastus/operations",
            OperationEnd::Failed(json!({"code": "Unauthorized", "message": "no"})),
        ),
    ] {
        let operation = store
            .write(|tx| {
                Box::pin(async {
                    tx.begin_operation(NewOperation {
                        resource_id: id.clone(),
                        kind: "test".to_owned(),
                        family,
                        location: "eastus".to_owned(),
                    })
                    .await
                })
            })
            .await
            .expect("begin");
        let url = format!("{SUBSCRIPTION}/providers/{path}/{}?api-version={version}", operation.id);
        let running = bed.call("GET", &url.to_uppercase().replace("API-VERSION", "api-version"), None).await;
        assert_eq!(header(&running, "retry-after"), "1");
        let (status, body) = read(running).await;
        assert_eq!((status, &body["status"]), (200, &json!("InProgress")), "{body}");
        assert_eq!(bed.call("GET", &format!("{url}&monitor=true"), None).await.status(), 202);
        let elsewhere = url.replace("eastus", "westus");
        assert_eq!(
            bed.call("GET", &elsewhere, None).await.status(),
            404,
            "the location is part of the address"
        );

        store.write(|tx| Box::pin(async { tx.end_operation(&operation.id, &end).await })).await.expect("end");
        let (_, body) = bed.json("GET", &url, None).await;
        let monitored = bed.json("GET", &format!("{url}&monitor=true"), None).await;
        assert!(body["startTime"].is_string() && body["endTime"].is_string(), "{body}");
        match &end {
            OperationEnd::Succeeded(None) => {
                assert_eq!((&body["status"], &body["name"]), (&json!("Succeeded"), &json!(operation.id)));
                assert_eq!(monitored, (200, Value::Null));
            }
            OperationEnd::Succeeded(Some(result)) => {
                assert_eq!(&body["properties"]["output"], result);
                assert_eq!(monitored, (200, result.clone()));
            }
            OperationEnd::Failed(error) | OperationEnd::Canceled(error) => {
                assert_eq!((&body["status"], &body["error"]), (&json!("Failed"), error));
                assert_eq!(body["name"], operation.id.to_uppercase());
                assert_eq!(monitored, (409, json!({"error": error})));
            }
        }
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_for_one_folder() {
    let bed = Bed::start().await;
    let second = Server::start(crate::support::config(bed.folder.path())).await.err().expect("refused");
    assert!(second.to_string().contains("in use by another server"), "{second}");
    bed.stop().await;
}
