//! Sinks with a protocol of their own: Splunk's collector, which has stored only what it acknowledges, and the real rsyslog.
//! What waits in the database for a sink that is slow or away is looked at on both; what a plugin is told, on one.

use serde_json::{Value, json};

use crate::harness::{Backend, HEC_TOKEN, Reply, Rsyslog, Seen, Splunk, Tenant, World, eventually, free_port, id};

on_both!(
    splunk_has_stored_what_it_acknowledges,
    what_was_taken_before_a_refused_event_is_not_sent_again,
    events_reach_the_real_rsyslog,
);

async fn tenant(backend: Backend) -> (World, Tenant) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    (world, tenant)
}

/// The sequence of the newest event; delivering writes none.
async fn newest(tenant: &Tenant) -> i64 {
    let trail = tenant.owner.all("/api/v1/audit/events").await;
    trail.iter().filter_map(|event| event["sequence"].as_i64()).max().expect("some")
}

fn splunk_sink(splunk: &Splunk, config: Value) -> Value {
    let mut all = json!({ "url": splunk.stub.url, "ack_seconds": 1 });
    all.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
    json!({ "name": "splunk", "plugin": "splunk-hec", "config": all, "secrets": { "token": HEC_TOKEN } })
}

/// The sequences in the order in which they were first stored.
fn firsts(numbers: impl IntoIterator<Item = i64>) -> Vec<i64> {
    let mut known = std::collections::BTreeSet::new();
    numbers.into_iter().filter(|number| known.insert(*number)).collect()
}

