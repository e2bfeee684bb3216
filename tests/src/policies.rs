//! A tenant's own policies: validated, in force from the next request, taken back, and within their bounds.

use reqwest::Method;
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
    an_administrator_gives_themselves_nothing_that_is_the_owners,
    the_operator_is_not_stopped_by_a_policy_set,
    what_is_in_force_is_part_of_every_set,
    policies_that_err_in_a_list_are_told,
    texts_that_take_long_are_refused_at_once,
    a_version_keeps_its_warnings_and_loses_its_byte_order_mark,
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

pub async fn activate(client: &Client, set: &str, version: &Value) {
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

/// What takes the most from everybody else's rules.
pub const EVERYTHING: &str = "permit (principal, action, resource);";

async fn an_administrator_gives_themselves_nothing_that_is_the_owners(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let admin = tenant.person("ada", "admin").await;
    let organization = format!("/api/v1/organizations/{}", tenant.id);
    admin.delete(&organization).await.problem(403, "denied");
    let set = create(&admin, EVERYTHING).await;
    activate(&admin, &set, &json!(1)).await;
    let problem = admin.delete(&organization).await.problem(403, "denied");
    assert!(problem.to_string().contains("organization-by-owners"), "{problem}");
    let owner = format!("/api/v1/users/{}", tenant.owner.id);
    admin.patch(&owner, json!({ "name": "Mine" })).await.problem(403, "denied");
    admin.delete(&owner).await.problem(403, "denied");
    let role = json!({ "user_id": admin.id, "role": "owner" });
    admin.post("/api/v1/memberships", role).await.problem(403, "denied");
    let connection = json!({ "name": "mine", "plugin": "oidc", "config": { "issuer": "https://id.example", "client_id": "x" }, "secrets": { "client-secret": "x" } });
    admin.post("/api/v1/identity-connections", connection).await.problem(403, "denied");
    assert_eq!(tenant.owner.get(&organization).await.ok(200)["id"], tenant.id.as_str());
    tenant.owner.delete(&format!("{organization}?confirm=acme")).await.ok(204);
}

async fn the_operator_is_not_stopped_by_a_policy_set(backend: Backend) {
    let world = World::start(backend).await;
    let operator = world.operator().await;
    let text = r#"forbid (principal, action in [Kaizen::Action::"plugin.*", Kaizen::Action::"organization.create"], resource);
forbid (principal, action, resource) when { principal.attributes.missing == 1 };"#;
    let set = create(&operator.owner, text).await;
    activate(&operator.owner, &set, &json!(1)).await;
    operator.owner.get("/api/v1/plugins").await.ok(200);
    let asked = json!({ "action": "organization.create", "resource": { "type": "organization", "id": operator.id } });
    let may = operator.owner.post("/api/v1/authz/check", asked).await.ok(200);
    assert_eq!(may["allowed"], true, "{may}");
    operator.owner.post("/api/v1/workspaces", json!({ "name": "closed" })).await.problem(403, "denied");
}

async fn what_is_in_force_is_part_of_every_set(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let (owner, organization) = (&tenant.owner, format!("/api/v1/organizations/{}", tenant.id));
    let set = id(&owner.create("/api/v1/policies", json!({ "name": "first" })).await);
    let other = id(&owner.create("/api/v1/policies", json!({ "name": "second" })).await);
    let (path, other_path) = (format!("/api/v1/policies/{set}"), format!("/api/v1/policies/{other}"));
    let mut seen = vec![owner.get(&path).await.etag()];
    put(owner, &set, EVERYTHING).await;
    put(owner, &other, EVERYTHING).await;
    seen.push(owner.get(&path).await.etag());
    let organization_before = owner.get(&organization).await.etag();
    let other_before = owner.get(&other_path).await.etag();

    let activate = |path: String, etag: String| async move {
        let headers = [("if-match", etag.as_str())];
        owner.request(Method::POST, &format!("{path}/activate"), Some(json!({ "version": 1 })), &headers).await
    };
    activate(path.clone(), seen[0].clone()).await.problem(412, "precondition_failed");
    let answer = activate(path.clone(), seen[1].clone()).await;
    let etag = answer.etag();
    assert_eq!(answer.ok(200)["active_version"], 1);
    assert_eq!(owner.get(&path).await.etag(), etag);
    seen.push(etag);
    assert_ne!(owner.get(&organization).await.etag(), organization_before);
    // Somebody else who has not seen that, with the other set.
    activate(other_path.clone(), other_before).await.problem(412, "precondition_failed");
    // Once more the same: nothing changes.
    activate(path.clone(), seen[2].clone()).await.ok(200);
    activate(path.clone(), seen[2].clone()).await.ok(200);
    let deactivation = format!("/api/v1/policies/{set}/deactivate");
    let deactivate = async |etag: String| {
        let headers = [("if-match", etag.as_str())];
        owner.request(Method::POST, &deactivation, Some(json!({})), &headers).await
    };
    deactivate(seen[1].clone()).await.problem(412, "precondition_failed");
    let answer = deactivate(seen[2].clone()).await;
    let etag = answer.etag();
    assert_eq!(answer.ok(200)["active_version"], Value::Null);
    seen.push(etag);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "each change has an ETag of its own: {seen:?}");
    let actions: Vec<Value> = owner.all("/api/v1/audit/events").await.iter().map(|e| e["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|a| *a == "policy.activate").count(), 2, "{actions:?}");
}

async fn policies_that_err_in_a_list_are_told(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    tenant.agent(&workspace, "helper").await;
    let viewer = tenant.person("eve", "viewer").await;
    let text = r#"
@id("cleared")
permit (principal, action == Kaizen::Action::"agent.read", resource) when { principal.attributes.clearance >= 3 };"#;
    let set = create(&tenant.owner, text).await;
    let errors = format!("/api/v1/policies/{set}/errors");
    let none = tenant.owner.get(&errors).await.ok(200);
    assert_eq!(none, json!({ "version": null, "items": [] }));
    activate(&tenant.owner, &set, &json!(1)).await;
    assert!(viewer.all("/api/v1/agents").await.is_empty(), "an error denies");
    let told = tenant.owner.get(&errors).await.ok(200);
    let error = &told["items"][0];
    assert_eq!((&told["version"], &error["policy"]), (&json!(1), &json!("cleared")), "{told}");
    assert_eq!((&error["line"], &error["column"], &error["count"]), (&json!(2), &json!(1), &json!(1)), "{told}");
    assert!(error["message"].to_string().contains("clearance"), "{told}");
    viewer.all("/api/v1/agents").await;
    let again = tenant.owner.get(&errors).await.ok(200);
    assert_eq!(again["items"][0]["count"], 2, "{again}");
    viewer.get(&errors).await.problem(403, "denied");
    let metrics = crate::harness::Client::new(&world.server.ops).get("/metrics").await.text;
    let counted = |line: &str| line.starts_with("kaizen_policy_errors_total{") && line.contains("absent");
    assert!(metrics.lines().any(counted), "{metrics}");
    // Of another version nothing is known yet.
    put(&tenant.owner, &set, EVERYTHING).await;
    activate(&tenant.owner, &set, &json!(2)).await;
    assert_eq!(tenant.owner.get(&errors).await.ok(200), json!({ "version": 2, "items": [] }));
}

/// A valid policy whose `if`s, one in the other, make a validator look at its elements again and again.
pub fn costly(ifs: usize, elements: usize) -> String {
    let (list, before, after) = (vec!["1"; elements].join(","), "if true then ".repeat(ifs), " else false".repeat(ifs));
    format!("permit (principal, action, resource) when {{ {before}[{list}].contains(1){after} }};")
}

async fn texts_that_take_long_are_refused_at_once(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let set = create(&tenant.owner, EVERYTHING).await;
    let versions = format!("/api/v1/policies/{set}/versions");
    for (ifs, elements) in [(10, 20_000), (10, 60_000), (10, 110_000), (10, 1_900)] {
        let answer = tenant.owner.post(&versions, json!({ "text": costly(ifs, elements) })).await;
        let fault = answer.fault("/text");
        assert!(fault.contains("at most 2000 elements") || fault.contains("checks"), "{fault}");
    }
    tenant.owner.post(&versions, json!({ "text": costly(2, 1_900) })).await.ok(201);
}

async fn a_version_keeps_its_warnings_and_loses_its_byte_order_mark(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let text = "permit (principal, action, resource)\r\nwhen { principal.attributes.clearance >= 3 };\r\n";
    let set = id(&tenant.owner.create("/api/v1/policies", json!({ "name": "house rules" })).await);
    let path = format!("/api/v1/policies/{set}");
    let marked = json!({ "text": format!("\u{feff}{text}") });
    let written = tenant.owner.create(&format!("{path}/versions"), marked).await;
    assert_eq!(written["text"], text);
    assert_eq!(
        (&written["warnings"][0]["line"], &written["warnings"][0]["column"]),
        (&json!(2), &json!(8)),
        "{written}"
    );
    let activated = tenant.owner.post(&format!("{path}/activate"), json!({ "version": 1 })).await.ok(200);
    assert_eq!(activated["warnings"], written["warnings"]);
}
