//! What a request does is told in the audit trail with the request's id, and with what its client calls it.

use std::collections::BTreeSet;

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

use crate::{
    deployments::until,
    harness::{Backend, Browser, Chameleon, Client, Gateway, Issuer, PASSWORD, Tenant, Trouble, World},
    identities::{Company, connect},
    isolation::{Operation, PUBLIC, aimed, one_of_everything, operations},
    plugins::{installed, sink},
};

on_both!(every_event_of_a_request_names_it);

const NAME: &str = "incident-4711";

/// The tenant, whose owner and those who are made later give their requests a name; and how long its trail is before that.
async fn naming(mut tenant: Tenant) -> (Tenant, usize) {
    let before = tenant.owner.all("/api/v1/audit/events").await.len();
    tenant.owner.client = tenant.owner.calling_requests(NAME);
    (tenant, before)
}

/// The kinds of events that a trail has after its first ones, each of which names its request if somebody's request it was.
async fn told(client: &Client, before: usize) -> BTreeSet<(String, String)> {
    let mut kinds = BTreeSet::new();
    for event in client.all("/api/v1/audit/events").await.iter().skip(before) {
        let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("{name}: {event}")).to_owned();
        let ids = (&event["details"]["request_id"], &event["details"]["client_request_id"]);
        if text("actor") == "system" {
            assert_eq!(ids, (&Value::Null, &Value::Null), "nothing is told of who made the server do it: {event}");
            continue;
        }
        assert_eq!(ids.1, NAME, "{event}");
        assert_eq!(ids.0.as_str().map(str::len), Some(36), "the server's own: {event}");
        kinds.insert((text("action"), text("outcome")));
    }
    kinds
}

#[track_caller]
fn all_of(kinds: &BTreeSet<(String, String)>, outcome: &str, actions: &[&str]) {
    for action in actions {
        assert!(kinds.contains(&((*action).to_owned(), outcome.to_owned())), "no {action} {outcome} in {kinds:?}");
    }
}

async fn every_event_of_a_request_names_it(backend: Backend) {
    let world = World::start(backend).await;
    let (operator, operator_before) = naming(world.operator().await).await;
    let (tenant, tenant_before) = naming(world.tenant("acme").await).await;
    installation(&world, &operator, &tenant).await;
    let gateway = Gateway::start().await;
    denials(&tenant, &gateway).await;
    passwords(&world, &tenant).await;
    let company = provider(world, tenant).await;

    let kinds = told(&operator.owner, operator_before).await;
    let actions = ["organization.create", "plugin.create", "plugin.activate", "plugin.quarantine", "plugin.release"];
    all_of(&kinds, "success", &actions);
    let kinds = told(&company.tenant.owner, tenant_before).await;
    let done = [
        ["auth.login", "auth.logout", "user.create", "user.link", "user.update", "user.delete"].as_slice(),
        &["membership.create", "membership.update", "membership.delete"],
        &["workspace.create", "workspace.update", "workspace.delete", "organization.update"],
        &["agent.create", "agent.update", "agent.version", "agent.deploy", "agent.delete", "deployment.stop"],
        &["gateway.create", "gateway.update", "gateway.delete"],
        &["audit_sink.create", "audit_sink.update", "audit_sink.delete"],
        &["identity_connection.create", "identity_connection.update", "identity_connection.delete"],
        &["policy.create", "policy.update", "policy.activate", "policy.delete"],
    ];
    all_of(&kinds, "success", &done.concat());
    all_of(
        &kinds,
        "denied",
        &["auth.refresh", "plugin.create", "agent.version", "organization.delete", "policy.activate"],
    );
    all_of(&kinds, "failure", &["auth.login"]);
    let denied = kinds.iter().filter(|(_, outcome)| outcome == "denied").count();
    assert!(denied > 20, "{kinds:?}");
    let failed = company.tenant.owner.all("/api/v1/audit/events?outcome=failure").await;
    let methods: BTreeSet<_> = failed.iter().filter_map(|event| event["details"]["method"].as_str()).collect();
    assert_eq!(methods, BTreeSet::from(["password", "sso"]), "{failed:?}");
}

/// What platform administrators do: tenants that it concerns are told of it.
async fn installation(world: &World, operator: &Tenant, tenant: &Tenant) {
    let admin = &operator.owner;
    let owner = json!({ "email": "first@new.test", "password": PASSWORD });
    admin.create("/api/v1/organizations", json!({ "name": "new", "owner": owner })).await;
    let first = world.client().calling_requests(NAME).login("first@new.test", PASSWORD).await;
    all_of(&told(&first, 0).await, "success", &["organization.create", "auth.login"]);
    let path = installed(admin, &Chameleon::version("1.0.0")).await;
    sink(&tenant.owner, "follower", None, json!({})).await;
    let place = format!("{path}/versions/1.0.0/quarantine");
    tenant.owner.post(&place, json!({ "reason": "r" })).await.problem(403, "denied");
    admin.post(&place, json!({ "reason": "it sends events elsewhere" })).await.ok(200);
    admin.delete(&place).await.ok(200);
    let events = tenant.owner.all("/api/v1/audit/events?action=plugin.quarantine&outcome=success").await;
    assert_eq!((events.len(), &events[0]["actor"]), (1, &json!("system")), "{events:?}");
}

