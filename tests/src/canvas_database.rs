//! A database that hangs: it takes what it is sent and says nothing, as a stopped process or a network that swallows
//! packets does.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    canvas::{Team, put},
    database::{make_read_only, make_writable},
    harness::{Backend, Canvas, Database, Proxy, Setup, World, within},
};

/// A team on PostgreSQL behind a line that can be stalled.
async fn behind_a_proxy() -> (Proxy, Team) {
    let proxy = Proxy::to(Database::cluster_port()).await;
    let setup = Setup::new(Backend::Postgres).await;
    let url = setup.database.url_through(proxy.port);
    let setup = setup
        .with("KAIZEN_DATABASE_URL", url)
        .with("KAIZEN_CANVAS_DATABASE_MS", "1000")
        .with("KAIZEN_CANVAS_STOP_SECONDS", "2")
        .with("KAIZEN_STOP_SECONDS", "1")
        .with("KAIZEN_JOB_STOP_SECONDS", "1");
    (proxy, Team::on(World::with(setup).await).await)
}

/// What became of messages that were sent one after the other.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeSet<String>,
    refused: Vec<String>,
}

impl Sent {
    /// Reads until every message up to `last` has an answer and, if asked for, messages are stored again.
    async fn read(&mut self, socket: &mut Canvas, last: usize, until_writable: bool) -> Vec<Value> {
        let (mut answered, mut statuses, mut writable) = (0, Vec::new(), !until_writable);
        while answered < last || !writable {
            let frame = within("an answer", socket.next()).await.unwrap_or_else(|code| panic!("closed with {code}"));
            let reference = frame["ref"].as_str().map(str::to_owned);
            match (frame["type"].as_str(), reference) {
                (Some("ack"), Some(reference)) => {
                    answered += 1;
                    self.acknowledged.insert(reference);
                }
                (Some("reject"), Some(reference)) => {
                    answered += 1;
                    assert_eq!(frame["code"], "unavailable", "{frame}");
                    self.refused.push(reference);
                }
                (Some("status"), _) => {
                    writable = frame["writable"] == true;
                    statuses.push(frame);
                }
                _ => {}
            }
        }
        statuses
    }
}

#[tokio::test]
async fn a_canvas_says_that_nothing_is_stored_and_loses_nothing_that_it_acknowledged() {
    let (proxy, team) = behind_a_proxy().await;
    let mut ada = Canvas::open(&team.ada, &team.canvas, "?client=tab").await.expect("opens");
    ada.snapshot().await;
    let mut ben = team.join(&team.ben).await;
    let mut sent = Sent::default();
    for number in 0..20 {
        ada.ops(&format!("n{number}"), json!([put(&format!("n{number}"), number)])).await;
    }
    sent.read(&mut ada, 10, false).await;
    // Ten may be under way.
    proxy.stall();
    for number in 20..40 {
        ada.ops(&format!("n{number}"), json!([put(&format!("n{number}"), number)])).await;
    }
    ben.until("that nothing is stored", |frame| frame["type"] == "status" && frame["writable"] == false).await;
    proxy.restore();
    let statuses = sent.read(&mut ada, 30, true).await;
    assert_eq!(statuses.first().map(|status| &status["writable"]), Some(&json!(false)), "{statuses:?}");
    ben.until("that it is again", |frame| frame["type"] == "status" && frame["writable"] == true).await;
    assert!(!sent.refused.is_empty(), "what was sent meanwhile cannot have been stored");
    let acknowledged = sent.acknowledged.clone();
    // A client that lost count joins anew; what was refused it sends again under the same `ref`, which stores it once.
    let mut again = Canvas::open(&team.ada, &team.canvas, "?client=tab").await.expect("opens");
    again.snapshot().await;
    for id in &acknowledged {
        assert!(again.nodes.contains_key(id), "{id} was acknowledged and is gone");
    }
    for reference in sent.refused.split_off(0) {
        let number: i64 = reference.trim_start_matches('n').parse().expect("a number");
        again.send(json!({ "type": "ops", "ref": reference, "ops": [put(&reference, number)] })).await;
        let answer = within("an answer", async {
            loop {
                match again.next_frame().await {
                    Ok(frame) if frame["ref"] == reference.as_str() => return frame,
                    Ok(_) => {}
                    Err(code) => panic!("closed with {code}"),
                }
            }
        })
        .await;
        assert_eq!(answer["type"], "ack", "{answer}");
    }
    let late = team.join(&team.ben).await;
    assert_eq!((late.nodes.len(), late.seq), (40, 40), "each once");
}

