//! Plugins are installed, activated, followed, named, rolled back and removed, on a running server.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Answer, Backend, Chameleon, Client, Reply, Stub, World, id};

on_both!(
    a_version_is_uploaded_and_used_once_it_is_activated,
    versions_live_side_by_side_and_a_connection_names_or_follows_one,
    more_capabilities_need_to_be_accepted,
    a_bundled_plugin_is_superseded_and_gone_back_to,
    versions_are_swapped_under_load_and_no_call_fails,
    what_is_in_use_stays_and_what_is_not_goes,
    health_shows_each_tenant_its_own_errors,
    connections_from_before_there_were_versions_follow_what_came_with_the_server,
);

pub const PLUGINS: &str = "/api/v1/plugins";
pub const SINKS: &str = "/api/v1/audit-sinks";

pub async fn upload(client: &Client, component: &Chameleon) -> Answer {
    client.multipart(PLUGINS, &[("component", &component.wasm())], &[]).await
}

/// Uploads and activates; returns the plugin's path.
pub async fn installed(client: &Client, component: &Chameleon) -> String {
    let uploaded = upload(client, component).await.ok(201);
    let path = format!("{PLUGINS}/{}", id(&uploaded));
    activate(client, &path, uploaded["version"]["version"].as_str().expect("a version")).await.ok(200);
    path
}

pub async fn activate(client: &Client, path: &str, version: &str) -> Answer {
    let body = json!({ "version": version, "accept_capabilities": true });
    client.post(&format!("{path}/activate"), body).await
}

/// A sink of the testing plugin; returns its path.
pub async fn sink(client: &Client, name: &str, version: Option<&str>, config: Value) -> String {
    let body =
        json!({ "name": name, "plugin": "chameleon", "plugin_version": version, "config": config, "active": false });
    format!("{SINKS}/{}", id(&client.create(SINKS, body).await))
}

/// What the sink's plugin says it is.
pub async fn runs(client: &Client, sink: &str) -> String {
    let checked = client.post(&format!("{sink}/check"), json!({})).await.ok(200);
    checked["message"].as_str().expect("a message").to_owned()
}

/// The versions that are active.
pub async fn active(client: &Client, path: &str) -> Vec<String> {
    let plugin = client.get(path).await.ok(200);
    let versions = plugin["versions"].as_array().expect("versions").iter();
    versions.filter(|v| v["active"] == true).map(|v| v["version"].as_str().expect("text").to_owned()).collect()
}

