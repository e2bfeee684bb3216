//! The bundled plugins as built: what they import, how large they are, and what the files they write look like.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    super::*,
    {attempt, binding, events, plugins},
};

/// Kaizen's interfaces are named whole, WASI's by package.
fn imports(plugin: Arc<Plugin>) -> BTreeSet<String> {
    let component = match &plugin.exports {
        Exports::IdentityProvider(pre) => pre.instance_pre().component(),
        Exports::DeploymentTarget(pre) => pre.instance_pre().component(),
        Exports::AuditSink(pre) => pre.instance_pre().component(),
    };
    component
        .component_type()
        .imports(component.engine())
        .map(|(name, _)| name.split_once('@').map_or(name, |(name, _)| name).to_owned())
        .map(|name| if name.starts_with("wasi:") { name.split('/').next().unwrap().to_owned() } else { name })
        .collect()
}

#[tokio::test]
async fn each_imports_what_it_asks_for_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    let mut named = Vec::new();
    // Rust's standard library wants these for panics and standard output.
    let every = ["kaizen:plugin/log", "kaizen:plugin/types", "wasi:cli", "wasi:io"];
    for (kind, name, more) in [
        (Kind::IdentityProvider, "oidc", &[] as &[&str]),
        (Kind::IdentityProvider, "entra", &["wasi:clocks", "wasi:http"]),
        (Kind::IdentityProvider, "okta", &[]),
        (Kind::IdentityProvider, "github", &["wasi:clocks", "wasi:http"]),
        (Kind::DeploymentTarget, "nexus", &["kaizen:plugin/progress", "wasi:clocks", "wasi:http"]),
        (Kind::DeploymentTarget, "kubernetes", &["kaizen:plugin/progress", "wasi:clocks", "wasi:http"]),
        (
            Kind::DeploymentTarget,
            "webhook",
            &["kaizen:plugin/progress", "kaizen:plugin/secrets", "wasi:clocks", "wasi:http"],
        ),
        (Kind::AuditSink, "webhook", &["kaizen:plugin/secrets", "wasi:clocks", "wasi:http"]),
        (Kind::AuditSink, "splunk-hec", &["wasi:clocks", "wasi:http"]),
        (Kind::AuditSink, "syslog", &["wasi:clocks", "wasi:sockets"]),
        (Kind::AuditSink, "file", &["wasi:clocks", "wasi:filesystem"]),
    ] {
        let expected: BTreeSet<String> = every.iter().chain(more).map(|&name| name.to_owned()).collect();
        assert_eq!(imports(plugins.find(kind, name).unwrap()), expected, "{name}");
        named.push((kind, name));
    }
    for (kind, name, wasm) in bundled() {
        assert!(named.contains(&(kind, name)), "{kind:?} {name} is not in the list above");
        assert!(wasm.len() < 400 * 1024, "{name} has grown to {} bytes", wasm.len());
    }
}

#[tokio::test]
async fn a_file_is_appended_to_and_begun_anew_when_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = plugins(folder.path(), &[]).await;
    let sink = binding("file", json!({ "rotate_megabytes": 1 }), &[]);
    let own = folder.path().join(format!("{}/{}", sink.organization_id, sink.connection_id));
    let current = own.join(format!("audit-{}.jsonl", sink.connection_id));

    assert_eq!(plugins.deliver(&sink, &attempt(), &events(2)).await.unwrap(), 2);
    std::fs::write(&current, [std::fs::read(&current).unwrap(), b"{\"cut short".to_vec()].concat()).unwrap();
    assert_eq!(plugins.deliver(&sink, &attempt(), &events(3)).await.unwrap(), 3);
    let lines = std::fs::read_to_string(&current).unwrap();
    assert_eq!(lines.lines().count(), 2 + 1 + 3, "{lines}");
    assert_eq!(lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).count(), 5);
    let event: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&event["sequence"], &event["outcome"]), (&json!(3), &json!("success")));

    std::fs::write(&current, vec![b'\n'; 1_000_000]).unwrap();
    assert_eq!(plugins.deliver(&sink, &attempt(), &events(1)).await.unwrap(), 1);
    assert_eq!(std::fs::read_to_string(&current).unwrap().lines().count(), 1);
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 2);
}