#[tokio::test]
async fn a_stop_closes_sockets_whose_messages_the_database_never_answered() {
    let (proxy, mut team) = behind_a_proxy().await;
    let mut ada = team.join(&team.ada).await;
    ada.commit("first", json!([put("first", 1)])).await;
    proxy.stall();
    for number in 0..100 {
        ada.ops(&format!("x{number}"), json!([put("x", number)])).await;
    }
    let closed = async {
        let code = ada.closed().await;
        // Only now: the canvas did not wait for it.
        proxy.restore();
        code
    };
    let (_, code) = tokio::join!(team.world.server.stop(), closed);
    assert_eq!(code, 1012);
}

#[tokio::test]
async fn what_is_sent_while_the_database_says_nothing_is_refused_without_waiting_for_it() {
    let (proxy, team) = behind_a_proxy().await;
    let mut ada = team.join(&team.ada).await;
    proxy.stall();
    ada.ops("first", json!([put("first", 1)])).await;
    ada.until("that nothing is stored", |frame| frame["type"] == "status" && frame["writable"] == false).await;
    // Each is answered between two looks at the database, and not after whichever look it comes to be heard in between.
    within("twenty refusals", async {
        for number in 0..20 {
            let refused = ada.refused(&format!("x{number}"), json!([put("x", number)])).await;
            assert_eq!(refused["code"], "unavailable", "{refused}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_while_the_database_says_nothing_ends_in_time_and_says_what_it_gave_up() {
    let (proxy, mut team) = behind_a_proxy().await;
    let mut ada = team.join(&team.ada).await;
    proxy.stall();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let owner = team.tenant.owner.client.clone();
            let read = owner.http.get(format!("{}/api/v1/agents", owner.base));
            tokio::spawn(read.bearer_auth(owner.token.unwrap_or_default()).send())
        })
        .collect();
    ada.ops("first", json!([put("first", 1)])).await;
    ada.until("that nothing is stored", |frame| frame["type"] == "status" && frame["writable"] == false).await;
    let begun = Instant::now();
    let (status, code) = tokio::join!(team.world.server.stop(), ada.closed());
    // 10 seconds and the largest of the three, as the operations page says.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!((status.code(), code), (Some(0), 1012));
    let log = team.world.server.log();
    assert!(log.contains("could not give back jobs"), "{log}");
    reads.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_canvas_says_that_a_read_only_database_stores_nothing_until_it_does_again() {
    let team = Team::start(Backend::Postgres).await;
    let mut direct = team.world.setup.database.direct().await;
    make_read_only(&mut direct, &team.tenant.owner).await;
    let is = |writable: bool| move |frame: &Value| frame["type"] == "status" && frame["writable"] == writable;
    let mut ada = team.join(&team.ada).await;
    ada.ops("first", json!([put("first", 1)])).await;
    ada.until("that nothing is stored", is(false)).await;
    let refused = ada.until("the refusal", |frame| frame["ref"] == "first").await;
    assert_eq!(refused["code"], "unavailable", "{refused}");
    let mut ben = team.join(&team.ben).await;
    ben.until("that nothing is stored", is(false)).await;
    make_writable(&mut direct).await;
    ada.until("that it is again", is(true)).await;
    ben.until("that it is again", is(true)).await;
    let seq = ada.commit("again", json!([put("first", 1)])).await;
    ben.reach(seq).await;
}
