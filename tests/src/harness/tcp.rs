//! Ports, a connection that can be cut, and a Redis that can be stopped.

use std::{process::Stdio, sync::Arc};

use nix::unistd::{User, geteuid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::watch,
};

use super::eventually;

/// A port on loopback that nobody listens on, below those that the system hands out by itself.
pub fn free_port() -> u16 {
    let bytes = *super::fresh_id().as_bytes();
    let start = u16::from_be_bytes([bytes[14], bytes[15]]) % 9000;
    (0..9000u16)
        .map(|step| 11_000 + (start + step) % 9000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// What a [`Proxy`] does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Line {
    Open,
    /// Keeps connections, and takes new ones, and passes nothing on.
    Stalled,
    Cut,
}

/// Forwards a port of its own to another one, until cut or stalled.
pub struct Proxy {
    pub port: u16,
    line: Arc<watch::Sender<Line>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("bound").port();
        let line = Arc::new(watch::Sender::new(Line::Open));
        let state = line.clone();
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let mut watching = state.subscribe();
                if *watching.borrow() == Line::Cut {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                    let lines = (watching.clone(), watching.clone());
                    tokio::select! {
                        ((), ()) = async {
                            tokio::join!(pass(from_read, to_write, lines.0), pass(to_read, from_write, lines.1))
                        } => {}
                        _ = watching.wait_for(|line| *line == Line::Cut) => {}
                    }
                });
            }
        });
        Self { port: own, line, task }
    }

    /// Ends all connections and lets no new one through.
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Passes nothing on any more, without a word to either side: as a far side that hangs.
    pub fn stall(&self) {
        self.line.send_replace(Line::Stalled);
    }

    /// Passes on again, also what came meanwhile.
    pub fn restore(&self) {
        self.line.send_replace(Line::Open);
    }
}

/// Passes bytes on in one direction until an end, while the line is open.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if line.wait_for(|line| *line == Line::Open).await.is_err() {
            return;
        }
        let some = bytes.get(..count).unwrap_or_default();
        if to.write_all(some).await.is_err() {
            return;
        }
    }
    to.shutdown().await.ok();
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

/// A private redis-server, in memory only, not as root.
pub struct Redis {
    child: Child,
    pub port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kztest-redis-").tempdir().expect("a folder");
        let port = free_port();
        let mut redis = Self { child: Self::spawn(port, &dir), port, dir };
        redis.ready().await;
        redis
    }

    fn spawn(port: u16, dir: &tempfile::TempDir) -> Child {
        let program = std::env::var("KZTEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        if geteuid().is_root()
            && let Ok(Some(nobody)) = User::from_name("nobody")
        {
            nix::unistd::chown(dir.path(), Some(nobody.uid), Some(nobody.gid)).expect("chown");
            command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        }
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().expect("Redis is needed: run the tests with `tests/run`")
    }

    async fn ready(&mut self) {
        let port = self.port;
        eventually("Redis listens", || async move { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn stop(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Starts it again on the same port, empty.
    pub async fn again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir);
        self.ready().await;
    }
}
