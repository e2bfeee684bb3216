//! Several hosts on one database run the same versions, whether or not they hear of a change from each other.

use std::sync::Arc;

use serde_json::json;

use crate::{
    harness::{Backend, Chameleon, Client, Redis, Reply, Setup, Stub, World, eventually},
    plugin_fit::stricter,
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

#[tokio::test]
async fn a_connection_and_a_version_that_does_not_fit_it_never_both_come_in() {
    let world = World::with(Setup::new(Backend::Postgres).await).await;
    let other = Arc::clone(&world.setup).start_beside().await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, there) = (&operator.owner, tenant.owner.at(&other.url));
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    upload(admin, &stricter("1.1.0")).await.ok(201);
    let old = json!({ "url": "http://a.example" });
    let kept = sink(&there, "kept", None, json!({})).await;
    for round in 0..12 {
        // One is made, another one is changed, while the version that fits neither is activated on the other host.
        let body = json!({ "name": format!("s{round}"), "plugin": "chameleon", "config": old, "active": false });
        let (made, changed, activated) = tokio::join!(
            there.post("/api/v1/audit-sinks", body),
            there.patch(&kept, json!({ "config": old })),
            activate(admin, &path, "1.1.0"),
        );
        let refused = |status| [409, 422].contains(&status);
        assert!(made.status == 201 || refused(made.status), "{}", made.text);
        assert!(changed.status == 200 || refused(changed.status), "{}", changed.text);
        if activated.status == 200 {
            assert!(refused(made.status) && refused(changed.status), "{} {}", made.text, changed.text);
            admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
        } else {
            activated.problem(409, "conflict");
            assert!(made.status == 201 || changed.status == 200, "{} {}", made.text, changed.text);
        }
        if made.status == 201 {
            there.delete(&format!("/api/v1/audit-sinks/{}", crate::harness::id(&made.body))).await.ok(204);
        }
        there.patch(&kept, json!({ "config": { "url": null } })).await.ok(200);
    }
}

#[tokio::test]
async fn hosts_that_take_in_the_same_folder_at_once_agree() {
    let setup = Setup::new(Backend::Postgres).await;
    let folder = setup.dir().join("plugins");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("a.wasm"), Chameleon::version("1.0.0").wasm()).expect("written");
    std::fs::write(folder.join("b.wasm"), Chameleon::version("1.1.0").wasm()).expect("written");
    let setup = Arc::new(setup.with("KAIZEN_PLUGINS_DIR", folder.display().to_string()));
    let (one, two) = tokio::join!(setup.start_beside(), setup.start_beside());
    let mut world = World { server: one, setup };
    let tenant = world.tenant("acme").await;
    for url in [&world.server.url, &two.url] {
        let listed = tenant.owner.at(url).all("/api/v1/plugins").await;
        let found: Vec<_> = listed.iter().filter(|plugin| plugin["name"] == "chameleon").collect();
        assert_eq!((found.len(), &found[0]["active_version"]), (1, &json!("1.1.0")), "{found:?}");
    }
    world.server.stop().await;
}

#[tokio::test]
async fn the_same_component_on_two_hosts_at_once_is_kept_once() {
    let world = World::with(Setup::new(Backend::Postgres).await).await;
    let other = Arc::clone(&world.setup).start_beside().await;
    let operator = world.operator().await;
    let (here, there) = (operator.owner.client.clone(), operator.owner.at(&other.url));
    for patch in 0..5 {
        let component = Chameleon::version(&format!("1.0.{patch}"));
        let (one, two, three) =
            tokio::join!(upload(&here, &component), upload(&there, &component), upload(&here, &component));
        let mut statuses = [one.status, two.status, three.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 201], "{}\n{}\n{}", one.text, two.text, three.text);
        // Another component of the same version: one of them is first.
        let rival = |title: &str| Chameleon::version(&format!("2.0.{patch}")).with("title", json!(title));
        let (one, two) = (rival("One"), rival("Two"));
        let (one, two) = tokio::join!(upload(&here, &one), upload(&there, &two));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{}\n{}", one.text, two.text);
    }
}
