//! A version of a plugin and the connections that would run it; and plugins as tenants see them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    harness::{Backend, Chameleon, Client, Reply, Stub, World, eventually, id},
    plugins::{PLUGINS, SINKS, activate, active, installed, runs, sink, upload},
};

on_both!(
    what_does_not_fit_a_connection_is_not_activated_over_it,
    who_goes_on_changing_connections_keeps_nobody_from_activating_and_no_host_from_starting,
    the_list_comes_in_pages,
    a_connection_can_be_changed_where_its_plugin_does_not_load,
);

/// A version that takes URLs with TLS only.
pub fn stricter(version: &str) -> Chameleon {
    Chameleon::version(version).with(
        "schema",
        json!({ "type": "object", "properties": { "url": { "type": "string", "format": "uri", "pattern": "^https://" } } }),
    )
}

async fn what_does_not_fit_a_connection_is_not_activated_over_it(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, acme, other) = (world.operator().await, world.tenant("acme").await, world.tenant("other").await);
    let admin = &operator.owner;
    let far = Stub::start(|_| Reply::Status(200)).await;
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let unfit = sink(&acme.owner, "unfit", None, json!({ "url": format!("{}/of/acme", far.url) })).await;
    let fit = sink(&other.owner, "fit", None, json!({})).await;
    sink(&acme.owner, "pinned", Some("1.0.0"), json!({ "url": far.url })).await;
    upload(admin, &stricter("1.1.0")).await.ok(201);

    let refused = activate(admin, &path, "1.1.0").await.problem(409, "conflict");
    let detail = refused["detail"].as_str().expect("text");
    assert!(detail.contains("does not fit 1 of") && detail.contains("pin_misfits"), "{detail}");
    let errors = refused["errors"].as_array().expect("errors");
    let place = unfit.strip_prefix("/api/v1").expect("a path");
    assert_eq!((errors.len(), &errors[0]["pointer"]), (1, &json!(format!("{place}/config/url"))), "{refused}");
    let message = errors[0]["message"].as_str().expect("text");
    assert!(message.contains(acme.id.as_str()) && message.contains("^https://"), "{message}");
    assert!(!refused.to_string().contains("of/acme"), "the value is the tenant's: {refused}");
    assert_eq!(active(admin, &path).await, ["1.0.0"]);
    assert_eq!(runs(&other.owner, &fit).await, "chameleon 1.0.0");

    let body = json!({ "version": "1.1.0", "accept_capabilities": true, "pin_misfits": true });
    admin.post(&format!("{path}/activate"), body).await.ok(200);
    assert_eq!(runs(&other.owner, &fit).await, "chameleon 1.1.0");
    assert_eq!(runs(&acme.owner, &unfit).await, "chameleon 1.0.0");
    let kept = acme.owner.get(&unfit).await.ok(200);
    assert_eq!((&kept["plugin_version"], &kept["plugin_follows"]), (&json!("1.0.0"), &Value::Null));
    let events = acme.owner.all("/api/v1/audit/events").await;
    let told = events.last().expect("events");
    assert_eq!((&told["action"], &told["actor"]), (&json!("audit_sink.update"), &json!("system")), "{told}");
    assert!(unfit.ends_with(told["target"].as_str().expect("text").rsplit('/').next().expect("an id")), "{told}");
    assert!(told.to_string().contains("/config/url"), "{told}");
    assert!(
        !other
            .owner
            .all("/api/v1/audit/events")
            .await
            .iter()
            .any(|event| event["actor"] == "system" && event["action"] == "audit_sink.update")
    );
    for tenant in [&operator, &acme, &other] {
        let verified = tenant.owner.get("/api/v1/audit/verify").await.ok(200);
        assert!(verified.to_string().contains("true"), "{verified}");
    }

    // A secret that nobody has set yet; and the way back does not ask.
    let secret = stricter("1.2.0").with("secrets", json!([{ "name": "token", "hosts": [] }]));
    upload(admin, &secret).await.ok(201);
    let refused = activate(admin, &path, "1.2.0").await.problem(409, "conflict");
    let pointers: Vec<_> = refused["errors"].as_array().expect("errors").iter().map(|e| e["pointer"].clone()).collect();
    let place = fit.strip_prefix("/api/v1").expect("a path");
    assert_eq!(pointers, [json!(format!("{place}/secrets/token"))]);
    admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    other.owner.patch(&fit, json!({ "config": { "url": far.url } })).await.ok(200);
    admin.post(&format!("{path}/rollback"), json!({})).await.problem(409, "conflict");
    // A connection that fits only what is rolled back from does not keep it from happening.
    let schema = json!({ "type": "object", "properties": { "url": { "type": "string" } } });
    let lax = Chameleon::version("1.3.0").with("schema", schema);
    upload(admin, &lax).await.ok(201);
    activate(admin, &path, "1.3.0").await.ok(200);
    other.owner.patch(&fit, json!({ "config": { "url": null, "new": 1 } })).await.ok(200);
    admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    assert_eq!(active(admin, &path).await, ["1.0.0"]);
    let events = admin.all("/api/v1/audit/events").await;
    assert!(events.last().expect("events").to_string().contains(place), "it is told which: {events:?}");
}