async fn a_version_is_uploaded_and_used_once_it_is_activated(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let admin = &operator.owner;
    let component = Chameleon::version("1.0.0");
    let answer = upload(admin, &component).await;
    let etag = answer.etag();
    let uploaded = answer.ok(201);
    let digest = hex::encode(Sha256::digest(component.wasm()));
    assert_eq!((&uploaded["kind"], &uploaded["name"]), (&json!("audit_sink"), &json!("chameleon")));
    assert_eq!(uploaded["version"]["digest"], digest);
    assert_eq!(uploaded["changes"]["from"], Value::Null);
    assert_eq!(uploaded["changes"]["capabilities_added"], json!([{ "type": "http", "value": "{config.url}" }]));

    // It is there, and nobody uses it.
    let path = format!("{PLUGINS}/{}", id(&uploaded));
    let shown = tenant.owner.get(&path).await;
    assert_eq!(shown.etag(), etag);
    let shown = shown.ok(200);
    assert_eq!(shown["active_version"], Value::Null);
    let body = json!({ "name": "s", "plugin": "chameleon" });
    let refused = tenant.owner.post(SINKS, body.clone()).await.fault("/plugin");
    assert!(refused.contains("no version"), "{refused}");
    tenant.owner.post(&format!("{path}/activate"), json!({ "version": "1.0.0" })).await.problem(403, "denied");

    // From nothing, everything is more than before.
    let refused = admin.post(&format!("{path}/activate"), json!({ "version": "1.0.0" })).await.problem(409, "conflict");
    assert_eq!(refused["errors"], json!([{ "pointer": "/accept_capabilities", "message": "http {config.url}" }]));
    activate(admin, &path, "7.0.0").await.fault("/version");
    let stale = [("if-match", "\"77\"")];
    let body_of = Some(json!({ "version": "1.0.0", "accept_capabilities": true }));
    let request = admin.request(reqwest::Method::POST, &format!("{path}/activate"), body_of, &stale).await;
    request.problem(412, "precondition_failed");
    let activated = activate(admin, &path, "1.0.0").await.ok(200);
    let version = &activated["versions"][0];
    assert_eq!(activated["active_version"], "1.0.0");
    assert_eq!(
        [&version["active"], &version["enabled"], &version["origin"], &version["compatible"], &version["signer"]],
        [&json!(true), &json!(true), &json!("uploaded"), &json!("^1"), &Value::Null]
    );
    assert_eq!(version["size"], component.wasm().len());
    let sink = sink(&tenant.owner, "s", None, json!({})).await;
    assert_eq!(runs(&tenant.owner, &sink).await, "chameleon 1.0.0");
    assert_eq!(tenant.owner.get(&sink).await.ok(200)["plugin_follows"], "^1");
    let listed = tenant.owner.get(PLUGINS).await.ok(200);
    let listed = listed["items"].as_array().expect("items");
    assert!(listed.iter().any(|p| p["name"] == "chameleon" && p["config_schema"]["type"] == "object"), "{listed:?}");
    assert!(listed.iter().any(|p| p["name"] == "oidc" && p["versions"][0]["origin"] == "bundled"), "{listed:?}");

    // The same again changes nothing, and another component of that version is refused.
    upload(admin, &component).await.ok(200);
    let other = component.clone().with("title", json!("Another"));
    let refused = upload(admin, &other).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().expect("text").contains(&digest), "{refused}");
    // An Idempotency-Key gives the first answer again.
    let key = [("idempotency-key", "k1")];
    let next = Chameleon::version("1.0.1").wasm();
    let first = admin.multipart(PLUGINS, &[("component", &next)], &key).await.ok(201);
    assert_eq!(admin.multipart(PLUGINS, &[("component", &next)], &key).await.ok(201), first);
    let next = Chameleon::version("1.0.2").wasm();
    admin.multipart(PLUGINS, &[("component", &next)], &key).await.problem(422, "idempotency_key_reused");

    // Each change is in the operator's trail, and a refused one in that of whoever tried.
    let told = |events: Vec<Value>| -> Vec<String> {
        let plugin = |e: &&Value| e["action"].as_str().is_some_and(|action| action.starts_with("plugin."));
        events.iter().filter(plugin).map(|e| format!("{} {}", e["action"], e["outcome"]).replace('"', "")).collect()
    };
    let events = told(admin.all("/api/v1/audit/events").await);
    assert_eq!(events, ["plugin.create success", "plugin.activate success", "plugin.create success"]);
    assert_eq!(told(tenant.owner.all("/api/v1/audit/events").await), ["plugin.activate denied"]);
}

