//! A bad version of a plugin is stopped: at once, on every host, for every tenant. And a version that does not load on a
//! host, or is gone back from, leaves nobody on nothing.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    harness::{Backend, Chameleon, Client, Setup, World, eventually, id},
    plugins::{PLUGINS, SINKS, activate, active, installed, runs, sink, upload},
};

on_both!(
    a_version_in_quarantine_is_refused_everywhere_and_can_be_released,
    going_back_from_the_first_version_of_a_line_takes_its_followers_along,
);

const REASON: &str = "it sends events elsewhere (INC-7)";

/// Why a call of the sink is refused, if it is.
async fn refused(client: &Client, sink: &str) -> Option<String> {
    let answer = client.post(&format!("{sink}/check"), json!({})).await;
    (answer.status != 200).then(|| answer.fault("/config"))
}

/// What the trail says of quarantines.
async fn told(client: &Client) -> Vec<Value> {
    let events = client.all("/api/v1/audit/events").await;
    events.into_iter().filter(|e| e["action"] == "plugin.quarantine" || e["action"] == "plugin.release").collect()
}

async fn a_version_in_quarantine_is_refused_everywhere_and_can_be_released(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, acme, other) = (world.operator().await, world.tenant("acme").await, world.tenant("other").await);
    let (admin, owner) = (&operator.owner, &acme.owner);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let (follower, pinned) =
        (sink(owner, "follower", None, json!({})).await, sink(owner, "pinned", Some("1.0.0"), json!({})).await);
    let place = format!("{path}/versions/1.0.0/quarantine");
    owner.post(&place, json!({ "reason": REASON })).await.problem(403, "denied");
    for reason in ["", " ", "two\nlines", &"x".repeat(501)] {
        admin.post(&place, json!({ "reason": reason })).await.fault("/reason");
    }
    admin
        .post(&format!("{path}/versions/7.0.0/quarantine"), json!({ "reason": REASON }))
        .await
        .problem(404, "not_found");
    admin.delete(&place).await.problem(409, "conflict");

    let shown = admin.post(&place, json!({ "reason": REASON })).await.ok(200);
    assert_eq!(shown["versions"][0]["quarantine"], REASON);
    for path in [&follower, &pinned] {
        let why = refused(owner, path).await.expect("it is refused");
        assert!(why.contains(REASON) && why.contains("1.0.0"), "{why}");
    }
    // Nothing begins to use it, and the same bytes do not come in again.
    let body = json!({ "name": "late", "plugin": "chameleon", "active": false });
    assert!(owner.post(SINKS, body).await.fault("/plugin").contains(REASON));
    let body = json!({ "name": "late", "plugin": "chameleon", "plugin_version": "1.0.0", "active": false });
    assert!(owner.post(SINKS, body).await.fault("/plugin_version").contains(REASON));
    for answer in [
        upload(admin, &Chameleon::version("1.0.0")).await,
        activate(admin, &path, "1.0.0").await,
        admin.delete(&format!("{path}/versions/1.0.0")).await,
    ] {
        answer.problem(409, "conflict");
    }

    // Each organization concerned is told, with its own connections; nobody else is.
    let ids = |paths: &[&String]| -> Vec<Value> {
        paths.iter().map(|path| json!(path.rsplit('/').next().expect("an id"))).collect()
    };
    let events = told(owner).await;
    assert_eq!((events.len(), &events[0]["actor"]), (1, &json!("system")));
    assert_eq!(events[0]["details"]["changes"]["reason"], REASON);
    assert_eq!(events[0]["details"]["connections"], json!(ids(&[&follower, &pinned])));
    assert!(told(&other.owner).await.is_empty());
    let own = told(admin).await;
    assert!(own.len() == 1 && own[0]["actor"].as_str().expect("text").starts_with("user/"), "{own:?}");

    // Another version takes its place for those that follow; the released one is back for those that name it.
    upload(admin, &Chameleon::version("1.0.1")).await.ok(201);
    activate(admin, &path, "1.0.1").await.ok(200);
    assert_eq!(runs(owner, &follower).await, "chameleon 1.0.1");
    assert!(refused(owner, &pinned).await.is_some());
    admin.post(&format!("{path}/rollback"), json!({})).await.problem(409, "conflict");
    let shown = admin.delete(&place).await.ok(200);
    assert!(shown["versions"][0].get("quarantine").is_none(), "{shown}");
    assert_eq!(runs(owner, &pinned).await, "chameleon 1.0.0");
    assert_eq!(told(owner).await.len(), 2);
}

async fn going_back_from_the_first_version_of_a_line_takes_its_followers_along(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let old = sink(owner, "old", None, json!({})).await;
    upload(admin, &Chameleon::version("2.0.0")).await.ok(201);
    activate(admin, &path, "2.0.0").await.ok(200);
    let new = sink(owner, "new", None, json!({})).await;
    assert_eq!(
        (runs(owner, &old).await, runs(owner, &new).await),
        ("chameleon 1.0.0".into(), "chameleon 2.0.0".into())
    );
    admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    assert_eq!(runs(owner, &new).await, "chameleon 1.0.0", "not the version that was gone back from");
    assert_eq!(owner.get(&new).await.ok(200)["plugin_follows"], "^1");
    assert_eq!(active(owner, &path).await, ["1.0.0"]);
    let events = owner.all("/api/v1/audit/events").await;
    let told: Vec<_> = events.iter().filter(|e| e["action"] == "audit_sink.update").collect();
    assert_eq!(told.len(), 1, "{events:?}");
    assert_eq!(told[0]["details"]["changes"]["after"]["plugin_follows"], "^1");
    let own = new.rsplit('/').next().expect("an id");
    assert!(told[0]["target"].as_str().expect("text").ends_with(own), "{told:?}");
    // And there again.
    activate(admin, &path, "2.0.0").await.ok(200);
    assert_eq!(runs(owner, &new).await, "chameleon 1.0.0");
}

