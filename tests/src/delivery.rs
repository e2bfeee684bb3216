//! Audit events reach the sinks, in order, at least once, and never in the way of a request.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::harness::{Backend, Reply, Seen, Setup, Stub, Tenant, World, eventually, id, within};

on_both!(
    events_reach_a_webhook_in_order_and_signed,
    a_sink_that_is_away_gets_everything_later,
    events_reach_a_file,
    a_sink_is_checked
);

const SIGNING_KEY: &str = "signing-key-that-must-not-leak";

async fn receiver() -> Stub {
    Stub::start(|_| Reply::Status(204)).await
}

async fn sink(tenant: &Tenant, receiver: &Stub) -> String {
    let body = json!({
        "name": "siem", "plugin": "webhook", "config": { "url": format!("{}/events", receiver.url) },
        "secrets": { "signing-key": SIGNING_KEY },
    });
    id(&tenant.owner.create("/api/v1/audit-sinks", body).await)
}

/// The events that arrived, one for each id, in the order of their first arrival.
fn arrived(seen: &[Seen]) -> Vec<Value> {
    let mut known = BTreeSet::new();
    let events = seen.iter().flat_map(|seen| seen.body["events"].as_array().cloned().unwrap_or_default());
    events.filter(|event| known.insert(event["id"].to_string())).collect()
}

fn sequences(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["sequence"].as_i64().expect("sequence")).collect()
}

/// HMAC-SHA256 (RFC 2104), in hexadecimal.
fn hmac(key: &[u8], message: &[u8]) -> String {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.iter().map(|byte| byte ^ with).collect::<Vec<_>>();
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    hex::encode(Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize())
}

async fn events_reach_a_webhook_in_order_and_signed(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let receiver = receiver().await;
    sink(&tenant, &receiver).await;
    for number in 0..5 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let trail = tenant.owner.all("/api/v1/audit/events").await;
    let last = trail.iter().rfind(|event| event["action"] == "workspace.create").expect("the last one")["sequence"]
        .as_i64()
        .expect("a number");
    let events = receiver
        .until("the last event arrives", |seen| {
            let events = arrived(seen);
            (sequences(&events).last() >= Some(&last)).then_some(events)
        })
        .await;
    let numbers = sequences(&events);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "in order and without gaps: {numbers:?}");
    for event in &events {
        let own = trail.iter().find(|own| own["id"] == event["id"]).unwrap_or_else(|| panic!("not ours: {event}"));
        for name in ["sequence", "actor", "action", "target", "outcome", "hash"] {
            assert_eq!(event[name], own[name], "{event}");
        }
    }
    for seen in receiver.seen() {
        let signature = seen.headers["kaizen-signature"].to_str().expect("text");
        let (time, given) = signature.strip_prefix("t=").and_then(|s| s.split_once(",v1=")).expect("t=…,v1=…");
        let message = [time.as_bytes(), b".", &seen.raw].concat();
        assert_eq!(given, hmac(SIGNING_KEY.as_bytes(), &message));
        assert!(!format!("{:?}", seen.headers).contains(SIGNING_KEY));
    }
}

/// Runs what `plugins/audit/webhook/README.md` hands out to receivers.
async fn verified(program: &str, script: &str, signature: &str, body: &[u8]) -> bool {
    let script = format!("{}/../plugins/audit/webhook/receiver/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new(program)
        .args([&script, signature])
        .env("SIGNING_KEY", SIGNING_KEY)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(body).await.expect("it reads");
    within(&script, child.wait()).await.expect("it ran").success()
}

#[tokio::test]
async fn a_receiver_knows_what_is_genuine() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let receiver = receiver().await;
    sink(&tenant, &receiver).await;
    let seen = receiver.until("an event arrives", |seen| seen.first().cloned()).await;
    let signature = seen.headers["kaizen-signature"].to_str().expect("text");
    for (program, script) in [("python3", "verify.py"), ("node", "verify.mjs")] {
        assert!(verified(program, script, signature, &seen.raw).await, "{script}");
        assert!(!verified(program, script, signature, b"{\"events\":[]}").await, "{script}");
        let old = signature.replacen("t=", "t=1", 1);
        assert!(!verified(program, script, &old, &seen.raw).await, "{script}");
        assert!(!verified(program, script, "", &seen.raw).await, "{script}");
    }
}

