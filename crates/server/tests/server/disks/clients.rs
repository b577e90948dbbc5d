//! `az`, unmodified.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn az_uploads_snapshots_and_publishes() {
    let disks = Disks::start().await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x42);
    let installed = tokio::task::spawn_blocking(|| {
        let environment = crate::python::environment;
        (environment("azure-cli", "2.91.0"), environment("azure-storage-blob", "12.31.1"))
    });
    let (cli, storage) = installed.await.expect("installs");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/disks/az.py");
    let mut command = crate::python::command(&cli.join("python"), &disks.bed.server.ca_pem);
    command
        .arg(script)
        .env("FOLDER", disks.bed.folder.path())
        .env("VHD", &vhd)
        .env("STORAGE_PYTHON", storage.join("python"))
        .env("SERVER_URL", &disks.bed.server.url)
        .env("CLIENT_ID", disks.bed.text("clientId"))
        .env("CLIENT_SECRET", disks.bed.text("clientSecret"))
        .env("TENANT", crate::support::TENANT);
    let output = tokio::time::timeout(3 * LIMIT, command.output()).await.expect("in time").expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.ends_with("az is content\n"), "{out}\n{err}");
    assert_eq!(sum(&disks.file("az.vhd"), FOOTER), sum(&raw, 0));
    disks.bed.stop().await;
}
