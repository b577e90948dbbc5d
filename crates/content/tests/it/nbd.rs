//! The NBD export against QEMU's own client, and against clients that break the protocol.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{BLOCK, MIB, Place, noise, put, run, text};
use content::BlockCache;
use content::nbd::Export;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Served {
    place: Place,
    disk: Vec<u8>,
    socket: PathBuf,
    url: String,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// 4 MiB of noise, a hole, some text at 100 MiB, and an end at an odd place of 512 bytes.
async fn serve() -> Served {
    let place = Place::new();
    let store = place.store("store").await;
    let mut disk = noise(1, 4 * MIB as usize);
    disk.resize(100 * MIB as usize, 0);
    disk.extend((0..16).flat_map(text));
    disk.resize(130 * MIB as usize + 512, 0);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let cache = Arc::new(BlockCache::open(&place.path("cache"), 1 << 30).expect("cache"));
    let image = store.open_image(&id, cache).await.expect("open");
    let socket = place.path("nbd.sock");
    // What a killed server leaves.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
    let export = Export::bind(&socket).expect("bind");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(export.serve(image, shutdown.clone()));
    let url = format!("nbd+unix:///?socket={}", socket.display());
    Served { place, disk, socket, url, shutdown, task }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    stream
}

/// The handshake by the old option, without structured replies.
fn handshake(socket: &Path) -> UnixStream {
    let mut stream = connect(socket);
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).expect("hello");
    assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&[0, 0, 0, 3]).expect("flags");
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x03any").expect("option");
    let mut export = [0; 10];
    stream.read_exact(&mut export).expect("export");
    stream
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// Error and cookie of a simple reply.
fn reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).expect("reply");
    assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
    let error = u32::from_be_bytes(header[4..8].try_into().expect("4 bytes"));
    (error, u64::from_be_bytes(header[8..].try_into().expect("8 bytes")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_reads_the_image() {
    let served = serve().await;
    let mode = served.socket.metadata().expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let copy = served.place.text("copy.raw");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.url, &copy]);
    assert!(std::fs::read(&copy).expect("copy") == served.disk);

    // The holes are seen without being read.
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &served.url]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let data: Vec<(u64, u64)> = map
        .as_array()
        .expect("extents")
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64().expect("start"), extent["length"].as_u64().expect("length")))
        .collect();
    assert_eq!(data, [(0, 4 * MIB), (100 * MIB, MIB)]);

    let commands = ["read -P 0 50M 1M", "read -P 0 130M 512", "flush"];
    let mut args = vec!["-r", "-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", *command]));
    args.push(&served.url);
    let output = run("qemu-io", &args);
    assert!(!output.contains("Pattern verification failed"), "{output}");

    // Any name is the export; nothing can be written.
    let named = format!("nbd+unix:///disk0?socket={}", served.socket.display());
    let info = run("qemu-img", &["info", "--output=json", "-f", "raw", &named]);
    assert!(info.contains(&format!("\"virtual-size\": {}", served.disk.len())), "{info}");
    let write = ["-f", "raw", "-c", "write 0 64k", &served.url];
    let write = Command::new("qemu-io").args(write).output().expect("qemu-io");
    assert!(!write.status.success());

    served.shutdown.cancel();
    served.task.await.expect("ends");
    assert!(!served.socket.exists());
}

