//! Real sockets against the whole API, on SQLite.

use std::{sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use super::testing::{Fixture, put};
use crate::{api, app::App, bus::Hint, clock::Clock, config::Config, domain::role::Role};

pub(super) struct Host {
    pub(super) app: App,
    pub(super) address: String,
    pub(super) fixture: Arc<Fixture>,
}

impl Host {
    /// With a developer and a viewer.
    pub(super) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(super) async fn with(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = ("KAIZEN_DATA_DIR".to_owned(), folder.path().display().to_string());
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings: Vec<_> = std::iter::once(data_dir).chain(more).collect();
        let config = Config::load(None, settings, []).unwrap();
        let app = App::build(config, Clock::system()).await.unwrap();
        let fixture = Fixture::within(app.store.clone(), folder).await;
        fixture.grant(0, Role::Developer).await;
        fixture.grant(1, Role::Viewer).await;
        Self::serve(app, Arc::new(fixture)).await
    }

    pub(super) async fn serve(app: App, fixture: Arc<Fixture>) -> Self {
        app.canvases.start();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = api::router(&app).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { app, address, fixture }
    }

    /// Another host on the same database that hears nothing of this one.
    pub(super) async fn another(&self) -> Self {
        let mut config = self.app.config.clone();
        config.data_dir = config.data_dir.join("another");
        std::fs::create_dir_all(&config.data_dir).unwrap();
        Self::serve(App::build(config, Clock::system()).await.unwrap(), self.fixture.clone()).await
    }

    pub(super) async fn open(&self, canvas: &str, query: &str) -> Client {
        let mut request = format!("ws://{}/ws/canvas/{canvas}?{query}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "kaizen.canvas.v1".parse().unwrap());
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, response) = connect_async_with_config(request, Some(config), false).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "kaizen.canvas.v1");
        Client(socket)
    }

    pub(super) async fn join(&self, user: usize, query: &str) -> Client {
        let ticket = self.fixture.ticket(user).await;
        self.open(&self.fixture.canvas.to_string(), &format!("ticket={ticket}&{query}")).await
    }

    pub(super) async fn joined(&self, user: usize) -> (Client, Value) {
        let mut client = self.join(user, "").await;
        let snapshot = client.until("snapshot").await;
        (client, snapshot)
    }
}

pub(super) struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    /// The next frame, or the code of the close.
    pub(super) async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(Duration::from_secs(20), self.0.next()).await.expect("in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(close))) => return Err(close.map_or(1005, |close| close.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    pub(super) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await.unwrap_or_else(|code| panic!("closed with {code} before {kind}"));
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    pub(super) async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    pub(super) async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    pub(super) async fn ops(&mut self, reference: &str, ops: Value) {
        self.send(json!({ "type": "ops", "ref": reference, "ops": ops })).await;
    }

    /// The answer to what was sent under a `ref`.
    pub(super) async fn answer(&mut self, reference: &str) -> Value {
        loop {
            let frame = self.next().await.unwrap_or_else(|code| panic!("closed with {code} before {reference}"));
            if frame["ref"] == reference {
                return frame;
            }
        }
    }

    pub(super) async fn commit(&mut self, reference: &str, ops: Value) -> i64 {
        self.ops(reference, ops).await;
        let ack = self.until("ack").await;
        assert_eq!(ack["ref"], reference);
        ack["seq"].as_i64().unwrap()
    }
}

#[tokio::test]
async fn a_socket_that_may_not_be_is_closed_with_its_code() {
    let host = Host::start().await;
    let canvas = host.fixture.canvas.to_string();
    assert_eq!(host.open(&canvas, "").await.closed().await, 4401);
    assert_eq!(host.open(&canvas, "ticket=guess").await.closed().await, 4401);
    let ticket = host.fixture.ticket(0).await;
    let mut first = host.open(&canvas, &format!("ticket={ticket}")).await;
    first.until("snapshot").await;
    assert_eq!(host.open(&canvas, &format!("ticket={ticket}")).await.closed().await, 4401, "a ticket works once");
    assert_eq!(host.join(0, "client=%20").await.closed().await, 1008);
    host.fixture.revoke(1).await;
    assert_eq!(host.join(1, "").await.closed().await, 4403);
}

