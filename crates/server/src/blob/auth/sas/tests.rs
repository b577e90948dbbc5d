use std::net::Ipv4Addr;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, Method};

use super::super::super::query::BlobQuery;
use super::super::super::route::Place;
use super::super::Action;
use super::*;
use crate::http::query::encode;
use crate::http::serve::Peer;

const KEY: &[u8] = b"key one";
const NOW: &str = "2026-01-02T03:04:05Z";

struct Case {
    path: &'static str,
    now: &'static str,
    peer: Peer,
    policies: Vec<Policy>,
}

impl Default for Case {
    fn default() -> Self {
        let peer = Peer { ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)), secure: true };
        Self { path: "/acct/con/dir/blob", now: NOW, peer, policies: Vec::new() }
    }
}

impl Case {
    fn check(&self, query: &str) -> Result<Grant, BlobError> {
        let asked = Asked {
            method: &Method::GET,
            path: self.path,
            query: &BlobQuery::parse(query).unwrap(),
            headers: &HeaderMap::new(),
            place: &Place::parse(self.path).unwrap(),
            peer: self.peer,
            now: moment(self.now).unwrap(),
        };
        super::check(&asked, "acct", &[KEY.to_vec(), b"key two".to_vec()], &self.policies)
    }

    fn refused(&self, query: &str, code: &str, part: &str) {
        let error = self.check(query).expect_err(query);
        assert_eq!(error.code, code, "{query}: {error:?}");
        assert!(error.message.contains(part), "{query}: {error:?}");
    }
}

/// A query with the signature of `text`, in which `|` stands for the end of a line.
fn signed(query: &str, text: &str) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), text.replace('|', "\n").as_bytes());
    format!("{query}&sig={}", encode(&STANDARD.encode(tag)))
}

const SERVICE: &str = "sv=2021-12-02&sr=b&sp=r&se=2026-01-03";

fn service() -> String {
    signed(SERVICE, "r||2026-01-03|/blob/acct/con/dir/blob||||2021-12-02|b|||||||")
}

#[test]
fn each_versions_text_is_signed() {
    let case = Case::default();
    let blob = Grant::Service { permissions: "r".to_owned(), container: false };
    assert_eq!(case.check(&service()), Ok(blob.clone()));
    let old = signed(
        "sv=2018-11-09&sr=b&sp=r&se=2026-01-03",
        "r||2026-01-03|/blob/acct/con/dir/blob||||2018-11-09|b||||||",
    );
    assert_eq!(case.check(&old), Ok(blob.clone()));
    let older = signed(
        "sv=2015-04-05&sr=b&sp=r&se=2026-01-03",
        "r||2026-01-03|/blob/acct/con/dir/blob||||2015-04-05|||||",
    );
    assert_eq!(case.check(&older), Ok(blob));
    let container = signed(
        "sv=2021-12-02&sr=c&sp=rl&st=2026-01-01&se=2026-01-03&rsct=text/x",
        "rl|2026-01-01|2026-01-03|/blob/acct/con||||2021-12-02|c|||||||text/x",
    );
    assert_eq!(case.check(&container), Ok(Grant::Service { permissions: "rl".to_owned(), container: true }));
    let account = signed(
        "sv=2021-12-02&ss=bq&srt=co&sp=rl&se=2026-01-03&spr=https",
        "acct|rl|bq|co||2026-01-03||https|2021-12-02||",
    );
    let granted = Grant::Account { permissions: "rl".to_owned(), resource_types: "co".to_owned() };
    assert_eq!(case.check(&account), Ok(granted));
    case.refused("sv=2014-02-14&sr=b&sp=r&se=2026-01-03&sig=eA==", "AuthenticationFailed", "2015-04-05");
    case.refused("sv=2021-12-02&skoid=x&sig=eA==", "AuthenticationFailed", "user delegation");
}

