//! Everything that is created, read, listed, changed and deleted: revisions, idempotency keys, pages.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Backend, Client, Gateway, PASSWORD, Setup, Tenant, World, agent, id};

on_both!(
    what_is_created_can_be_read_listed_changed_and_deleted,
    a_repeated_idempotency_key_acts_once,
    two_equal_requests_at_once_act_once,
    lists_are_paged_and_complete,
    an_organization_is_renamed_and_deleted,
    a_user_has_no_more_roles_than_one_may_have,
    settings_are_merged,
    versions_are_immutable_and_numbered,
    versions_that_are_cut_at_once_are_numbered_without_gaps,
);

/// One kind of thing: where it is, how it is made, how it is changed.
struct Kind {
    path: &'static str,
    new: Value,
    change: Value,
}

async fn kinds(tenant: &Tenant) -> Vec<Kind> {
    let workspace = tenant.workspace("first").await;
    let gateway = Gateway::start().await;
    let member = tenant.stranger("member").await;
    let kind = |path, new, change| Kind { path, new, change };
    vec![
        kind("/api/v1/workspaces", json!({ "name": "second", "description": "d" }), json!({ "name": "renamed" })),
        kind("/api/v1/agents", agent(&workspace, "helper"), json!({ "name": "renamed" })),
        kind(
            "/api/v1/users",
            json!({ "email": "new@acme.test", "name": "New", "password": PASSWORD }),
            json!({ "name": "Renamed" }),
        ),
        kind(
            "/api/v1/memberships",
            json!({ "user_id": member.id, "role": "viewer", "workspace_id": workspace }),
            json!({ "role": "developer" }),
        ),
        kind("/api/v1/gateways", gateway.body("west"), json!({ "name": "renamed" })),
        kind(
            "/api/v1/audit-sinks",
            json!({ "name": "archive", "plugin": "webhook", "config": { "url": format!("{}/events", gateway.stub.url) }, "secrets": { "signing-key": "0123456789abcdef" } }),
            json!({ "name": "renamed" }),
        ),
        kind(
            "/api/v1/identity-connections",
            json!({
                "name": "company", "plugin": "oidc",
                "config": { "issuer": gateway.stub.url, "client_id": "kaizen" },
                "secrets": { "client-secret": "not-to-be-read-back" },
            }),
            json!({ "name": "renamed" }),
        ),
    ]
}

async fn what_is_created_can_be_read_listed_changed_and_deleted(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let owner = &tenant.owner;
    for Kind { path, new, change } in kinds(&tenant).await {
        let created = owner.post(path, new.clone()).await;
        let first = created.etag();
        let created = created.ok(201);
        let one = format!("{path}/{}", id(&created));
        assert!(!created.to_string().contains("not-to-be-read-back"), "a secret is shown: {created}");

        let read = owner.get(&one).await;
        assert_eq!(read.etag(), first, "{path}");
        assert_eq!(read.ok(200), created, "{path}");
        let listed = owner.all(path).await;
        assert!(listed.iter().any(|item| item["id"] == created["id"]), "{path}: not in {listed:?}");

        let send = |method: Method, body: Option<Value>, etag: String| {
            let (owner, one) = (owner.client.clone(), one.clone());
            async move { owner.request(method, &one, body, &[("if-match", &etag)]).await }
        };
        send(Method::PATCH, Some(change.clone()), "\"999\"".into()).await.problem(412, "precondition_failed");
        let changed = send(Method::PATCH, Some(change.clone()), first.clone()).await;
        let second = changed.etag();
        assert_ne!(second, first, "{path}: a change has an ETag of its own");
        let changed = changed.ok(200);
        for (name, value) in change.as_object().expect("an object") {
            assert_eq!(&changed[name], value, "{path}");
        }
        assert_eq!(owner.get(&one).await.ok(200), changed, "{path}");

        send(Method::PATCH, Some(change.clone()), first.clone()).await.problem(412, "precondition_failed");
        send(Method::DELETE, None, first).await.problem(412, "precondition_failed");
        send(Method::DELETE, None, second).await.ok(204);
        owner.get(&one).await.problem(404, "not_found");
        owner.delete(&one).await.problem(404, "not_found");
        let listed = owner.all(path).await;
        assert!(listed.iter().all(|item| item["id"] != created["id"]), "{path}: still in {listed:?}");
    }
}

async fn keyed(client: &Client, path: &str, body: &Value, key: &str) -> crate::harness::Answer {
    client.request(Method::POST, path, Some(body.clone()), &[("idempotency-key", key)]).await
}

