//! Ports, a connection that can be cut, and a Redis that can be stopped.

use std::{process::Stdio, sync::Arc};

use nix::unistd::{User, geteuid};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
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

/// What a [`Proxy`] does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// Nothing is forwarded, and nothing is closed.
    Frozen,
    Cut,
}

/// Forwards a port of its own to another one, until frozen or cut.
pub struct Proxy {
    pub port: u16,
    flow: Arc<watch::Sender<Flow>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("bound").port();
        let flow = Arc::new(watch::Sender::new(Flow::Open));
        let state = flow.clone();
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let watching = state.subscribe();
                if *watching.borrow() != Flow::Cut {
                    tokio::spawn(forward(from, port, watching));
                }
            }
        });
        Self { port: own, flow, task }
    }

    /// Ends all connections and lets no new one through.
    pub fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    /// As if the program behind it were stopped, or the network away: connections stay, and say nothing; new ones as well.
    pub fn freeze(&self) {
        self.flow.send_replace(Flow::Frozen);
    }

    pub fn restore(&self) {
        self.flow.send_replace(Flow::Open);
    }
}

async fn forward(mut from: TcpStream, port: u16, mut watching: watch::Receiver<Flow>) {
    if watching.wait_for(|flow| *flow != Flow::Frozen).await.is_err() {
        return;
    }
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let copying = copy_bidirectional(&mut from, &mut to);
    tokio::pin!(copying);
    loop {
        tokio::select! {
            biased;
            changed = watching.wait_for(|flow| *flow != Flow::Open) => if changed.is_err() { return },
            _ = &mut copying => return,
        }
        match watching.wait_for(|flow| *flow != Flow::Frozen).await.map(|flow| *flow) {
            Ok(Flow::Open) => {}
            _ => return,
        }
    }
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
