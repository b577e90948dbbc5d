//! A bootable disk from a distribution's packages: `mmdebstrap` makes the tree, `mke2fs -d` the root file
//! system from it. Nothing is mounted and no loop device is used.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use uuid::Uuid;

use super::catalog::Bootstrap;
use super::{grub, layout};
use crate::error::BuildError;

const CONFIGURE: &str = include_str!("configure.sh");
/// Documentation and translations are left out, as in Debian's own cloud images for containers.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/// Output lines of a failed tool that the error shows.
const TAIL_LINES: usize = 15;

/// Makes the disk as `dir/disk.raw`. `dir` is emptied first and holds only the disk afterwards. Needs root,
/// as `mmdebstrap` and `chroot` do. Every line that a tool prints goes to `on_line`.
///
/// # Errors
/// When a tool is missing or fails, with its last lines.
pub async fn bootstrap(
    recipe: &Bootstrap,
    dir: &Path,
    mut on_line: impl FnMut(&str),
) -> Result<std::path::PathBuf, BuildError> {
    clear(dir)?;
    std::fs::create_dir_all(dir).map_err(BuildError::io("make the bootstrap directory"))?;
    let tree = dir.join("root");
    let disk = dir.join("disk.raw");
    let disk_bytes = u64::from(recipe.disk_gib) << 30;
    let root_uuid = Uuid::new_v4();
    on_line(&format!("bootstrapping {} with {} packages", recipe.suite, recipe.packages.len()));
    tool(make_tree(recipe, &tree), &mut on_line).await?;
    on_line("configuring the system for Azure's provisioning");
    let mut configure = Command::new("sh");
    configure.arg("-c").arg(CONFIGURE).env("R", &tree).env("ROOT_UUID", root_uuid.to_string());
    tool(configure, &mut on_line).await?;
    on_line("writing the disk");
    File::create(&disk)
        .and_then(|file| file.set_len(disk_bytes))
        .map_err(BuildError::io("make the disk file"))?;
    let mut table = Command::new("sgdisk");
    table.args(layout::sgdisk_arguments(disk_bytes)).arg(&disk);
    tool(table, &mut on_line).await?;
    let root = layout::root(disk_bytes);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-L", "root", "-U", &root_uuid.to_string()]).arg("-d").arg(&tree);
    mke2fs.arg("-E").arg(format!("offset={},lazy_itable_init=0,nodiscard", root.start));
    mke2fs.arg(&disk).arg(format!("{}k", root.bytes / 1024));
    tool(mke2fs, &mut on_line).await?;
    write_esp(dir, &disk, &mut on_line).await?;
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(BuildError::io(format!("read {name}")));
    let file = File::options().read(true).write(true).open(&disk).map_err(BuildError::io("open the disk"))?;
    grub::embed(&file, &read("boot.img")?, &read("core.img")?).map_err(BuildError::io("embed GRUB"))?;
    for rest in ["boot.img", "core.img", "BOOTX64.EFI", "esp.img"] {
        std::fs::remove_file(dir.join(rest)).map_err(BuildError::io("clear the bootstrap directory"))?;
    }
    clear(&tree)?;
    Ok(disk)
}

fn make_tree(recipe: &Bootstrap, tree: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory", "--components=main"]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    command.arg("--aptopt=Apt::Install-Recommends \"false\"");
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command.arg(&recipe.suite).arg(tree);
    if !recipe.mirror.is_empty() {
        command.arg(&recipe.mirror);
    }
    command
}

/// The ESP is made as a file of its own and copied into its place.
async fn write_esp(dir: &Path, disk: &Path, on_line: &mut impl FnMut(&str)) -> Result<(), BuildError> {
    let esp = dir.join("esp.img");
    File::create(&esp)
        .and_then(|file| file.set_len(layout::ESP.bytes))
        .map_err(BuildError::io("make the ESP"))?;
    let mut mkfs = Command::new("mkfs.vfat");
    mkfs.args(["-F32", "-s1", "-n", "ESP"]).arg(&esp);
    tool(mkfs, on_line).await?;
    let mut mmd = Command::new("mmd");
    mmd.arg("-i").arg(&esp).args(["::/EFI", "::/EFI/BOOT"]);
    tool(mmd, on_line).await?;
    let mut mcopy = Command::new("mcopy");
    mcopy.arg("-i").arg(&esp).arg(dir.join("BOOTX64.EFI")).arg("::/EFI/BOOT/BOOTX64.EFI");
    tool(mcopy, on_line).await?;
    copy_sparse(&esp, disk, layout::ESP.start).map_err(BuildError::io("copy the ESP into the disk"))
}

fn copy_sparse(from: &Path, to: &Path, offset: u64) -> std::io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = File::options().write(true).open(to)?;
    let mut block = vec![0; 64 << 10];
    let mut at = offset;
    loop {
        let length = from.read(&mut block)?;
        if length == 0 {
            return Ok(());
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(&block[..length])?;
        }
        at += length as u64;
    }
}

/// Runs a tool; its output goes to `on_line`, both streams together.
async fn tool(mut command: Command, on_line: &mut impl FnMut(&str)) -> Result<(), BuildError> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let io = |what: &str| BuildError::io(format!("{what} {name}"));
    let (reader, writer) = std::io::pipe().map_err(io("make a pipe for"))?;
    let stderr = writer.try_clone().map_err(io("make a pipe for"))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(stderr).kill_on_drop(true);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    let mut child = command.spawn().map_err(io("start (is its package installed?)"))?;
    // The writing ends in this process must go, or the pipe never ends.
    drop(command);
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(io("read from"))?;
    let mut lines = BufReader::new(reader).lines();
    let mut tail = std::collections::VecDeque::new();
    while let Some(line) = lines.next_line().await.map_err(io("read from"))? {
        on_line(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait().await.map_err(io("wait for"))?;
    if status.success() {
        return Ok(());
    }
    let tail: Vec<_> = tail.into();
    Err(io("finish")(std::io::Error::other(format!("{status}: {}", tail.join("\n")))))
}

fn clear(dir: &Path) -> Result<(), BuildError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BuildError::io("clear the bootstrap directory")(error))
        }
        _ => Ok(()),
    }
}
