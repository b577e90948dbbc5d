use model::image_template::Distributor;
use model::{RunOutputName, Tags};

use super::*;
use crate::Config;

const SAS: &str = "sv=2021-12-02&sr=b&sp=cw&se=2999-01-01T00:00:00Z&sig=c2VjcmV0";

fn vhd(uri: &str) -> Distributor {
    Distributor {
        run_output_name: RunOutputName::parse("out").unwrap(),
        artifact_tags: Tags::default(),
        kind: DistributorKind::Vhd { uri: Some(uri.to_owned()), sealed_query: None },
    }
}

#[tokio::test]
async fn a_sas_is_sealed_and_opens_for_its_own_address() {
    let folder = tempfile::tempdir().unwrap();
    let state = AppState::for_tests(Config::new(folder.path())).await;
    let base = "https://acct.blob.core.windows.net/vhds/a%20b.vhd";
    let own = "https://localhost:1/acct1/vhds/dir/x.vhd";
    let mut accepted =
        [vhd(&format!("{base}?{SAS}")), vhd(&format!("{own}?{SAS}")), vhd(&format!("{base}2?{SAS}"))];
    accept(&state, &mut accepted).unwrap();
    let kept = serde_json::to_string(&accepted).unwrap();
    assert!(!kept.contains("sig=") && !kept.contains("c2VjcmV0") && !kept.contains("sp=cw"), "{kept}");
    let parts = |distributor: &Distributor| match &distributor.kind {
        DistributorKind::Vhd { uri: Some(uri), sealed_query } => (uri.clone(), sealed_query.clone()),
        other => panic!("{other:?}"),
    };
    let (uri, sealed) = parts(&accepted[0]);
    assert_eq!(uri, base);
    let opened = open(&state, &uri, sealed.as_deref()).unwrap();
    assert_eq!(opened, VhdTarget::Remote(Url::parse(&format!("{base}?{SAS}")).unwrap()));
    let (other, _) = parts(&accepted[2]);
    assert!(open(&state, &other, sealed.as_deref()).is_err(), "a SAS is for the address that it came with");
    let (uri, sealed) = parts(&accepted[1]);
    assert_eq!((uri.as_str(), &sealed), (own, &None), "for an own account no SAS is kept");
    let blob = OwnBlob { account: "acct1".into(), container: "vhds".into(), name: "dir/x.vhd".into() };
    assert_eq!(open(&state, &uri, None).unwrap(), VhdTarget::Own(blob));
}

#[tokio::test]
async fn what_cannot_take_a_vhd_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let state = AppState::for_tests(Config::new(folder.path())).await;
    let host = "https://acct.blob.core.windows.net";
    let without = |part: &str| format!("{host}/c/b?{}", SAS.replace(part, ""));
    let with = |from: &str, to: &str| format!("{host}/c/b?{}", SAS.replace(from, to));
    for (uri, part) in [
        (format!("{host}/c/b"), "needs a SAS"),
        (without("&sig=c2VjcmV0"), "needs a SAS"),
        (without("&sp=cw"), "says nothing"),
        (with("sp=cw", "sp=rl"), "allows sp=rl"),
        (with("2999-01-01", "2001-01-01"), "has expired"),
        (format!("{host}/c/b?{SAS}&comp=block"), "'comp'"),
        (format!("{host}/c/b?ss=q&srt=o&{SAS}"), "not for blobs"),
        (format!("{host}/c?{SAS}"), "/{container}/{blob}"),
        (format!("{host}/c/?{SAS}"), "names no blob"),
        (format!("{host}/c/dir/?{SAS}"), "names no blob"),
        (format!("http://127.0.0.1:10000/acct/c?{SAS}"), "/{account}/{container}/{blob}"),
        (format!("http://azurite:10000/acct/c?{SAS}"), "/{account}/{container}/{blob}"),
        (format!("http://[::1]:10000/acct/c?{SAS}"), "/{account}/{container}/{blob}"),
        (format!("ftp://acct/c/b?{SAS}"), "neither http nor https"),
        (format!("https://u:p@acct.example/c/b?{SAS}"), "a user"),
        (format!("{host}/c/b?{SAS}#x"), "a fragment"),
        ("https://localhost:1/acct1/vhds".to_owned(), "names no blob"),
        ("https://localhost:1/acct1/Vhds/b".to_owned(), "a container's name"),
        ("not a url".to_owned(), "no URL"),
    ] {
        let error = accept(&state, &mut [vhd(&uri)]).unwrap_err().error_object();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{uri}: {message}");
        assert!(!message.contains("c2VjcmV0"), "{message}");
        assert_eq!(error["target"], "properties.distribute[0].uri");
    }
    // A stored access policy says what the SAS does not.
    let policy = format!("{host}/c/b?sv=2021-12-02&sr=c&si=write&sig=c2VjcmV0");
    accept(&state, &mut [vhd(&policy)]).unwrap();
}

#[tokio::test]
async fn hosts_are_judged_by_the_network_policy_and_accounts_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let state = AppState::for_tests(Config::new(folder.path())).await;
    let target = |uri: &str| parse(&state, uri).unwrap();
    let private = target(&format!("http://10.1.2.3/acct/c/b?{SAS}"));
    let error = check(&state, &private).await.unwrap_err();
    assert!(error.contains("10.1.2.3") && error.contains("private") && !error.contains("sig"), "{error}");
    let error = check(&state, &target("https://localhost:1/acct1/vhds/b")).await.unwrap_err();
    assert!(error.contains("Create the storage account 'acct1' first"), "{error}");
}
