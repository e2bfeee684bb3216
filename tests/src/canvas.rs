//! The canvas: everyone has the same graph, and what was acknowledged stays.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Backend, Canvas, Client, Person, Tenant, World, node};

on_both!(
    two_clients_edit_at_once_and_converge,
    what_was_acknowledged_survives_the_kill,
    a_client_resumes_where_it_was,
    removing_a_node_removes_its_edges,
    groups_go_with_their_nodes_and_parents_come_first,
    what_does_not_hold_up_is_rejected_whole,
    a_viewer_sees_and_does_not_draw,
    presence_is_passed_on_and_not_stored,
    a_canvas_that_did_not_change_is_answered_with_304,
);

/// A tenant with two people on one canvas.
pub struct Team {
    pub world: World,
    pub tenant: Tenant,
    pub ada: Person,
    pub ben: Person,
    pub agent: String,
    pub canvas: String,
}

impl Team {
    pub async fn start(backend: Backend) -> Self {
        Self::on(World::start(backend).await).await
    }

    pub async fn on(world: World) -> Self {
        let tenant = world.tenant("acme").await;
        let (ada, ben) = (tenant.person("ada", "developer").await, tenant.person("ben", "developer").await);
        let workspace = tenant.workspace("first").await;
        let agent = tenant.agent(&workspace, "helper").await;
        let text = |name: &str| agent[name].as_str().expect("an id").to_owned();
        Self { agent: text("id"), canvas: text("canvas_id"), world, tenant, ada, ben }
    }

    pub async fn join(&self, client: &Client) -> Canvas {
        Canvas::join(client, &self.canvas).await
    }
}

pub fn put(id: &str, x: i64) -> Value {
    json!({ "op": "node.put", "node": node(id, x) })
}

pub fn edge(id: &str, source: &str, target: &str) -> Value {
    json!({ "op": "edge.put", "edge": { "id": id, "source": source, "target": target, "sourceHandle": null, "targetHandle": null, "data": {} } })
}

fn moved(id: &str, x: i64) -> Value {
    json!({ "op": "node.patch", "id": id, "set": { "position": { "x": x, "y": 1 } } })
}

async fn two_clients_edit_at_once_and_converge(backend: Backend) {
    let team = Team::start(backend).await;
    let (mut ada, mut ben) = (team.join(&team.ada).await, team.join(&team.ben).await);
    assert_eq!((ada.seq, ada.access.as_str()), (0, "edit"));
    let base = ada.commit("base", json!([put("shared", 0), put("goal", 1), edge("e", "shared", "goal")])).await;
    ben.reach(base).await;
    // Both drag the same node and draw nodes of their own, without waiting for each other.
    for step in 0..40 {
        ada.ops(&format!("a{step}"), json!([moved("shared", step)])).await;
        ben.ops(&format!("b{step}"), json!([moved("shared", 1000 + step)])).await;
        ada.ops(
            &format!("an{step}"),
            json!([put(&format!("ada-{step}"), step), edge(&format!("ae-{step}"), "shared", &format!("ada-{step}"))]),
        )
        .await;
        ben.ops(&format!("bn{step}"), json!([put(&format!("ben-{step}"), step)])).await;
    }
    let last = base + 160;
    ada.reach(last).await;
    ben.reach(last).await;
    assert_eq!(ada.nodes, ben.nodes);
    assert_eq!(ada.edges, ben.edges);
    assert_eq!(ada.nodes.len(), 82);
    assert_eq!(ada.edges.len(), 41);
    let late = team.join(&team.ada).await;
    assert_eq!(late.seq, last);
    assert_eq!((&late.nodes, &late.edges), (&ada.nodes, &ada.edges), "the stored graph is the one everybody has");
}

async fn what_was_acknowledged_survives_the_kill(backend: Backend) {
    let mut team = Team::start(backend).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut ada = team.join(&team.ada).await;
        for step in 0..5 {
            let id = format!("n{round}-{step}");
            // More is under way when the server is killed: it may or may not be kept, but never in part.
            let seq = ada.commit(&id, json!([put(&id, step)])).await;
            acknowledged.push((id, seq));
        }
        ada.ops("in flight", json!([put("half", 1), put("other half", 2)])).await;
        team.world.server.kill().await;
        team.world.again().await;
        team.ada.client = team.ada.client.at(&team.world.server.url);
        let after = team.join(&team.ada).await;
        assert!(after.seq >= acknowledged.last().expect("some").1, "{} after {acknowledged:?}", after.seq);
        for (id, _) in &acknowledged {
            assert!(after.nodes.contains_key(id), "{id} was acknowledged and is gone");
        }
        assert_eq!(
            after.nodes.contains_key("half"),
            after.nodes.contains_key("other half"),
            "operations of one frame are one"
        );
    }
}

