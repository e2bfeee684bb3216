//! What plugins may take is the operator's to set, and what they do is to be seen.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use crate::harness::{Backend, Client, Reply, Setup, Stub, World, eventually, id};

#[tokio::test]
async fn nonsense_is_one_clear_line() {
    for (name, value, expected) in [
        ("KAIZEN_PLUGIN_MEMORY_MIB", "0", "from 2 to 4096"),
        ("KAIZEN_AUDIT_DIR_ORGANIZATIONS", "acme", "`acme` is not the id of an organization"),
        ("KAIZEN_PLUGIN_CPU_MS", "soon", "from 10 to 600000"),
        ("KAIZEN_PLUGIN_CALLS_PER_PLUGIN", "65", "`plugin_calls` allows 64"),
        ("KAIZEN_PLUGIN_MEMORY", "64", "did you mean `plugin_memory_mib`?"),
    ] {
        let refused = Setup::new(Backend::Sqlite).await.with(name, value).run(&["migrate"], "").await.refusal();
        assert!(refused.contains(name) && refused.contains(expected), "{refused}");
    }
}

#[tokio::test]
async fn a_plugin_is_held_to_its_limits_and_counted() {
    let world = World::with(Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_HTTP_REQUESTS", "0")).await;
    let tenant = world.tenant("acme").await;
    let far = Stub::start(|_| Reply::Json(200, json!({ "status": "healthy" }))).await;
    let gateway = json!({
        "name": "west", "plugin": "nexus", "config": { "api_url": far.url }, "secrets": { "api-key": "k-k-k-k" },
        "environment": "staging",
    });
    let gateway = id(&tenant.owner.create("/api/v1/gateways", gateway).await);
    let check = format!("/api/v1/gateways/{gateway}/check");
    let refused = tenant.owner.post(&check, json!({})).await;
    assert!(refused.text.contains("more than 0 requests in one call"), "{refused:?}");
    assert!(far.seen().is_empty());

    let metrics = Client::new(&world.server.ops).get("/metrics").await.text;
    let of = |metric: &str| {
        let line = metrics.lines().find(|line| line.starts_with(metric) && line.contains("plugin=\"nexus\""));
        line.unwrap_or_else(|| panic!("no {metric}: {metrics}")).to_owned()
    };
    let calls = of("kaizen_plugin_calls_total");
    for label in ["kind=\"deployment_target\"", "export=\"check\"", "outcome=\"config\""] {
        assert!(calls.contains(label), "{calls}");
    }
    of("kaizen_plugin_call_seconds_count");
    of("kaizen_plugin_cpu_seconds_count");
    let peak = of("kaizen_plugin_memory_peak_bytes_sum");
    let peak: f64 = peak.rsplit_once(' ').expect("a value").1.parse().expect("a number");
    assert!(peak > 65_536.0, "{peak}");
    assert!(!metrics.contains(&gateway) && !metrics.contains(&tenant.id), "no tenant's id in a label");
}

#[tokio::test]
async fn a_connection_that_keeps_failing_is_suspended_and_tried_again() {
    let setup = Setup::new(Backend::Sqlite).await;
    let setup = setup.with("KAIZEN_PLUGIN_TRIP_FAILURES", "2").with("KAIZEN_PLUGIN_TRIP_SECONDS", "1");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let away = Arc::new(AtomicBool::new(true));
    let is_away = away.clone();
    let far = Stub::start(move |_| Reply::Status(if is_away.load(Ordering::SeqCst) { 503 } else { 204 })).await;
    let sink = json!({
        "name": "siem", "plugin": "webhook", "config": { "url": far.url }, "secrets": { "signing-key": "0123456789abcdef" },
    });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", sink).await);
    let check = format!("/api/v1/audit-sinks/{sink}/check");
    // The deliveries fail by themselves; whoever asks is told that they are suspended.
    eventually("calls are suspended", || async {
        let answer = tenant.owner.post(&check, json!({})).await;
        (answer.status == 502 && answer.text.contains("calls are suspended until")).then_some(())
    })
    .await;
    away.store(false, Ordering::SeqCst);
    // Nobody has to do anything: the next delivery is let through to see, and the rest follows.
    let before = far.seen().len();
    far.until("events arrive again", |seen| {
        (seen[before..].iter().any(|seen| seen.body["events"][0].is_object())).then_some(())
    })
    .await;
    tenant.owner.post(&check, json!({})).await.ok(200);
}

#[tokio::test]
async fn one_organization_does_not_check_all_the_time() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_CHECKS_PER_MINUTE", "2");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let far = Stub::start(|_| Reply::Json(200, json!({ "status": "healthy" }))).await;
    let gateway = json!({
        "name": "west", "plugin": "nexus", "config": { "api_url": far.url }, "secrets": { "api-key": "k-k-k-k" },
        "environment": "staging",
    });
    let gateway = id(&tenant.owner.create("/api/v1/gateways", gateway).await);
    let mut refused = Vec::new();
    // A minute may end in between, once.
    for _ in 0..5 {
        let answer = tenant.owner.post(&format!("/api/v1/gateways/{gateway}/check"), json!({})).await;
        if answer.status != 200 {
            refused.push(answer);
        }
    }
    let first = refused.first().expect("two a minute");
    assert!(first.status == 429 && first.text.contains("checked too often"), "{first:?}");
    let after: u64 = first.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&after), "{after}");
}

#[tokio::test]
async fn a_plugin_is_compiled_in_a_process_that_bounds_itself() {
    let setup = Setup::new(Backend::Sqlite).await;
    let compile = async |memory: &str, component: &str| {
        setup.run(&["plugin", "compile", "--memory-bytes", memory, "--cpu-seconds", "60"], component).await
    };
    let refused = compile("4294967296", "no component").await.refusal();
    assert_eq!(refused.lines().count(), 1, "{refused}");
    // Not even the program itself fits.
    assert!(!compile("1048576", "\0asm\u{d}\0\u{1}\0").await.status.success());
}
