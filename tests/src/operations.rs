//! What an operator sees: health, metrics, an orderly end, headers; and the documentation.

use futures::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    canvas::{Team, put},
    harness::{Backend, Client, Events, Gateway, Proxy, Setup, World, eventually, free_port, within},
};

on_both!(
    health_and_metrics_have_a_listener_of_their_own,
    a_stop_is_orderly,
    several_start_at_once_on_an_empty_database
);

#[tokio::test]
async fn readiness_follows_the_database() {
    let proxy = Proxy::to(crate::harness::Database::cluster_port()).await;
    let setup = Setup::new(Backend::Postgres).await;
    let through = setup.database.url_through(proxy.port);
    let world = World::with(setup.with("KAIZEN_DATABASE_URL", through)).await;
    let tenant = world.tenant("acme").await;
    let ops = Client::new(&world.server.ops);

    proxy.cut();
    let refused = tenant.owner.get("/api/v1/agents").await;
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    let problem = refused.problem(503, "unavailable");
    assert!(
        !problem.to_string().contains("postgres://") && !problem.to_string().contains("kztest"),
        "internals: {problem}"
    );
    assert_eq!((ops.get("/readyz").await.status, ops.get("/readyz/reads").await.status), (503, 503));
    assert_eq!(ops.get("/healthz").await.status, 200, "alive, though not ready");

    proxy.restore();
    eventually("it is ready again", || async { (ops.get("/readyz").await.status == 200).then_some(()) }).await;
    tenant.owner.get("/api/v1/agents").await.ok(200);
}

#[tokio::test]
async fn a_server_that_still_migrates_is_alive_and_not_ready() {
    let ops = format!("127.0.0.1:{}", free_port());
    let mut world = World::with(Setup::new(Backend::Postgres).await.with("KAIZEN_OPS_LISTEN", &ops)).await;
    world.server.stop().await;
    // Its migrations take as long as somebody holds this table.
    let mut database = world.setup.database.direct().await;
    database.execute("BEGIN; LOCK TABLE kaizen_migrations IN ACCESS EXCLUSIVE MODE").await;
    let mut starting = world.setup.spawn(&["serve"]);
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let status = async |path: &str| Some(http.get(format!("http://{ops}{path}")).send().await.ok()?.status().as_u16());
    eventually("it is alive", || async { (status("/healthz").await? == 200).then_some(()) }).await;
    let client = Client::new(&format!("http://{ops}"));
    for path in ["/readyz", "/readyz/reads"] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.text.as_str()), (503, "starting\n"), "{path}");
    }
    assert_eq!((client.get("/metrics").await.status, client.get("/healthz").await.status), (200, 200));
    database.execute("COMMIT").await;
    eventually("it is ready", || async { (status("/readyz").await? == 200).then_some(()) }).await;
    starting.kill().await.expect("it runs");
}

async fn health_and_metrics_have_a_listener_of_their_own(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    tenant.owner.get("/api/v1/agents").await.ok(200);
    world.client().get("/api/v1/agents").await.problem(401, "unauthenticated");
    let ops = Client::new(&world.server.ops);
    for path in ["/healthz", "/readyz", "/readyz/reads"] {
        assert_eq!(ops.get(path).await.status, 200, "{path}");
    }
    let metrics = ops.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"), "{metrics:?}");
    let requests: Vec<_> = metrics.text.lines().filter(|l| l.starts_with("kaizen_http_requests_total{")).collect();
    let one = |status: &str| {
        let holds =
            |line: &&&str| line.contains("route=\"/api/v1/agents\"") && line.contains(&format!("status=\"{status}\""));
        requests
            .iter()
            .find(holds)
            .unwrap_or_else(|| panic!("no count of {status}: {requests:?}"))
            .rsplit_once(' ')
            .expect("a value")
            .1
    };
    assert_eq!((one("200"), one("401")), ("1", "1"));
    assert!(!metrics.text.contains(&tenant.id), "no tenant's id in a label");
    for path in ["/metrics", "/healthz", "/readyz", "/readyz/reads"] {
        world.client().get(path).await.problem(404, "not_found");
    }
}