async fn a_sink_that_is_away_gets_everything_later(backend: Backend) {
    // A server that is killed in the middle of a delivery keeps the sink for so long.
    let setup = Setup::new(backend).await.with("KAIZEN_JOB_LEASE_SECONDS", "2");
    let mut world = World::with(setup).await;
    let mut tenant = world.tenant("acme").await;
    let receiver = receiver().await;
    receiver.next([Reply::Status(503), Reply::Cut, Reply::TooMany(1)]);
    let sink = sink(&tenant, &receiver).await;
    // Requests do not wait for it.
    for number in 0..3 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let delivered = |last: i64| {
        let receiver = &receiver;
        async move {
            let through = |seen: &[Seen]| (sequences(&arrived(&seen[3..])).last() >= Some(&last)).then_some(());
            receiver.until("the last event arrives", |seen| if seen.len() > 3 { through(seen) } else { None }).await;
        }
    };
    let last = tenant.owner.all("/api/v1/audit/events").await.len();
    delivered(i64::try_from(last).expect("few")).await;

    // A killed server goes on where it was.
    tenant.workspace("last words").await;
    world.server.kill().await;
    world.again().await;
    tenant.owner.client = tenant.owner.at(&world.server.url);
    tenant.workspace("after").await;
    let last = tenant.owner.all("/api/v1/audit/events").await.len();
    delivered(i64::try_from(last).expect("few")).await;
    let events = arrived(&receiver.seen());
    let mut numbers = sequences(&events);
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no gap: {numbers:?}");

    // A batch that is tried again may have grown. A key stands for these events and no others: a receiver that drops repeats
    // would lose what is new.
    let mut keyed = BTreeMap::new();
    for seen in receiver.seen() {
        let key = seen.headers["idempotency-key"].to_str().expect("text").to_owned();
        assert_eq!(keyed.entry(key).or_insert_with(|| seen.body.clone()), &seen.body);
    }

    // What is deleted gets nothing more.
    tenant.owner.delete(&format!("/api/v1/audit-sinks/{sink}")).await.ok(204);
}

async fn events_reach_a_file(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let body = json!({ "name": "archive", "plugin": "file", "config": { "name": "acme" } });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    for number in 0..3 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let trail = tenant.owner.all("/api/v1/audit/events").await;
    // Each connection has a folder of its own: no plugin sees another's files.
    let file = world.setup.data_dir().join(format!("audit/{}/{sink}/acme-{sink}.jsonl", tenant.id));
    let lines: Vec<Value> = eventually("the events are in the file", || async {
        let text = std::fs::read_to_string(&file).ok()?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.last()?["sequence"] == trail.last()?["sequence"]).then_some(lines)
    })
    .await;
    let numbers = sequences(&lines);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(lines.last().expect("one")["hash"], trail.last().expect("one")["hash"]);
    // What it wrote is the operator's: it stays, whatever the tenant deletes.
    tenant.owner.delete(&format!("/api/v1/audit-sinks/{sink}")).await.ok(204);
    let organization = format!("/api/v1/organizations/{}?confirm=acme", tenant.id);
    tenant.owner.delete(&organization).await.ok(204);
    assert!(file.exists(), "{}", file.display());
}

#[tokio::test]
async fn a_folder_is_offered_where_the_operator_names_it() {
    let world = World::with(Setup::new(Backend::Sqlite).await.without("KAIZEN_AUDIT_DIR")).await;
    let tenant = world.tenant("acme").await;
    let body = json!({ "name": "archive", "plugin": "file", "config": { "name": "acme" } });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    let refused = tenant.owner.post(&format!("/api/v1/audit-sinks/{sink}/check"), json!({})).await;
    assert!(refused.status == 422 && refused.text.contains("not offered by this server's operator"), "{refused:?}");
    assert!(!world.setup.data_dir().join("audit").exists());
}

async fn a_sink_is_checked(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let receiver = receiver().await;
    let check = format!("/api/v1/audit-sinks/{}/check", sink(&tenant, &receiver).await);
    tenant.owner.post(&check, json!({})).await.ok(200);
    // The dispatcher may send something at the same time: enough faults for both.
    receiver.next(std::iter::repeat_n(Reply::Status(404), 50));
    let refused = tenant.owner.post(&check, json!({})).await;
    assert!([422, 502].contains(&refused.status) && refused.text.contains("404"), "{}", refused.text);
    let body = json!({ "name": "bad", "plugin": "file", "config": { "name": "../../etc/passwd" } });
    tenant.owner.post("/api/v1/audit-sinks", body).await.fault("/config/name");
}