#[tokio::test]
async fn nothing_of_a_canvas_is_read_for_whoever_may_not_look() {
    let host = Host::start().await;
    host.fixture.revoke(1).await;
    assert_eq!(host.join(1, "").await.closed().await, 4403);
    assert!(host.app.canvases.rooms.lock().is_empty());
}

#[tokio::test]
async fn what_one_draws_the_other_sees_with_actor_and_sequence() {
    let host = Host::start().await;
    let (mut ada, snapshot) = host.joined(0).await;
    assert_eq!(snapshot["access"], "edit");
    assert_eq!((&snapshot["seq"], &snapshot["peers"]), (&json!(0), &json!([])));
    let (mut ben, snapshot) = host.joined(1).await;
    assert_eq!(snapshot["access"], "view");
    let actor = format!("user/{}", host.fixture.users[0]);
    assert_eq!(snapshot["peers"][0]["actor"], actor);
    assert_eq!(ada.commit("c1", put("a", 1)).await, 1);
    let seen = ben.until("ops").await;
    assert_eq!((&seen["seq"], &seen["actor"], &seen["ops"]), (&json!(1), &json!(actor), &put("a", 1)));
    ben.ops("mine", put("b", 1)).await;
    assert_eq!(ben.until("reject").await["code"], "denied");
    ada.ops("bad", json!([{ "op": "node.patch", "id": "zz", "set": {} }])).await;
    let reject = ada.until("reject").await;
    assert_eq!((&reject["ref"], &reject["code"], &reject["op"]), (&json!("bad"), &json!("not_found"), &json!(0)));
    ada.send(json!({ "type": "presence", "cursor": { "x": 3 }, "peer": "forged", "left": true })).await;
    let seen = ben.until("presence").await;
    assert_eq!((&seen["cursor"]["x"], &seen["actor"], &seen["left"]), (&json!(3), &json!(actor), &Value::Null));
    ada.0.close(None).await.unwrap();
    let left = ben.until("presence").await;
    assert_eq!((&left["peer"], &left["left"]), (&seen["peer"], &json!(true)));
}

#[tokio::test]
async fn a_client_resumes_and_repeats_without_doing_it_twice() {
    let host = Host::start().await;
    let mut ada = host.join(0, "client=tab").await;
    ada.until("snapshot").await;
    ada.commit("c1", put("a", 1)).await;
    // Sent, stored, and the answer is lost.
    ada.ops("c2", put("a", 2)).await;
    drop(ada);
    let (mut other, snapshot) = host.joined(0).await;
    if snapshot["seq"] == 1 {
        other.until("ops").await;
    }
    other.commit("c1", put("a", 3)).await;
    let mut ada = host.join(0, "client=tab&since=1").await;
    let missed = [ada.until("ops").await, ada.until("ops").await];
    assert_eq!([&missed[0]["seq"], &missed[1]["seq"]], [&json!(2), &json!(3)]);
    assert_eq!(ada.until("resumed").await["seq"], 3);
    assert_eq!(ada.commit("c2", put("a", 2)).await, 2, "the answer it had then");
    assert_eq!(ada.commit("c3", put("b", 2)).await, 4);
    // Without a name: the same `ref` and operations, after what it resumed from.
    let mut nameless = host.join(0, "since=2").await;
    nameless.until("resumed").await;
    assert_eq!(nameless.commit("c1", put("a", 3)).await, 3);
    assert_eq!(nameless.commit("c1", put("a", 9)).await, 5, "another message under the same name");
    let mut lost = host.join(0, "since=77").await;
    assert_eq!(lost.until("snapshot").await["nodes"][0]["position"]["x"], 9);
}

#[tokio::test]
async fn a_message_too_large_is_answered_with_4413() {
    let host = Host::start().await;
    for bytes in [super::MESSAGE + 1, 2 * super::MESSAGE, 3 * 1024 * 1024] {
        let (mut ada, _) = host.joined(0).await;
        let fine = ada.commit("fine", put("a", 1)).await;
        drop(ada.0.send(Message::text("x".repeat(bytes))).await);
        assert_eq!(ada.closed().await, 4413, "{bytes} bytes after {fine}");
    }
    let (mut ada, _) = host.joined(0).await;
    ada.0.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(ada.closed().await, 1003);
}

