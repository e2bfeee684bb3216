//! Several hosts on one database run the same versions, whether or not they hear of a change from each other.

use std::sync::Arc;

use serde_json::json;

use crate::{
    harness::{Backend, Chameleon, Client, Redis, Reply, Setup, Stub, World, eventually},
    plugins::{activate, installed, runs, sink, upload},
};

/// Waits until the sink's plugin says this, and no call fails meanwhile.
async fn until_it_runs(client: &Client, sink: &str, expected: &str) {
    eventually(expected, || async { (runs(client, sink).await == expected).then_some(()) }).await;
}

async fn a_version_reaches_every_host(setup: Setup) {
    let world = World::with(setup).await;
    let other = Arc::clone(&world.setup).start_beside().await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, here, there) = (&operator.owner, &tenant.owner.client, tenant.owner.at(&other.url));
    let far = Stub::start(|_| Reply::Status(200)).await;
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let follower = sink(here, "follower", None, json!({})).await;
    let slow = sink(here, "slow", None, json!({ "url": far.url })).await;
    // A host that has not heard of the plugin looks for it when it is asked.
    assert_eq!(runs(&there, &follower).await, "chameleon 1.0.0");
    far.next([Reply::Hold]);
    let (client, held) = (there.clone(), slow.clone());
    let under_way = tokio::spawn(async move { runs(&client, &held).await });
    far.held(1).await;

    // Activated on one host, it runs on both; what is under way on the other ends as it began.
    upload(admin, &Chameleon::version("1.1.0")).await.ok(201);
    activate(admin, &path, "1.1.0").await.ok(200);
    assert_eq!(runs(here, &follower).await, "chameleon 1.1.0");
    until_it_runs(&there, &follower, "chameleon 1.1.0").await;
    far.release();
    assert_eq!(under_way.await.expect("it did not fail"), "chameleon 1.0.0");

    // The other way round, and back.
    let admin_there = admin.at(&other.url);
    admin_there.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    assert_eq!(runs(&there, &follower).await, "chameleon 1.0.0");
    until_it_runs(here, &follower, "chameleon 1.0.0").await;

    // A version that is named on one host is found on the other.
    let pinned = sink(&there, "pinned", Some("1.1.0"), json!({})).await;
    assert_eq!(runs(here, &pinned).await, "chameleon 1.1.0");
    // What is removed on one is gone on the other.
    admin.delete(&format!("{path}/versions/1.1.0")).await.problem(409, "conflict");
    there.delete(&pinned).await.ok(204);
    admin.delete(&format!("{path}/versions/1.1.0")).await.ok(204);
    let body = json!({ "name": "late", "plugin": "chameleon", "plugin_version": "1.1.0", "active": false });
    eventually("the other host knows", || async {
        let answer = there.post("/api/v1/audit-sinks", body.clone()).await;
        (answer.status == 422).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_version_reaches_every_host_by_a_hint() {
    let redis = Redis::start().await;
    a_version_reaches_every_host(Setup::new(Backend::Postgres).await.with("KAIZEN_REDIS_URL", redis.url())).await;
}

#[tokio::test]
async fn a_version_reaches_every_host_without_hints() {
    a_version_reaches_every_host(Setup::new(Backend::Postgres).await).await;
}

#[tokio::test]
async fn hosts_that_activate_at_once_agree() {
    let world = World::with(Setup::new(Backend::Postgres).await).await;
    let other = Arc::clone(&world.setup).start_beside().await;
    let operator = world.operator().await;
    let (here, there) = (operator.owner.client.clone(), operator.owner.at(&other.url));
    let path = installed(&here, &Chameleon::version("1.0.0")).await;
    let follower = sink(&here, "follower", None, json!({})).await;
    for version in ["1.1.0", "1.2.0"] {
        upload(&here, &Chameleon::version(version)).await.ok(201);
    }
    for _ in 0..5 {
        let (one, two) = tokio::join!(activate(&here, &path, "1.1.0"), activate(&there, &path, "1.2.0"));
        one.ok(200);
        two.ok(200);
    }
    let active = here.get(&path).await.ok(200)["active_version"].as_str().expect("a version").to_owned();
    for client in [&here, &there] {
        until_it_runs(client, &follower, &format!("chameleon {active}")).await;
    }
}