async fn a_repeated_idempotency_key_acts_once(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let admin = tenant.person("admin", "admin").await;
    for (number, Kind { path, new, change: _ }) in kinds(&tenant).await.into_iter().enumerate() {
        let key = format!("key-{number}");
        let before = tenant.owner.all(path).await.len();
        let first = keyed(&tenant.owner, path, &new, &key).await.ok(201);
        let again = keyed(&tenant.owner, path, &new, &key).await;
        assert_eq!(again.header("idempotency-replayed"), "true", "{path}");
        assert_eq!(again.ok(201), first, "{path}");
        assert_eq!(tenant.owner.all(path).await.len(), before + 1, "{path}");
        let mut other = new.clone();
        let field = if path.ends_with("memberships") { "role" } else { "name" };
        other[field] = if field == "role" { "auditor" } else { "another" }.into();
        keyed(&tenant.owner, path, &other, &key).await.problem(422, "idempotency_key_reused");
        assert_eq!(tenant.owner.all(path).await.len(), before + 1, "{path}");
        // The key is the caller's own: someone else's request under the same key is another request.
        let elsewhere = keyed(&admin, path, &other, &key).await;
        assert_ne!(elsewhere.header("idempotency-replayed"), "true", "{path}");
        assert_ne!(elsewhere.body, first, "{path}");
    }
}

async fn two_equal_requests_at_once_act_once(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let body = agent(&workspace, "helper");
    let requests = (0..6).map(|_| keyed(&tenant.owner, "/api/v1/agents", &body, "same"));
    let answers = futures::future::join_all(requests).await;
    let ids: BTreeSet<String> = answers.into_iter().map(|answer| id(&answer.ok(201))).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(tenant.owner.all("/api/v1/agents").await.len(), 1);
}

async fn lists_are_paged_and_complete(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let (here, there) = (tenant.workspace("here").await, tenant.workspace("there").await);
    let mut made = Vec::new();
    for number in 0..7 {
        let workspace = if number % 2 == 0 { &here } else { &there };
        made.push(id(&tenant.agent(workspace, &format!("agent {number}")).await));
    }
    let listed: Vec<String> = tenant.owner.all("/api/v1/agents?limit=3").await.iter().map(id).collect();
    assert_eq!(listed, made, "in the order they were made, each once");
    let page = tenant.owner.get("/api/v1/agents?limit=3").await.ok(200);
    assert_eq!(page["items"].as_array().map(Vec::len), Some(3));
    assert!(page["next_cursor"].is_string());
    let exact = tenant.owner.get("/api/v1/agents?limit=7").await.ok(200);
    assert_eq!(exact["next_cursor"], Value::Null, "nothing follows");
    let filtered = tenant.owner.all(&format!("/api/v1/agents?limit=2&workspace_id={here}")).await;
    assert_eq!(filtered.len(), 4);

    // What a caller may not see neither shows nor leaves holes.
    let member = tenant.stranger("member").await;
    tenant.grant(&member, "viewer", Some(&there)).await;
    let seen: Vec<String> = member.all("/api/v1/agents?limit=2").await.iter().map(id).collect();
    assert_eq!(seen, [&made[1], &made[3], &made[5]].map(Clone::clone));

    for query in ["limit=0", "limit=201"] {
        tenant.owner.get(&format!("/api/v1/agents?{query}")).await.fault("limit");
    }
    tenant.owner.get("/api/v1/agents?cursor=nonsense").await.fault("cursor");
}

/// Also roles that a user is made with.
async fn a_user_has_no_more_roles_than_one_may_have(backend: Backend) {
    let world = World::with(Setup::new(backend).await.with("KAIZEN_MEMBERSHIPS_PER_USER", "1")).await;
    let owner = world.tenant("acme").await.owner;
    let new = |roles: Value| json!({ "email": "ada@acme.test", "name": "Ada", "roles": roles });
    let refused = owner.post("/api/v1/users", new(json!(["viewer", "developer"]))).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("memberships_per_user")), "{refused}");
    assert_eq!(owner.all("/api/v1/users").await.len(), 1);
    owner.post("/api/v1/users", new(json!(["viewer", "viewer"]))).await.ok(201);
}

async fn an_organization_is_renamed_and_deleted(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let one = format!("/api/v1/organizations/{}", tenant.id);
    let admin = tenant.person("admin", "admin").await;
    let read = tenant.owner.get(&one).await;
    let etag = read.etag();
    assert_eq!(read.ok(200)["name"], "acme");
    let rename = Some(json!({ "name": "Acme Incorporated" }));
    let renamed = tenant.owner.request(Method::PATCH, &one, rename.clone(), &[("if-match", &etag)]).await;
    assert_eq!(renamed.ok(200)["name"], "Acme Incorporated");
    tenant.owner.request(Method::PATCH, &one, rename, &[("if-match", &etag)]).await.problem(412, "precondition_failed");
    tenant.owner.patch(&one, json!({ "name": "" })).await.fault("/name");
    admin.delete(&one).await.problem(403, "denied");
    assert_eq!(tenant.owner.all("/api/v1/organizations").await.len(), 1);

    tenant.workspace("first").await;
    for unconfirmed in ["", "?confirm=", "?confirm=acme", "?confirm=acme%20incorporated"] {
        tenant.owner.delete(&format!("{one}{unconfirmed}")).await.problem(428, "confirmation_required");
    }
    tenant.owner.get(&one).await.ok(200);
    tenant.owner.delete(&format!("{one}?confirm=Acme%20Incorporated")).await.ok(204);
    admin.get("/api/v1/workspaces").await.problem(401, "unauthenticated");
    tenant.owner.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
}

