//! `kaizen plugin`: projects that build and pass their own check, and a kit that tells good plugins from bad ones.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::process::Command;

use super::guide;
use crate::harness::binary;

/// Building one plugin takes half a minute on an idle machine; several are built at once.
const PATIENCE: Duration = Duration::from_secs(540);

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// What a command came to.
struct Ran {
    success: bool,
    stdout: String,
    stderr: String,
}

/// A command in a folder, as an author has it: `kaizen` on the path, none of the tests' settings.
fn command(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KAIZEN_") {
            command.env_remove(name);
        }
    }
    let kaizen = binary();
    let beside = kaizen.parent().expect("a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(beside.clone()).chain(std::env::split_paths(&path)));
    command.env("PATH", path.expect("a path"));
    // Packages are fetched and built once for all tests, and what is compiled is kept.
    let shared = beside.join("plugin-authoring");
    command
        .env("CARGO_TARGET_DIR", shared.join("cargo"))
        .env("KAIZEN_DATA_DIR", shared.join("data"))
        .env("npm_config_prefer_offline", "true")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn finish(mut command: Command) -> Ran {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").expect("output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

async fn kaizen(folder: &Path, arguments: &[&str]) -> Ran {
    let mut command = command(binary(), folder);
    command.args(arguments);
    finish(command).await
}

async fn passes(folder: &Path, arguments: &[&str]) -> String {
    let ran = kaizen(folder, arguments).await;
    assert!(ran.success, "kaizen {}\n{}\n{}", arguments.join(" "), ran.stdout, ran.stderr);
    ran.stdout
}

async fn fails(folder: &Path, arguments: &[&str]) -> String {
    let ran = kaizen(folder, arguments).await;
    assert!(!ran.success, "kaizen {} should fail\n{}", arguments.join(" "), ran.stdout);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    format!("{}{}", ran.stdout, ran.stderr)
}

/// Runs a script that stops at the first failure, and everything it started with it. Returns what it printed.
pub async fn shell(script: &str, folder: &Path, environment: &[(&str, &str)]) -> String {
    let mut bash = command("bash", folder);
    bash.env_remove("KAIZEN_DATA_DIR");
    // Whatever it leaves in the background ends with it.
    let script = format!(
        "set -euo pipefail\ntrap 'status=$?; kill $(jobs -p) 2> /dev/null || true; wait || true; exit $status' EXIT\n{script}"
    );
    bash.arg("-c").arg(script).envs(environment.iter().copied());
    let ran = finish(bash).await;
    let log = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(20).collect();
    assert!(ran.success, "{}\n{}\n---- server\n{}", ran.stdout, ran.stderr, tail.join("\n"));
    ran.stdout
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("kztest-authoring-").tempdir().expect("a folder")
}

/// Puts the packages that `tests/run` has fetched where a build would fetch them to.
fn with_packages(project: &Path) {
    let Some(tools) = std::env::var_os("KZTEST_PLUGIN_TOOLS").map(PathBuf::from) else { return };
    let (from, to) = if project.join("package.json").is_file() {
        (tools.join("node_modules"), project.join("node_modules"))
    } else {
        (tools.join("venv"), project.join(".venv"))
    };
    std::os::unix::fs::symlink(from, to).expect("a link");
}

/// Runs a project's unit tests as its own page says.
async fn unit_tests(project: &Path) {
    let page = guide::blocks(&project.join("README.md"));
    let block = page.iter().find(|block| !block.contains("kaizen plugin")).expect("how to run them");
    shell(block, project, &[]).await;
}

/// A new project of a kind in a language builds, passes its check, and does well in the kit.
async fn as_it_is(language: &str, kind: &str) {
    let folder = folder();
    let name = format!("{language}-{kind}");
    passes(folder.path(), &["plugin", "new", "--kind", kind, "--language", language, &name]).await;
    if language != "rust" {
        with_packages(&folder.path().join(&name));
    }
    passes(folder.path(), &["plugin", "build", &name]).await;
    unit_tests(&folder.path().join(&name)).await;
    let wasm = format!("{name}/dist/{name}.wasm");
    let checked: Value =
        serde_json::from_str(&passes(folder.path(), &["plugin", "check", "--json", &wasm]).await).expect("JSON");
    assert_eq!(checked["kind"], kind.replace('-', "_"));
    assert_eq!(checked["manifest"]["name"], name);
    let table = passes(folder.path(), &["plugin", "test", &wasm, "--junit", "out.xml"]).await;
    assert!(table.contains("0 wrong") && table.contains("good answers"), "{table}");
    let xml = std::fs::read_to_string(folder.path().join("out.xml")).expect("XML");
    assert!(xml.contains("<testsuite") && xml.contains("failures=\"0\""), "{xml}");
}

#[tokio::test]
async fn build_says_what_is_missing_and_what_is_wrong() {
    let folder = folder();
    for (language, tool) in [("rust", "rustc"), ("typescript", "node"), ("python", "python3")] {
        passes(folder.path(), &["plugin", "new", "--kind", "audit-sink", "--language", language, language]).await;
        let mut command = command(binary(), folder.path());
        command.args(["plugin", "build", language]).env("PATH", folder.path());
        let ran = finish(command).await;
        let expected = format!("`{tool}` is not here: install");
        assert!(!ran.success && ran.stderr.contains(&expected), "{language}: {}", ran.stderr);
    }
    // A mistake of the author's is not told to be one of the machine's.
    let project = folder.path().join("typescript");
    with_packages(&project);
    std::fs::write(project.join("src/plugin.ts"), "export const sink: number = 'x';\n").expect("written");
    let why = fails(folder.path(), &["plugin", "build", "typescript"]).await;
    assert!(why.contains("src/plugin.ts") && why.contains("stands above") && !why.contains("nodejs.org"), "{why}");
}

macro_rules! as_it_is {
    ($($name:ident: $language:literal $kind:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            as_it_is($language, $kind).await;
        }
    )*};
}

// The audit sinks are built by the guide's tests.
as_it_is! {
    a_new_target_in_rust_builds_and_passes: "rust" "deployment-target";
    a_new_provider_in_rust_builds_and_passes: "rust" "identity-provider";
    a_new_target_in_typescript_builds_and_passes: "typescript" "deployment-target";
    a_new_provider_in_typescript_builds_and_passes: "typescript" "identity-provider";
    a_new_target_in_python_builds_and_passes: "python" "deployment-target";
    a_new_provider_in_python_builds_and_passes: "python" "identity-provider";
}

/// The examples build as their page says, and do as well as the bundled sink.
async fn example(at: usize, name: &str) {
    let folder = folder();
    let examples = repository().join("plugins/examples");
    let block = guide::blocks(&examples.join("README.md")).into_iter().nth(at).expect("a block for each");
    assert!(block.contains(name), "{block}");
    let block = block.replace("kaizen plugin build", "link\nkaizen plugin build");
    let link = match std::env::var("KZTEST_PLUGIN_TOOLS") {
        Ok(tools) if name.ends_with("typescript") => {
            format!("link() {{ ln -s {tools}/node_modules {name}/node_modules; }}\n")
        }
        Ok(tools) => format!("link() {{ ln -s {tools}/venv {name}/.venv; }}\n"),
        Err(_) => "link() { :; }\n".to_owned(),
    };
    shell(&(link + &block), folder.path(), &[("EXAMPLES", &examples.display().to_string())]).await;
    let wasm = format!("{name}/dist/{name}.wasm");
    let table = passes(folder.path(), &["plugin", "test", &wasm]).await;
    assert!(table.contains("0 wrong") && table.contains("3 of 3 events stored"), "{table}");
}

#[tokio::test]
async fn the_example_in_typescript_builds_and_passes() {
    example(0, "webhook-typescript").await;
}

#[tokio::test]
async fn the_example_in_python_builds_and_passes() {
    example(1, "webhook-python").await;
}

#[tokio::test]
async fn every_bundled_plugin_does_well_in_the_kit() {
    let folder = folder();
    let all = fails(folder.path(), &["plugin", "inspect", "no-such-plugin"]).await;
    let (_, names) = all.rsplit_once('(').expect("the names");
    let names: Vec<&str> = names.trim_end().trim_end_matches(')').split(", ").collect();
    assert!(names.len() >= 4, "{all}");
    // A few at once: each has a slow far side to wait for.
    for few in names.chunks(4) {
        let tests = few.iter().map(|name| {
            let folder = folder.path();
            async move { (*name, passes(folder, &["plugin", "test", name, "--patience", "12"]).await) }
        });
        for (name, table) in futures::future::join_all(tests).await {
            assert!(table.contains("good answers") && table.contains("0 wrong"), "{name}\n{table}");
            // A table in which the far side was never asked says nothing.
            if !name.starts_with("identity_provider/") && name != "audit_sink/file" {
                assert!(table.contains("no connection") && table.contains("unavailable"), "{name}\n{table}");
            }
        }
    }
}

/// Nothing may leave the machine, and the port of the real thing is seldom free here.
#[tokio::test]
async fn a_far_side_named_by_address_is_played_here() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    std::fs::write(folder.path().join("c.json"), format!(r#"{{"host": "192.0.2.7", "port": {port}}}"#))
        .expect("written");
    let table = passes(folder.path(), &["plugin", "test", "syslog", "--config", "c.json", "--patience", "12"]).await;
    assert!(table.contains(&format!("tcp://192.0.2.7:{port} by 127.0.0.1:")), "it says so: {table}");
    assert!(table.contains("3 of 3 events stored") && table.contains("refuses connections"), "{table}");
}

/// A connection's own configuration with the answers of the bundled case.
#[tokio::test]
async fn a_bundled_plugin_is_tested_with_a_configuration_of_ones_own() {
    let folder = folder();
    let config = r#"{"url": "https://splunk.example.net:8088"}"#;
    std::fs::write(folder.path().join("c.json"), config).expect("written");
    let table = passes(folder.path(), &["plugin", "test", "splunk-hec", "--config", "c.json", "--patience", "8"]).await;
    assert!(table.contains("splunk.example.net") && table.contains("3 of 3 events stored"), "{table}");
}

#[tokio::test]
async fn what_is_no_plugin_is_refused_and_still_shown() {
    let folder = folder();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
    write("text.wasm", b"not wasm at all");
    write("module.wasm", b"\0asm\x01\0\0\0");
    write("empty.wasm", b"\0asm\x0d\0\x01\0");
    write("cut.wasm", b"\0asm\x0d\0\x01\0\x04\xff\x01\0as");
    for name in ["text.wasm", "module.wasm", "empty.wasm", "cut.wasm"] {
        let why = fails(folder.path(), &["plugin", "check", name]).await;
        assert!(why.contains(name), "it says which: {why}");
    }
    assert!(fails(folder.path(), &["plugin", "check", "."]).await.contains("kaizen plugin build"));
    assert!(fails(folder.path(), &["plugin", "inspect", "text.wasm"]).await.contains("not WebAssembly"));
    assert!(passes(folder.path(), &["plugin", "inspect", "module.wasm"]).await.contains("core module"));
    assert!(passes(folder.path(), &["plugin", "inspect", "empty.wasm"]).await.contains("component, 8 bytes"));
    assert!(passes(folder.path(), &["plugin", "inspect", "cut.wasm"]).await.contains("breaks off"));
    let inside = passes(folder.path(), &["plugin", "inspect", "--wit", "audit_sink/webhook"]).await;
    assert!(inside.contains("export kaizen:audit-sink/sink@0.1.0;") && inside.contains("record event"), "{inside}");
}

#[tokio::test]
async fn check_says_what_this_server_would_grant() {
    let folder = folder();
    let shown = passes(folder.path(), &["plugin", "check", "audit_sink/webhook"]).await;
    for expected in ["signing-key", "{config.url}", "wasi:http/outgoing-handler", "kaizen:audit-sink/sink@0.1.0"] {
        assert!(shown.contains(expected), "{expected} in:\n{shown}");
    }
    let config = r#"{"url": "not an address"}"#;
    std::fs::write(folder.path().join("c.json"), config).expect("written");
    let why = fails(folder.path(), &["plugin", "test", "audit_sink/webhook", "--config", "c.json"]).await;
    assert!(why.contains("/config/url"), "{why}");
}
