//! A PostgreSQL that is a test's own: its processes can be stopped, and nobody else notices.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{eventually, free_port};

pub struct Cluster {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kztest-postgres-").tempdir().expect("a folder");
        let data = dir.path().join("data").display().to_string();
        let mut initdb = service("initdb", dir.path());
        initdb.args(["-D", &data, "-U", "kaizen", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.output().await.expect("PostgreSQL's initdb is needed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let mut postgres = service("postgres", dir.path());
        postgres.args(["-D", &data, "-p", &port.to_string(), "-k", "", "-c", "listen_addresses=127.0.0.1"]);
        postgres.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let cluster = Self { child: postgres.spawn().expect("PostgreSQL is needed"), port, _dir: dir };
        let url = cluster.url();
        eventually("PostgreSQL answers", || async { PgConnection::connect(&url).await.ok()?.close().await.ok() }).await;
        cluster
    }

    /// As in `KAIZEN_DATABASE_URL`.
    pub fn url(&self) -> String {
        format!("postgres://kaizen@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops all its processes (`SIGSTOP`): connections stay open, and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets them go on (`SIGCONT`).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Signals the server and then its children: once it is stopped, it starts no others. Each of them leads a session of its own, so
    /// there is no group to signal.
    fn signal(&self, signal: Signal) {
        let server = Pid::from_raw(i32::try_from(self.child.id().expect("it runs")).expect("a process id"));
        kill(server, signal).expect("a signal");
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).expect("its children");
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            // One that has ended since needs none.
            kill(Pid::from_raw(child), signal).ok();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.child.id().is_none() {
            return;
        }
        self.resume();
        // An immediate shutdown: the server takes its children along.
        self.signal(Signal::SIGQUIT);
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A program of PostgreSQL's, not as root.
fn service(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(newest().map_or_else(|| program.into(), |bin| bin.join(program)));
    if geteuid().is_root() {
        let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = user.expect("a user that is not root");
        nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).expect("chown");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Where Debian keeps the newest version's programs, as in `tests/run`; elsewhere they are on the PATH.
fn newest() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    let numbered = versions.filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok());
    numbered.max().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
}
