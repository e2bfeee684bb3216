//! The real binary: started, asked, killed, and started again on the same data.

use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use super::{Backend, Cluster, Database, eventually, free_port, within};

/// The same for all tests, and in `tests/run`.
pub const MASTER_KEY: &str = "7465737473746573747374657374737465737473746573747374657374737465";

/// Settings and data that servers are started with, one after the other or several at once.
pub struct Setup {
    pub database: Database,
    env: BTreeMap<String, String>,
    /// The command that the binary is run by, with its arguments; none for the binary itself.
    wrapper: Vec<String>,
    starts: AtomicU32,
    dir: TempDir,
}

/// What a command of the binary's answered.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A running `kaizen serve`; killed when dropped.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// Where metrics and health are.
    pub ops: String,
    log: PathBuf,
    _setup: Arc<Setup>,
}

/// The binary: `KZTEST_KAIZEN`, or the one built beside the tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KZTEST_KAIZEN") {
        return PathBuf::from(path);
    }
    let here = std::env::current_exe().expect("the path of this test");
    let built = here.parent().and_then(Path::parent).expect("target folder").join("kaizen");
    assert!(built.is_file(), "{} is missing: run the tests with `tests/run`", built.display());
    built
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("kztest-").tempdir().expect("a temporary folder")
}

impl Setup {
    /// A fresh database and data folder, and free ports.
    pub async fn new(backend: Backend) -> Self {
        let dir = folder();
        let database = Database::fresh(backend, dir.path()).await;
        Self::build(dir, database)
    }

    /// The same on a PostgreSQL of the test's own.
    pub fn on(cluster: &Cluster) -> Self {
        Self::build(folder(), Database::of(cluster))
    }

    fn build(dir: TempDir, database: Database) -> Self {
        let setup = Self { database, env: BTreeMap::new(), wrapper: Vec::new(), starts: AtomicU32::new(0), dir };
        setup.take_compiled();
        let (data, url) = (setup.data_dir().display().to_string(), setup.database.url.clone());
        // The same address after a restart, and the same issuer of tokens on every host.
        let address = format!("127.0.0.1:{}", free_port());
        setup
            .with("KAIZEN_PUBLIC_URL", format!("http://{address}"))
            .with("KAIZEN_LISTEN", address)
            .with("KAIZEN_OPS_LISTEN", "127.0.0.1:0")
            .with("KAIZEN_AUDIT_DIR", format!("{data}/audit"))
            .with("KAIZEN_DATA_DIR", data)
            .with("KAIZEN_DATABASE_URL", url)
            .with("KAIZEN_DATABASE_CONNECTIONS", "6")
            // Tests check until something holds.
            .with("KAIZEN_PLUGIN_CHECKS_PER_MINUTE", "10000")
            .with("KAIZEN_MASTER_KEY", MASTER_KEY)
            .with("KAIZEN_EGRESS_ALLOW_PRIVATE", "127.0.0.0/8")
            .with("KAIZEN_LOG", "info")
    }

    /// Plugins that `tests/run` had compiled under the same master key: seconds less for each server.
    fn take_compiled(&self) {
        let Some(from) = std::env::var_os("KZTEST_COMPILED").map(PathBuf::from) else { return };
        let to = self.data_dir().join("compiled");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&to).expect("a folder");
        for file in std::fs::read_dir(from).expect("KZTEST_COMPILED").filter_map(Result::ok) {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
    }

