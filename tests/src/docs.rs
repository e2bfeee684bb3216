//! The page that describes the API, in a real browser.

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Backend, World};

/// Chromium on a busy machine takes seconds to start; this is for when it never does.
const PATIENCE: Duration = Duration::from_secs(150);

#[tokio::test]
async fn the_documentation_shows_every_operation_and_asks_no_other_host() {
    let world = World::start(Backend::Sqlite).await;
    let chromium = std::env::var("KZTEST_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/docs.mjs");
    let browser = Command::new("node")
        .arg(script)
        .args([chromium, format!("{}/api/docs/", world.server.url), "studio.example.test".to_owned()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(PATIENCE, browser).await.expect("the browser ends").expect("Node.js is needed");
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "run the tests with `tests/run`, which gets Chromium: {stdout}{stderr}");
    let seen: Value = serde_json::from_str(&stdout).expect("JSON");

    let shown: BTreeSet<(String, String)> = serde_json::from_value(seen["operations"].clone()).expect("pairs");
    let document = world.client().get("/api/openapi.json").await.ok(200);
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| item.as_object().expect("operations").keys().map(|verb| (verb.clone(), path.clone())))
        .collect();
    assert!(described.len() > 50, "{described:?}");
    assert_eq!(shown, described);
    assert_eq!(seen["elsewhere"], Value::Array(Vec::new()), "the page asks other hosts");
    assert_eq!(seen["errors"], Value::Array(Vec::new()), "the page's own complaints");
}
