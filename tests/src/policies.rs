//! A tenant's own policies: validated, in force from the next request, taken back, and within their bounds.

use serde_json::{Value, json};

use crate::harness::{Backend, Client, Gateway, Tenant, World, agent, id};

on_both!(
    a_policy_is_felt_by_the_next_request_and_taken_back,
    a_policy_that_does_not_hold_up_is_refused_by_line_and_column,
    a_denial_by_policy_names_it,
    a_policy_cannot_reach_another_tenant_or_lock_the_owner_out,
    an_error_in_a_policy_denies,
    decisions_can_be_asked_for,
    removing_the_set_in_force_is_felt,
);

/// A policy set with one version; returns its id.
pub async fn create(client: &Client, text: &str) -> String {
    let set = id(&client.create("/api/v1/policies", json!({ "name": "house rules" })).await);
    client.create(&format!("/api/v1/policies/{set}/versions"), json!({ "text": text })).await;
    set
}

async fn put(client: &Client, set: &str, text: &str) -> Value {
    client.create(&format!("/api/v1/policies/{set}/versions"), json!({ "text": text })).await["version"].clone()
}

async fn activate(client: &Client, set: &str, version: &Value) {
    let answer = client.post(&format!("/api/v1/policies/{set}/activate"), json!({ "version": version })).await;
    assert!((200..300).contains(&answer.status), "{}", answer.text);
}

const NO_CREATING: &str = r#"@id("freeze")
forbid (principal, action == Kaizen::Action::"agent.create", resource);
"#;