    /// With one more setting, or another value for one.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Without a setting.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// With the binary run by a command that puts itself out of the way, as `env` does.
    #[must_use]
    pub fn run_by(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The folder of the test: the server's working folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, args: &[&str]) -> Command {
        let binary = binary();
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, own)) => {
                let mut command = Command::new(wrapper);
                command.args(own).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KAIZEN_") {
                command.env_remove(name);
            }
        }
        command.env_remove("RUST_LOG").envs(&self.env).args(args).current_dir(self.dir.path()).kill_on_drop(true);
        command
    }

    /// Starts a command, which is killed with what is returned.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::null()).spawn().expect("kaizen starts")
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str], stdin: &str) -> Ran {
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kaizen starts");
        let mut input = child.stdin.take().expect("piped");
        // A command that reads no input may have closed it.
        input.write_all(stdin.as_bytes()).await.ok();
        drop(input);
        let ending = tokio::time::timeout(std::time::Duration::from_secs(120), child.wait_with_output());
        let output =
            ending.await.unwrap_or_else(|_| panic!("`kaizen {}` does not end", args.join(" "))).expect("output");
        Ran {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command to its end on a terminal; returns everything that came there, as it came.
    pub async fn run_on_a_terminal(&self, args: &[&str]) -> (ExitStatus, String) {
        let inner = self.command(args);
        let quote = |part: &std::ffi::OsStr| format!("'{}'", part.to_string_lossy().replace('\'', r"'\''"));
        let line: Vec<String> =
            std::iter::once(inner.as_std().get_program()).chain(inner.as_std().get_args()).map(quote).collect();
        // A terminal of util-linux's making, which Debian always has.
        let mut script = Command::new("script");
        for (name, value) in inner.as_std().get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        script.args(["-qec", &format!("stty cols 100 rows 40; exec {}", line.join(" ")), "/dev/null"]);
        script.env("TERM", "xterm-256color").current_dir(self.dir.path()).stdin(Stdio::null()).kill_on_drop(true);
        let ending = tokio::time::timeout(std::time::Duration::from_secs(120), script.output());
        let output = ending.await.expect("it ends").expect("`script` is needed, of util-linux");
        (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command and kills it (`SIGKILL`) after this long; whether it had come to its end.
    pub async fn cut_short(&self, args: &[&str], after: std::time::Duration) -> bool {
        let mut child = self.command(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("kaizen starts");
        if tokio::time::timeout(after, child.wait()).await.is_ok() {
            return true;
        }
        child.start_kill().ok();
        child.wait().await.expect("its end");
        false
    }

    /// Starts `kaizen serve` and waits until it is ready.
    pub async fn start(self: &Arc<Self>) -> Server {
        self.start_with(&[]).await
    }

    /// Starts one more host beside the first, on a port of its own.
    pub async fn start_beside(self: &Arc<Self>) -> Server {
        self.start_with(&["--listen", "127.0.0.1:0"]).await
    }

    /// The same with flags behind `serve`.
    pub async fn start_with(self: &Arc<Self>, flags: &[&str]) -> Server {
        self.launch(flags, &[]).await
    }

    /// On a port of its own, with other settings than the ones before.
    pub async fn start_beside_with(self: &Arc<Self>, settings: &[(&str, &str)]) -> Server {
        self.launch(&["--listen", "127.0.0.1:0"], settings).await
    }

    async fn launch(self: &Arc<Self>, flags: &[&str], settings: &[(&str, &str)]) -> Server {
        let log = self.dir.path().join(format!("server-{}.log", self.starts.fetch_add(1, Ordering::Relaxed)));
        let stderr = std::fs::File::create(&log).expect("a log");
        let mut args = vec!["serve"];
        args.extend_from_slice(flags);
        let stdout = stderr.try_clone().expect("a log");
        let mut command = self.command(&args);
        command.envs(settings.iter().copied()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().expect("kaizen starts");
        let mut server = Server { child, url: String::new(), ops: String::new(), log, _setup: self.clone() };
        let (url, ops) = server.announced(!flags.contains(&"worker")).await;
        (server.url, server.ops) = (url, ops);
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        eventually("the server is ready", || async {
            let answer = http.get(format!("{}/readyz", server.ops)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        server
    }
}

impl Ran {
    /// What it printed, as JSON.
    pub fn json(&self) -> serde_json::Value {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.stdout))
    }

    /// The one line of a refusal: asserts that it failed, in one line, without a backtrace.
    pub fn refusal(&self) -> String {
        assert!(!self.status.success(), "it should have failed: {}{}", self.stdout, self.stderr);
        assert!(self.status.code().is_some(), "it was killed: {:?}", self.status);
        let line = self.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("stack backtrace"), "{}", self.stderr);
        line
    }
}

impl Server {
    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The two addresses it says it listens on; a host that only works has but the second.
    async fn announced(&mut self, api: bool) -> (String, String) {
        let log = self.log.clone();
        let read = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let url = if api { address(&text, "listening on ")? } else { String::new() };
            Some((url, address(&text, "ops on ")?))
        };
        let child = &mut self.child;
        let waiting = async {
            let mut pace = tokio::time::interval(std::time::Duration::from_millis(20));
            loop {
                tokio::select! {
                    _ = pace.tick() => if let Some(found) = read() { return Ok(found) },
                    status = child.wait() => return Err(status),
                }
            }
        };
        match tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await {
            Ok(Ok(found)) => found,
            Ok(Err(status)) => panic!("the server ended at its start: {status:?}"),
            Err(_) => panic!("the server does not say where it listens"),
        }
    }

    /// `SIGKILL`: nothing is flushed, nobody is told.
    pub async fn kill(&mut self) {
        self.child.start_kill().expect("it runs");
        self.child.wait().await.expect("its end");
    }

    /// `SIGTERM`, and how it ended.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.stop_status().await
    }

    /// How it ended, once it has been asked to.
    pub async fn stop_status(&mut self) -> ExitStatus {
        within("the server stops", self.child.wait()).await.expect("its end")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.pid();
        kill(Pid::from_raw(i32::try_from(id).expect("a process id")), signal).expect("a signal");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.start_kill().ok();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("---- {} ({})", self.log.display(), self.url);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The address behind a word, wherever in the line and however the log is formatted.
fn address(text: &str, word: &str) -> Option<String> {
    let at = text.find(&format!("{word}http://"))? + word.len();
    let rest = text.get(at..)?;
    // The whole line must have been written.
    let line = rest.get(..rest.find('\n')?)?;
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || ".:/[]-".contains(c))).unwrap_or(line.len());
    Some(line.get(..end)?.trim_end_matches('/').to_owned())
}