async fn settings_are_merged(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let one = format!("/api/v1/agents/{}", id(&tenant.agent(&workspace, "helper").await));
    let patch = json!({ "settings": { "temperature": 0.9, "max_tokens": null, "stop": ["."] } });
    let settings = tenant.owner.patch(&one, patch).await.ok(200)["settings"].clone();
    let merged = json!({ "system_prompt": "Be kind.", "model": "large", "temperature": 0.9, "stop": ["."] });
    assert_eq!(settings, merged);
    tenant.owner.patch(&one, json!({ "settings": { "temperature": 9 } })).await.fault("/settings/temperature");
    assert_eq!(tenant.owner.get(&one).await.ok(200)["settings"], merged, "a refused change leaves nothing");
}

/// A version has settings and canvas of one moment: those of the agent while nobody can change it.
#[tokio::test]
async fn a_version_waits_for_a_change_that_is_under_way() {
    let world = World::start(Backend::Postgres).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let versions = format!("/api/v1/agents/{}/versions", id(&tenant.agent(&workspace, "helper").await));
    let mut change = world.setup.database.direct().await;
    change.execute("BEGIN; UPDATE agents SET description = 'after the change', revision = revision + 1").await;
    let (owner, path) = (tenant.owner.client.clone(), versions.clone());
    let cutting = tokio::spawn(async move { owner.post(&path, json!({})).await });
    let waiting =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    crate::harness::eventually("it waits for the change", || async {
        (world.setup.database.direct().await.number(waiting).await == 1).then_some(())
    })
    .await;
    change.execute("COMMIT").await;
    cutting.await.expect("an answer").ok(201);
    let cut = tenant.owner.get(&format!("{versions}/1")).await.ok(200);
    assert_eq!(cut["workflow"]["agent"]["description"], "after the change", "{cut}");
}

async fn versions_that_are_cut_at_once_are_numbered_without_gaps(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let versions = format!("/api/v1/agents/{}/versions", id(&tenant.agent(&workspace, "helper").await));
    let cut = |_| {
        let (owner, path) = (tenant.owner.client.clone(), versions.clone());
        tokio::spawn(async move { owner.post(&path, json!({})).await.ok(201)["version"].as_i64().expect("a number") })
    };
    let mut numbers = Vec::new();
    for cutting in (0..8).map(cut).collect::<Vec<_>>() {
        numbers.push(cutting.await.expect("an answer"));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
}

async fn versions_are_immutable_and_numbered(backend: Backend) {
    use sha2::Digest;
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let one = format!("/api/v1/agents/{}", id(&tenant.agent(&workspace, "helper").await));
    let versions = format!("{one}/versions");
    for number in 1..=3 {
        let version = tenant.owner.create(&versions, json!({ "note": format!("cut {number}") })).await;
        assert_eq!(version["version"], number, "{version}");
        tenant.owner.patch(&one, json!({ "description": format!("after {number}") })).await.ok(200);
    }
    let first = tenant.owner.get(&format!("{versions}/1")).await;
    assert_eq!(first.body["workflow"]["format"], "kaizen.workflow.v1", "{}", first.text);
    assert_eq!(first.body["workflow"]["agent"]["description"], "Answers tickets.", "as it was when it was cut");
    // The digest is over the very text that is shown.
    let text = &first.text[first.text.find("{\"format\"").expect("the workflow")..first.text.len() - 1];
    assert_eq!(first.body["digest"], hex::encode(sha2::Sha256::digest(text)), "{text}");
    assert_eq!(tenant.owner.all(&format!("{versions}?limit=2")).await.len(), 3);
    for unknown in ["4", "0", "-1", "x"] {
        tenant.owner.get(&format!("{versions}/{unknown}")).await.problem(404, "not_found");
    }
    for method in [Method::PATCH, Method::PUT, Method::DELETE] {
        let answer = tenant.owner.request(method, &format!("{versions}/1"), Some(json!({})), &[]).await;
        answer.problem(405, "method_not_allowed");
    }
    let key = [("idempotency-key", "cut")];
    let cut = || tenant.owner.request(Method::POST, &versions, Some(json!({ "note": "once" })), &key);
    assert_eq!(cut().await.ok(201), cut().await.ok(201));
    assert_eq!(tenant.owner.all(&versions).await.len(), 4);
}
