//! A server process with two regions, one of them of two zones, and everything that the test asks of it.

mod zones;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::arm::{Arm, COMPUTE, GALLERY, IMAGE_BUILDER, RESOURCES, percent_encode};
use crate::base_image::{BaseImage, base_image};

pub(crate) const HOME: &str = "westeurope";
pub(crate) const OTHER: &str = "eastus";
const WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
const USER: &str = "azureuser";
const CUSTOM_DATA: &str =
    "#cloud-config\nwrite_files:\n  - path: /etc/custom-data-was-here\n    content: was here\n";

pub(crate) struct Lab {
    dir: TempDir,
    server: Child,
    arm: Arm,
    pub(crate) group: String,
    definition: String,
    images: Child,
}

impl Lab {
    /// A server, a group, a gallery and a definition.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("tintype-e2e-").tempdir().unwrap();
        let base = base_image().await;
        let (images, port) = serve_folder(base.path.parent().unwrap());
        write_files(dir.path(), &base, port);
        let (server, arm) = start_server(dir.path()).await;
        let group = arm.group("e2e");
        let definition = format!("{group}/providers/Microsoft.Compute/galleries/golden/images/debian");
        let lab = Self { dir, server, arm, group, definition, images };
        lab.arm.put(&lab.group, RESOURCES, json!({"location": HOME})).await.unwrap();
        let gallery = lab.definition.rsplit_once("/images/").unwrap().0.to_owned();
        lab.arm.put(&gallery, GALLERY, json!({"location": HOME, "properties": {}})).await.unwrap();
        let body = json!({"location": HOME, "properties": {
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2",
            "identifier": {"publisher": "e2e", "offer": "e2e", "sku": "e2e"}}});
        lab.arm.put(&lab.definition, GALLERY, body).await.unwrap();
        lab
    }

    fn template_id(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.VirtualMachineImages/imageTemplates/{name}", self.group)
    }

    fn vm_id(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.Compute/virtualMachines/{name}", self.group)
    }

    pub(crate) async fn put_template(&self, name: &str, body: Value) {
        let shown = self.arm.put(&self.template_id(name), IMAGE_BUILDER, body).await.unwrap();
        assert_eq!(shown["properties"]["provisioningState"], "Succeeded", "{shown}");
    }

    pub(crate) async fn get_template(&self, name: &str) -> Value {
        self.arm.get(&self.template_id(name), IMAGE_BUILDER).await.unwrap()
    }

    /// Runs a template to its end; gives the run's report.
    pub(crate) async fn run(&self, name: &str) -> anyhow::Result<Value> {
        let ran = self.arm.post(&format!("{}/run", self.template_id(name)), IMAGE_BUILDER).await;
        println!("{}", self.log(name).await);
        ran?;
        Ok(self.newest_run(name).await["report"].clone())
    }

    /// Starts a run and gives the URL to poll.
    pub(crate) async fn begin_run(&self, name: &str) -> String {
        let path = format!("{}/run", self.template_id(name));
        let answer = self.arm.send(reqwest::Method::POST, &path, IMAGE_BUILDER, None).await.unwrap();
        answer.poll.expect("a run is a long-running operation")
    }

    /// Status and error message of an operation once it has ended.
    pub(crate) async fn operation_end(&self, url: &str) -> (String, String) {
        // The server has another port after its restart.
        let path = &url[url.find("/subscriptions/").unwrap()..url.find('?').unwrap()];
        let started = Instant::now();
        loop {
            let body = self.arm.get(path, IMAGE_BUILDER).await.unwrap();
            let status = body["status"].as_str().unwrap_or_default().to_owned();
            if status != "InProgress" && !status.is_empty() {
                return (status, body["error"]["message"].as_str().unwrap_or_default().to_owned());
            }
            assert!(started.elapsed() < WAIT, "the operation did not end: {body}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn newest_run(&self, name: &str) -> Value {
        let path = format!("/tintype/runs?template={}", percent_encode(&self.template_id(name)));
        self.arm.get(&path, COMPUTE).await.unwrap()["value"][0].clone()
    }

    /// The whole log of a template's newest run.
    pub(crate) async fn log(&self, name: &str) -> String {
        let run = self.newest_run(name).await;
        let Some(run) = run["runId"].as_str() else { return String::new() };
        let (mut text, mut after) = (String::new(), 0);
        loop {
            let log = self.arm.get(&format!("/tintype/runs/{run}/log?after={after}"), COMPUTE).await.unwrap();
            let chunks = log["chunks"].as_array().unwrap();
            if chunks.is_empty() {
                return text;
            }
            for chunk in chunks {
                text.push_str(chunk["text"].as_str().unwrap());
                after = chunk["seq"].as_i64().unwrap();
            }
        }
    }

    pub(crate) async fn wait_for_log(&self, name: &str, wanted: &str) {
        let started = Instant::now();
        while !self.log(name).await.contains(wanted) {
            assert!(started.elapsed() < 4 * WAIT, "{wanted:?} did not appear in the log");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn versions(&self) -> Vec<String> {
        let list = self.arm.get(&format!("{}/versions", self.definition), GALLERY).await.unwrap();
        let name = |version: &Value| version["name"].as_str().unwrap().to_owned();
        let mut names: Vec<_> = list["value"].as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    }

    pub(crate) async fn version(&self, name: &str) -> Value {
        let path = format!("{}/versions/{name}?$expand=ReplicationStatus", self.definition);
        self.arm.get(&path, GALLERY).await.unwrap()
    }

    pub(crate) async fn run_outputs(&self, name: &str) -> Vec<Value> {
        let path = format!("{}/runOutputs", self.template_id(name));
        self.arm.get(&path, IMAGE_BUILDER).await.unwrap()["value"].as_array().unwrap().clone()
    }

    pub(crate) async fn create_vm(&self, name: &str, version: &str, region: &str) {
        use base64::Engine;
        let key = self.dir.path().join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let body = json!({"location": region, "properties": {
            "hardwareProfile": {"vmSize": "Standard_B2s"},
            "storageProfile": {"imageReference": {"id": format!("{}/versions/{version}", self.definition)},
                               "osDisk": {"createOption": "FromImage", "deleteOption": "Delete"}},
            "osProfile": {"computerName": name, "adminUsername": USER,
                "customData": base64::engine::general_purpose::STANDARD.encode(CUSTOM_DATA),
                "linuxConfiguration": {"disablePasswordAuthentication": true, "ssh": {"publicKeys": [
                    {"path": format!("/home/{USER}/.ssh/authorized_keys"), "keyData": public.trim()}]}}}}});
        let vm = self.arm.put(&self.vm_id(name), COMPUTE, body).await.unwrap();
        assert_eq!(vm["properties"]["provisioningState"], "Succeeded", "{vm}");
    }

    /// Runs a command in a VM over the system's ssh, trying until custom data was applied.
    pub(crate) async fn ssh(&self, name: &str, command: &str) -> String {
        let path = format!("/tintype/virtualMachines/ssh?id={}", percent_encode(&self.vm_id(name)));
        let address = self.arm.get(&path, COMPUTE).await.unwrap()["address"].as_str().unwrap().to_owned();
        let (host, port) = address.rsplit_once(':').unwrap();
        let started = Instant::now();
        loop {
            let output = Command::new("ssh")
                .arg("-i")
                .arg(self.dir.path().join("key"))
                .args(["-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
                .args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"])
                .args([&format!("{USER}@{host}"), command])
                .output()
                .unwrap();
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(started.elapsed() < 4 * WAIT, "ssh: {text}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(crate) async fn power_state(&self, name: &str) -> String {
        let view = self.arm.get(&format!("{}/instanceView", self.vm_id(name)), COMPUTE).await.unwrap();
        let codes = view["statuses"].as_array().unwrap().iter().filter_map(|status| status["code"].as_str());
        codes.rev().find(|code| code.starts_with("PowerState/")).unwrap_or_default().to_owned()
    }

    pub(crate) async fn wait_for_power_state(&self, name: &str, wanted: &str) {
        let started = Instant::now();
        loop {
            let state = self.power_state(name).await;
            if state == wanted {
                return;
            }
            assert!(started.elapsed() < WAIT, "the VM is {state}, not {wanted}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) fn take_region_away(&self, region: &str) {
        let regions = self.dir.path().join("regions");
        std::fs::rename(regions.join(region), regions.join("away")).unwrap();
    }

    pub(crate) fn bring_region_back(&self, region: &str) {
        let regions = self.dir.path().join("regions");
        std::fs::rename(regions.join("away"), regions.join(region)).unwrap();
    }

    pub(crate) fn kill_server(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    pub(crate) async fn restart_server(&mut self) {
        (self.server, self.arm) = start_server(self.dir.path()).await;
    }

    pub(crate) async fn stop_server(mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.server.wait().unwrap().success());
        self.images.kill().unwrap();
        self.images.wait().unwrap();
    }

    pub(crate) fn kill_vmhosts(&self) {
        for (pid, command) in self.our_processes() {
            if command.contains("vmhost") {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                // It may have ended by itself since it was listed.
                if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                    println!("kill vmhost {pid:?}: {error}");
                }
            }
        }
    }

    /// QEMUs that are guests: a server that has just started also boots a nameless probe of KVM.
    pub(crate) fn qemu_pids(&self) -> Vec<i32> {
        let processes = self.our_processes();
        processes
            .into_iter()
            .filter(|(_, command)| command.contains("qemu-system") && command.contains(" -name "))
            .map(|(pid, _)| pid)
            .collect()
    }

    pub(crate) fn processes(&self) -> usize {
        self.our_processes().len()
    }

    /// Live processes that name the lab's folder or work in it, but for the web server of the base image.
    fn our_processes(&self) -> Vec<(i32, String)> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            // A process that was killed but not yet reaped has no command line.
            if !command.is_empty() && (command.contains(&dir) || cwd.starts_with(&dir)) {
                found.push((pid, command));
            }
        }
        found
    }

    pub(crate) async fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < WAIT, "{what}: not within {} s", WAIT.as_secs());
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) fn run_directories(&self) -> usize {
        entries(&self.dir.path().join("data/runs"))
    }

    pub(crate) fn vm_directories(&self) -> usize {
        entries(&self.dir.path().join("data/vms"))
    }

    /// The group and all that is in it, by one request.
    pub(crate) async fn delete_everything(&self) {
        self.arm.delete(&self.group, RESOURCES).await.unwrap();
        for name in ["fails", "endless", "invalid", "good", "edited"] {
            let gone = self.arm.get(&self.template_id(name), IMAGE_BUILDER).await.unwrap_err().to_string();
            assert!(gone.contains("404"), "{gone}");
        }
    }
}

/// A failed test leaves no process behind either; after a good one there is nothing to end.
impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
        drop(self.images.kill());
        drop(self.images.wait());
        self.kill_vmhosts();
    }
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).map(Iterator::count).unwrap_or_default()
}

/// A customizer or validation with inline commands.
pub(crate) fn inline(name: &str, commands: &[&str]) -> Value {
    json!({"type": "Shell", "name": name, "inline": commands})
}

/// A template from the test's own platform image to both regions.
pub(crate) fn template(lab: &Lab, customize: Value, validations: Value, tags: Value) -> Value {
    let identity =
        format!("{}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/builder", lab.group);
    json!({
        "location": HOME,
        "tags": tags,
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}},
        "properties": {
            "source": {"type": "PlatformImage", "publisher": "E2e", "offer": "debian", "sku": "12-gen2",
                       "version": "latest"},
            "customize": customize,
            "validate": {"inVMValidations": validations},
            "distribute": [{"type": "SharedImage", "runOutputName": "out", "galleryImageId": lab.definition,
                            "targetRegions": [{"name": HOME}, {"name": OTHER, "replicaCount": 2}]}],
            "vmProfile": {"vmSize": "Standard_B2s"}}})
}

