//! Components that are made to cost more than they may before anything of them runs: to compile, or by their schema. They are
//! uploaded for real, and a good plugin is called all the while.

use std::{path::Path, pin::pin};

use serde_json::json;

use crate::{
    harness::{Answer, Backend, Chameleon, Client, Reply, Server, Stub, World, eventually},
    plugins::{PLUGINS, installed, runs, sink, upload},
};

/// A component with one function: so many loops, one within the other, through each of which as many variables live. In each
/// of them every variable may have another value, so that what a compiler has to know is the product of both.
fn bomb(variables: usize, loops: usize) -> Vec<u8> {
    let changed = (0..variables).map(|n| format!("local.get {n} i32.const 1 i32.add local.set {n}\n"));
    let text = format!(
        "(component (core module (func (local {}) {} {} {})))",
        "i32 ".repeat(variables),
        "loop\n".repeat(loops),
        changed.collect::<String>(),
        "local.get 0 br_if 0 end\n".repeat(loops)
    );
    wat::parse_str(text).expect("a component")
}

/// What becomes of something, while the sink is checked again and again; and how often that was done.
async fn beside<T>(client: &Client, sink: &str, going: impl Future<Output = T>) -> (T, usize) {
    let (mut going, mut checks) = (pin!(going), 0);
    loop {
        let mut check = pin!(runs(client, sink));
        let ended = tokio::select! {
            ended = &mut going => Some(ended),
            said = &mut check => {
                assert_eq!(said, "chameleon 1.0.0");
                checks += 1;
                None
            }
        };
        if let Some(ended) = ended {
            assert_eq!(check.await, "chameleon 1.0.0");
            return (ended, checks);
        }
    }
}

/// Processes that this server started and that are still there.
fn children(server: &Server) -> usize {
    let parent = |process: &Path| -> Option<u32> {
        let status = std::fs::read_to_string(process.join("stat")).ok()?;
        status.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes.filter(|process| parent(&process.path()) == Some(server.pid())).count()
}

#[tokio::test]
async fn what_takes_long_or_much_to_compile_is_refused_and_harms_nobody() {
    let world = World::start(Backend::Sqlite).await;
    let admin = world.operator().await.owner.client;
    let far = Stub::start(|_| Reply::Status(204)).await;
    installed(&admin, &Chameleon::version("1.0.0")).await;
    let good = sink(&admin, "good", None, json!({ "url": far.url })).await;
    // A few kilobytes that take minutes, and gigabytes.
    let (slow, large) = (bomb(1000, 1000), bomb(10_000, 20_000));
    for (setting, value, component) in [
        ("KAIZEN_PLUGIN_COMPILE_CPU_SECONDS", "1", &slow),
        ("KAIZEN_PLUGIN_COMPILE_SECONDS", "1", &slow),
        ("KAIZEN_PLUGIN_COMPILE_MEMORY_MIB", "2048", &large),
    ] {
        // What is installed is compiled already, so only the bomb meets the limit.
        let server = world.setup.start_beside_with(&[(setting, value)]).await;
        let admin = admin.at(&server.url);
        let parts = [("component", component.as_slice())];
        let uploading = admin.multipart(PLUGINS, &parts, &[]);
        let (answer, checks): (Answer, usize) = beside(&admin, &good, uploading).await;
        let why = answer.fault("/component");
        let name = setting.trim_start_matches("KAIZEN_").to_ascii_lowercase();
        assert!(why.contains(&format!("`{name}`")), "{setting}: {why}");
        assert!(checks > 0, "{setting}: nothing else was answered meanwhile");
        println!("{setting}: {why}; {checks} checks meanwhile");
        eventually("the process that compiled is gone", || async { (children(&server) == 0).then_some(()) }).await;
        // There is a place for the next upload.
        admin.multipart(PLUGINS, &[("component", b"no component")], &[]).await.fault("/component");
    }
    // The server that compiled the good one is well, too.
    upload(&admin, &Chameleon::version("1.0.1")).await.ok(201);
}

#[tokio::test]
async fn a_schema_that_costs_too_much_is_refused_and_harms_nobody() {
    let world = World::start(Backend::Sqlite).await;
    let admin = world.operator().await.owner.client;
    let far = Stub::start(|_| Reply::Status(204)).await;
    installed(&admin, &Chameleon::version("1.0.0")).await;
    let good = sink(&admin, "good", None, json!({ "url": far.url })).await;
    let few_bytes = |n: usize| (format!("\\w{{18}}a{n:04}"), json!(true));
    let many: serde_json::Map<_, _> = (0..200).map(few_bytes).collect();
    let behind: serde_json::Map<_, _> =
        (0..150).map(|n| (format!("p{n}"), json!({ "$ref": "#/$defs/name" }))).collect();
    let mut checks = 0;
    for (schema, expected) in [
        (json!({ "type": "object", "patternProperties": many }), "patterns"),
        (json!({ "properties": behind, "$defs": { "name": { "pattern": "^\\w{18}$" } } }), "patterns"),
        (json!({ "properties": { "a": { "pattern": "(\\p{L}x|y){900}" } } }), "pattern"),
        (json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } }), "pattern"),
    ] {
        let component =
            Chameleon::version("1.1.0").with("schema", schema).with("http", json!(["https://logs.example.com"]));
        let (answer, meanwhile) = beside(&admin, &good, upload(&admin, &component)).await;
        checks += meanwhile;
        let why = answer.fault("/component");
        assert!(why.contains("config-schema") && why.contains(expected), "expected `{expected}`: {why}");
    }
    assert!(checks > 0, "nothing else was answered meanwhile");
}