#[tokio::test]
async fn whatever_may_wait_a_canvas_can_be_joined_and_resumed() {
    let host = Host::with(&[("KAIZEN_CANVAS_OUTBOX_KIB", "256")]).await;
    let (mut ada, _) = host.joined(0).await;
    let large = |n: usize, text: &str| json!([{ "op": "node.put", "node": { "id": format!("n{n}"), "data": text.repeat(60_000 / text.len()) } }]);
    for n in 0..10 {
        ada.commit(&format!("c{n}"), large(n, "x")).await;
    }
    // 600 KB each.
    assert_eq!(host.joined(1).await.1["nodes"].as_array().unwrap().len(), 10);
    let mut ben = host.join(1, "since=0").await;
    for seq in 1..=10 {
        assert_eq!(ben.until("ops").await["seq"], seq);
    }
    assert_eq!(ben.until("resumed").await["seq"], 10);
    // What may be resumed from is bounded in bytes, not in characters.
    for n in 10..20 {
        ada.commit(&format!("c{n}"), large(n, "ü")).await;
    }
    let mut eve = host.join(1, "since=0").await;
    assert_eq!(eve.next().await.unwrap()["type"], "snapshot", "1.2 MB in 0.9 million characters were missed");
}

#[tokio::test]
async fn revoking_is_felt_within_a_second_with_and_without_a_hint() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    let (mut ben, _) = host.joined(1).await;
    // Ben may draw: told in the audit trail, no hint.
    host.fixture.grant(1, Role::Developer).await;
    let changed = timeout(Duration::from_secs(1), ben.until("access")).await.expect("within a second");
    assert_eq!(changed["access"], "edit");
    ben.commit("b1", put("b", 1)).await;
    host.fixture.revoke(1).await;
    let code = timeout(Duration::from_secs(1), ben.closed()).await.expect("within a second");
    assert_eq!(code, 4403);
    ada.until("ops").await;
    host.fixture.disable(0).await;
    host.app.bus.publish(Hint::Access { organization: host.fixture.organization });
    let code = timeout(Duration::from_millis(500), ada.closed()).await.expect("at once");
    assert_eq!(code, 4401);
}

#[tokio::test]
async fn nothing_is_stored_of_what_was_sent_after_revoking_was_told() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    ada.commit("c1", put("a", 1)).await;
    host.fixture.revoke(0).await;
    host.app.bus.publish(Hint::Access { organization: host.fixture.organization });
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(ada.0.send(Message::text(json!({ "type": "ops", "ref": "c2", "ops": put("b", 1) }).to_string())).await);
    assert_eq!(ada.closed().await, 4403);
    let mut conn = host.app.store.read().await.unwrap();
    let f = &host.fixture;
    assert_eq!(crate::store::canvas::graph(&mut conn, f.organization, f.canvas).await.unwrap().0, 1);
}

#[tokio::test]
async fn two_hosts_without_hints_converge_and_share_the_order() {
    let host = Host::start().await;
    let another = host.another().await;
    let (mut ada, _) = host.joined(0).await;
    let (mut eve, _) = another.joined(0).await;
    assert_eq!(ada.commit("c1", put("a", 1)).await, 1);
    // The other host has not looked yet, and still stores in the one order.
    let edge = json!([{ "op": "edge.put", "edge": { "id": "e", "source": "a", "target": "a" } }]);
    assert_eq!(eve.commit("c1", edge).await, 2);
    let seen = timeout(Duration::from_secs(2), ada.until("ops")).await.expect("at the next look");
    assert_eq!(seen["seq"], 2);
    let tickets = host.fixture.ticket(0).await;
    let canvas = host.fixture.canvas.to_string();
    let mut moved = another.open(&canvas, &format!("ticket={tickets}&since=1")).await;
    assert_eq!(moved.until("ops").await["seq"], 2, "a ticket and a sequence are good on any host");
}

#[tokio::test]
async fn a_slow_reader_is_closed_with_4408_and_nobody_else_waits() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    let (mut slow, _) = host.joined(1).await;
    let data = "x".repeat(60_000);
    let mut last = 0;
    for n in 0..700 {
        let node = json!([{ "op": "node.put", "node": { "id": "big", "data": { "n": n, "text": data } } }]);
        last = ada.commit("c", node).await;
    }
    assert_eq!(last, 700);
    assert_eq!(slow.closed().await, 4408);
    let mut again = host.join(1, "since=700").await;
    assert_eq!(again.until("resumed").await["seq"], 700);
}