/// Overlays of QEMU on the export: what a VM does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overlay_on_the_export_takes_writes() {
    let served = serve().await;
    let top = served.place.text("top.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &served.url, "-F", "raw", &top]);
    let commands = ["write -P 9 1M 5000", "read -P 9 1M 5000", "aio_read -P 0 60M 16M", "aio_read 2M 1M"];
    let mut args = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| args.extend(["-c", *command]));
    args.push(&top);
    run("qemu-io", &args);
    let flat = served.place.text("flat.raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &top, &flat]);
    let mut expected = served.disk.clone();
    expected[MIB as usize..][..5000].fill(9);
    assert!(std::fs::read(&flat).expect("flat") == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_beside_each_other() {
    let served = serve().await;
    let mut streams: Vec<_> = (0..3).map(|_| handshake(&served.socket)).collect();
    for stream in &mut streams {
        // More than may be under way, all sent before any reply is read; in several threads' worth of places.
        for cookie in 0..200_u64 {
            let offset = cookie * 7919 % (4 * MIB - 5000);
            stream.write_all(&request(0, cookie, offset, 4321)).expect("request");
        }
        let mut seen = [false; 200];
        for _ in 0..200 {
            let (error, cookie) = reply(stream);
            assert_eq!(error, 0);
            let mut data = [0; 4321];
            stream.read_exact(&mut data).expect("data");
            let offset = (cookie * 7919 % (4 * MIB - 5000)) as usize;
            assert!(data == served.disk[offset..offset + 4321]);
            assert!(!std::mem::replace(&mut seen[cookie as usize], true));
        }
        stream.write_all(&request(2, 0, 0, 0)).expect("disconnect");
        assert_eq!(stream.read(&mut [0; 1]).expect("end"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_get_errors_and_the_rest_goes_on() {
    const EPERM: u32 = 1;
    const EINVAL: u32 = 22;
    const EOVERFLOW: u32 = 75;
    let served = serve().await;
    let size = served.disk.len() as u64;
    let mut stream = handshake(&served.socket);
    let wrong = [
        (0, size - 10, 11, EINVAL),
        (0, u64::MAX, 2, EINVAL),
        (0, 0, 0, EINVAL),
        (0, 0, (32 << 20) + 1, EOVERFLOW),
        (0, 0, u32::MAX, EOVERFLOW),
        (7, 0, 4096, EINVAL),
        (4, 0, 4096, EPERM),
        (6, 0, 4096, EPERM),
        (99, 0, 0, EINVAL),
        (3, 0, 0, 0),
    ];
    for (command, offset, len, expected) in wrong {
        stream.write_all(&request(command, 5, offset, len)).expect("request");
        assert_eq!(reply(&mut stream), (expected, 5), "command {command} at {offset} of {len}");
    }
    // A write's data is skipped, so the next request is understood.
    stream.write_all(&request(1, 6, 0, BLOCK as u32)).expect("request");
    stream.write_all(&vec![0x25; BLOCK]).expect("data");
    assert_eq!(reply(&mut stream), (EPERM, 6));
    stream.write_all(&request(0, 7, size - 1, 1)).expect("request");
    assert_eq!(reply(&mut stream), (0, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_end_alone() {
    let served = serve().await;
    let flags = [0_u8, 0, 0, 3];
    let option = |number: u32, len: u32| {
        let mut bytes = flags.to_vec();
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes
    };
    let mut many = flags.to_vec();
    (0..100).for_each(|_| many.extend_from_slice(b"IHAVEOPT\0\0\0\x63\0\0\0\0"));
    let attacks = [
        Vec::new(),
        vec![0xff; 4096],
        [flags.to_vec(), noise(5, 4096)].concat(),
        option(7, u32::MAX),
        option(1, 20_000),
        [option(7, 8), vec![0xff; 8]].concat(),
        [option(10, 8), vec![0xff; 8]].concat(),
        many,
    ];
    for attack in attacks {
        let mut stream = connect(&served.socket);
        // The server may have closed before all was written.
        let _closed = stream.write_all(&attack);
        stream.shutdown(std::net::Shutdown::Write).expect("shut down");
        // It answers what it likes and then closes; an error is a reset, which is closing too.
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        assert!(answer.len() < 8192);
    }
    // After the handshake: no magic, and a write that is too long.
    for attack in [noise(6, 28), request(1, 0, 0, u32::MAX)] {
        let mut stream = handshake(&served.socket);
        stream.write_all(&attack).expect("request");
        assert_eq!(stream.read(&mut [0; 1]).expect("closed"), 0);
    }
    // A client that asks for much and reads nothing holds up nobody.
    let mut greedy = handshake(&served.socket);
    for cookie in 0..50 {
        greedy.write_all(&request(0, cookie, 0, 32 << 20)).expect("request");
    }
    let mut stream = handshake(&served.socket);
    stream.write_all(&request(0, 7, 0, 512)).expect("request");
    assert_eq!(reply(&mut stream), (0, 7));
}

/// A damaged block is an error for the client, with the cause, and not the end of the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_an_io_error() {
    let served = serve().await;
    let pack = served.place.objects("store/packs").remove(0);
    let mut bytes = std::fs::read(&pack).expect("read");
    bytes[2 * MIB as usize] ^= 1;
    std::fs::write(&pack, bytes).expect("write");
    let mut stream = handshake(&served.socket);
    stream.write_all(&request(0, 1, 3 * MIB / 2, (MIB) as u32)).expect("request");
    assert_eq!(reply(&mut stream), (5, 1));
    stream.write_all(&request(0, 2, 0, 1)).expect("request");
    assert_eq!(reply(&mut stream), (0, 2));

    let copy = served.place.text("copy.raw");
    let convert = ["convert", "-f", "raw", "-O", "raw", &served.url, &copy];
    let output = Command::new("qemu-img").args(convert).output().expect("qemu-img");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("Input/output error"), "{message}");
}
