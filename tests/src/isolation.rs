//! A tenant sees only its own. The routes come from the server's own OpenAPI document, so that a new one is covered by itself.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Backend, Canvas, Client, Gateway, Tenant, World, agent, id};

on_both!(
    another_tenants_id_is_not_found_on_any_route,
    another_tenants_things_are_in_no_list,
    another_tenants_ids_are_refused_in_bodies_and_filters,
    every_route_needs_a_caller,
);

/// One operation of the document.
pub struct Operation {
    pub method: Method,
    pub path: String,
    /// The names of its query parameters.
    pub query: Vec<String>,
    pub body: Option<Value>,
    /// It is there for people who are not signed in.
    pub public: bool,
}

impl Operation {
    /// Its path, with ids that nobody has.
    pub fn path_of_nothing(&self) -> String {
        let parts = self.path.split('/');
        let parts = parts.map(|part| if part.starts_with('{') { "0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000" } else { part });
        parts.collect::<Vec<_>>().join("/")
    }
}

/// Routes that are there for people who are not signed in, and the socket, which says so by its close code.
pub const PUBLIC: &[&str] = &["/auth/sso/", "/api/v1/auth/", "/.well-known/", "/ws/"];

pub async fn operations(client: &Client) -> Vec<Operation> {
    let document = client.get("/api/openapi.json").await.ok(200);
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in ["get", "post", "put", "patch", "delete"] {
            let Some(operation) = item.get(method) else { continue };
            let content = &operation["requestBody"]["content"];
            let schema = content.get("application/json").map(|json| sample(&document, &json["schema"]));
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters.filter(|parameter| parameter["in"] == "query");
            let query = query.map(|parameter| parameter["name"].as_str().expect("a name").to_owned()).collect();
            let public = operation["security"] == json!([]);
            all.push(Operation { method, path: path.clone(), query, body: schema, public });
        }
    }
    assert!(all.len() > 40, "the document lists only {} operations", all.len());
    all
}

/// The smallest value that a schema allows, or near enough.
fn sample(document: &Value, schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return sample(document, document.pointer(reference.trim_start_matches('#')).expect("the schema referred to"));
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(schemas) = schema[several].as_array() {
            let mut samples = schemas.iter().filter(|s| s["type"] != "null").map(|s| sample(document, s));
            if several != "allOf" {
                return samples.next().unwrap_or(Value::Null);
            }
            let mut merged = serde_json::Map::new();
            samples.filter_map(|s| s.as_object().cloned()).for_each(|s| merged.extend(s));
            return Value::Object(merged);
        }
    }
    if let Some(value) = schema["enum"].get(0).or_else(|| schema.get("const")) {
        return value.clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"].get(0).and_then(Value::as_str)).unwrap_or("object");
    match kind {
        "string" if schema["format"] == "uuid" => json!(crate::harness::fresh_id()),
        "string" if schema["format"] == "email" => json!("someone@else.test"),
        "string" => json!("text"),
        "integer" | "number" => json!(1),
        "boolean" => json!(true),
        "array" => json!([]),
        _ => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let names = required.iter().filter_map(Value::as_str);
            names.map(|name| (name.to_owned(), sample(document, &schema["properties"][name]))).collect()
        }
    }
}

/// One of everything, by the part of the path that comes before its id.
pub async fn one_of_everything(tenant: &Tenant, gateway: &Gateway) -> BTreeMap<&'static str, String> {
    let owner = &tenant.owner;
    let workspace = tenant.workspace("first").await;
    let member = tenant.stranger("member").await;
    let made = tenant.agent(&workspace, "helper").await;
    let agents = format!("/api/v1/agents/{}", id(&made));
    owner.create(&format!("{agents}/versions"), json!({})).await;
    let gateway_id = tenant.gateway(gateway, "west").await;
    let deployed = owner.post(&format!("{agents}/deploy"), json!({ "gateway_id": gateway_id })).await.ok(202);
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let sink = json!({ "name": "archive", "plugin": "webhook", "config": { "url": format!("{}/events", gateway.stub.url) }, "secrets": { "signing-key": "0123456789abcdef" } });
    let connection = json!({
        "name": "company", "plugin": "oidc", "config": { "issuer": gateway.stub.url, "client_id": "kaizen" },
        "secrets": { "client-secret": "secret" },
    });
    let policy = crate::policies::create(owner, "permit (principal, action, resource) when { false };").await;
    BTreeMap::from([
        ("organizations", tenant.id.clone()),
        ("users", member.id.clone()),
        ("memberships", tenant.grant(&member, "viewer", None).await),
        ("workspaces", workspace),
        ("agents", id(&made)),
        ("canvases", text(&made["canvas_id"])),
        ("gateways", gateway_id),
        ("audit-sinks", id(&owner.create("/api/v1/audit-sinks", sink).await)),
        ("identity-connections", id(&owner.create("/api/v1/identity-connections", connection).await)),
        ("deployments", text(&deployed["deployment_id"])),
        ("jobs", text(&deployed["job_id"])),
        ("policies", policy),
    ])
}

/// The path with this tenant's ids in it; `None` if it takes none.
pub fn aimed(path: &str, ids: &BTreeMap<&'static str, String>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut filled = false;
    for part in path.split('/') {
        let value = if part.starts_with('{') {
            filled = true;
            match (part, parts.last().map(String::as_str)) {
                (_, Some("versions")) => "1".to_owned(),
                // Whatever it is: the user before it is another tenant's.
                (_, Some("identities")) => crate::harness::fresh_id().to_string(),
                (_, Some(kind)) => {
                    ids.get(kind).unwrap_or_else(|| panic!("{path}: make one of {kind} in one_of_everything")).clone()
                }
                _ => panic!("{path}"),
            }
        } else {
            part.to_owned()
        };
        parts.push(value);
    }
    filled.then(|| parts.join("/"))
}

