//! How many rows of each kind an organization may have: the refusal names the bound and its setting, others go on, and what is removed
//! makes room. And bounds of single requests that are told of nowhere else.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    deployments::Shop,
    harness::{Backend, Client, Gateway, PASSWORD, Reply, Setup, World, agent, eventually, id},
    identities::connect,
    policies::EVERYTHING,
};

on_both!(
    each_kind_of_row_has_its_bound,
    versions_of_agents_have_their_bounds,
    jobs_that_wait_are_bounded,
    policies_have_their_bounds,
    bodies_pages_and_places_to_sign_in_have_their_bounds,
);

/// Creates until it is refused, at the bound of two; returns what there is then, and that the refusal says why.
async fn fill(client: &Client, path: &str, body: impl Fn(usize) -> Value, says: &str) -> Vec<Value> {
    for number in 0.. {
        let answer = client.post(path, body(number)).await;
        if answer.status == 201 {
            assert!(number < 2, "{path}: {says} is two");
            continue;
        }
        let problem = answer.problem(409, "conflict");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
        break;
    }
    client.all(path).await
}

async fn each_kind_of_row_has_its_bound(backend: Backend) {
    let mut setup = Setup::new(backend).await;
    for name in ["USERS", "WORKSPACES", "AGENTS", "CONNECTIONS"] {
        setup = setup.with(&format!("KAIZEN_{name}_PER_ORGANIZATION"), "2");
    }
    let world = World::with(setup.with("KAIZEN_MEMBERSHIPS_PER_USER", "2")).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let owner = &tenant.owner;
    let user = |number: usize| json!({ "email": format!("u{number}@acme.test"), "name": "u", "password": PASSWORD });
    let users = fill(owner, "/api/v1/users", user, "users_per_organization").await;
    assert_eq!(users.len(), 2, "the owner and one more");
    let workspace = |number: usize| json!({ "name": format!("workspace {number}") });
    let workspaces = fill(owner, "/api/v1/workspaces", workspace, "workspaces_per_organization").await;
    let first = id(&workspaces[0]);
    let agents =
        fill(owner, "/api/v1/agents", |n| agent(&first, &format!("agent {n}")), "agents_per_organization").await;
    assert_eq!((workspaces.len(), agents.len()), (2, 2));
    let gateway = Gateway::start().await;
    let named = |number: usize| gateway.body(&format!("gateway {number}"));
    let gateways = fill(owner, "/api/v1/gateways", named, "connections_per_organization").await;
    assert_eq!(gateways.len(), 2);
    // Of another kind there is room.
    let sink =
        |number: usize| json!({ "name": format!("sink {number}"), "plugin": "file", "config": { "name": "events" } });
    assert_eq!(fill(owner, "/api/v1/audit-sinks", sink, "connections_per_organization").await.len(), 2);
    let someone = users.iter().map(id).find(|user| *user != owner.id).expect("one more");
    let roles = |number: usize| match number {
        0 => json!({ "user_id": someone, "role": "viewer" }),
        number => json!({ "user_id": someone, "role": "viewer", "workspace_id": id(&workspaces[number % 2]) }),
    };
    fill(owner, "/api/v1/memberships", roles, "memberships_per_user").await;

    other.workspace("theirs").await;
    owner.delete(&format!("/api/v1/agents/{}", id(&agents[0]))).await.ok(204);
    tenant.agent(&first, "in its place").await;
}

