//! Several hosts on one PostgreSQL, with Redis to tell each other; without it only slower.

use std::sync::Arc;

use serde_json::json;

use crate::{
    canvas::{Team, put},
    harness::{Backend, Canvas, Redis, Setup, World, eventually},
};

/// Two hosts, Ada on one, Ben on the other.
async fn two_hosts(redis: &Redis) -> (Team, crate::harness::Server, Canvas, Canvas) {
    let setup = Setup::new(Backend::Postgres).await.with("KAIZEN_REDIS_URL", redis.url());
    let team = Team::on(World::with(setup).await).await;
    let other = Arc::clone(&team.world.setup).start_beside().await;
    let ada = team.join(&team.ada).await;
    let ben = team.join(&team.ben.at(&other.url)).await;
    (team, other, ada, ben)
}

async fn exchange(ada: &mut Canvas, ben: &mut Canvas, round: i64) {
    for step in 0..10 {
        let x = round * 100 + step;
        ada.ops(&format!("a{x}"), json!([put("shared", x), put(&format!("ada-{x}"), x)])).await;
        ben.ops(&format!("b{x}"), json!([put("shared", -x), put(&format!("ben-{x}"), x)])).await;
    }
    let last = (round + 1) * 20;
    ada.reach(last).await;
    ben.reach(last).await;
    assert_eq!(ada.nodes, ben.nodes, "after round {round}");
}

#[tokio::test]
async fn clients_on_two_hosts_converge_with_redis_and_without() {
    let mut redis = Redis::start().await;
    let (team, other, mut ada, mut ben) = two_hosts(&redis).await;
    exchange(&mut ada, &mut ben, 0).await;
    // A presence crosses hosts as long as Redis is there.
    ada.send(json!({ "type": "presence", "cursor": { "x": 7, "y": 7 } })).await;
    ben.until("Ada's cursor", |frame| frame["type"] == "presence" && frame.to_string().contains("\"x\":7")).await;

    redis.stop().await;
    exchange(&mut ada, &mut ben, 1).await;
    exchange(&mut ada, &mut ben, 2).await;
    let late = team.join(&team.tenant.owner.at(&other.url)).await;
    assert_eq!(late.nodes, ada.nodes);

    redis.again().await;
    exchange(&mut ada, &mut ben, 3).await;
}

#[tokio::test]
async fn presence_crosses_hosts_without_redis_too() {
    let team = Team::start(Backend::Postgres).await;
    let other = Arc::clone(&team.world.setup).start_beside().await;
    let mut ada = team.join(&team.ada).await;
    let mut ben = team.join(&team.ben.at(&other.url)).await;
    let says = |x: i64| json!({ "type": "presence", "cursor": { "x": x, "y": 7 } });
    ada.send(says(70_001)).await;
    let seen = ben.until("Ada's cursor", |frame| frame["type"] == "presence" && frame["cursor"]["x"] == 70_001).await;
    assert!(seen["actor"].as_str().is_some_and(|actor| actor.ends_with(&team.ada.id)), "{seen}");
    ben.send(says(70_002)).await;
    ada.until("Ben's cursor", |frame| frame["type"] == "presence" && frame["cursor"]["x"] == 70_002).await;
    ada.send(says(70_003)).await;
    ben.until("Ada's next cursor", |frame| frame["cursor"]["x"] == 70_003).await;
    // Who comes later learns of both from the snapshot, and who leaves is gone.
    let owner = &team.tenant.owner;
    let mut late = Canvas::open(&owner.at(&other.url), &team.canvas, "").await.expect("opens");
    let peers = late.snapshot().await["peers"].to_string();
    assert!(peers.contains("70003") && peers.contains("70002"), "{peers}");
    ada.leave().await;
    ben.until("Ada left", |frame| frame["left"] == true && frame["peer"] == seen["peer"]).await;
}