async fn versions_live_side_by_side_and_a_connection_names_or_follows_one(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let (pinned, follower) =
        (sink(owner, "pinned", Some("1.0.0"), json!({})).await, sink(owner, "follower", None, json!({})).await);
    for version in ["1.1.0", "2.0.0", "1.2.0"] {
        upload(admin, &Chameleon::version(version)).await.ok(201);
    }
    assert_eq!(runs(owner, &follower).await, "chameleon 1.0.0", "what is not activated is used by nobody");
    activate(admin, &path, "1.1.0").await.ok(200);
    assert_eq!(runs(owner, &follower).await, "chameleon 1.1.0");
    assert_eq!(runs(owner, &pinned).await, "chameleon 1.0.0");
    activate(admin, &path, "2.0.0").await.ok(200);
    assert_eq!(active(owner, &path).await, ["1.1.0", "2.0.0"]);
    assert_eq!(runs(owner, &follower).await, "chameleon 1.1.0", "2.0.0 may not fit its configuration");
    let new = sink(owner, "new", None, json!({})).await;
    assert_eq!(runs(owner, &new).await, "chameleon 2.0.0");

    // A connection changes over when its owner says so.
    owner.patch(&follower, json!({ "plugin_version": null })).await.ok(200);
    assert_eq!(runs(owner, &follower).await, "chameleon 2.0.0");
    owner.patch(&pinned, json!({ "name": "still pinned" })).await.ok(200);
    assert_eq!(runs(owner, &pinned).await, "chameleon 1.0.0");
    owner.patch(&pinned, json!({ "plugin_version": "1.1.0" })).await.ok(200);
    assert_eq!(runs(owner, &pinned).await, "chameleon 1.1.0");
    // Only to what is there, and was activated.
    let why = owner.patch(&pinned, json!({ "plugin_version": "9.9.9" })).await.fault("/plugin_version");
    assert!(why.contains("no version `9.9.9`"), "{why}");
    let why = owner.patch(&pinned, json!({ "plugin_version": "1.2.0" })).await.fault("/plugin_version");
    assert!(why.contains("not activated"), "{why}");
    assert_eq!(runs(owner, &pinned).await, "chameleon 1.1.0");

    // Back, one step at a time; then there is nothing more to go back to.
    owner.patch(&follower, json!({ "plugin_version": "2.0.0" })).await.ok(200);
    let back = async || admin.post(&format!("{path}/rollback"), json!({})).await;
    assert_eq!(back().await.ok(200)["active_version"], "1.1.0");
    assert_eq!(back().await.ok(200)["active_version"], "1.0.0");
    assert_eq!(runs(owner, &follower).await, "chameleon 2.0.0", "it names it");
    let latest = sink(owner, "latest", None, json!({})).await;
    assert_eq!(runs(owner, &latest).await, "chameleon 1.0.0");
    back().await.problem(409, "conflict");
    owner.post(&format!("{path}/rollback"), json!({})).await.problem(403, "denied");
}

async fn more_capabilities_need_to_be_accepted(backend: Backend) {
    let world = World::start(backend).await;
    let operator = world.operator().await;
    let admin = &operator.owner;
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let plainly = async |version: &str| admin.post(&format!("{path}/activate"), json!({ "version": version })).await;
    // No more than before needs no acceptance.
    upload(admin, &Chameleon::version("1.0.1")).await.ok(201);
    plainly("1.0.1").await.ok(200);

    let more = Chameleon::version("1.1.0")
        .with("http", json!(["{config.url}", "https://*.example.com"]))
        .with("secrets", json!([{ "name": "token", "hosts": ["{config.url}"] }]));
    let uploaded = upload(admin, &more).await.ok(201);
    let changes = admin.get(&format!("{path}/versions/1.1.0/changes")).await.ok(200);
    assert_eq!(uploaded["changes"], changes);
    assert_eq!([&changes["from"], &changes["to"], &changes["grows"]], [&json!("1.0.1"), &json!("1.1.0"), &json!(true)]);
    assert_eq!(changes["capabilities_added"], json!([{ "type": "http", "value": "https://*.example.com" }]));
    assert_eq!(changes["secret_hosts_added"], json!([{ "secret": "token", "host": "{config.url}" }]));
    let refused = plainly("1.1.0").await.problem(409, "conflict");
    let reasons: Vec<_> = refused["errors"].as_array().expect("errors").iter().map(|e| e["message"].clone()).collect();
    assert_eq!(reasons, ["http https://*.example.com", "the secret `token` to {config.url}"]);
    assert_eq!(active(admin, &path).await, ["1.0.1"], "nothing changed");
    activate(admin, &path, "1.1.0").await.ok(200);
    let events = admin.all("/api/v1/audit/events").await;
    assert!(events.last().expect("events").to_string().contains("https://*.example.com"), "what was accepted is told");

    // Less needs none, and neither does the way back: it was accepted once.
    plainly("1.0.1").await.ok(200);
    admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    assert_eq!(active(admin, &path).await, ["1.1.0"]);
    // What was accepted once is asked again where it grows again.
    plainly("1.0.1").await.ok(200);
    plainly("1.1.0").await.problem(409, "conflict");
}

