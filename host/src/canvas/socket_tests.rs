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

struct Host {
    app: App,
    address: String,
    fixture: Arc<Fixture>,
}

impl Host {
    /// With a developer and a viewer.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [("KAIZEN_DATA_DIR".to_owned(), folder.path().display().to_string())];
        let config = Config::load(None, settings, []).unwrap();
        let app = App::build(config, Clock::system()).await.unwrap();
        let fixture = Fixture::within(app.store.clone(), folder).await;
        fixture.grant(0, Role::Developer).await;
        fixture.grant(1, Role::Viewer).await;
        Self::serve(app, Arc::new(fixture)).await
    }

    async fn serve(app: App, fixture: Arc<Fixture>) -> Self {
        app.canvases.start();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = api::router(&app);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { app, address, fixture }
    }

    /// Another host on the same database that hears nothing of this one.
    async fn another(&self) -> Self {
        let mut config = self.app.config.clone();
        config.data_dir = config.data_dir.join("another");
        std::fs::create_dir_all(&config.data_dir).unwrap();
        Self::serve(App::build(config, Clock::system()).await.unwrap(), self.fixture.clone()).await
    }

    async fn open(&self, canvas: &str, query: &str) -> Client {
        let mut request = format!("ws://{}/ws/canvas/{canvas}?{query}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "kaizen.canvas.v1".parse().unwrap());
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, response) = connect_async_with_config(request, Some(config), false).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "kaizen.canvas.v1");
        Client(socket)
    }

    async fn join(&self, user: usize, query: &str) -> Client {
        let ticket = self.fixture.ticket(user).await;
        self.open(&self.fixture.canvas.to_string(), &format!("ticket={ticket}&{query}")).await
    }

    async fn joined(&self, user: usize) -> (Client, Value) {
        let mut client = self.join(user, "").await;
        let snapshot = client.until("snapshot").await;
        (client, snapshot)
    }
}

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    /// The next frame, or the code of the close.
    async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(Duration::from_secs(20), self.0.next()).await.expect("in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(close))) => return Err(close.map_or(1005, |close| close.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await.unwrap_or_else(|code| panic!("closed with {code} before {kind}"));
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn ops(&mut self, reference: &str, ops: Value) {
        self.send(json!({ "type": "ops", "ref": reference, "ops": ops })).await;
    }

    async fn commit(&mut self, reference: &str, ops: Value) -> i64 {
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
    for bytes in [super::MESSAGE + 1, 3 * 1024 * 1024] {
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