#[tokio::test]
async fn a_version_in_quarantine_is_refused_on_every_host() {
    let world = World::with(Setup::new(Backend::Postgres).await).await;
    let other = Arc::clone(&world.setup).start_beside().await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, there) = (&operator.owner, tenant.owner.at(&other.url));
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let follower = sink(&tenant.owner, "follower", None, json!({})).await;
    assert_eq!(runs(&there, &follower).await, "chameleon 1.0.0");
    let place = format!("{path}/versions/1.0.0/quarantine");
    admin.post(&place, json!({ "reason": REASON })).await.ok(200);
    eventually("the other host refuses it", || async { refused(&there, &follower).await }).await;
    admin.delete(&place).await.ok(200);
    eventually("the other host runs it", || async { refused(&there, &follower).await.is_none().then_some(()) }).await;
}

#[tokio::test]
async fn what_ran_goes_on_where_its_successor_does_not_load_and_the_load_is_tried_again() {
    let world = World::with(Setup::new(Backend::Postgres).await).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, here) = (&operator.owner, &tenant.owner);
    // The other host runs only what is signed with this key.
    let key = world.setup.dir().join("signing.key").display().to_string();
    let public = world.setup.run(&["plugin", "keygen", "--out", &key], "").await.stdout.trim().to_owned();
    let signed = async |component: &Chameleon| {
        let file = world.setup.dir().join("signed.wasm");
        std::fs::write(&file, component.wasm()).expect("written");
        world.setup.run(&["plugin", "sign", "--key", &key, &file.display().to_string()], "").await;
        let signature = std::fs::read(world.setup.dir().join("signed.wasm.sig")).expect("signed");
        admin.multipart(PLUGINS, &[("component", &component.wasm()), ("signature", &signature)], &[]).await
    };
    let (old, new) = (Chameleon::version("1.0.0"), Chameleon::version("1.1.0"));
    let path = format!("{PLUGINS}/{}", id(&signed(&old).await.ok(201)));
    activate(admin, &path, "1.0.0").await.ok(200);
    let other = Arc::clone(&world.setup).start_beside_with(&[("KAIZEN_PLUGINS_TRUSTED_KEYS", &public)]).await;
    let there = here.at(&other.url);
    let follower = sink(here, "follower", None, json!({})).await;
    assert_eq!(runs(&there, &follower).await, "chameleon 1.0.0");

    upload(admin, &new).await.ok(201);
    activate(admin, &path, "1.1.0").await.ok(200);
    assert_eq!(runs(here, &follower).await, "chameleon 1.1.0");
    eventually("the other host says why", || async {
        let shown = there.get(&path).await.ok(200);
        shown["versions"][1]["failure"].as_str().filter(|why| why.contains("not signed")).map(str::to_owned)
    })
    .await;
    assert_eq!(runs(&there, &follower).await, "chameleon 1.0.0", "it goes on");
    // What was in the way is gone.
    signed(&new).await.ok(201);
    eventually("the other host loads it", || async {
        (runs(&there, &follower).await == "chameleon 1.1.0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_signer_has_to_be_accepted() {
    let world = World::start(Backend::Sqlite).await;
    let operator = world.operator().await;
    let admin = &operator.owner;
    let signed = async |component: &Chameleon, key: &str| {
        let (key, file) = (world.setup.dir().join(key).display().to_string(), world.setup.dir().join("signed.wasm"));
        if !std::path::Path::new(&key).exists() {
            world.setup.run(&["plugin", "keygen", "--out", &key], "").await;
        }
        std::fs::write(&file, component.wasm()).expect("written");
        world.setup.run(&["plugin", "sign", "--key", &key, &file.display().to_string()], "").await;
        let signature = std::fs::read(world.setup.dir().join("signed.wasm.sig")).expect("signed");
        admin.multipart(PLUGINS, &[("component", &component.wasm()), ("signature", &signature)], &[]).await
    };
    let path = format!("{PLUGINS}/{}", id(&signed(&Chameleon::version("1.0.0"), "ours").await.ok(201)));
    activate(admin, &path, "1.0.0").await.ok(200);
    let plainly = async |version: &str| admin.post(&format!("{path}/activate"), json!({ "version": version })).await;
    signed(&Chameleon::version("1.0.1"), "ours").await.ok(201);
    plainly("1.0.1").await.ok(200);
    let uploaded = signed(&Chameleon::version("1.0.2"), "theirs").await.ok(201);
    assert_eq!((&uploaded["changes"]["grows"], &uploaded["changes"]["signer_changed"]), (&json!(true), &json!(true)));
    let refused = plainly("1.0.2").await.problem(409, "conflict");
    assert!(refused["errors"][0]["message"].as_str().expect("text").contains("signer"), "{refused}");
    activate(admin, &path, "1.0.2").await.ok(200);
}
