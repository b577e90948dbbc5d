//! Azure's clients, unmodified, against the real server: the Python SDK and `az`.

use std::time::Duration;

use super::Lab;
use crate::python;
use crate::support::TENANT;

/// Longest run of one script.
const LIMIT: Duration = Duration::from_secs(120);

impl Lab {
    fn connection_string(&self) -> String {
        format!(
            "DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey={};BlobEndpoint={};",
            self.key, self.url
        )
    }

    /// Runs a script of this folder; it must succeed.
    async fn script(&self, package: (&str, &str), script: &str) -> String {
        let (name, version) = (package.0.to_owned(), package.1.to_owned());
        let installed = tokio::task::spawn_blocking(move || python::environment(&name, &version));
        let programs = installed.await.expect("installs");
        let script = format!("{}/tests/server/blobs/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut command = python::command(&programs.join("python"), &self.bed.server.ca_pem);
        command
            .arg(script)
            .env("ACCOUNT_URL", &self.url)
            .env("ACCOUNT_KEY", &self.key)
            .env("CONNECTION_STRING", self.connection_string())
            .env("FOLDER", self.bed.folder.path())
            .env("SERVER_URL", &self.bed.server.url)
            .env("TENANT", TENANT)
            .env("CLIENT_ID", self.bed.text("clientId"))
            .env("CLIENT_SECRET", self.bed.text("clientSecret"));
        let output = tokio::time::timeout(LIMIT, command.output()).await.expect("in time").expect("runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        out.into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works_unmodified() {
    let lab = Lab::start().await;
    let out = lab.script(("azure-storage-blob", "12.31.1"), "client.py").await;
    assert!(out.ends_with("all 14 parts passed\n"), "{out}");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn az_works_unmodified() {
    let lab = Lab::start().await;
    let out = lab.script(("azure-cli", "2.91.0"), "az.py").await;
    assert!(out.ends_with("all 6 parts passed\n"), "{out}");
    lab.bed.stop().await;
}
