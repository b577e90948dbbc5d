//! VHDs that come over the network: only what they hold, and on from where a transfer broke off.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::azurite::Azurite;

fn import(uri: &str) -> Value {
    json!({"location": "eastus", "properties": {"creationData": {"createOption": "Import", "sourceUri": uri}}})
}

/// Passes connections on, and counts what comes back.
async fn counting_proxy(to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let moved = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&moved);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(to).await?;
                let (_, back) = tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                counter.fetch_add(back, Ordering::Relaxed);
                Ok::<_, std::io::Error>(())
            });
        }
    });
    (address, moved)
}

/// A page blob of 1 GiB with 3 MiB in it.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_page_blob_only_pages_with_content_are_fetched() {
    const GIB: u64 = 1 << 30;
    let azurite = Azurite::start().await;
    let (proxy, moved) = counting_proxy(azurite.address).await;
    let disks = Disks::start_with(|config| config.network.allow = vec![proxy.to_string()]).await;
    let (raw, vhd) = (disks.file("large.raw"), disks.file("large.vhd"));
    std::fs::File::create(&raw).expect("makes").set_len(GIB).expect("sizes");
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size"], &[&raw, &vhd]);
    let mut footer = [0; FOOTER as usize];
    let file = std::fs::File::open(&vhd).expect("opens");
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut footer, GIB).expect("reads");

    azurite.create_pages("large.vhd", GIB + FOOTER).await;
    let places: Vec<u64> = (0..12).map(|n| n * 91 * MIB + n * 512).collect();
    let piece = |place: u64| vec![place as u8 | 1; 256 << 10];
    for place in &places {
        azurite.put_page("large.vhd", *place, piece(*place)).await;
    }
    azurite.put_page("large.vhd", GIB, footer.to_vec()).await;
    let uri = azurite.signed("large.vhd", "r").replace(&azurite.address.to_string(), &proxy.to_string());
    disks.done("PUT", "disks/large", Some(import(&uri))).await;
    // Connections are counted when they end; the client's pool keeps none behind the job.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let moved = moved.load(Ordering::Relaxed);
    assert!((3 * MIB..8 * MIB).contains(&moved), "{moved} bytes");

    let url = disks.grant("disks/large", "Read", 600).await;
    let part = async |start: u64, len: u64| {
        let range = format!("bytes={start}-{}", start + len - 1);
        let answer =
            disks.bed.request("GET", &url).header("x-ms-range", range).send().await.expect("answers");
        assert_eq!(answer.status(), 206);
        answer.bytes().await.expect("a part").to_vec()
    };
    for place in places {
        let len = piece(place).len() as u64;
        assert!(part(place, len).await == piece(place), "at {place}");
        assert!(part(place + len, MIB).await == vec![0; MIB as usize], "behind {place}");
    }
    disks.bed.stop().await;
}

/// Ended with its test.
struct Cutting {
    child: Child,
    address: SocketAddr,
}

impl Cutting {
    fn start(files: [&Path; 2]) -> Cutting {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/disks/cutting_server.py");
        let mut command = Command::new("python3");
        let mut child =
            command.arg(script).args(files).stdout(Stdio::piped()).spawn().expect("Python starts");
        let mut port = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut port).expect("a port");
        let port: u16 = port.trim().parse().expect("a port");
        Cutting { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn url(&self, below: &str) -> String {
        format!("http://{}/{below}", self.address)
    }

    /// Requests, and bytes that were sent for them.
    fn stats(&self) -> (u64, u64) {
        let mut stream = std::net::TcpStream::connect(self.address).expect("connects");
        std::io::Write::write_all(
            &mut stream,
            b"GET /stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let (_, body) = answer.rsplit_once("\r\n").expect("a body");
        let (requests, sent) = body.split_once(' ').expect("two numbers");
        (requests.parse().expect("a number"), sent.parse().expect("a number"))
    }
}

impl Drop for Cutting {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_off_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (vhd(folder.path(), "first", 0x61), vhd(folder.path(), "second", 0x62));
    let server = Cutting::start([&first.1, &second.1]);
    let disks = Disks::start_with(|config| config.network.allow = vec![server.address.to_string()]).await;
    let holds = async |name: &str, raw: &Path| {
        let url = disks.grant(name, "Read", 600).await;
        let back = disks.file("back.vhd");
        disks.python("download", &url, &back).await;
        assert_eq!(sum(&back, FOOTER), sum(raw, 0), "{name}");
    };
    disks.done("PUT", "disks/good", Some(import(&server.url("good")))).await;
    holds("disks/good", &first.0).await;
    let (requests, sent) = server.stats();
    assert!(requests > 25 && sent < (DISK + FOOTER) * 11 / 10, "{requests} requests, {sent} bytes");

    // One that was replaced meanwhile is fetched anew, and not mixed.
    disks.done("PUT", "disks/changed", Some(import(&server.url("changed")))).await;
    holds("disks/changed", &second.0).await;

    // One that cannot be told from another is not put together from parts.
    let (before, _) = server.stats();
    let end = disks.end("PUT", "disks/weak", Some(import(&server.url("weak?sig=secret")))).await;
    let text = end.to_string();
    assert_eq!(end["error"]["code"], "BlobNotAccessible", "{end}");
    assert!(text.contains("in 3 attempts") && !text.contains("secret"), "{text}");
    assert!(server.stats().0 - before <= 6, "bounded");
    assert_eq!(std::fs::read_dir(disks.file("scratch")).expect("a folder").count(), 0);
    disks.bed.stop().await;
}