async fn a_client_resumes_where_it_was(backend: Backend) {
    let team = Team::start(backend).await;
    let (mut ada, mut ben) = (team.join(&team.ada).await, team.join(&team.ben).await);
    let seq = ada.commit("1", json!([put("a", 1)])).await;
    ben.reach(seq).await;
    let (nodes, at) = (ben.nodes.clone(), ben.seq);
    ben.leave().await;
    ada.commit("2", json!([put("b", 2)])).await;
    let last = ada.commit("3", json!([moved("a", 9)])).await;
    let mut again = Canvas::open(&team.ben, &team.canvas, &format!("?since={at}")).await.expect("opens");
    (again.nodes, again.seq) = (nodes, at);
    again.reach(last).await;
    assert_eq!(again.nodes, ada.nodes);
    let next = ada.commit("4", json!([put("c", 3)])).await;
    again.reach(next).await;
    assert_eq!(again.nodes, ada.nodes);
    // A sequence that is not the canvas's own gets the whole graph, not a guess.
    let mut lost = Canvas::open(&team.ben, &team.canvas, "?since=99999").await.expect("opens");
    lost.snapshot().await;
    assert_eq!((lost.seq, &lost.nodes), (next, &ada.nodes));
}

async fn removing_a_node_removes_its_edges(backend: Backend) {
    let team = Team::start(backend).await;
    let (mut ada, mut ben) = (team.join(&team.ada).await, team.join(&team.ben).await);
    ada.commit("1", json!([put("a", 1), put("b", 2), put("c", 3), edge("ab", "a", "b"), edge("bc", "b", "c")])).await;
    let seq = ada.commit("2", json!([{ "op": "node.remove", "id": "a" }])).await;
    ben.reach(seq).await;
    assert_eq!(ben.edges.keys().collect::<Vec<_>>(), ["bc"]);
    let late = team.join(&team.ada).await;
    assert_eq!((&late.nodes, &late.edges), (&ben.nodes, &ben.edges));
    let seq = ada.commit("3", json!([{ "op": "edge.patch", "id": "bc", "set": { "data": { "when": "done" } } }, { "op": "edge.remove", "id": "bc" }, { "op": "node.remove", "id": "b" }])).await;
    ben.reach(seq).await;
    assert_eq!((ben.nodes.len(), ben.edges.len()), (1, 0));
}

async fn a_canvas_that_did_not_change_is_answered_with_304(backend: Backend) {
    let team = Team::start(backend).await;
    let path = format!("/api/v1/canvases/{}", team.canvas);
    let ask = async |tag: &str| team.ada.request(Method::GET, &path, None, &[("if-none-match", tag)]).await;
    let empty = team.ada.get(&path).await;
    assert_eq!(empty.header("content-type"), "application/json");
    assert_eq!(empty.body, json!({ "seq": 0, "nodes": [], "edges": [] }));
    assert_eq!(ask(&empty.etag()).await.status, 304);
    let mut ada = team.join(&team.ada).await;
    ada.commit("1", json!([put("a", 1), put("b", 2), edge("ab", "a", "b")])).await;
    let drawn = ask(&empty.etag()).await;
    let expected = json!({ "seq": 1, "nodes": [node("a", 1), node("b", 2)], "edges": [edge("ab", "a", "b")["edge"]] });
    assert_eq!((drawn.status, &drawn.body), (200, &expected));
    let same = ask(&drawn.etag()).await;
    assert_eq!((same.status, same.text.as_str()), (304, ""));
}