async fn a_bundled_plugin_is_superseded_and_gone_back_to(backend: Backend) {
    let mut world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let listed = admin.get(PLUGINS).await.ok(200);
    let bundled =
        listed["items"].as_array().expect("items").iter().find(|p| p["name"] == "file").expect("bundled").clone();
    let (path, version) = (format!("{PLUGINS}/{}", id(&bundled)), bundled["active_version"].as_str().expect("text"));
    let body = json!({ "name": "files", "plugin": "file", "active": false });
    let files = format!("{SINKS}/{}", id(&owner.create(SINKS, body).await));
    let (line, patch) = version.rsplit_once('.').expect("a version");
    let next = format!("{line}.{}", patch.parse::<u32>().expect("a number") + 1);
    let ours = Chameleon::version(&next).with("name", json!("file")).with("http", json!(["{config.url}"]));
    upload(admin, &ours).await.ok(201);
    activate(admin, &path, &next).await.ok(200);
    assert_eq!(runs(owner, &files).await, format!("file {next}"));

    // The next start of the server does not undo that.
    world.server.stop().await;
    world.again().await;
    assert_eq!(runs(owner, &files).await, format!("file {next}"));
    let refused = admin.delete(&format!("{path}/versions/{version}")).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().expect("text").contains("part of this server"), "{refused}");
    admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
    let checked = owner.post(&format!("{files}/check"), json!({})).await.ok(200);
    assert!(
        !checked["message"].as_str().expect("text").starts_with("file "),
        "the bundled one speaks again: {checked}"
    );
    assert_eq!(active(owner, &path).await, [version]);
}

async fn versions_are_swapped_under_load_and_no_call_fails(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let far = Stub::start(|_| Reply::Status(200)).await;
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    upload(admin, &Chameleon::version("1.1.0")).await.ok(201);
    let slow = sink(owner, "slow", None, json!({ "url": far.url })).await;
    let quick = sink(owner, "quick", None, json!({})).await;

    // A call that is under way ends on the version it began on.
    far.next([Reply::Hold]);
    let (client, held) = (owner.client.clone(), slow.clone());
    let under_way = tokio::spawn(async move { runs(&client, &held).await });
    far.held(1).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // A sink each: one connection is checked once at a time.
    let mut sinks = Vec::new();
    for number in 0..6 {
        sinks.push(sink(owner, &format!("quick {number}"), None, json!({})).await);
    }
    let callers: Vec<_> = sinks
        .into_iter()
        .map(|quick| {
            let (client, stop) = (owner.client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    seen.push(runs(&client, &quick).await);
                }
                seen
            })
        })
        .collect();
    for _ in 0..5 {
        activate(admin, &path, "1.1.0").await.ok(200);
        assert_eq!(runs(owner, &quick).await, "chameleon 1.1.0", "at once on the host that was asked");
        admin.post(&format!("{path}/rollback"), json!({})).await.ok(200);
        assert_eq!(runs(owner, &quick).await, "chameleon 1.0.0");
    }
    activate(admin, &path, "1.1.0").await.ok(200);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut seen = Vec::new();
    for caller in callers {
        seen.extend(caller.await.expect("no call failed"));
    }
    for version in ["chameleon 1.0.0", "chameleon 1.1.0"] {
        assert!(seen.iter().any(|said| said == version), "{} calls", seen.len());
    }
    far.release();
    assert_eq!(under_way.await.expect("it did not fail"), "chameleon 1.0.0");
    assert_eq!(runs(owner, &slow).await, "chameleon 1.1.0");
}