#[tokio::test]
async fn the_first_changes_to_a_canvas_may_come_from_two_hosts_at_once() {
    let redis = Redis::start().await;
    let (team, other, _ada, _ben) = two_hosts(&redis).await;
    let workspace = team.tenant.workspace("second").await;
    for number in 0..8 {
        let agent = team.tenant.agent(&workspace, &format!("agent {number}")).await;
        let canvas = agent["canvas_id"].as_str().expect("an id");
        let elsewhere = team.ben.at(&other.url);
        let (mut ada, mut ben) = tokio::join!(Canvas::join(&team.ada, canvas), Canvas::join(&elsewhere, canvas));
        let (_, _) = tokio::join!(ada.commit("a", json!([put("ada", 1)])), ben.commit("b", json!([put("ben", 1)])));
        ada.reach(2).await;
        ben.reach(2).await;
        assert_eq!(ada.nodes, ben.nodes);
    }
}

#[tokio::test]
async fn a_server_starts_without_its_redis() {
    let mut redis = Redis::start().await;
    redis.stop().await;
    let (_team, _other, mut ada, mut ben) = two_hosts(&redis).await;
    exchange(&mut ada, &mut ben, 0).await;
}

#[tokio::test]
async fn a_client_goes_on_at_the_other_host_when_its_own_is_killed() {
    let redis = Redis::start().await;
    let (mut team, other, mut ada, mut ben) = two_hosts(&redis).await;
    exchange(&mut ada, &mut ben, 0).await;
    let seq = ada.commit("last words", json!([put("kept", 1)])).await;
    team.world.server.kill().await;
    let moved = team.ada.at(&other.url);
    let mut again = Canvas::open(&moved, &team.canvas, &format!("?since={}", ada.seq)).await.expect("opens");
    (again.nodes, again.seq) = (ada.nodes.clone(), ada.seq);
    ben.reach(seq).await;
    let next = ben.commit("onward", json!([put("next", 1)])).await;
    again.reach(next).await;
    assert_eq!(again.nodes, ben.nodes);
    assert!(again.nodes.contains_key("kept"));
}

#[tokio::test]
async fn revoking_on_one_host_is_felt_on_the_other() {
    let redis = Redis::start().await;
    let (team, _other, _ada, mut ben) = two_hosts(&redis).await;
    let owner = &team.tenant.owner;
    owner.patch(&format!("/api/v1/users/{}", team.ben.id), json!({ "active": false })).await.ok(200);
    assert_eq!(ben.closed().await, 4401);
}

#[tokio::test]
async fn revoking_is_felt_on_the_other_host_without_redis_too() {
    let mut redis = Redis::start().await;
    let (team, other, _ada, mut ben) = two_hosts(&redis).await;
    redis.stop().await;
    team.tenant.owner.patch(&format!("/api/v1/users/{}", team.ben.id), json!({ "active": false })).await.ok(200);
    // The next request reads the database: no hint is needed.
    team.ben.at(&other.url).get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    assert_eq!(ben.closed().await, 4401);
}

#[tokio::test]
async fn what_one_host_signs_the_other_accepts() {
    let redis = Redis::start().await;
    let setup = Setup::new(Backend::Postgres).await.with("KAIZEN_REDIS_URL", redis.url());
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    // A host with a data folder, and so a signing key, of its own.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let folder = elsewhere.path().display().to_string();
    let other = world.setup.start_with(&["--listen", "127.0.0.1:0", "--data-dir", &folder]).await;
    eventually("the other host knows the key", || async {
        (tenant.owner.at(&other.url).get("/api/v1/auth/me").await.status == 200).then_some(())
    })
    .await;
    let fresh = world.client().at(&other.url).login(&tenant.owner.email, crate::harness::PASSWORD).await;
    eventually("the first host knows the other's key", || async {
        (fresh.at(&world.server.url).get("/api/v1/auth/me").await.status == 200).then_some(())
    })
    .await;
    let keys = world.client().get("/.well-known/jwks.json").await.ok(200);
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2), "{keys}");
}