#[tokio::test]
async fn stopping_commits_what_was_received_and_closes_with_1012() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    for n in 0..50 {
        ada.ops(&format!("c{n}"), put(&format!("n{n}"), n)).await;
    }
    ada.until("ack").await;
    host.app.stopping.cancel();
    let mut acknowledged = 1;
    let code = loop {
        match ada.next().await {
            Ok(frame) if frame["type"] == "ack" => acknowledged += 1,
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(code, 1012);
    host.app.tasks.close();
    timeout(Duration::from_secs(5), host.app.tasks.wait()).await.expect("everything ends");
    let f = &host.fixture;
    let (sequence, _) =
        crate::store::canvas::graph(&mut host.app.store.read().await.unwrap(), f.organization, f.canvas).await.unwrap();
    assert_eq!(sequence, acknowledged, "each message that was stored was acknowledged");
    let told = f.audited().await;
    let ends: Vec<_> =
        told.iter().filter(|(action, _, details)| action == "canvas.edit" && details["window"] == "closed").collect();
    assert_eq!(ends.len(), usize::from(acknowledged > 1), "{told:?}");
}

#[tokio::test]
async fn a_deleted_agent_closes_its_canvas() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    ada.commit("c1", put("a", 1)).await;
    let mut tx = host.app.store.begin().await.unwrap();
    let agent =
        crate::store::agents::get(&mut tx, host.fixture.organization, host.fixture.agent).await.unwrap().unwrap();
    crate::store::agents::delete(&mut tx, &agent).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(timeout(Duration::from_secs(1), ada.closed()).await.expect("within a second"), 4404);
}

#[tokio::test]
async fn one_persons_sockets_leave_place_for_everybody_else() {
    let host =
        Host::with(&[("KAIZEN_CANVAS_SOCKETS_PER_PERSON_AND_CANVAS", "2"), ("KAIZEN_CANVAS_SOCKETS_PER_CANVAS", "3")])
            .await;
    let (first, second) = (host.joined(1).await, host.joined(1).await);
    assert_eq!(host.join(1, "").await.closed().await, 4429);
    let (mut ada, _) = host.joined(0).await;
    ada.commit("c1", put("a", 1)).await;
    assert_eq!(host.join(0, "").await.closed().await, 1013, "the canvas itself is full");
    drop(first);
    loop {
        // Its place is free once its task has noticed.
        let mut again = host.join(1, "").await;
        match again.next().await {
            Err(code) => assert!([4429, 1013].contains(&code), "{code}"),
            Ok(snapshot) => break assert_eq!(snapshot["type"], "snapshot"),
        }
    }
    drop(second);
}