#[test]
fn what_is_altered_expired_or_elsewhere_is_refused() {
    let case = Case::default();
    for (from, to) in
        [("sp=r", "sp=rw"), ("se=2026-01-03", "se=2027-01-03"), ("sr=b", "sr=c"), ("sv=2021", "sv=2022")]
    {
        case.refused(&service().replace(from, to), "AuthenticationFailed", "Signature did not match");
    }
    case.refused(&format!("{SERVICE}&sig=x"), "AuthenticationFailed", "sig is not base64");
    let elsewhere = Case { path: "/acct/con/other", ..Case::default() };
    elsewhere.refused(&service(), "AuthenticationFailed", "Signature did not match");
    let container = Case { path: "/acct/con", ..Case::default() };
    container.refused(&service(), "AuthenticationFailed", "names a container");
    for (now, part) in [("2026-01-03", "Expiry [2026-01-03]"), ("2026-02-01T00:00Z", "Expiry")] {
        Case { now, ..Case::default() }.refused(&service(), "AuthenticationFailed", part);
    }
    let early = signed(
        "sv=2021-12-02&sr=b&sp=r&st=2026-01-02T03:04:06Z&se=2026-01-03",
        "r|2026-01-02T03:04:06Z|2026-01-03|/blob/acct/con/dir/blob||||2021-12-02|b|||||||",
    );
    case.refused(&early, "AuthenticationFailed", "Start [2026-01-02T03:04:06Z]");
    let endless = signed("sv=2021-12-02&sr=b&sp=r", "r|||/blob/acct/con/dir/blob||||2021-12-02|b|||||||");
    case.refused(&endless, "AuthenticationFailed", "se is mandatory");
    let https = signed(
        &format!("{SERVICE}&spr=https"),
        "r||2026-01-03|/blob/acct/con/dir/blob|||https|2021-12-02|b|||||||",
    );
    assert!(case.check(&https).is_ok());
    let plain = Peer { secure: false, ..case.peer };
    Case { peer: plain, ..Case::default() }.refused(&https, "AuthorizationProtocolMismatch", "https");
    let near = signed(
        &format!("{SERVICE}&sip=10.0.0.1-10.0.0.9"),
        "r||2026-01-03|/blob/acct/con/dir/blob||10.0.0.1-10.0.0.9||2021-12-02|b|||||||",
    );
    assert!(case.check(&near).is_ok());
    let far = Peer { ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10)), ..case.peer };
    Case { peer: far, ..Case::default() }.refused(&near, "AuthorizationSourceIPMismatch", "10.0.0.10");
    let files =
        signed("sv=2021-12-02&ss=f&srt=o&sp=r&se=2026-01-03", "acct|r|f|o||2026-01-03|||2021-12-02||");
    case.refused(&files, "AuthorizationServiceMismatch", "ss=b");
}

#[test]
fn a_stored_policy_says_what_the_sas_does_not() {
    let policy = |expiry: &str| Policy {
        id: "p".to_owned(),
        start: None,
        expiry: Some(expiry.to_owned()),
        permission: Some("rd".to_owned()),
    };
    let with = |policies| Case { policies, ..Case::default() };
    let named = signed("sv=2021-12-02&sr=b&si=p", "|||/blob/acct/con/dir/blob|p|||2021-12-02|b|||||||");
    let granted = Grant::Service { permissions: "rd".to_owned(), container: false };
    assert_eq!(with(vec![policy("2026-01-03")]).check(&named), Ok(granted));
    with(vec![policy("2026-01-01")]).refused(&named, "AuthenticationFailed", "Expiry");
    with(Vec::new()).refused(&named, "AuthenticationFailed", "does not exist");
    let both = signed("sv=2021-12-02&sr=b&si=p&sp=r", "r|||/blob/acct/con/dir/blob|p|||2021-12-02|b|||||||");
    with(vec![policy("2026-01-03")]).refused(&both, "AuthenticationFailed", "not in both");
}

#[test]
fn grants_allow_what_they_say() {
    use Action::*;
    let all = [
        ListContainers,
        ReadService,
        CreateContainer,
        ReadContainer,
        WriteContainer,
        DeleteContainer,
        Policies,
        ListBlobs,
        Read,
        Create,
        Write,
        Append,
        Delete,
    ];
    let check = |grant: Grant, expected: &[Action]| {
        let found: Vec<Action> = all.into_iter().filter(|action| grant.allows(*action)).collect();
        assert_eq!(found, expected, "{grant:?}");
    };
    let service =
        |permissions: &str, container| Grant::Service { permissions: permissions.to_owned(), container };
    let account = |permissions: &str, types: &str| Grant::Account {
        permissions: permissions.to_owned(),
        resource_types: types.to_owned(),
    };
    check(Grant::All, &all);
    check(service("rl", false), &[Read]);
    check(service("rl", true), &[ListBlobs, Read]);
    check(service("c", true), &[Create]);
    check(service("w", false), &[Create, Write, Append]);
    check(service("ad", false), &[Append, Delete]);
    check(account("rwdlac", "s"), &[ListContainers, ReadService]);
    check(account("l", "sc"), &[ListContainers, ListBlobs]);
    check(account("r", "o"), &[Read]);
    check(account("cd", "c"), &[CreateContainer, DeleteContainer]);
    check(account("", "sco"), &[]);
}

#[test]
fn moments_have_azures_forms() {
    for (text, expected) in [
        ("2026-01-02", Some(1_767_312_000)),
        ("2026-01-02T03:04Z", Some(1_767_323_040)),
        ("2026-01-02T03:04:05Z", Some(1_767_323_045)),
        ("2026-01-02T03:04:05.1234567Z", Some(1_767_323_045)),
        ("2026-01-02T03:04:05", None),
        ("2026-13-02", None),
        ("", None),
    ] {
        assert_eq!(moment(text).map(|moment| moment.timestamp()), expected, "{text}");
    }
}
