//! Rooms in trouble: a database that takes no changes or no more of them, people who tell too much, a room that dies.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Handle,
    room::{Command, Door, INBOX, Join, Nudge},
    socket_tests::Host,
    testing::{Fixture, put},
};
use crate::{
    bus::Hint,
    domain::role::Role,
    store::{self, canvas::Entry},
};

/// A message that puts a node of 60,000 bytes.
fn large(id: &str) -> Value {
    json!([{ "op": "node.put", "node": { "id": id, "position": { "x": 0, "y": 0 }, "data": "x".repeat(60_000) } }])
}

#[tokio::test]
async fn a_full_disk_is_told_of_until_there_is_room_again() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    let (mut eve, _) = host.joined(1).await;
    ada.commit("1", put("a", 1)).await;
    let ticket = host.fixture.ticket(1).await;
    host.app.store.pretend_full(true).await;
    ada.ops("2", large("b")).await;
    assert_eq!(eve.until("status").await["writable"], false);
    assert_eq!(ada.until("status").await["writable"], false);
    assert_eq!(ada.answer("2").await["code"], "unavailable");
    // What would fit is refused too: whether it does is not known before it is tried.
    ada.ops("3", put("a", 2)).await;
    assert_eq!(ada.answer("3").await["code"], "unavailable");
    let mut late = host.open(&host.fixture.canvas.to_string(), &format!("ticket={ticket}")).await;
    assert_eq!(late.until("snapshot").await["seq"], 1);
    assert_eq!(late.until("status").await["writable"], false, "who joins is told");
    assert!(host.app.store.try_writing().await.is_err(), "what the room tries at each look");
    host.app.store.pretend_full(false).await;
    assert_eq!(eve.until("status").await["writable"], true);
    assert_eq!(ada.until("status").await["writable"], true);
    assert_eq!(ada.commit("2", large("b")).await, 2);
    assert_eq!(eve.until("ops").await["seq"], 2);
}

#[tokio::test]
async fn a_canvas_holds_as_much_as_is_set() {
    let bounds = [("KAIZEN_CANVAS_NODES", "2"), ("KAIZEN_CANVAS_EDGES", "1"), ("KAIZEN_CANVAS_GRAPH_KIB", "64")];
    let host = Host::with(&bounds).await;
    let (mut ada, _) = host.joined(0).await;
    ada.commit("a", put("a", 1)).await;
    ada.commit("b", large("b")).await;
    let edge = |id: &str| json!([{ "op": "edge.put", "edge": { "id": id, "source": "a", "target": "b" } }]);
    ada.commit("ab", edge("ab")).await;
    let longer = json!([{ "op": "node.patch", "id": "a", "set": { "data": "x".repeat(6_000) } }]);
    for (reference, ops, told) in [
        ("c", put("c", 1), "the canvas holds 2 nodes"),
        ("ba", edge("ba"), "the canvas holds 1 edges"),
        ("longer", longer, "at most 65536"),
    ] {
        ada.ops(reference, ops).await;
        let refused = ada.answer(reference).await;
        assert_eq!(refused["code"], "limit", "{refused}");
        assert!(refused["detail"].as_str().unwrap().contains(told), "{refused}");
    }
    ada.commit("b-away", json!([{ "op": "node.remove", "id": "b" }])).await;
    ada.commit("c", put("c", 1)).await;
}

#[tokio::test]
async fn an_organization_whose_canvases_take_too_much_may_only_remove() {
    let bounds = [("KAIZEN_CANVAS_STORAGE_MIB_PER_ORGANIZATION", "2"), ("KAIZEN_CANVAS_JOURNAL_KIB", "1024")];
    let host = Host::with(&bounds).await;
    let (mut ada, _) = host.joined(0).await;
    let mut nodes = Vec::new();
    let refused = loop {
        let id = format!("n{}", nodes.len());
        assert!(nodes.len() < 60, "{id}: more than 2 MiB and what may be beyond");
        ada.ops(&id, large(&id)).await;
        let answer = ada.answer(&id).await;
        if answer["type"] == "reject" {
            break answer;
        }
        nodes.push(id);
    };
    assert_eq!(refused["code"], "storage_full", "{refused}");
    let other = Fixture::within(host.app.store.clone(), tempfile::tempdir().unwrap()).await;
    other.grant(0, Role::Developer).await;
    let rival = Host { app: host.app.clone(), address: host.address.clone(), fixture: Arc::new(other) };
    rival.joined(0).await.0.commit("1", large("a")).await;

    let removals: Vec<Value> = nodes.iter().map(|id| json!({ "op": "node.remove", "id": id })).collect();
    ada.commit("removed", json!(removals)).await;
    ada.commit("again", large("again")).await;
}

