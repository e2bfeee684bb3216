//! The real HAProxy and nginx in front of servers of ours, configured as `host/docs/operations.md` shows.

use std::process::Stdio;

use nix::unistd::{User, geteuid};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::{eventually, free_port};

const DOCUMENTATION: &str = include_str!("../../../host/docs/operations.md");

/// A proxy; ended when dropped.
pub struct Balancer {
    _child: Child,
    /// Where clients reach the servers behind it.
    pub url: String,
    dir: tempfile::TempDir,
}

/// A block of code of the documentation, by its language.
fn snippet(language: &str) -> &'static str {
    let (_, rest) = DOCUMENTATION.split_once(&format!("```{language}\n")).expect("the documentation shows it");
    rest.split_once("```").expect("its end").0
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "`{from}` is not in the documentation's configuration:\n{text}");
    text.replace(from, to)
}

/// A host and port of an address.
fn authority(url: &str) -> &str {
    url.trim_start_matches("http://")
}

impl Balancer {
    /// HAProxy in front of these servers, each by the addresses of its API and of its operators' listener, as documented;
    /// `edit` changes the configuration.
    pub async fn haproxy(servers: &[(&str, &str)], edit: impl Fn(String) -> String) -> Self {
        let port = free_port();
        let lines = servers.iter().enumerate().map(|(number, (api, ops))| {
            let (_, ops_port) = authority(ops).rsplit_once(':').expect("a port");
            format!("server s{number} {} check port {ops_port}", authority(api))
        });
        let lines: Vec<_> = lines.collect();
        let config = replaced(snippet("haproxy"), "bind :80", &format!("bind 127.0.0.1:{port}"));
        let config = replaced(&config, "server one 127.0.0.1:8080 check port 9090", &lines.join("\n    "));
        let program = std::env::var("KZTEST_HAPROXY").unwrap_or_else(|_| "haproxy".into());
        Self::start(&program, &["-db", "-f"], port, &format!("global\n    maxconn 2000\n\n{}", edit(config))).await
    }

    /// nginx in front of a server, as documented.
    pub async fn nginx(api: &str) -> Self {
        let port = free_port();
        let config = replaced(snippet("nginx"), "listen 80", &format!("listen 127.0.0.1:{port}"));
        let config = replaced(&config, "127.0.0.1:8080", authority(api));
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path FOLDER/{name};\n"))
            .collect();
        let config = format!(
            "daemon off;\nworker_processes 1;\npid FOLDER/pid;\nerror_log FOLDER/error.log;\nevents {{ worker_connections 1024; }}\n\
             http {{\naccess_log off;\n{paths}{config}}}\n"
        );
        let program = std::env::var("KZTEST_NGINX").unwrap_or_else(|_| "nginx".into());
        Self::start(&program, &["-e", "stderr", "-c"], port, &config).await
    }

    async fn start(program: &str, args: &[&str], port: u16, config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("kztest-proxy-").tempdir().expect("a folder");
        let file = dir.path().join("config");
        std::fs::write(&file, config.replace("FOLDER", &dir.path().display().to_string())).expect("written");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut command = Command::new(program);
        command.args(args).arg(&file).current_dir(dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        if geteuid().is_root()
            && let Ok(Some(nobody)) = User::from_name("nobody")
        {
            nix::unistd::chown(dir.path(), Some(nobody.uid), Some(nobody.gid)).expect("chown");
            command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        }
        let child = command.kill_on_drop(true).spawn();
        let child =
            child.unwrap_or_else(|error| panic!("{program} is needed: run the tests with `tests/run` ({error})"));
        let balancer = Self { _child: child, url: format!("http://127.0.0.1:{port}"), dir };
        eventually("the proxy listens", || async move { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("---- the proxy's log\n{log}");
        }
    }
}