async fn versions_of_agents_have_their_bounds(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_VERSIONS_PER_AGENT", "2");
    let world = World::with(setup.with("KAIZEN_VERSION_STORAGE_MIB_PER_ORGANIZATION", "1")).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let owner = &tenant.owner;
    let workspace = tenant.workspace("first").await;
    let large = json!({ "system_prompt": "p".repeat(61 << 10) });
    let mut agents = Vec::new();
    let full = loop {
        let mut body = agent(&workspace, &format!("agent {}", agents.len()));
        body["settings"] = large.clone();
        let path = format!("/api/v1/agents/{}", id(&owner.create("/api/v1/agents", body).await));
        agents.push(path.clone());
        let versions = format!("{path}/versions");
        // The last answer under a key is given again also where nothing more may be added.
        let key = [("idempotency-key", path.as_str())];
        let first = owner.request(Method::POST, &versions, Some(json!({})), &key).await;
        if first.status != 201 {
            break first.problem(409, "conflict");
        }
        fill(owner, &versions, |_| json!({}), "versions_per_agent").await;
        let again = owner.request(Method::POST, &versions, Some(json!({})), &key).await;
        assert_eq!(again.ok(201), first.ok(201));
        assert!(agents.len() < 10, "17 of them take more than 1 MiB");
    };
    assert!(full.to_string().contains("version_storage_mib_per_organization"), "{full}");
    assert!(agents.len() > 8, "16 have room");
    // Another organization has its own, and whoever removes an agent has room again.
    let theirs = id(&other.agent(&other.workspace("theirs").await, "helper").await);
    other.owner.create(&format!("/api/v1/agents/{theirs}/versions"), json!({})).await;
    owner.delete(&agents[0]).await.ok(204);
    let last = agents.last().expect("the refused one");
    owner.create(&format!("{last}/versions"), json!({})).await;
}

async fn jobs_that_wait_are_bounded(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_JOBS_WAITING_PER_ORGANIZATION", "1");
    let shop = Shop::on(World::with(setup).await).await;
    let owner = &shop.tenant.owner;
    // The gateway asks for an hour, so the job waits.
    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let waiting = shop.deploy().await;
    eventually("the job waits", || async {
        let jobs = owner.all("/api/v1/jobs").await;
        jobs.iter().any(|job| job["state"] == "queued" && job["attempts"] != 0).then_some(())
    })
    .await;
    let path = format!("/api/v1/agents/{}/deploy", shop.agent);
    let other = Gateway::start().await;
    let other = shop.tenant.gateway(&other, "other").await;
    let problem = owner.post(&path, json!({ "gateway_id": other })).await.problem(409, "conflict");
    assert!(problem.to_string().contains("jobs_waiting_per_organization"), "{problem}");
    owner.post(&format!("/api/v1/deployments/{waiting}/cancel"), json!({})).await.ok(200);
    eventually("there is room again", || async {
        let answer = owner.post(&path, json!({ "gateway_id": other })).await;
        (answer.status == 202).then_some(())
    })
    .await;
}

async fn policies_have_their_bounds(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_POLICY_SETS", "2").with("KAIZEN_POLICY_VERSIONS", "2");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let owner = &tenant.owner;
    let sets = fill(owner, "/api/v1/policies", |n| json!({ "name": format!("set {n}") }), "2 policy sets").await;
    let versions = format!("/api/v1/policies/{}/versions", id(&sets[0]));
    fill(owner, &versions, |n| json!({ "text": format!("// {n}\n{EVERYTHING}") }), "2 versions").await;
    owner.delete(&format!("/api/v1/policies/{}", id(&sets[1]))).await.ok(204);
    owner.create("/api/v1/policies", json!({ "name": "in its place" })).await;
}

async fn bodies_pages_and_places_to_sign_in_have_their_bounds(backend: Backend) {
    let mut setup = Setup::new(backend).await;
    for (name, value) in [("REQUEST_BODY_KIB", "64"), ("AUDIT_LIST_EVENTS", "10"), ("SIGN_IN_CONNECTIONS", "1")] {
        setup = setup.with(&format!("KAIZEN_{name}"), value);
    }
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let owner = &tenant.owner;
    let described = |length: usize| json!({ "name": "first", "description": "d".repeat(length) });
    let refused = owner.post("/api/v1/workspaces", described(65 << 10)).await.problem(413, "too_large");
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("64 KiB")), "{refused}");
    owner.post("/api/v1/workspaces", described(63 << 10)).await.fault("/description");

    for number in 0..12 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let page = owner.get("/api/v1/audit/events?limit=200&action=workspace.create").await.ok(200);
    let items = page["items"].as_array().expect("items").len();
    assert!(items < 10 && page["next_cursor"].is_string(), "it ends early: {page}");
    assert_eq!(owner.all("/api/v1/audit/events?limit=200&action=workspace.create").await.len(), 12);

    for name in ["one", "two"] {
        connect(&tenant, name, "https://id.example.com", json!({})).await;
    }
    let offered = world.client().get("/api/v1/auth/connections?email=owner@acme.test").await.ok(200);
    assert_eq!(offered["items"].as_array().map(Vec::len), Some(1), "{offered}");
}