/// Only the status: some answers are streams without an end.
async fn status(client: &Client, method: &Method, path: &str) -> u16 {
    let request = client.http.request(method.clone(), format!("{}{path}", client.base));
    request.bearer_auth(client.token.as_deref().expect("signed in")).send().await.expect("an answer").status().as_u16()
}

async fn another_tenants_id_is_not_found_on_any_route(backend: Backend) {
    let world = World::start(backend).await;
    let gateway = Gateway::start().await;
    let (ours, theirs) = (world.tenant("acme").await, world.tenant("rival").await);
    let ids = one_of_everything(&ours, &gateway).await;
    let mut asked = 0;
    for Operation { method, path, body, .. } in operations(&theirs.owner).await {
        // Plugins are the installation's, no tenant's: `plugins.rs` and `plugin_refusals.rs` say who may do what to them.
        if path.starts_with("/api/v1/plugins") || PUBLIC.iter().any(|public| path.starts_with(public)) {
            continue;
        }
        let Some(path) = aimed(&path, &ids) else { continue };
        let answer = theirs.owner.request(method.clone(), &path, body.clone(), &[]).await;
        answer.problem(404, "not_found");
        // An id that nobody has is answered no differently.
        let nobody =
            ids.values().fold(path.clone(), |path, id| path.replace(id, &crate::harness::fresh_id().to_string()));
        theirs.owner.request(method.clone(), &nobody, body, &[]).await.problem(404, "not_found");
        if method == Method::GET {
            let own = status(&ours.owner, &method, &path).await;
            assert!((200..300).contains(&own), "{path}: {own} for the one whose it is");
        }
        asked += 1;
    }
    assert!(asked > 25, "only {asked} routes take an id");
    let mut socket = Canvas::open(&theirs.owner, &ids["canvases"], "").await.expect("opens");
    assert_eq!(socket.closed().await, 4404);
    // All of it is still there.
    for (kind, id) in ids.iter().filter(|(kind, _)| **kind != "canvases") {
        assert_eq!(status(&ours.owner, &Method::GET, &format!("/api/v1/{kind}/{id}")).await, 200, "{kind}");
    }
}

async fn another_tenants_things_are_in_no_list(backend: Backend) {
    let world = World::start(backend).await;
    let gateway = Gateway::start().await;
    let (ours, theirs) = (world.tenant("acme").await, world.tenant("rival").await);
    let ids = one_of_everything(&ours, &gateway).await;
    let mut lists = 0;
    for Operation { method, path, .. } in operations(&theirs.owner).await {
        if method != Method::GET || path.contains('{') || PUBLIC.iter().any(|public| path.starts_with(public)) {
            continue;
        }
        let answer = theirs.owner.get(&path).await;
        assert!((200..300).contains(&answer.status), "{path}: {}", answer.text);
        for id in ids.values() {
            assert!(!answer.text.contains(id), "{path} shows another tenant's {id}: {}", answer.text);
        }
        lists += 1;
    }
    assert!(lists >= 10, "only {lists} lists");
}

async fn another_tenants_ids_are_refused_in_bodies_and_filters(backend: Backend) {
    let world = World::start(backend).await;
    let gateway = Gateway::start().await;
    let (ours, theirs) = (world.tenant("acme").await, world.tenant("rival").await);
    let ids = one_of_everything(&ours, &gateway).await;
    let owner = &theirs.owner;
    let (own_space, colleague) = (theirs.workspace("own").await, theirs.stranger("colleague").await);
    let own_agent = format!("/api/v1/agents/{}", id(&theirs.agent(&own_space, "own").await));
    owner.create(&format!("{own_agent}/versions"), json!({})).await;
    let memberships = |user: &str, space: &str| json!({ "user_id": user, "role": "developer", "workspace_id": space });
    let refused = [
        ("/api/v1/agents".to_owned(), agent(&ids["workspaces"], "foreign")),
        ("/api/v1/memberships".to_owned(), memberships(&ids["users"], &own_space)),
        ("/api/v1/memberships".to_owned(), memberships(&colleague.id, &ids["workspaces"])),
        (format!("{own_agent}/deploy"), json!({ "gateway_id": ids["gateways"] })),
    ];
    for (path, body) in refused {
        let answer = owner.post(&path, body).await;
        assert!([404, 422].contains(&answer.status), "{path}: {}", answer.text);
    }
    assert!(gateway.agents().len() <= 1, "only the first tenant's own deployment arrives");
    for filter in ["agents?workspace_id", "deployments?agent_id", "deployments?gateway_id", "memberships?user_id"] {
        let kind = match filter.split_once('?').map(|(_, name)| name) {
            Some("workspace_id") => "workspaces",
            Some("agent_id") => "agents",
            Some("gateway_id") => "gateways",
            _ => "users",
        };
        let answer = owner.get(&format!("/api/v1/{filter}={}", ids[kind])).await;
        assert_eq!(answer.ok(200)["items"], json!([]), "{filter}");
    }
}

async fn every_route_needs_a_caller(backend: Backend) {
    let world = World::start(backend).await;
    let nobody = world.client();
    let forged = nobody.bearing("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.");
    for operation in operations(&nobody).await {
        if PUBLIC.iter().any(|public| operation.path.starts_with(public)) {
            continue;
        }
        let Operation { method, body, .. } = &operation;
        for caller in [&nobody, &forged] {
            let answer = caller.request(method.clone(), &operation.path_of_nothing(), body.clone(), &[]).await;
            answer.problem(401, "unauthenticated");
        }
    }
}