async fn a_stop_is_orderly(backend: Backend) {
    let mut team = Team::start(backend).await;
    let mut socket = team.join(&team.ada).await;
    let seq = socket.commit("1", json!([put("a", 1)])).await;
    let gateway = Gateway::start().await;
    let gateway_id = team.tenant.gateway(&gateway, "west").await;
    gateway.stub.next([crate::harness::Reply::Hold]);
    let deploy = format!("/api/v1/agents/{}/deploy", team.agent);
    team.tenant.owner.create(&format!("/api/v1/agents/{}/versions", team.agent), json!({})).await;
    let deployment = team.tenant.owner.post(&deploy, json!({ "gateway_id": gateway_id })).await.ok(202);
    let id = deployment["deployment_id"].as_str().expect("an id");
    let stream = Events::open(&team.tenant.owner, &format!("/api/v1/deployments/{id}/events"), None).await;
    gateway.stub.held(1).await;
    gateway.stub.release();
    let status = team.world.server.stop().await;
    assert_eq!(status.code(), Some(0), "{status:?}");
    let code = socket.closed().await;
    assert!([1001, 1012].contains(&code), "the socket is told to come back: {code}");
    within("the stream ends", stream.rest()).await;

    team.world.again().await;
    team.ada.client = team.ada.client.at(&team.world.server.url);
    assert_eq!(team.join(&team.ada).await.seq, seq);
}

#[tokio::test]
async fn a_server_that_still_starts_stops_when_asked() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let setup = Setup::new(Backend::Sqlite).await;
    let setup = setup.with("KAIZEN_DATABASE_URL", format!("postgres://kaizen@127.0.0.1:{port}/kaizen"));
    let mut starting = setup.spawn(&["serve"]);
    let (_connection, _) = within("it connects to its database", silent.accept()).await.expect("a connection");
    let id = i32::try_from(starting.id().expect("it runs")).expect("a process id");
    kill(Pid::from_raw(id), Signal::SIGTERM).expect("a signal");
    let status = within("it stops", starting.wait()).await.expect("its end");
    // A signal that nobody listens for would have ended it by itself, but not the first process of a container.
    assert_eq!(status.code(), Some(0), "{status:?}");
}

async fn several_start_at_once_on_an_empty_database(backend: Backend) {
    let setup = std::sync::Arc::new(Setup::new(backend).await);
    let count = if backend == Backend::Postgres { 3 } else { 1 };
    let servers = futures::future::join_all((0..count).map(|_| setup.start_beside())).await;
    let mut servers = servers.into_iter();
    let world = World { server: servers.next().expect("one"), setup };
    let tenant = world.tenant("acme").await;
    for other in servers {
        tenant.owner.at(&other.url).get("/api/v1/auth/me").await.ok(200);
    }
    tenant.owner.get("/api/v1/auth/me").await.ok(200);
}

#[tokio::test]
async fn browsers_are_kept_careful() {
    let listed = "https://app.example.com";
    let world = World::with(Setup::new(Backend::Sqlite).await.with("KAIZEN_CORS_ORIGINS", listed)).await;
    let client = world.client();
    let answer = client.get("/api/v1/agents").await;
    assert_eq!(answer.header("strict-transport-security"), "", "browsers come without TLS here");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("x-frame-options"), "DENY");
    assert_eq!(answer.header("cache-control"), "no-store");
    let preflight = |origin: &'static str| {
        let client = client.clone();
        async move {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "PATCH"),
                ("access-control-request-headers", "if-match"),
            ];
            client.request(reqwest::Method::OPTIONS, "/api/v1/agents", None, &headers).await
        }
    };
    let allowed = preflight(listed).await;
    assert_eq!(allowed.header("access-control-allow-origin"), listed);
    assert_eq!(allowed.header("access-control-allow-credentials"), "true");
    assert!(allowed.header("access-control-allow-headers").contains("if-match"));
    let refused = preflight("https://evil.example.com").await;
    assert_eq!(refused.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn browsers_that_come_over_tls_are_told_to_stay_with_it() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PUBLIC_URL", "https://studio.example.com");
    let world = World::with(setup).await;
    for path in ["/api/v1/agents", "/api/openapi.json", "/nowhere"] {
        let answer = world.client().get(path).await;
        assert_eq!(answer.header("strict-transport-security"), "max-age=31536000", "{path}");
    }
}

