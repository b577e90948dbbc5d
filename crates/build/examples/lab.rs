//! Scratch.
use build::*;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
fn main() {
    tracing_subscriber_init();
    let args: Vec<String> = std::env::args().collect();
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match args[1].as_str() {
        "vmhost" => rt.block_on(vmhost::run(Path::new(&args[2]))).unwrap(),
        "put" => rt.block_on(async {
            let store = content::Store::open_or_create(&args[2].parse().unwrap(), "lab").await.unwrap();
            let t = Instant::now();
            let r = store.put_raw(Path::new(&args[3]), "base", |_| {}).await.unwrap();
            println!("{r:?} {:?}", t.elapsed());
        }),
        "build" => rt.block_on(build_it(&args)),
        _ => panic!(),
    }
}
fn tracing_subscriber_init() {}
async fn build_it(args: &[String]) {
    let dir = PathBuf::from(&args[2]);
    let manifest: content::ManifestId = args[3].parse().unwrap();
    let last = &args[4];
    let reuse = if args.get(5).is_some() { Reuse::UnchangedSteps } else { Reuse::Nothing };
    let loc = dir.join("store").display().to_string();
    let store = content::Store::open_read_only(&loc.parse().unwrap()).await.unwrap();
    drop(store);
    let store = content::Store::open_or_create(&loc.parse().unwrap(), "lab").await.unwrap();
    let host = Host {
        program: std::env::current_exe().unwrap(),
        runs_dir: dir.join("runs"),
        cache: StepCache::open(&dir.join("cache"), CacheLimits::default()).unwrap(),
        store,
        store_location: loc,
        block_cache_dir: dir.join("blocks"),
        block_cache_bytes_max: 4 << 30,
        accelerator: vmhost::Accelerator::probe(&dir).await.unwrap(),
        qemu_version: vmhost::qemu_version().await.unwrap(),
        outbound: vmhost::Outbound::default(),
    };
    let shell = |name: &str, text: &str| Step {
        name: name.into(),
        action: StepAction::Shell { script: text.as_bytes().to_vec() },
    };
    let request = BuildRequest {
        run_id: format!("r{}", std::process::id()),
        name: "lab".into(),
        base: BaseImage { manifest, name: "debian".into(), generation: vmhost::identity::Generation::V2 },
        vcpus: 2,
        memory_mib: 1024,
        disk_bytes: 4 << 30,
        steps: vec![
            Step {
                name: "file".into(),
                action: StepAction::File { content: b"hello\n".to_vec(), destination: "/tmp/motd".into() },
            },
            shell(
                "apt",
                "set -e\nsudo cp /tmp/motd /etc/motd-lab\nsudo apt-get update -qq && sudo apt-get install -y -qq --no-install-recommends tree >/dev/null\nwhich tree",
            ),
            shell("last", last),
        ],
        validations: vec![shell(
            "check",
            "cat /etc/motd-lab && which tree && cat /etc/last && hostname && id",
        )],
        continue_on_validation_failure: false,
        rights: "lab".into(),
        reuse,
        timeout: Duration::from_secs(1200),
    };
    let (events, mut rx) = Events::channel(100);
    let t = Instant::now();
    let printer = tokio::spawn(async move {
        while let Some(e) = rx.recv().await {
            println!("{:7.2} {e:?}", t.elapsed().as_secs_f64());
        }
    });
    let out = run(&request, &host, &events, &Default::default()).await;
    drop(events);
    let _ = printer.await;
    println!("{:.2} {out:#?}", t.elapsed().as_secs_f64());
}