fn without_gap(numbers: &[i64]) -> bool {
    numbers.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

fn indexed(splunk: &Splunk) -> Vec<i64> {
    splunk.stored().iter().filter_map(|envelope| envelope["event"]["sequence"].as_i64()).collect()
}

async fn splunk_has_stored_what_it_acknowledges(backend: Backend) {
    let (world, tenant) = tenant(backend).await;
    let splunk = Splunk::start().await;
    // It takes everything into memory and stores nothing: that is no delivery, and comes again.
    splunk.indexing(false);
    tenant.owner.create("/api/v1/audit-sinks", splunk_sink(&splunk, json!({}))).await;
    for number in 0..5 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let sent = |seen: &[Seen]| {
        let events = seen.iter().filter(|seen| seen.path.ends_with("/event"));
        events.filter_map(|seen| String::from_utf8(seen.raw.to_vec()).ok()).collect::<Vec<_>>()
    };
    let first = |body: &str| body.split("\"id\":\"").nth(1).map(|rest| rest[..36].to_owned());
    splunk
        .stub
        .until("the first event comes again", |seen| {
            let ids: Vec<_> = sent(seen).iter().filter_map(|body| first(body)).collect();
            (ids.len() >= 2 && ids[0] == ids[1]).then_some(())
        })
        .await;
    assert!(splunk.crash() > 0, "some was in memory only");
    assert!(splunk.stored().is_empty());

    // Away, busy, broken off: then it works.
    splunk.stub.next([Reply::Status(503), Reply::Cut, Reply::TooMany(1)]);
    splunk.indexing(true);
    let last = newest(&tenant).await;
    eventually("the last event is stored", || async { indexed(&splunk).contains(&last).then_some(()) }).await;
    let numbers = firsts(indexed(&splunk));
    assert!(without_gap(&numbers) && numbers.len() >= 5, "{numbers:?}");
    let trail = tenant.owner.all("/api/v1/audit/events").await;
    let envelope = splunk.stored().into_iter().find(|e| e["event"]["sequence"] == last).expect("the last one");
    let own = trail.iter().find(|event| event["sequence"] == last).expect("the last one");
    for name in ["id", "actor", "action", "target", "outcome", "hash"] {
        assert_eq!(envelope["event"][name], own[name], "{envelope}");
    }
    assert_eq!(envelope["sourcetype"], "kaizen:audit");
    assert!(!world.server.log().contains(HEC_TOKEN), "the token is in the log");
}

async fn what_was_taken_before_a_refused_event_is_not_sent_again(backend: Backend) {
    let (_world, tenant) = tenant(backend).await;
    let owner = &tenant.owner;
    let splunk = Splunk::start().await;
    splunk.refuse(Some("workspace.update"));
    // Off until there is more before the refused event and after it: then they are one batch.
    let mut body = splunk_sink(&splunk, json!({ "acknowledgement": false }));
    body["active"] = false.into();
    let sink = format!("/api/v1/audit-sinks/{}", id(&owner.create("/api/v1/audit-sinks", body).await));
    let workspace = tenant.workspace("first").await;
    owner.patch(&format!("/api/v1/workspaces/{workspace}"), json!({ "name": "bad" })).await.ok(200);
    tenant.workspace("last").await;
    let trail = owner.all("/api/v1/audit/events").await;
    let refused = trail.iter().find(|event| event["action"] == "workspace.update").expect("recorded");
    let place = refused["sequence"].as_i64().expect("a sequence");
    owner.patch(&sink, json!({ "active": true })).await.ok(200);

    let first = |seen: &Seen| {
        let event: Value = serde_json::Deserializer::from_slice(&seen.raw).into_iter().next()?.ok()?;
        event["event"]["sequence"].as_i64()
    };
    splunk
        .stub
        .until("the event is refused again and again", |seen| {
            (seen.iter().filter(|seen| first(seen) == Some(place)).count() >= 3).then_some(())
        })
        .await;
    let before = indexed(&splunk);
    assert!(without_gap(&before) && before.last() == Some(&(place - 1)), "each was sent once: {before:?}");
    let state = eventually("the refusal is told", || async {
        let state = owner.get(&format!("{sink}/delivery")).await.ok(200);
        state["last_error"].as_str().is_some_and(|error| error.contains("refuses")).then_some(state)
    })
    .await;
    let event = refused["id"].as_str().expect("an id");
    assert!(state["last_error"].as_str().expect("text").contains(event), "{state}");

    splunk.refuse(None);
    eventually("all is delivered", || async {
        let state = owner.get(&format!("{sink}/delivery")).await.ok(200);
        (state["lag"] == 0).then_some(())
    })
    .await;
    splunk.index();
    let all = indexed(&splunk);
    assert!(without_gap(&all) && all.len() > before.len() + 1, "{all:?}");
}

/// What was sent by a call that did not live to see it stored is found by the next one, and not sent again.
#[tokio::test]
async fn a_slow_indexer_gets_nothing_twice() {
    let (_world, tenant) = tenant(Backend::Sqlite).await;
    let splunk = Splunk::start().await;
    splunk.indexing(false);
    let body = splunk_sink(&splunk, json!({ "ack_seconds": 60 }));
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    let sends = |seen: &[Seen]| seen.iter().filter(|seen| seen.path.ends_with("/event")).count();
    splunk.stub.until("events are sent", |seen| (sends(seen) == 1).then_some(())).await;
    // This question gets no answer, and the call gives up.
    splunk.stub.next([Reply::Hold]);
    splunk.stub.held(1).await;
    splunk.index();
    eventually("all is delivered", || async {
        let state = tenant.owner.get(&format!("/api/v1/audit-sinks/{sink}/delivery")).await.ok(200);
        (state["lag"] == 0).then_some(())
    })
    .await;
    assert_eq!(sends(&splunk.stub.seen()), 1);
}

#[tokio::test]
async fn a_splunk_sink_is_checked() {
    let (_world, tenant) = tenant(Backend::Sqlite).await;
    let splunk = Splunk::start().await;
    let check = |body: Value| {
        let owner = &tenant.owner;
        async move {
            let sink = id(&owner.create("/api/v1/audit-sinks", body).await);
            let answer = owner.post(&format!("/api/v1/audit-sinks/{sink}/check"), json!({})).await;
            // So that the dispatcher doesn't go on with it.
            owner.delete(&format!("/api/v1/audit-sinks/{sink}")).await.ok(204);
            answer
        }
    };
    check(splunk_sink(&splunk, json!({}))).await.ok(200);
    let mut wrong = splunk_sink(&splunk, json!({}));
    wrong["secrets"]["token"] = "another".into();
    let refused = check(wrong).await;
    assert!([422, 502].contains(&refused.status) && refused.text.contains("Invalid token"), "{}", refused.text);
    let elsewhere = check(splunk_sink(&splunk, json!({ "url": format!("{}/not/there", splunk.stub.url) }))).await;
    assert!([422, 502].contains(&elsewhere.status), "{}", elsewhere.text);
    let body = splunk_sink(&splunk, json!({ "ack_seconds": 0 }));
    tenant.owner.post("/api/v1/audit-sinks", body).await.fault("/config/ack_seconds");
}

fn numbers(messages: &[Value]) -> Vec<i64> {
    messages.iter().filter_map(|message| data(message)["sequence"].as_str()?.parse().ok()).collect()
}

/// The structured data as rsyslog read it.
fn data(message: &Value) -> Value {
    let data: Value = serde_json::from_str(message["data"].as_str().expect("text")).expect("JSON");
    data["rfc5424-sd"]["kaizen@32473"].clone()
}

async fn events_reach_the_real_rsyslog(backend: Backend) {
    let (_world, tenant) = tenant(backend).await;
    let mut rsyslog = Rsyslog::start().await;
    let config =
        json!({ "host": "localhost", "port": rsyslog.port, "hostname": "studio.example.com", "max_bytes": 16384 });
    let body = json!({ "name": "syslog", "plugin": "syslog", "config": config });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    tenant.owner.post(&format!("/api/v1/audit-sinks/{sink}/check"), json!({})).await.ok(200);
    for name in ["plain", "Grüße \u{1F680}", "quote \" backslash \\ bracket ] end"] {
        tenant.workspace(name).await;
    }
    let arrived = |last: i64| {
        let rsyslog = &rsyslog;
        async move {
            eventually("the last event is in rsyslog's file", || async {
                let messages = rsyslog.messages();
                numbers(&messages).contains(&last).then_some(messages)
            })
            .await
        }
    };
    let messages = arrived(newest(&tenant).await).await;
    let trail = tenant.owner.all("/api/v1/audit/events").await;
    for message in &messages {
        let data = data(message);
        let own = trail.iter().find(|event| event["id"] == data["id"]).unwrap_or_else(|| panic!("not ours: {message}"));
        for name in ["actor", "action", "target", "outcome", "hash"] {
            assert_eq!(data[name], own[name], "{message}");
        }
        assert_eq!((&message["host"], &message["app"]), (&json!("studio.example.com"), &json!("kaizen")));
        assert_eq!(message["msgid"], own["action"]);
        let severity = if own["outcome"] == "success" { "110" } else { "108" };
        assert_eq!(message["pri"], severity, "{message}");
        // The API leaves out the zeros at the end of a fraction.
        let instant =
            |time: &Value| chrono::DateTime::parse_from_rfc3339(time.as_str().expect("text")).expect("a time");
        assert_eq!(instant(&message["time"]), instant(&own["occurred_at"]));
        let text = message["msg"].as_str().expect("text").trim_start_matches([' ', '\u{feff}']);
        let event: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!((&event["id"], &event["hash"]), (&own["id"], &own["hash"]));
    }

    // Away for a while: nothing is lost, nothing comes out of order.
    rsyslog.kill().await;
    for number in 0..3 {
        tenant.workspace(&format!("while it is away {number}")).await;
    }
    rsyslog.again().await;
    let last = newest(&tenant).await;
    let messages = eventually("the last event is in rsyslog's file", || async {
        let messages = rsyslog.messages();
        numbers(&messages).contains(&last).then_some(messages)
    })
    .await;
    let order = firsts(numbers(&messages));
    assert!(without_gap(&order), "{order:?}");
}

#[tokio::test]
async fn a_syslog_sink_is_checked() {
    let (_world, tenant) = tenant(Backend::Sqlite).await;
    let config = json!({ "host": "127.0.0.1", "port": free_port() });
    let body = json!({ "name": "syslog", "plugin": "syslog", "config": config });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    let refused = tenant.owner.post(&format!("/api/v1/audit-sinks/{sink}/check"), json!({})).await;
    assert!([422, 502].contains(&refused.status) && refused.text.contains("refuses connections"), "{}", refused.text);
    for (bad, pointer) in [
        (json!({ "host": "127.0.0.1", "port": 0 }), "/config/port"),
        (json!({ "host": "127.0.0.1", "port": 514, "facility": 24 }), "/config/facility"),
        (json!({ "host": "127.0.0.1", "port": 514, "app_name": "a b" }), "/config/app_name"),
    ] {
        let body = json!({ "name": "bad", "plugin": "syslog", "config": bad });
        tenant.owner.post("/api/v1/audit-sinks", body).await.fault(pointer);
    }
}

#[tokio::test]
async fn a_file_that_has_grown_is_set_aside() {
    let (world, tenant) = tenant(Backend::Sqlite).await;
    let body = json!({ "name": "archive", "plugin": "file", "config": { "name": "acme", "rotate_megabytes": 1 } });
    let sink = id(&tenant.owner.create("/api/v1/audit-sinks", body).await);
    let folder = world.setup.data_dir().join("audit").join(&tenant.id).join(&sink);
    let current = folder.join(format!("acme-{sink}.jsonl"));
    let sequences = |text: &str| -> Vec<i64> {
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|event| event["sequence"].as_i64()).collect()
    };
    let until = |last: i64| {
        let current = &current;
        async move {
            eventually("the event is in the file", || async {
                let text = std::fs::read_to_string(current).ok()?;
                sequences(&text).contains(&last).then_some(())
            })
            .await;
        }
    };
    until(newest(&tenant).await).await;
    // As if it had been written to for a long time.
    let mut text = std::fs::read_to_string(&current).expect("it is there");
    text.push_str(&"{}\n".repeat(400_000));
    std::fs::write(&current, text).expect("written");
    tenant.workspace("one more").await;
    until(newest(&tenant).await).await;
    let files: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    let before = files.iter().find(|file| file.to_string_lossy().contains(".before-")).expect("what was before");
    let read = |file: &std::path::Path| sequences(&std::fs::read_to_string(file).expect("text"));
    let all = [read(before), read(&current)].concat();
    assert!(without_gap(&firsts(all.clone())), "{all:?}");
    assert!(std::fs::metadata(&current).expect("a file").len() < 100_000, "a new one was begun");
}