#[tokio::test]
async fn open_canvases_take_no_more_memory_than_they_may() {
    let host = Host::with(&[("KAIZEN_CANVAS_ROOMS_MIB_PER_ORGANIZATION", "1")]).await;
    let (mut ada, _) = host.joined(0).await;
    // 18 KB as text.
    ada.commit("zeros", json!([{ "op": "node.put", "node": { "id": "zeros", "data": vec![0; 9_000] } }])).await;
    ada.ops("more", put("a", 1)).await;
    let refused = ada.answer("more").await;
    assert_eq!(refused["code"], "storage_full", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("`canvas_rooms_mib`"), "{refused}");
    // Nor is it opened elsewhere.
    let another = host.another().await;
    let canvas = host.fixture.canvas.to_string();
    let join = async || {
        let ticket = host.fixture.ticket(1).await;
        another.open(&canvas, &format!("ticket={ticket}")).await
    };
    assert_eq!(join().await.closed().await, 1013);
    ada.commit("away", json!([{ "op": "node.remove", "id": "zeros" }])).await;
    ada.commit("more again", put("a", 1)).await;
    assert_eq!(join().await.until("snapshot").await["nodes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn canvases_are_read_for_requests_one_at_a_time_of_each_organization() {
    let host = Host::start().await;
    let (fixture, canvases) = (&host.fixture, &host.app.canvases);
    let (mut ada, _) = host.joined(0).await;
    ada.commit("1", put("a", 1)).await;
    let turn = canvases.reading.turn(fixture.organization).await;
    let mut read = Box::pin(canvases.read(fixture.organization, fixture.canvas, |loaded| Ok(loaded.sequence)));
    assert!(futures::poll!(&mut read).is_pending(), "it waits for the one before it");
    let rival = canvases.read(fixture.clock.id(), fixture.clock.id(), |loaded| Ok(loaded.sequence));
    assert_eq!(rival.await.unwrap(), 0, "another organization does not wait");
    // Nor do those who join.
    host.joined(1).await;
    assert!(futures::poll!(&mut read).is_pending());
    drop(turn);
    assert_eq!(read.await.unwrap(), 1);
}

#[tokio::test]
async fn people_on_a_canvas_tell_no_more_of_themselves_than_they_may() {
    let host = Host::with(&[("KAIZEN_CANVAS_PRESENCE_KIB", "8")]).await;
    let (mut eve, _) = host.joined(1).await;
    let (mut ada, _) = host.joined(0).await;
    let (mut again, _) = host.joined(0).await;
    let tells =
        |reference: &str, bytes: usize| json!({ "type": "presence", "ref": reference, "note": "x".repeat(bytes) });
    ada.send(tells("1", 3500)).await;
    again.send(tells("2", 3500)).await;
    for _ in 0..2 {
        while eve.until("presence").await["note"].as_str().is_none_or(|note| note.len() != 3500) {}
    }
    eve.send(tells("3", 3500)).await;
    let refused = eve.answer("3").await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("reject"), &json!("presence_full")), "{refused}");
    // The others go on, and whoever tells less makes room.
    ada.send(tells("4", 10)).await;
    while eve.until("presence").await["note"].as_str().is_none_or(|note| note.len() != 10) {}
    eve.send(tells("5", 3000)).await;
    while ada.until("presence").await["note"].as_str().is_none_or(|note| note.len() != 3000) {}
}

#[tokio::test]
async fn a_canvas_that_is_read_anew_keeps_the_people_of_other_hosts() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    let fixture = &host.fixture;
    let (organization, canvas) = (fixture.organization, fixture.canvas);
    let frame = json!({ "type": "presence", "peer": "there", "actor": "user/1", "name": "Zoe" }).to_string();
    host.app.canvases.pass(Hint::Presence { canvas, peer: "there".into(), frame });
    assert_eq!(ada.until("presence").await["peer"], "there");
    // Another host stores more than this one finds in the journal when it looks.
    let now = fixture.clock.now();
    let ops = put("b", 1).to_string();
    let (actor, client, reference, digest) = ("user/1".into(), "n:tab".into(), None, None);
    let last = Entry { sequence: 3, actor, client, reference, ops, digest, created_at: now };
    let graph = r#"{"nodes":[{"id":"b","position":{"x":1,"y":0}}],"edges":[]}"#;
    let mut tx = fixture.store.begin().await.unwrap();
    store::canvas::create(&mut tx, organization, canvas, now).await.unwrap();
    assert!(store::canvas::advance(&mut tx, organization, canvas, (0, 3, 100), now).await.unwrap());
    store::canvas::append(&mut tx, organization, canvas, &[last]).await.unwrap();
    store::canvas::compact(&mut tx, organization, canvas, (3, graph), (0, i64::MAX), now).await.unwrap();
    tx.commit().await.unwrap();
    let snapshot = ada.until("snapshot").await;
    assert_eq!((&snapshot["seq"], &snapshot["nodes"][0]["id"]), (&json!(3), &json!("b")), "{snapshot}");
    assert_eq!(snapshot["peers"][0]["name"], "Zoe", "{snapshot}");
}

#[tokio::test]
async fn a_room_that_dies_closes_the_sockets_of_those_who_say_nothing() {
    let host = Host::start().await;
    let (organization, canvas) = (host.fixture.organization, host.fixture.canvas);
    // In place of a room: a test that lets somebody in and then drops its inbox, as a panic does.
    let (commands, mut inbox) = mpsc::channel(INBOX);
    let (heard, _hearing) = mpsc::channel(1);
    let nudge = Arc::new(Nudge::default());
    let door = Door { commands, bytes: Arc::new(Semaphore::new(1 << 20)), most: 1 << 20 };
    let handle = Handle { organization, door, heard, nudge: Arc::downgrade(&nudge) };
    host.app.canvases.rooms.lock().insert(canvas, handle);
    let mut ada = host.join(0, "").await;
    let Some(Command::Join(join)) = inbox.recv().await else { panic!("somebody joins") };
    let Join { outbox, joined, .. } = *join;
    outbox.send(json!({ "type": "snapshot" }).to_string().into());
    joined.send(Ok(())).unwrap();
    ada.until("snapshot").await;
    drop(inbox);
    assert_eq!(ada.closed().await, 1011);
    // The next one finds a room of its own.
    host.joined(0).await;
    drop(outbox);
}
