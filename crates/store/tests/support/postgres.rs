//! A real PostgreSQL from the distribution's package, on a Unix socket only. Shared by the tests that
//! run at the same time; the last one that lets go stops it. A missing package is a failure.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

impl Postgres {
    pub(crate) fn shared() -> Arc<Postgres> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Postgres::start());
        *shared = Arc::downgrade(&server);
        server
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=postgres", self.folder.path().display())
    }

    fn start() -> Postgres {
        let bin = newest_bin();
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some((uid, gid)) = postgres_user() {
            chown(folder.path(), Some(uid), Some(gid)).expect("chown");
        }
        let data = folder.path().join("data");
        let mut initdb = as_postgres(&bin.join("initdb"));
        initdb.arg("-D").arg(&data).args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        let made = initdb.current_dir(folder.path()).output().expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

        let mut server = as_postgres(&bin.join("postgres"));
        server.arg("-D").arg(&data).arg("-k").arg(folder.path());
        for setting in
            ["listen_addresses=", "fsync=off", "max_connections=200", "max_pred_locks_per_transaction=256"]
        {
            server.args(["-c", setting]);
        }
        let log = fs::File::create(folder.path().join("log")).expect("log file");
        server.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);

        // The parent-death signal follows the thread that spawned, so one thread stays for as long as the server.
        let (stop, stopped) = mpsc::channel::<()>();
        let keeper = std::thread::spawn(move || {
            let mut child = server.spawn().expect("postgres starts");
            // An error means that the sender was dropped, which is the wish to stop.
            let _: Result<(), _> = stopped.recv();
            interrupt(&mut child);
        });
        let postgres = Postgres { folder, stop: Some(stop), keeper: Some(keeper) };
        postgres.wait_until_ready(&bin);
        postgres
    }

    fn wait_until_ready(&self, bin: &Path) {
        let begun = Instant::now();
        loop {
            let ready =
                Command::new(bin.join("pg_isready")).arg("-q").arg("-h").arg(self.folder.path()).status();
            if ready.expect("pg_isready runs").success() {
                return;
            }
            if begun.elapsed() > START_LIMIT {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("PostgreSQL did not start within {START_LIMIT:?}: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.join().expect("the keeper of PostgreSQL");
        }
    }
}

/// SIGINT is a "fast" shutdown: it ends sessions and removes the shared memory.
fn interrupt(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    // It may have ended already; wait() tells.
    let _: rustix::io::Result<()> = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    child.wait().expect("postgres ends");
}

fn newest_bin() -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is missing: apt-get install postgresql");
    versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
        .expect("PostgreSQL is missing: apt-get install postgresql")
}

/// Ids of the user `postgres`, if we are root: PostgreSQL refuses to run as root.
fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("user postgres exists");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().expect("a uid"), fields[3].parse().expect("a gid")))
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=INT");
    if let Some((uid, gid)) = postgres_user() {
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--init-groups");
    }
    command.arg("--").arg(program);
    command
}
