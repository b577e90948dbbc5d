//! VHD distributors: what is accepted and shown, the staging account, and what is refused when. That the bytes arrive is
//! tested where they are written (`jobs::write_vhd`).

use super::*;
use crate::azurite::Azurite;

const STORAGE: &str = "api-version=2025-08-01";
const SAS: &str = "sv=2021-12-02&sr=b&sp=cw&se=2999-01-01T00:00:00Z&sig=c2VjcmV0";

impl Lab {
    fn vhd(&self, uri: Option<&str>) -> Value {
        let mut body = self.template();
        let mut distributor = json!({"type": "VHD", "runOutputName": "out"});
        if let Some(uri) = uri {
            distributor["uri"] = json!(uri);
        }
        body["properties"]["distribute"] = json!([distributor]);
        body
    }

    async fn accounts(&self, group: &str) -> Vec<Value> {
        let list = format!("{group}/providers/Microsoft.Storage/storageAccounts?{STORAGE}");
        let (status, found) = self.bed.json("GET", &list, None).await;
        assert_eq!(status, 200, "{found}");
        found["value"].as_array().expect("accounts").clone()
    }

    async fn delete(&self, name: &str) {
        let accepted = self.bed.call("DELETE", &format!("{}?{BUILDER}", self.id(name)), None).await;
        assert_eq!(self.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_address_there_is_a_staging_account_that_goes_with_the_template() {
    let lab = Lab::start(None).await;
    assert_eq!(lab.create("t", lab.vhd(None)).await["status"], "Succeeded");
    let template = lab.get("t").await;
    assert_eq!(
        template["properties"]["distribute"],
        json!([{"artifactTags": {}, "runOutputName": "out", "type": "VHD"}])
    );
    let group = template["properties"]["exactStagingResourceGroup"].as_str().expect("a group").to_owned();
    let accounts = lab.accounts(&group).await;
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    let account = &accounts[0];
    assert_eq!(
        (&account["sku"]["name"], &account["location"]),
        (&json!("Standard_ZRS"), &json!(lab.region()))
    );
    assert_eq!(account["tags"]["createdBy"], "AzureVMImageBuilder");
    // Its keys are the user's to use, and the container is there.
    let id = account["id"].as_str().expect("an id");
    let (status, keys) = lab.bed.json("POST", &format!("{id}/listKeys?{STORAGE}"), None).await;
    assert_eq!(status, 200, "{keys}");
    let endpoint = account["properties"]["primaryEndpoints"]["blob"].as_str().expect("an endpoint");
    let list = lab.bed.request("GET", &format!("{endpoint}vhds?restype=container&comp=list"));
    let list = list.bearer_auth(&lab.bed.token).header("x-ms-version", "2024-05-04");
    let list = list.send().await.expect("answers");
    assert_eq!(list.status(), 200, "{}", list.text().await.expect("text"));

    // Another PATCH finds the same account.
    let patch = json!({"tags": {"owner": "you"}});
    let accepted = lab.bed.call("PATCH", &format!("{}?{BUILDER}", lab.id("t")), Some(patch)).await;
    assert_eq!(lab.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    assert_eq!(lab.bed.json("POST", &format!("{id}/listKeys?{STORAGE}"), None).await.1, keys);

    lab.delete("t").await;
    assert_eq!(lab.bed.json("GET", &format!("{id}?{STORAGE}"), None).await.0, 404);
    assert_eq!(lab.bed.json("GET", &format!("{group}?{VERSION}"), None).await.0, 404, "the group goes too");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_staging_group_loses_only_the_account() {
    let lab = Lab::start(None).await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/staging");
    let made = json!({"location": lab.region()});
    assert_eq!(lab.bed.json("PUT", &format!("{group}?{VERSION}"), Some(made)).await.0, 201);
    let mut body = lab.vhd(None);
    body["properties"]["stagingResourceGroup"] = json!(group);
    assert_eq!(lab.create("t", body.clone()).await["status"], "Succeeded");
    assert_eq!(lab.accounts(&group).await.len(), 1);
    lab.delete("t").await;
    assert!(lab.accounts(&group).await.is_empty());
    // Empty again, so it can be used again.
    assert_eq!(lab.create("t", body).await["status"], "Succeeded");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_judged_when_the_template_comes_and_their_sas_is_never_shown() {
    let lab = Lab::start(None).await;
    for (uri, text) in [
        (format!("https://acct.blob.core.windows.net/c?{SAS}"), "names no blob"),
        ("https://acct.blob.core.windows.net/c/b.vhd".to_owned(), "needs a SAS"),
        ("ftp://acct/c/b.vhd".to_owned(), "http or https"),
        (format!("{}/acct1/con", lab.bed.server.url), "names no blob"),
    ] {
        let put = format!("{}?{BUILDER}", lab.id("bad"));
        let (status, answer) = lab.bed.json("PUT", &put, Some(lab.vhd(Some(&uri)))).await;
        let error = &answer["error"];
        assert_eq!((status, error["code"].as_str()), (400, Some("ValidationFailed")), "{uri}: {answer}");
        assert_eq!(error["target"], "properties.distribute[0].uri", "{answer}");
        let said = answer.to_string();
        assert!(said.contains(text) && !said.contains("c2VjcmV0"), "{uri}: {answer}");
    }
    // What takes a look at the network or at other resources ends in a failed template.
    for (name, uri, text) in [
        ("private", format!("http://10.1.2.3/acct/c/b.vhd?{SAS}"), "private"),
        ("metadata", format!("http://169.254.169.254/a/c/b.vhd?{SAS}"), "169.254.169.254"),
        ("none", format!("{}/acct1/con/b.vhd", lab.bed.server.url), "Create the storage account 'acct1'"),
    ] {
        let ended = lab.create(name, lab.vhd(Some(&uri))).await;
        assert_eq!(ended["error"]["code"], "BadDistributeType", "{ended}");
        let said = ended.to_string();
        assert!(said.contains(text) && said.contains("distribute[0].uri"), "{name}: {ended}");
        assert!(!said.contains("c2VjcmV0") && !lab.get(name).await.to_string().contains("c2VjcmV0"));
    }

    // An own account needs no SAS, and its container must be there.
    let (script, sas) = crate::blobs::script(&lab.bed, &lab.region(), "echo\n").await;
    let container = script.strip_suffix("/dir/a.sh").expect("its container");
    let ended = lab.create("own", lab.vhd(Some(&format!("{container}/out.vhd?{sas}")))).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let shown = lab.get("own").await;
    assert_eq!(shown["properties"]["distribute"][0]["uri"], format!("{container}/out.vhd"), "{shown}");
    let ended = lab.create("other", lab.vhd(Some(&format!("{container}2/out.vhd")))).await;
    assert!(ended.to_string().contains("Create the container 'con2'"), "{ended}");

    // A PATCH may change the address, and is judged alike.
    let url = format!("{}?{BUILDER}", lab.id("own"));
    let distribute =
        |uri: &str| json!({"properties": {"distribute": lab.vhd(Some(uri))["properties"]["distribute"]}});
    let bad = distribute("https://acct.blob.core.windows.net/c/b.vhd");
    assert_eq!(lab.bed.json("PATCH", &url, Some(bad)).await.0, 400);
    let accepted = lab.bed.call("PATCH", &url, Some(distribute(&format!("{container}/b.vhd?{sas}")))).await;
    assert_eq!(lab.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    let shown = lab.get("own").await;
    assert_eq!(shown["properties"]["distribute"][0]["uri"], format!("{container}/b.vhd"), "{shown}");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_is_a_target_and_has_scripts() {
    let azurite = Azurite::start().await;
    azurite.put_blob("a.sh", SCRIPT.as_bytes()).await;
    let address = azurite.address.to_string();
    let lab = Lab::start_with(None, |config| config.network.allow.push(address)).await;
    let target = azurite.signed("out.vhd", "cw");
    let mut body = lab.vhd(Some(&target));
    body["properties"]["customize"] =
        json!([{"type": "Shell", "scriptUri": azurite.signed("a.sh", "r"), "sha256Checksum": SCRIPT_SHA256}]);
    let ended = lab.create("t", body.clone()).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let shown = lab.get("t").await;
    assert_eq!(shown["properties"]["distribute"][0]["uri"], azurite.url("images/out.vhd"), "{shown}");
    // The SAS for writing is in no file of the service in clear.
    let signature = target.split("sig=").nth(1).expect("a signature").to_owned();
    for name in ["tintype.db", "tintype.db-wal"] {
        let bytes = std::fs::read(lab.data_dir().join(name)).unwrap_or_default();
        let found = bytes.windows(signature.len()).any(|window| window == signature.as_bytes());
        assert!(!found, "the signature is in {name}");
    }
    body["properties"]["customize"][0]["scriptUri"] = json!(azurite.url("images/a.sh"));
    let ended = lab.create("unsigned", body).await;
    assert!(ended.to_string().contains("a private blob needs a SAS"), "{ended}");
    lab.bed.stop().await;
}