/// Everything that can be changed, by somebody who may not, and then by the owner.
async fn denials(tenant: &Tenant, gateway: &Gateway) {
    let owner = &tenant.owner;
    let ids = one_of_everything(tenant, gateway).await;
    let viewer = tenant.person("eve", "viewer").await;
    for Operation { method, path, body, .. } in operations(owner).await {
        let elsewhere = path.starts_with("/api/v1/plugins/") || PUBLIC.iter().any(|public| path.starts_with(public));
        if method == Method::GET || elsewhere {
            continue;
        }
        let path = aimed(&path, &ids).unwrap_or(path);
        if path == "/api/v1/plugins" {
            viewer.multipart(&path, &[("component", b"\0asm")], &[]).await.problem(403, "denied");
        } else {
            viewer.request(method, &path, body, &[]).await;
        }
    }
    let one = |kind: &str| format!("/api/v1/{kind}/{}", ids[kind]);
    let named = ["organizations", "users", "workspaces", "gateways", "audit-sinks", "identity-connections", "policies"];
    for kind in named {
        owner.patch(&one(kind), json!({ "name": "another name" })).await.ok(200);
    }
    owner.patch(&one("memberships"), json!({ "role": "auditor" })).await.ok(200);
    owner.patch(&one("agents"), json!({ "description": "another" })).await.ok(200);
    crate::policies::activate(owner, &ids["policies"], &json!(1)).await;
    owner.post(&format!("{}/deactivate", one("policies")), json!({})).await;
    until(owner, &ids["deployments"], "active").await;
    let stopping = owner.post(&format!("{}/stop", one("deployments")), json!({})).await;
    assert!((200..300).contains(&stopping.status), "{}", stopping.text);
    until(owner, &ids["deployments"], "stopped").await;
    let gone = ["agents", "gateways", "workspaces", "memberships", "users", "audit-sinks", "identity-connections"];
    for kind in gone.into_iter().chain(["policies"]) {
        owner.delete(&one(kind)).await.ok(204);
    }
}

/// Signing in by password, and what goes wrong with it.
async fn passwords(world: &World, tenant: &Tenant) {
    let client = world.client().calling_requests(NAME);
    let login = |password: &str| json!({ "email": tenant.owner.email, "password": password });
    client.post("/api/v1/auth/login", login("a wrong password")).await.problem(401, "invalid_credentials");
    let tokens = client.post("/api/v1/auth/login", login(PASSWORD)).await.ok(200);
    let refresh = json!({ "refresh_token": tokens["refresh_token"] });
    client.post("/api/v1/auth/refresh", refresh.clone()).await.ok(200);
    let mut direct = world.setup.database.direct().await;
    direct.execute("UPDATE refresh_tokens SET used_at = '2024-01-01T00:00:00+00:00' WHERE used_at IS NOT NULL").await;
    client.post("/api/v1/auth/refresh", refresh).await.problem(401, "invalid_credentials");
    let leaver = tenant.person("leaver", "viewer").await;
    leaver.post("/api/v1/auth/logout", json!({})).await.ok(204);
}

/// Signing in at a provider: a newcomer, somebody who is here already in the same browser, and a failure.
async fn provider(world: World, tenant: Tenant) -> Company {
    let ada = tenant.person("ada", "viewer").await;
    let issuer = Issuer::start().await;
    let connection = connect(&tenant, "provider", &issuer.url, json!({ "default_role": "viewer" })).await;
    let company = Company { world, tenant, issuer, connection };
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", NAME.parse().expect("a header's value"));
    let browser = Browser::sending(headers);
    for (subject, email) in [("1", "newcomer@acme.test"), ("2", &ada.email)] {
        company.issuer.vouches(subject, email);
        company.follow(&browser, |url| url.path() == "/canvas").await;
        assert_eq!(company.me(&browser).await.ok(200)["user"]["email"], email);
    }
    company.issuer.trouble(Some(Trouble::Callback(vec![("error", "access_denied".into())])));
    assert_eq!(company.follow(&browser, |_| false).await.status, 403);
    let created = company.tenant.owner.all("/api/v1/audit/events?action=user.create").await;
    let by_provider = created.iter().filter(|e| e["actor"] == format!("identity_connection/{}", company.connection));
    assert_eq!(by_provider.count(), 1, "{created:?}");
    company
}