async fn what_is_in_use_stays_and_what_is_not_goes(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    let follower = sink(owner, "follower", None, json!({})).await;
    let of = |version: &str| format!("{path}/versions/{version}");
    for refused in [admin.post(&format!("{}/disable", of("1.0.0")), json!({})).await, admin.delete(&of("1.0.0")).await]
    {
        let problem = refused.problem(409, "conflict");
        assert!(problem["detail"].as_str().expect("text").contains("follow it: 1"), "{problem}");
    }
    upload(admin, &Chameleon::version("1.1.0")).await.ok(201);
    activate(admin, &path, "1.1.0").await.ok(200);
    let pinned = sink(owner, "pinned", Some("1.0.0"), json!({})).await;
    let problem = admin.delete(&of("1.0.0")).await.problem(409, "conflict");
    assert!(problem["detail"].as_str().expect("text").contains("name it: 1"), "{problem}");
    owner.delete(&of("1.0.0")).await.problem(403, "denied");
    owner.delete(&pinned).await.ok(204);
    admin.post(&format!("{}/disable", of("1.0.0")), json!({})).await.ok(200);
    let body = json!({ "name": "again", "plugin": "chameleon", "plugin_version": "1.0.0" });
    owner.post(SINKS, body).await.fault("/plugin_version");
    admin.delete(&of("1.0.0")).await.ok(204);
    admin.get(&format!("{}/changes", of("1.0.0"))).await.problem(404, "not_found");
    let mut database = world.setup.database.direct().await;
    assert_eq!(database.number("SELECT COUNT(*) FROM plugin_versions WHERE version = '1.0.0'").await, 0);
    let orphans = "SELECT COUNT(*) FROM plugin_artifacts WHERE digest NOT IN (SELECT digest FROM plugin_versions)";
    assert_eq!(database.number(orphans).await, 0, "its component went with it");
    // What it was is free again, for another component.
    upload(admin, &Chameleon::version("1.0.0").with("title", json!("Another"))).await.ok(201);
    admin.delete(&of("1.0.0")).await.ok(204);
    owner.delete(&follower).await.ok(204);
    admin.delete(&of("1.1.0")).await.ok(204);
    admin.get(&path).await.problem(404, "not_found");
}

async fn health_shows_each_tenant_its_own_errors(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, acme, other) = (world.operator().await, world.tenant("acme").await, world.tenant("other").await);
    let path = installed(&operator.owner, &Chameleon::version("1.0.0")).await;
    let good = sink(&acme.owner, "good", None, json!({})).await;
    let bad = sink(&acme.owner, "bad", None, json!({ "fail": "the intake of acme is closed" })).await;
    runs(&acme.owner, &good).await;
    acme.owner.post(&format!("{bad}/check"), json!({})).await.problem(502, "upstream");
    let own = acme.owner.get(&path).await.ok(200)["health"][0].clone();
    assert_eq!(own["version"], "1.0.0");
    for total in ["calls", "failures", "last_success_at", "last_failure_at"] {
        assert_eq!(own[total], Value::Null, "others use it too: {own}");
    }
    let error = &own["last_errors"][0];
    assert_eq!(error["message"], "the intake of acme is closed");
    assert!(bad.ends_with(error["connection_id"].as_str().expect("an id")), "{error}");
    assert_eq!(other.owner.get(&path).await.ok(200)["health"][0]["last_errors"], json!([]), "another tenant's");
    let all = operator.owner.get(&path).await.ok(200)["health"][0].clone();
    assert_eq!(all["last_errors"].as_array().expect("errors").len(), 1);
    assert_eq!((&all["calls"], &all["failures"]), (&json!(2), &json!({ "rejected": 1 })));
    assert!(all["last_success_at"].is_string() && all["last_failure_at"].is_string(), "{all}");
}

async fn connections_from_before_there_were_versions_follow_what_came_with_the_server(backend: Backend) {
    let mut world = World::start(backend).await;
    let (operator, tenant) = (world.operator().await, world.tenant("acme").await);
    let (admin, owner) = (&operator.owner, &tenant.owner);
    let body = json!({ "name": "files", "plugin": "file", "active": false });
    let files = format!("{SINKS}/{}", id(&owner.create(SINKS, body).await));
    let follows = owner.get(&files).await.ok(200)["plugin_follows"].clone();
    world.server.stop().await;
    let mut database = world.setup.database.direct().await;
    for table in ["plugin_lines", "plugin_activations", "plugin_versions", "plugin_artifacts", "plugins"] {
        database.execute(&format!("DELETE FROM {table}")).await;
    }
    database.execute("UPDATE connections SET plugin_line = NULL").await;
    drop(database);
    world.again().await;
    assert_eq!(owner.get(&files).await.ok(200)["plugin_follows"], follows);
    // So another major version leaves them alone.
    let major = Chameleon::version("9.0.0").with("name", json!("file"));
    let path = format!("{PLUGINS}/{}", id(&upload(admin, &major).await.ok(201)));
    activate(admin, &path, "9.0.0").await.ok(200);
    assert!(!runs(owner, &files).await.starts_with("file 9"));
}
