//! An S3 that is not ours: moto on loopback.

use std::net::SocketAddr;

use crate::azurite::Emulator;

/// A moto of this test with the bucket `bucket`.
pub(crate) struct Moto {
    pub(crate) address: SocketAddr,
    _emulator: Emulator,
}

impl Moto {
    pub(crate) async fn start() -> Moto {
        let emulator = Emulator::start(1, &["-H", "127.0.0.1", "-p", "0"]).await;
        let started = Moto { address: emulator.address, _emulator: emulator };
        let made = client().put(format!("http://{}/bucket", started.address)).send().await.expect("answers");
        assert_eq!(made.status(), 200);
        started
    }

    /// Names in the bucket that begin with a prefix.
    pub(crate) async fn names(&self, prefix: &str) -> Vec<String> {
        let url = format!("http://{}/bucket?list-type=2&prefix={prefix}", self.address);
        let text = client().get(url).send().await.expect("answers").text().await.expect("text");
        let names = text.split("<Key>").skip(1);
        names.map(|rest| rest.split("</Key>").next().unwrap_or_default().to_owned()).collect()
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}