#[tokio::test]
async fn who_sends_too_much_is_told_when_to_go_on_and_closed_if_they_do_not_listen() {
    let host = Host::with(&[
        ("KAIZEN_CANVAS_MESSAGES_PER_SECOND", "1"),
        ("KAIZEN_CANVAS_MESSAGES_BURST", "5"),
        ("KAIZEN_CANVAS_RATE_REFUSALS", "3"),
    ])
    .await;
    let (mut ada, _) = host.joined(0).await;
    let (mut ben, _) = host.joined(1).await;
    for n in 0..40 {
        // It may be closed already.
        let message = json!({ "type": "ops", "ref": format!("b{n}"), "ops": put("b", n) });
        drop(ben.0.send(Message::text(message.to_string())).await);
    }
    ada.commit("c1", put("a", 1)).await;
    let mut codes = std::collections::BTreeMap::<String, usize>::new();
    let code = loop {
        match ben.next().await {
            Ok(frame) if frame["type"] == "reject" => {
                let code = frame["code"].as_str().unwrap().to_owned();
                assert!(frame["ref"].as_str().unwrap().starts_with('b'), "{frame}");
                assert_eq!(frame["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), code == "rate", "{frame}");
                *codes.entry(code).or_default() += 1;
            }
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(code, 4429);
    assert!(codes["denied"] >= 5 && codes["rate"] >= 3, "{codes:?}");
    // Another socket does not help; another person is not concerned.
    let (mut ben, _) = host.joined(1).await;
    ben.ops("again", put("b", 1)).await;
    let answer = ben.answer("again").await;
    assert!(["rate", "denied"].contains(&answer["code"].as_str().unwrap()), "{answer}");
    ada.commit("c2", put("a", 2)).await;
}

#[tokio::test]
async fn a_canvas_takes_so_many_messages_and_no_more() {
    let host =
        Host::with(&[("KAIZEN_CANVAS_ROOM_MESSAGES_PER_SECOND", "1"), ("KAIZEN_CANVAS_ROOM_MESSAGES_BURST", "5")])
            .await;
    let (mut ben, _) = host.joined(1).await;
    for n in 0..10 {
        ben.ops(&format!("b{n}"), put("b", n)).await;
    }
    assert_eq!(ben.answer("b9").await["code"], "denied", "what a viewer sends is not counted");
    let (mut ada, _) = host.joined(0).await;
    for n in 0..10 {
        ada.ops(&format!("c{n}"), put("a", n)).await;
    }
    // A refusal for the rate may overtake the answers to messages before it.
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 10 {
        let frame = ada.next().await.unwrap();
        answers.extend(frame["ref"].as_str().map(|reference| (reference.to_owned(), frame.clone())));
    }
    assert_eq!(answers["c0"]["type"], "ack");
    let last = &answers["c9"];
    assert_eq!(last["code"], "rate", "{last}");
    tokio::time::sleep(Duration::from_millis(last["retry_after_ms"].as_u64().unwrap())).await;
    ada.commit("c9", put("a", 9)).await;
}

#[tokio::test]
async fn refusals_and_made_up_tickets_take_no_write_lock() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    ada.commit("c1", put("a", 1)).await;
    // The only writer is taken; were it asked for, the answer would be `unavailable`, and the close 1013.
    let writing = host.app.store.begin().await.unwrap();
    for n in 0..20 {
        ada.ops(&format!("bad{n}"), json!([{ "op": "node.patch", "id": "nowhere", "set": {} }])).await;
        assert_eq!(ada.answer(&format!("bad{n}")).await["code"], "not_found");
    }
    let canvas = host.fixture.canvas.to_string();
    for _ in 0..20 {
        assert_eq!(host.open(&canvas, "ticket=made-up").await.closed().await, 4401);
    }
    drop(writing);
    ada.commit("c2", put("a", 2)).await;
}

#[tokio::test]
async fn a_database_that_hangs_is_told_of_and_nothing_acknowledged_is_lost() {
    let host = Host::with(&[("KAIZEN_CANVAS_DATABASE_MS", "200")]).await;
    let (mut ada, _) = host.joined(0).await;
    let (mut ben, _) = host.joined(1).await;
    ada.commit("c1", put("a", 1)).await;
    assert_eq!(ben.until("ops").await["seq"], 1);
    let writing = host.app.store.begin().await.unwrap();
    ada.ops("c2", put("a", 2)).await;
    let status = ada.until("status").await;
    assert_eq!(status["writable"], false);
    assert_eq!(ada.answer("c2").await["code"], "unavailable");
    ada.ops("c3", put("a", 3)).await;
    assert_eq!(ada.answer("c3").await["code"], "unavailable");
    assert_eq!(ben.until("status").await["writable"], false);
    drop(writing);
    assert_eq!(ada.until("status").await["writable"], true);
    assert_eq!(ben.until("status").await["writable"], true);
    assert_eq!(ada.commit("c2", put("a", 2)).await, 2);
    assert_eq!(ben.until("ops").await["seq"], 2);
}

#[tokio::test]
async fn sockets_whose_access_cannot_be_confirmed_are_closed() {
    let host = Host::with(&[
        ("KAIZEN_DATABASE_CONNECTIONS", "2"),
        ("KAIZEN_CANVAS_DATABASE_MS", "200"),
        ("KAIZEN_CANVAS_UNCONFIRMED_SECONDS", "2"),
    ])
    .await;
    let (mut ada, _) = host.joined(0).await;
    let (one, two) = (host.app.store.read().await.unwrap(), host.app.store.read().await.unwrap());
    assert_eq!(ada.until("status").await["writable"], false);
    assert_eq!(ada.closed().await, 1013);
    drop((one, two));
    loop {
        // As soon as the canvas has seen that the database answers again.
        let mut ada = host.join(0, "").await;
        match ada.next().await {
            Ok(_) => {
                ada.commit("c1", put("a", 1)).await;
                break;
            }
            Err(code) => assert_eq!(code, 1013),
        }
    }
}

#[tokio::test]
async fn a_database_that_hangs_does_not_hold_up_the_stop() {
    let host = Host::with(&[("KAIZEN_CANVAS_DATABASE_MS", "60000"), ("KAIZEN_CANVAS_STOP_SECONDS", "1")]).await;
    let (mut ada, _) = host.joined(0).await;
    let writing = host.app.store.begin().await.unwrap();
    // More than the inbox takes, so that the reader waits too.
    for n in 0..200 {
        ada.ops(&format!("c{n}"), put("a", n)).await;
    }
    host.app.stopping.cancel();
    host.app.tasks.close();
    let ended = timeout(Duration::from_secs(4), host.app.tasks.wait());
    let (ended, code) = tokio::join!(ended, ada.closed());
    ended.expect("the canvas does not wait for the database");
    assert_eq!(code, 1012);
    drop(writing);
}

#[tokio::test]
async fn a_reference_used_again_for_something_else_is_refused() {
    let host = Host::start().await;
    let mut ada = host.join(0, "client=tab").await;
    assert_eq!(ada.commit("c1", put("a", 1)).await, 1);
    assert_eq!(ada.commit("c1", put("a", 1)).await, 1);
    ada.ops("c1", put("b", 1)).await;
    assert_eq!(ada.answer("c1").await["code"], "ref_reused");
    // On another host, from the database.
    let another = host.another().await;
    let ticket = host.fixture.ticket(0).await;
    let mut ada = another.open(&host.fixture.canvas.to_string(), &format!("ticket={ticket}&client=tab")).await;
    assert_eq!(ada.until("snapshot").await["nodes"].as_array().unwrap().len(), 1);
    ada.ops("c1", put("b", 1)).await;
    assert_eq!(ada.answer("c1").await["code"], "ref_reused");
    assert_eq!(ada.commit("c1", put("a", 1)).await, 1);
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_messages() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    for n in 0..20 {
        ada.ops(&format!("c{n}"), put("a", n)).await;
        ada.0.send(Message::text("nonsense")).await.unwrap();
        ada.send(json!({ "type": "nothing", "ref": format!("x{n}") })).await;
    }
    for n in 0..20 {
        let ack = ada.next().await.unwrap();
        assert_eq!((&ack["type"], &ack["ref"]), (&json!("ack"), &json!(format!("c{n}"))));
        let reject = ada.next().await.unwrap();
        assert_eq!((&reject["code"], &reject["ref"]), (&json!("malformed"), &Value::Null));
        assert_eq!(ada.next().await.unwrap()["ref"], format!("x{n}"));
    }
}

#[tokio::test]
async fn answers_keep_their_order_where_some_are_refused_before_others_are_stored() {
    let bounds = [("KAIZEN_CANVAS_STORAGE_MIB_PER_ORGANIZATION", "1"), ("KAIZEN_CANVAS_DATABASE_MS", "60000")];
    let host = Host::with(&bounds).await;
    let (mut ada, _) = host.joined(0).await;
    let data = "x".repeat(60_000);
    for n in 0.. {
        assert!(n < 60, "more than 1 MiB and what may be beyond");
        ada.ops(&format!("n{n}"), json!([{ "op": "node.put", "node": { "id": format!("n{n}"), "data": data } }])).await;
        if ada.answer(&format!("n{n}")).await["type"] == "reject" {
            break;
        }
    }
    // While the only writer is taken, the first of these waits for it, and the others for the first.
    let writing = host.app.store.begin().await.unwrap();
    let bytes = host.app.canvases.rooms.lock()[&host.fixture.canvas].door.bytes.clone();
    let free = bytes.available_permits();
    let remove = json!([{ "op": "node.remove", "id": "nothing" }]);
    let sent = [("r1", remove.clone()), ("r2", remove), ("p1", put("a", 1))];
    let mut length = 0;
    for (reference, ops) in sent {
        let text = json!({ "type": "ops", "ref": reference, "ops": ops }).to_string();
        length += super::memory::of_message(&text);
        ada.ops(reference, ops).await;
    }
    let received = async {
        while free - bytes.available_permits() < length {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), received).await.expect("all wait to be answered");
    drop(writing);
    let mut answers = Vec::new();
    while answers.len() < 3 {
        let frame = ada.next().await.unwrap();
        if frame["ref"].is_string() {
            answers.push((frame["ref"].clone(), frame["type"].clone(), frame["code"].clone()));
        }
    }
    let answer = |reference: &str, kind: &str, code: Value| (json!(reference), json!(kind), code);
    let full = answer("p1", "reject", json!("storage_full"));
    assert_eq!(answers, [answer("r1", "ack", Value::Null), answer("r2", "ack", Value::Null), full]);
}

#[tokio::test]
async fn removing_a_parent_is_told_in_full_to_everyone() {
    let host = Host::start().await;
    let (mut ada, _) = host.joined(0).await;
    let (mut ben, _) = host.joined(1).await;
    let child = |id: &str, parent: &str| json!({ "op": "node.put", "node": { "id": id, "parentId": parent } });
    let group = json!([{ "op": "node.put", "node": { "id": "g" } }, child("a", "g"), child("b", "a")]);
    ada.commit("c1", group).await;
    ada.ops("c2", json!([{ "op": "node.remove", "id": "g" }])).await;
    let ack = ada.answer("c2").await;
    let removed = json!(["b", "a", "g"].map(|id| json!({ "op": "node.remove", "id": id })));
    assert_eq!(ack["ops"], removed, "{ack}");
    ben.until("ops").await;
    assert_eq!(ben.until("ops").await["ops"], removed);
    ada.ops("c3", json!([child("z", "g")])).await;
    assert_eq!(ada.answer("c3").await["code"], "missing_parent");
    let again = host.another().await;
    let ticket = host.fixture.ticket(0).await;
    let mut late = again.open(&host.fixture.canvas.to_string(), &format!("ticket={ticket}")).await;
    assert_eq!(late.until("snapshot").await["nodes"], json!([]));
}

#[tokio::test]
async fn a_refused_edit_is_told_in_the_audit_trail_once() {
    let host = Host::start().await;
    let (mut ben, _) = host.joined(1).await;
    let (mut again, _) = host.joined(1).await;
    for n in 0..5 {
        ben.ops(&format!("b{n}"), put("b", n)).await;
        again.ops(&format!("b{n}"), put("b", n)).await;
    }
    assert_eq!(ben.answer("b4").await["code"], "denied");
    assert_eq!(again.answer("b4").await["code"], "denied");
    let told = host.fixture.audited().await;
    let edits: Vec<_> = told.iter().filter(|(action, ..)| action == "canvas.edit").collect();
    let [(_, actor, details)] = edits[..] else { panic!("{told:?}") };
    assert_eq!(*actor, format!("user/{}", host.fixture.users[1]));
    assert_eq!(details["decision"]["allowed"], false, "{details}");
}

#[tokio::test]
async fn edits_that_are_refused_while_nothing_can_be_stored_are_told_of_later() {
    let host = Host::with(&[("KAIZEN_CANVAS_DATABASE_MS", "200")]).await;
    let (mut ada, _) = host.joined(0).await;
    let (mut ben, _) = host.joined(1).await;
    let writing = host.app.store.begin().await.unwrap();
    ada.ops("c1", put("a", 1)).await;
    assert_eq!(ben.until("status").await["writable"], false);
    for n in 0..3 {
        ben.ops(&format!("b{n}"), put("b", n)).await;
        assert_eq!(ben.answer(&format!("b{n}")).await["code"], "denied");
    }
    drop(writing);
    while ben.until("status").await["writable"] != true {}
    crate::audit::denials::finish(&host.app).await;
    let told = host.fixture.audited().await;
    let user = format!("user/{}", host.fixture.users[1]);
    let denied: Vec<_> = told.iter().filter(|(action, actor, _)| action == "canvas.edit" && *actor == user).collect();
    let [(_, _, details)] = denied[..] else { panic!("{told:?}") };
    assert_eq!(details["repeated"], 3, "{details}");
}

#[tokio::test]
async fn a_small_inbox_holds_nobody_up_for_good() {
    let host = Host::with(&[("KAIZEN_CANVAS_INBOX_KIB", "256")]).await;
    let (mut ada, _) = host.joined(0).await;
    let (mut eve, _) = host.joined(0).await;
    let large = |n: usize| json!([{ "op": "node.put", "node": { "id": "big", "data": [n, "x".repeat(60_000)] } }]);
    let sending = async |client: &mut Client| {
        for n in 0..12 {
            client.ops(&format!("c{n}"), large(n)).await;
        }
        assert_eq!(client.answer("c11").await["type"], "ack");
    };
    tokio::join!(sending(&mut ada), sending(&mut eve));
}
