//! What others make of the OpenAPI document: linters, generators of clients, and a fuzzer that takes it at its word.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    harness::{Backend, Gateway, KEY, PASSWORD, Setup, World},
    isolation::{aimed, one_of_everything},
};

/// `tests/openapi` of the checkout.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi")
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/openapi.json")
}

/// The Node packages and the Python programs of `tests/openapi`, which `tests/run` gets.
fn tools() -> PathBuf {
    std::env::var_os("KZTEST_OPENAPI_TOOLS").expect("run the tests with `tests/run`, which gets the tools").into()
}

fn python(program: &str) -> Command {
    Command::new(tools().join("venv/bin").join(program))
}

fn node(package: &str, file: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(tools().join("node_modules").join(package).join(file));
    command
}

/// What it printed; fails with all of it unless it succeeds.
async fn run(command: &mut Command) -> String {
    let program = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

#[tokio::test]
async fn redocly_finds_nothing() {
    let config = folder().join("redocly.yaml");
    let mut lint = node("@redocly/cli", "bin/cli.js");
    lint.arg("lint")
        .arg(document())
        .arg("--config")
        .arg(config)
        .args(["--format", "json"])
        .env("REDOCLY_TELEMETRY", "off");
    let found: Value = serde_json::from_str(&run(lint.env("CI", "true")).await).expect("JSON");
    assert_eq!(found["problems"], Value::Array(Vec::new()), "{found:#}");
}

#[tokio::test]
async fn spectral_finds_nothing() {
    let rules = folder().join("spectral.yaml");
    let mut lint = node("@stoplight/spectral-cli", "dist/index.js");
    lint.arg("lint").arg(document()).arg("--ruleset").arg(rules).args([
        "--fail-severity",
        "warn",
        "--format",
        "json",
        "--quiet",
    ]);
    let found: Value = serde_json::from_str(&run(&mut lint).await).expect("JSON");
    assert_eq!(found, Value::Array(Vec::new()), "{found:#}");
}

/// Runs a program that plays the main job, and checks what it tells.
async fn plays_the_main_job(program: &mut Command) {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let gateway = Gateway::start().await;
    let settings = [
        ("BASE_URL", world.server.url.as_str()),
        ("EMAIL", tenant.owner.email.as_str()),
        ("PASSWORD", PASSWORD),
        ("GATEWAY_URL", gateway.stub.url.as_str()),
        ("GATEWAY_KEY", KEY),
    ];
    let told: Value = serde_json::from_str(&run(program.envs(settings)).await).expect("JSON");
    assert_eq!(told["user"], tenant.owner.id, "{told}");
    assert_eq!(told["status"], "active", "{told}");
    assert_eq!(gateway.agents().len(), 1);
    let actions: Vec<&str> = told["actions"].as_array().expect("actions").iter().filter_map(Value::as_str).collect();
    for action in ["workspace.create", "agent.create", "agent.update", "gateway.create", "agent.deploy"] {
        assert_eq!(actions.iter().filter(|seen| **seen == action).count(), 1, "{action}: {actions:?}");
    }
}

#[tokio::test]
async fn a_generated_typescript_client_plays_the_main_job() {
    let project = TempDir::new().expect("a folder");
    for file in ["client.ts", "tsconfig.json", "package.json"] {
        std::fs::copy(folder().join(file), project.path().join(file)).expect("a file to copy");
    }
    std::os::unix::fs::symlink(tools().join("node_modules"), project.path().join("node_modules")).expect("a link");
    run(node("openapi-typescript", "bin/cli.js").arg(document()).args(["-o", "api.ts"]).current_dir(&project)).await;
    run(node("typescript", "bin/tsc").args(["-p", "."]).current_dir(&project)).await;
    plays_the_main_job(Command::new("node").arg("out/client.js").current_dir(&project)).await;
}

#[tokio::test]
async fn a_generated_python_client_plays_the_main_job() {
    let project = TempDir::new().expect("a folder");
    std::fs::copy(folder().join("client.py"), project.path().join("client.py")).expect("a file to copy");
    let mut generate = python("openapi-python-client");
    generate.arg("generate").arg("--path").arg(document()).arg("--config").arg(folder().join("python-client.yaml"));
    // A warning is a part of the API that it leaves out.
    generate.args(["--meta", "none", "--output-path", "kaizen_client", "--fail-on-warning"]).current_dir(&project);
    run(&mut generate).await;
    run(python("mypy").args(["--strict", "--follow-imports=silent", "client.py"]).current_dir(&project)).await;
    plays_the_main_job(python("python").arg("client.py").current_dir(&project)).await;
}

/// Requests that the document allows and that it does not, at every operation, and all of schemathesis's checks of the answers.
#[tokio::test]
async fn schemathesis_finds_nothing_that_is_not_exempt() {
    let setup = Setup::new(Backend::Sqlite).await;
    // One client asks for everything.
    let setup = setup.with("KAIZEN_REQUESTS_PER_CLIENT", "4096");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let gateway = Gateway::start().await;
    let ids = one_of_everything(&tenant, &gateway).await;
    let project = TempDir::new().expect("a folder");
    let mut config = std::fs::read_to_string(folder().join("schemathesis.toml")).expect("the configuration");
    let described: Value =
        serde_json::from_str(&std::fs::read_to_string(document()).expect("the document")).expect("JSON");
    for path in described["paths"].as_object().expect("paths").keys() {
        let other = ["/auth/sso/", "/ws/", "/api/v1/plugins"].iter().any(|other| path.starts_with(other));
        // What is set here takes the place of what the tool makes up, and the tool does not know: with two ids, it takes the answer to
        // ours for that to one of its own.
        let other = other || path.matches('{').count() > 1;
        let Some(real) = (!other).then(|| aimed(path, &ids)).flatten() else { continue };
        let named = path.split('/').zip(real.split('/')).filter(|(name, _)| name.starts_with('{'));
        let parameters: Vec<String> =
            named.map(|(name, value)| format!("\"path.{}\" = \"{value}\"", name.trim_matches(['{', '}']))).collect();
        config +=
            &format!("\n[[operations]]\ninclude-path = \"{path}\"\nparameters = {{ {} }}\n", parameters.join(", "));
    }
    std::fs::write(project.path().join("schemathesis.toml"), config).expect("room");
    let examples = std::env::var("KZTEST_EXAMPLES").unwrap_or_else(|_| "3".to_owned());
    let mut fuzz = python("schemathesis");
    fuzz.arg("run").arg(document()).args(["--url", &world.server.url, "--checks", "all", "--max-examples", &examples]);
    fuzz.args(["--header", &format!("Authorization: Bearer {}", tenant.owner.token.as_deref().expect("a token"))]);
    fuzz.args(["--phases", "examples,coverage,fuzzing", "--no-color"]).current_dir(&project);
    run(&mut fuzz).await;
}