async fn groups_go_with_their_nodes_and_parents_come_first(backend: Backend) {
    let team = Team::start(backend).await;
    let (mut ada, mut ben) = (team.join(&team.ada).await, team.join(&team.ben).await);
    let within = |id: &str, parent: &str| json!({ "op": "node.patch", "id": id, "set": { "parentId": parent } });
    ada.commit("1", json!([put("a", 1), put("b", 2), edge("ab", "a", "b"), put("group", 3), put("out", 4)])).await;
    ada.commit("2", json!([within("a", "group"), within("b", "group")])).await;
    for (parent, code) in
        [("nowhere", "missing_parent"), ("group", "parent_cycle"), ("a", "parent_cycle"), ("", "invalid")]
    {
        assert_eq!(ada.refused(parent, json!([within("group", parent)])).await["code"], code, "{parent}");
    }
    // Whoever draws a graph that it is given finds each parent before its children.
    let stored = team.ada.get(&format!("/api/v1/canvases/{}", team.canvas)).await.ok(200);
    let order: Vec<_> = stored["nodes"].as_array().expect("nodes").iter().map(|node| node["id"].clone()).collect();
    assert_eq!(order, ["group", "out", "a", "b"]);
    let seq = ada.commit("3", json!([{ "op": "node.remove", "id": "group" }])).await;
    ben.reach(seq).await;
    let late = team.join(&team.ada).await;
    for seen in [&ada, &ben, &late] {
        assert_eq!(seen.nodes.keys().collect::<Vec<_>>(), ["out"]);
        assert!(seen.edges.is_empty());
    }
}

async fn what_does_not_hold_up_is_rejected_whole(backend: Backend) {
    let team = Team::start(backend).await;
    let mut ada = team.join(&team.ada).await;
    let seq = ada.commit("base", json!([put("a", 1)])).await;
    let bad = [
        json!([put("b", 1), edge("ab", "a", "missing")]),
        json!([put("b", 1), { "op": "node.rename", "id": "a" }]),
        json!([put("b", 1), { "op": "node.patch", "id": "missing", "set": { "data": {} } }]),
        json!([put("b", 1), { "op": "node.put", "node": { "type": "task" } }]),
        json!([put("b", 1), { "op": "node.patch", "id": "a", "set": { "id": "z" } }]),
        json!([]),
    ];
    for (number, ops) in bad.into_iter().enumerate() {
        let reject = ada.refused(&format!("bad {number}"), ops).await;
        assert!(reject["code"].as_str().is_some_and(|code| !code.is_empty()), "{reject}");
    }
    let late = team.join(&team.ada).await;
    assert_eq!(late.seq, seq, "nothing of a rejected frame is kept");
    assert_eq!(late.nodes.keys().collect::<Vec<_>>(), ["a"]);
    // The socket goes on.
    assert_eq!(ada.commit("good", json!([put("b", 1)])).await, seq + 1);
}

async fn a_viewer_sees_and_does_not_draw(backend: Backend) {
    let team = Team::start(backend).await;
    let eve = team.tenant.person("eve", "viewer").await;
    let (mut ada, mut viewer) = (team.join(&team.ada).await, team.join(&eve).await);
    assert_eq!(viewer.access, "view");
    viewer.refused("mine", json!([put("mine", 1)])).await;
    let seq = ada.commit("1", json!([put("a", 1)])).await;
    viewer.reach(seq).await;
    assert_eq!(viewer.nodes, ada.nodes);
    assert_eq!(seq, 1, "the refused operation took no place");
}

async fn presence_is_passed_on_and_not_stored(backend: Backend) {
    let team = Team::start(backend).await;
    let mut ada = team.join(&team.ada).await;
    let mut ben = team.join(&team.ben).await;
    ada.send(json!({ "type": "presence", "cursor": { "x": 3, "y": 4 }, "selection": ["a"] })).await;
    let seen =
        ben.until("Ada's cursor", |frame| frame["type"] == "presence" && frame.to_string().contains("\"x\":3")).await;
    assert!(seen.to_string().contains(&team.ada.id), "it says whose: {seen}");
    let seq = ada.commit("1", json!([put("a", 1)])).await;
    ben.reach(seq).await;
    assert_eq!(seq, 1, "presence takes no place in the sequence");
    let mut late = Canvas::open(&team.ben, &team.canvas, "").await.expect("opens");
    let snapshot = late.snapshot().await;
    assert!(snapshot["peers"].to_string().contains(&team.ada.id), "who is here: {snapshot}");
    ada.leave().await;
    ben.until("Ada left", |frame| frame["type"] == "presence" && frame.to_string().contains(&team.ada.id)).await;
}