fn write_files(dir: &Path, base: &BaseImage, port: u16) {
    let file = base.path.file_name().unwrap().to_str().unwrap();
    let catalog = format!(
        "[[image]]\npublisher = \"E2e\"\noffer = \"debian\"\nsku = \"12-gen2\"\nversion = \"12.0\"\n\
         hyper_v_generation = \"V2\"\n[image.recipe.download]\nurl = \"http://127.0.0.1:{port}/{file}\"\n\
         sha256 = \"{}\"\nformat = \"qcow2\"\n",
        base.sha256
    );
    std::fs::create_dir(dir.join("catalog")).unwrap();
    std::fs::write(dir.join("catalog/e2e.toml"), catalog).unwrap();
    let config = format!(
        "data_dir = \"data\"\nlisten = \"127.0.0.1:0\"\ncatalog = [\"catalog\"]\n\
         [[region]]\nname = \"{HOME}\"\nstore = \"regions/{HOME}\"\n\
         [[region]]\nname = \"{OTHER}\"\nzones = [\"regions/{OTHER}\", \"regions/{OTHER}-2\"]\n\
         [network]\nallow = [\"127.0.0.1:{port}\"]\n"
    );
    std::fs::write(dir.join("tintype.toml"), config).unwrap();
}

/// A web server for the base image: Python's, because the test needs only a file.
fn serve_folder(folder: &Path) -> (Child, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, port)
}

async fn start_server(dir: &Path) -> (Child, Arm) {
    use std::io::BufRead;
    let log = std::fs::File::options().create(true).append(true).open(dir.join("server.log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tintype"))
        .args(["serve", "--json", "--config"])
        .arg(dir.join("tintype.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line)
        .unwrap_or_else(|_| panic!("{}", std::fs::read_to_string(dir.join("server.log")).unwrap()));
    let path = |key: &str| PathBuf::from(ready[key].as_str().unwrap());
    let arm = Arm::log_in(ready["url"].as_str().unwrap(), &path("ca"), &path("credentials")).await.unwrap();
    (child, arm)
}