async fn a_policy_is_felt_by_the_next_request_and_taken_back(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let rival = world.tenant("rival").await;
    let workspace = tenant.workspace("first").await;
    let theirs = rival.workspace("theirs").await;
    let ada = tenant.person("ada", "developer").await;
    let set = create(&tenant.owner, "permit (principal, action, resource) when { false };").await;
    ada.create("/api/v1/agents", agent(&workspace, "before")).await;
    let freeze = put(&tenant.owner, &set, NO_CREATING).await;
    ada.create("/api/v1/agents", agent(&workspace, "not yet in force")).await;
    activate(&tenant.owner, &set, &freeze).await;
    ada.post("/api/v1/agents", agent(&workspace, "frozen")).await.problem(403, "denied");
    rival.owner.create("/api/v1/agents", agent(&theirs, "elsewhere")).await;
    activate(&tenant.owner, &set, &json!(1)).await;
    ada.create("/api/v1/agents", agent(&workspace, "thawed")).await;

    // It can also give what the platform does not.
    let viewer = tenant.person("eve", "viewer").await;
    viewer.post("/api/v1/agents", agent(&workspace, "hers")).await.problem(403, "denied");
    let grant = r#"permit (principal is Kaizen::User, action == Kaizen::Action::"agent.create", resource is Kaizen::Workspace)
when { principal.email == "eve@acme.test" };"#;
    let version = put(&tenant.owner, &set, grant).await;
    activate(&tenant.owner, &set, &version).await;
    viewer.create("/api/v1/agents", agent(&workspace, "hers")).await;

    let actions: Vec<Value> =
        tenant.owner.all("/api/v1/audit/events").await.iter().map(|e| e["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|a| *a == "policy.activate").count(), 3, "{actions:?}");
}

async fn a_policy_that_does_not_hold_up_is_refused_by_line_and_column(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let set = create(&tenant.owner, NO_CREATING).await;
    let versions = format!("/api/v1/policies/{set}/versions");
    let cases = [
        ("permit (principal, action, resource)\nwhen { principal.salry > 3 };", 2, "salry"),
        ("// a comment\n\npermit (principal, action == Kaizen::Action::\"agent.fly\", resource);", 3, "agent.fly"),
        ("permit (principal, action, resource)\n  whn { true };", 2, ""),
        ("permit (principal == Kaizen::Usr::\"x\", action, resource);", 1, "Usr"),
    ];
    for (text, line, named) in cases {
        let answer = tenant.owner.post(&versions, json!({ "text": text })).await;
        let problem = answer.problem(422, "invalid");
        let fault = &problem["errors"][0];
        let message = fault.to_string();
        assert!(message.contains(&format!("line {line}")) || fault["line"] == line, "{text}: {problem}");
        assert!(message.contains("column") || fault["column"].is_number(), "{text}: {problem}");
        assert!(message.contains(named), "{text}: {problem}");
    }
    tenant.owner.post(&versions, json!({ "text": "x".repeat(2_000_000) })).await.problem(413, "too_large");
    assert_eq!(tenant.owner.all(&versions).await.len(), 1, "nothing refused was kept");
    let activate = format!("/api/v1/policies/{set}/activate");
    tenant.owner.post(&activate, json!({ "version": 7 })).await.fault("/version");
}

async fn deployable(tenant: &Tenant, gateway: &Gateway) -> (String, String) {
    let workspace = tenant.workspace("first").await;
    let agent = format!("/api/v1/agents/{}", id(&tenant.agent(&workspace, "helper").await));
    tenant.owner.create(&format!("{agent}/versions"), json!({})).await;
    (agent, tenant.gateway(gateway, "west").await)
}

async fn a_denial_by_policy_names_it(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let gateway = Gateway::start().await;
    let (agent, gateway_id) = deployable(&tenant, &gateway).await;
    let text = r#"@id("staging-is-closed")
@description("Nothing goes to staging this week.")
forbid (principal, action == Kaizen::Action::"agent.deploy", resource) when { context.environment == "staging" };"#;
    let set = create(&tenant.owner, text).await;
    activate(&tenant.owner, &set, &json!(1)).await;
    let answer = tenant.owner.post(&format!("{agent}/deploy"), json!({ "gateway_id": gateway_id })).await;
    let problem = answer.problem(403, "denied");
    assert!(problem["denial"].to_string().contains("staging-is-closed"), "{problem}");
    assert!(problem["denial"].to_string().contains("forbidden"), "{problem}");
    assert!(
        problem.to_string().contains("Nothing goes to staging this week."),
        "in the words of whoever wrote it: {problem}"
    );
    assert!(gateway.registrations().is_empty());
    let mut other = gateway.body("east");
    other["environment"] = "testing".into();
    let other = id(&tenant.owner.create("/api/v1/gateways", other).await);
    tenant.owner.post(&format!("{agent}/deploy"), json!({ "gateway_id": other })).await.ok(202);
}

async fn a_policy_cannot_reach_another_tenant_or_lock_the_owner_out(backend: Backend) {
    let world = World::start(backend).await;
    let (tenant, rival) = (world.tenant("acme").await, world.tenant("rival").await);
    let theirs = id(&rival.agent(&rival.workspace("theirs").await, "secret").await);
    let set = create(&tenant.owner, "permit (principal, action, resource);").await;
    activate(&tenant.owner, &set, &json!(1)).await;
    tenant.owner.get(&format!("/api/v1/agents/{theirs}")).await.problem(404, "not_found");
    assert!(tenant.owner.all("/api/v1/agents").await.is_empty());

    let viewer = tenant.person("eve", "viewer").await;
    let lockout = put(&tenant.owner, &set, "forbid (principal, action, resource);").await;
    activate(&tenant.owner, &set, &lockout).await;
    viewer.get("/api/v1/workspaces").await.ok(200);
    assert!(viewer.all("/api/v1/workspaces").await.is_empty(), "everything is forbidden");
    activate(&tenant.owner, &set, &json!(1)).await;
    tenant.workspace("open again").await;
}

async fn an_error_in_a_policy_denies(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let ada = tenant.person("ada", "developer").await;
    // Valid by the schema; overflows when it is evaluated. An erroring forbid must not fail open.
    let text = r#"@id("overflows")
forbid (principal is Kaizen::User, action == Kaizen::Action::"agent.create", resource)
when { 9223372036854775807 + 1 == 0 };"#;
    let set = create(&tenant.owner, text).await;
    activate(&tenant.owner, &set, &json!(1)).await;
    let problem = ada.post("/api/v1/agents", agent(&workspace, "helper")).await.problem(403, "denied");
    assert!(problem.to_string().contains("overflows"), "the broken policy is named: {problem}");
    ada.get("/api/v1/agents").await.ok(200);
}

async fn decisions_can_be_asked_for(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let helper = id(&tenant.agent(&workspace, "helper").await);
    let viewer = tenant.person("eve", "viewer").await;
    let ask = |action: &str| json!({ "action": action, "resource": { "type": "agent", "id": helper } });
    let may = viewer.post("/api/v1/authz/check", ask("agent.read")).await.ok(200);
    assert_eq!(may["allowed"], true, "{may}");
    let may_not = viewer.post("/api/v1/authz/check", ask("agent.delete")).await.ok(200);
    assert_eq!(may_not["allowed"], false, "{may_not}");
}

async fn removing_the_set_in_force_is_felt(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let set = create(&tenant.owner, NO_CREATING).await;
    activate(&tenant.owner, &set, &json!(1)).await;
    tenant.owner.post("/api/v1/agents", agent(&workspace, "frozen")).await.problem(403, "denied");
    let removed = tenant.owner.delete(&format!("/api/v1/policies/{set}")).await;
    match removed.status {
        204 => drop(tenant.owner.create("/api/v1/agents", agent(&workspace, "thawed")).await),
        409 => drop(tenant.owner.post("/api/v1/agents", agent(&workspace, "frozen")).await.problem(403, "denied")),
        other => panic!("{other}: {}", removed.text),
    }
}
