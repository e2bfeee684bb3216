//! The real rsyslog, private to a test: takes RFC 5424 over TCP, parses it, and writes what it understood as JSON lines.

use std::process::Stdio;

use nix::unistd::{User, geteuid};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::{eventually, free_port};

/// What it writes for each message. `$!` has the structured data, as its own parser (mmpstrucdata) reads it.
const TEMPLATE: &str = r#"template(name="line" type="list" option.jsonf="on") {
  property(outname="pri" name="pri" format="jsonf")
  property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
  property(outname="host" name="hostname" format="jsonf")
  property(outname="app" name="app-name" format="jsonf")
  property(outname="msgid" name="msgid" format="jsonf")
  property(outname="msg" name="msg" format="jsonf")
  property(outname="data" name="$!all-json" format="jsonf")
}"#;

pub struct Rsyslog {
    child: Child,
    pub port: u16,
    dir: tempfile::TempDir,
}

impl Rsyslog {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kztest-rsyslog-").tempdir().expect("a folder");
        let port = free_port();
        let folder = dir.path().display();
        let config = format!(
            r#"global(workDirectory="{folder}" maxMessageSize="64k" processInternalMessages="off")
module(load="imtcp")
module(load="mmpstrucdata")
{TEMPLATE}
ruleset(name="all") {{
  action(type="mmpstrucdata")
  action(type="omfile" file="{folder}/messages" template="line")
}}
input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="all")
"#
        );
        std::fs::write(dir.path().join("rsyslog.conf"), config).expect("written");
        let mut rsyslog = Self { child: Self::spawn(&dir), port, dir };
        rsyslog.ready().await;
        rsyslog
    }

    fn spawn(dir: &tempfile::TempDir) -> Child {
        let program = std::env::var("KZTEST_RSYSLOGD").unwrap_or_else(|_| "rsyslogd".into());
        let file = |name: &str| dir.path().join(name).display().to_string();
        let mut command = Command::new(program);
        command.args(["-n", "-C", "-f", &file("rsyslog.conf"), "-i", &file("pid")]);
        if geteuid().is_root()
            && let Ok(Some(nobody)) = User::from_name("nobody")
        {
            nix::unistd::chown(dir.path(), Some(nobody.uid), Some(nobody.gid)).expect("chown");
            command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        }
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().expect("rsyslog is needed: run the tests with `tests/run`")
    }

    async fn ready(&mut self) {
        let port = self.port;
        eventually("rsyslog listens", || async move { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
    }

    /// Ends it at once.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Starts it again, on the same port and file.
    pub async fn again(&mut self) {
        self.child = Self::spawn(&self.dir);
        self.ready().await;
    }

    /// What it has understood so far, in the order of arrival.
    pub fn messages(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("messages")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}
