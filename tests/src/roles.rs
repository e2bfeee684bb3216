//! What each role may do, and the denial that explains itself.

use serde_json::{Value, json};

use crate::harness::{Backend, Gateway, Person, World, agent, id};

on_both!(
    each_role_may_do_what_it_is_for,
    a_denial_explains_itself_and_is_recorded,
    a_role_in_one_workspace_ends_at_its_door,
    nobody_makes_themselves_more_than_they_are,
    the_last_owner_stays,
);

async fn each_role_may_do_what_it_is_for(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let gateway = Gateway::start().await;
    let workspace = tenant.workspace("first").await;
    let helper = format!("/api/v1/agents/{}", id(&tenant.agent(&workspace, "helper").await));
    let mut people = Vec::new();
    for role in ["admin", "developer", "viewer", "auditor"] {
        people.push((role, tenant.person(role, role).await));
    }
    people.push(("nobody", tenant.stranger("nobody").await));
    // What, with which roles it works.
    let sink = json!({ "name": "s", "plugin": "webhook", "config": { "url": format!("{}/e", gateway.stub.url) }, "secrets": { "signing-key": "0123456789abcdef" } });
    let provider = json!({
        "name": "ROLE", "plugin": "oidc", "config": { "issuer": gateway.stub.url, "client_id": "kaizen" },
        "secrets": { "client-secret": "secret" },
    });
    let asks: Vec<(&str, String, Option<Value>, &[&str])> = vec![
        ("GET", helper.clone(), None, &["admin", "developer", "viewer", "auditor"]),
        ("PATCH", helper.clone(), Some(json!({ "description": "new" })), &["admin", "developer"]),
        ("POST", "/api/v1/agents".into(), Some(agent(&workspace, "another")), &["admin", "developer"]),
        ("POST", format!("{helper}/versions"), Some(json!({})), &["admin", "developer"]),
        ("POST", "/api/v1/workspaces".into(), Some(json!({ "name": "ROLE" })), &["admin"]),
        ("POST", "/api/v1/users".into(), Some(json!({ "email": "ROLE@new.test", "name": "n" })), &["admin"]),
        ("POST", "/api/v1/gateways".into(), Some(gateway.body("ROLE")), &["admin"]),
        ("POST", "/api/v1/audit-sinks".into(), Some(sink), &["admin"]),
        ("POST", "/api/v1/identity-connections".into(), Some(provider), &[]),
        ("GET", "/api/v1/audit/events".into(), None, &["admin", "auditor"]),
        ("GET", "/api/v1/audit/verify".into(), None, &["admin", "auditor"]),
        ("POST", "/api/v1/policies".into(), Some(json!({ "name": "ROLE" })), &["admin"]),
    ];
    for (method, path, body, allowed) in asks {
        for (role, person) in &people {
            // Names are unique.
            let body = body
                .as_ref()
                .map(|body| body.to_string().replace("ROLE", role))
                .map(|t| serde_json::from_str(&t).expect("JSON"));
            let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
            let answer = person.request(method.clone(), &path, body, &[]).await;
            if allowed.contains(role) {
                assert!((200..300).contains(&answer.status), "{role}: {method} {path}: {}", answer.text);
            } else {
                answer.problem(403, "denied");
            }
        }
    }
}

async fn a_denial_explains_itself_and_is_recorded(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let viewer = tenant.person("eve", "viewer").await;
    let workspace = tenant.workspace("first").await;
    let problem = viewer.post("/api/v1/agents", agent(&workspace, "mine")).await.problem(403, "denied");
    assert!(problem["detail"].as_str().expect("text").contains("agent.create"), "it says what: {problem}");
    let denial = &problem["denial"];
    assert!(denial["reason"].is_string(), "{problem}");
    assert!(denial.to_string().contains("not_permitted"), "no permit matched, told apart from a forbid: {denial}");

    let events = tenant.owner.all("/api/v1/audit/events").await;
    let denied: Vec<_> = events.iter().filter(|event| event["outcome"] == "denied").collect();
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert_eq!(denied[0]["action"], "agent.create");
    assert_eq!(denied[0]["actor"], format!("user/{}", viewer.id));
    assert!(denied[0].to_string().contains(problem["request_id"].as_str().expect("text")), "{denied:?}");
}

async fn a_role_in_one_workspace_ends_at_its_door(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let (here, there) = (tenant.workspace("here").await, tenant.workspace("there").await);
    let (inside, outside) = (tenant.agent(&here, "inside").await, tenant.agent(&there, "outside").await);
    let ada = tenant.stranger("ada").await;
    tenant.grant(&ada, "developer", Some(&here)).await;
    ada.patch(&format!("/api/v1/agents/{}", id(&inside)), json!({ "name": "mine" })).await.ok(200);
    ada.create("/api/v1/agents", agent(&here, "new")).await;
    ada.get(&format!("/api/v1/agents/{}", id(&outside))).await.problem(403, "denied");
    ada.post("/api/v1/agents", agent(&there, "new")).await.problem(403, "denied");
    let seen: Vec<Value> = ada.all("/api/v1/workspaces").await.iter().map(|w| w["id"].clone()).collect();
    assert_eq!(seen, [json!(here)]);
    let mut names: Vec<Value> = ada.all("/api/v1/agents").await.iter().map(|a| a["name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["mine", "new"]);
}

async fn nobody_makes_themselves_more_than_they_are(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let (admin, developer) = (tenant.person("admin", "admin").await, tenant.person("dev", "developer").await);
    let member = |person: &Person, role: &str| json!({ "user_id": person.id, "role": role });
    for role in ["owner", "admin", "developer", "auditor"] {
        developer.post("/api/v1/memberships", member(&developer, role)).await.problem(403, "denied");
    }
    admin.post("/api/v1/memberships", member(&admin, "owner")).await.problem(403, "denied");
    let all = tenant.owner.all("/api/v1/memberships").await;
    let of = |person: &Person| {
        format!("/api/v1/memberships/{}", id(all.iter().find(|m| m["user_id"] == person.id.as_str()).expect("one")))
    };
    admin.patch(&of(&admin), json!({ "role": "owner" })).await.problem(403, "denied");
    admin.delete(&of(&tenant.owner)).await.problem(403, "denied");
    developer.patch(&of(&developer), json!({ "role": "admin" })).await.problem(403, "denied");
    let platform = admin.patch(&format!("/api/v1/users/{}", admin.id), json!({ "platform_administrator": true })).await;
    assert!([403, 422].contains(&platform.status), "{}", platform.text);
    // An admin does not take over an owner's account either.
    let owner = format!("/api/v1/users/{}", tenant.owner.id);
    admin.patch(&owner, json!({ "password": "taken over by the admin now" })).await.problem(403, "denied");
    admin.delete(&owner).await.problem(403, "denied");
}

async fn the_last_owner_stays(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let all = tenant.owner.all("/api/v1/memberships").await;
    let own = format!("/api/v1/memberships/{}", id(&all[0]));
    let user = format!("/api/v1/users/{}", tenant.owner.id);
    let refused = |answer: crate::harness::Answer| assert!([403, 409].contains(&answer.status), "{}", answer.text);
    refused(tenant.owner.delete(&own).await);
    refused(tenant.owner.patch(&own, json!({ "role": "viewer" })).await);
    refused(tenant.owner.patch(&user, json!({ "active": false })).await);
    refused(tenant.owner.delete(&user).await);
    tenant.owner.get("/api/v1/auth/me").await.ok(200);
    // With a second one the first may go.
    let second = tenant.person("second", "owner").await;
    second.delete(&user).await.ok(204);
    tenant.owner.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
}