/// Renames these sinks without a pause for as long as this is kept; returns how often anything was asked.
fn renamed_all_the_time(client: &Client, sinks: &[String]) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let (mut tasks, count) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for sink in sinks {
        let (client, sink, count) = (client.clone(), sink.clone(), count.clone());
        tasks.spawn(async move {
            loop {
                let number = count.fetch_add(1, Ordering::Relaxed);
                client.patch(&sink, json!({ "name": format!("s{number}") })).await;
            }
        });
    }
    (tasks, count)
}

async fn who_goes_on_changing_connections_keeps_nobody_from_activating_and_no_host_from_starting(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner.client);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    upload(admin, &Chameleon::version("1.1.0")).await.ok(201);
    let mut sinks = Vec::new();
    for number in 0..2 {
        sinks.push(sink(owner, &format!("s{number}"), None, json!({})).await);
        let files = json!({ "name": format!("files{number}"), "plugin": "file", "active": false });
        sinks.push(format!("{SINKS}/{}", id(&owner.create(SINKS, files).await)));
    }
    let (renaming, count) = renamed_all_the_time(owner, &sinks);
    let goes_on = async || {
        let from = count.load(Ordering::Relaxed);
        eventually("sinks are renamed", || async { (count.load(Ordering::Relaxed) > from + 20).then_some(()) }).await;
    };
    goes_on().await;
    for _ in 0..3 {
        activate(admin, &path, "1.1.0").await.ok(200);
        admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    }

    // As a server of before would have left it: the bundled version that is active is an older one.
    let listed = admin.all(PLUGINS).await;
    let file = listed.iter().find(|plugin| plugin["name"] == "file").expect("bundled");
    let bundled = file["active_version"].as_str().expect("a version");
    let mut database = world.setup.database.direct().await;
    let of_file = "plugin_id = (SELECT id FROM plugins WHERE kind = 'audit_sink' AND name = 'file')";
    let columns = "line, digest, size, origin, signer, signature, manifest, enabled, created_by, created_at";
    for sql in [
        format!(
            "INSERT INTO plugin_versions (plugin_id, version, {columns})
             SELECT plugin_id, '0.0.1', {columns} FROM plugin_versions WHERE {of_file}"
        ),
        format!("UPDATE plugin_lines SET version = '0.0.1' WHERE {of_file}"),
        "UPDATE plugins SET active_version = '0.0.1' WHERE kind = 'audit_sink' AND name = 'file'".to_owned(),
        format!("DELETE FROM plugin_versions WHERE version <> '0.0.1' AND {of_file}"),
    ] {
        assert_eq!(database.execute(&sql).await, 1, "{sql}");
    }
    let upgraded = Arc::clone(&world.setup).start_beside().await;
    goes_on().await;
    let listed = admin.at(&upgraded.url).all(PLUGINS).await;
    let file = listed.iter().find(|plugin| plugin["name"] == "file").expect("bundled");
    assert_eq!(file["active_version"], bundled, "what came with it was taken in");
    drop(renaming);
}

async fn the_list_comes_in_pages(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    installed(&operator.owner, &Chameleon::version("1.0.0")).await;
    upload(&operator.owner, &Chameleon::version("1.1.0")).await.ok(201);
    let whole = tenant.owner.get(PLUGINS).await.ok(200);
    assert_eq!(whole["next_cursor"], Value::Null);
    let whole = whole["items"].as_array().expect("items").clone();
    assert!(whole.len() > 10 && whole.iter().any(|p| p["versions"].as_array().is_some_and(|all| all.len() == 2)));
    for limit in [1, 4, whole.len(), 200] {
        assert_eq!(tenant.owner.all(&format!("{PLUGINS}?limit={limit}")).await, whole, "{limit} at once");
    }
    let first = tenant.owner.get(&format!("{PLUGINS}?limit=4")).await.ok(200);
    assert_eq!(first["items"].as_array().expect("items").len(), 4);
    tenant.owner.get(&format!("{PLUGINS}?limit=0")).await.fault("limit");
    tenant.owner.get(&format!("{PLUGINS}?cursor=nonsense")).await.fault("cursor");
}

async fn a_connection_can_be_changed_where_its_plugin_does_not_load(backend: Backend) {
    let mut world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    installed(&operator.owner, &Chameleon::version("1.0.0")).await;
    let body = json!({ "name": "s", "plugin": "chameleon", "active": true });
    let sink = format!("{SINKS}/{}", id(&tenant.owner.create(SINKS, body).await));
    world.server.stop().await;
    let broken = match backend {
        Backend::Sqlite => "UPDATE plugin_artifacts SET wasm = zeroblob(100)",
        Backend::Postgres => "UPDATE plugin_artifacts SET wasm = '\\x00'::bytea",
    };
    let mut database = world.setup.database.direct().await;
    let chameleon = "WHERE digest IN (SELECT digest FROM plugin_versions WHERE origin = 'uploaded')";
    assert_eq!(database.execute(&format!("{broken} {chameleon}")).await, 1);
    world.again().await;
    let owner = &tenant.owner;
    owner.post(&format!("{sink}/check"), json!({})).await.problem(502, "upstream");
    owner.patch(&sink, json!({ "config": { "url": "https://a.example" } })).await.fault("/plugin");
    assert_eq!(owner.patch(&sink, json!({ "active": false })).await.ok(200)["active"], false);
    owner.patch(&sink, json!({ "active": true })).await.fault("/plugin");
    owner.delete(&sink).await.ok(204);
}