/// A request has an id of the server's own; what its client calls it is kept beside that.
#[tokio::test]
async fn a_client_does_not_choose_the_id_of_its_request() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let harmful = "a\"}{\"b".repeat(20);
    let mut ids = Vec::new();
    for given in ["mine-1", "mine-1", &harmful] {
        let body = Some(json!({ "name": format!("workspace {}", ids.len()) }));
        let headers = [("x-request-id", given)];
        let made = tenant.owner.request(reqwest::Method::POST, "/api/v1/workspaces", body, &headers).await;
        ids.push(made.header("x-request-id"));
        made.ok(201);
    }
    assert!(ids.iter().all(|id| id.len() == 36), "{ids:?}");
    let events = tenant.owner.all("/api/v1/audit/events").await;
    let told: Vec<_> = ids
        .iter()
        .map(|id| events.iter().find(|event| event["details"]["request_id"] == id.as_str()).expect("an event"))
        .map(|event| event["details"]["client_request_id"].clone())
        .collect();
    assert_eq!(told, [json!("mine-1"), json!("mine-1"), json!(null)]);
}

#[tokio::test]
async fn the_documentation_is_complete_and_needs_no_outside_host() {
    let world = World::start(Backend::Sqlite).await;
    let client = world.client();
    let document = client.get("/api/openapi.json").await.ok(200);
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", document["openapi"]);
    for path in [
        "/api/v1/auth/login",
        "/api/v1/auth/refresh",
        "/api/v1/auth/logout",
        "/api/v1/auth/me",
        "/api/v1/auth/connections",
        "/.well-known/jwks.json",
        "/api/v1/organizations",
        "/api/v1/users",
        "/api/v1/memberships",
        "/api/v1/workspaces",
        "/api/v1/agents",
        "/api/v1/agents/{id}/versions",
        "/api/v1/agents/{id}/deploy",
        "/api/v1/identity-connections",
        "/api/v1/gateways",
        "/api/v1/gateways/{id}/check",
        "/api/v1/audit-sinks",
        "/api/v1/audit-sinks/{id}/check",
        "/api/v1/deployments",
        "/api/v1/deployments/{id}/events",
        "/api/v1/deployments/{id}/cancel",
        "/api/v1/deployments/{id}/stop",
        "/api/v1/jobs/{id}",
        "/api/v1/policies",
        "/api/v1/policies/{id}/versions",
        "/api/v1/policies/{id}/activate",
        "/api/v1/authz/check",
        "/api/v1/audit/events",
        "/api/v1/audit/verify",
        "/api/v1/canvases/{id}/tickets",
    ] {
        assert!(document["paths"].get(path).is_some(), "{path} is not in the document");
    }
    references_resolve(&document, &document);
    let printed = world.setup.run(&["openapi"], "").await.json();
    assert_eq!(printed, document, "`kaizen openapi` prints what the server serves");

    // The page and everything it loads come from here.
    let page = client.get("/api/docs/").await;
    assert_eq!(page.status, 200, "{page:?}");
    let mut loaded = 0;
    for attribute in ["src=\"", "href=\""] {
        for part in page.text.split(attribute).skip(1) {
            let link = part.split_once('"').expect("an end").0;
            assert!(!link.contains("//"), "an outside host: {link}");
            let path = if link.starts_with('/') {
                link.to_owned()
            } else {
                format!("/api/docs/{}", link.trim_start_matches("./"))
            };
            let asset = client.get(&path).await;
            assert_eq!(asset.status, 200, "{path}");
            loaded += 1;
            if path.ends_with(".css") {
                assert!(
                    !asset.text.contains("@import") && !asset.text.contains("url(http"),
                    "{path} loads from elsewhere"
                );
            }
            if path.ends_with("initializer.js") {
                assert!(!asset.text.contains("http://") && !asset.text.contains("https://"), "{}", asset.text);
                assert!(asset.text.contains("/api/openapi.json"), "{}", asset.text);
            }
        }
    }
    assert!(loaded >= 3, "the page loads {loaded} files");
}

/// Every `$ref` of the document points at something in it.
fn references_resolve(document: &serde_json::Value, part: &serde_json::Value) {
    match part {
        serde_json::Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(|r| r.as_str()) {
                let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("outside: {reference}"));
                assert!(document.pointer(pointer).is_some(), "{reference} is not there");
            }
            map.values().for_each(|value| references_resolve(document, value));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|value| references_resolve(document, value)),
        _ => {}
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_does_not_hold_the_server_up() {
    let mut world = World::start(Backend::Sqlite).await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let silent =
        futures::stream::iter(0..20).then(|_| tokio::net::TcpStream::connect(&address)).collect::<Vec<_>>().await;
    assert!(silent.iter().all(Result::is_ok));
    world.client().get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    assert_eq!(world.server.stop().await.code(), Some(0), "a silent connection does not keep it from stopping");
}
