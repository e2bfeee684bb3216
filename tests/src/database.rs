//! The database in trouble, and what must not trouble it.

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::{
    harness::{Answer, Backend, Client, Database, Direct, Gateway, PASSWORD, Proxy, Setup, World, eventually, id},
    identities::Company,
};

on_both!(refused_deployments_do_not_keep_others_from_reading, characters_that_a_database_refuses_are_refused_before);

async fn refused_deployments_do_not_keep_others_from_reading(backend: Backend) {
    let world = World::start(backend).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let workspace = tenant.workspace("first").await;
    let agent = id(&tenant.agent(&workspace, "helper").await);
    let gateway = Gateway::start().await;
    let gateway = tenant.gateway(&gateway, "gateway").await;
    let viewer = tenant.person("vera", "viewer").await;
    // Many more than the server of a test has connections: each that held one while it asked for another would wait for ever.
    let flood = async {
        for _ in 0..5 {
            let path = format!("/api/v1/agents/{agent}/deploy");
            let asked = (0..40).map(|_| viewer.post(&path, json!({ "gateway_id": gateway })));
            for answer in join_all(asked).await {
                answer.problem(403, "denied");
            }
        }
    };
    let reading = async {
        for _ in 0..50 {
            other.owner.get("/api/v1/agents").await.ok(200);
        }
    };
    tokio::join!(flood, reading);
}

async fn characters_that_a_database_refuses_are_refused_before(backend: Backend) {
    let world = World::start(backend).await;
    let owner = world.tenant("acme").await.owner;
    for name in ["action", "actor", "target", "outcome"] {
        owner.get(&format!("/api/v1/audit/events?{name}=a%00b")).await.fault(name);
    }
    for name in ["since", "until"] {
        owner.get(&format!("/api/v1/audit/events?{name}=%2B262142-12-31T23:59:59Z")).await.fault(name);
    }
    for path in ["/api/v1/plugins/%00", "/api/v1/plugins/audit_sink/%00/versions", "/api/v1/agents/%00"] {
        owner.get(path).await.problem(404, "not_found");
    }
}

/// Ends everybody else's connections.
const END_OTHERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                          WHERE datname = current_database() AND pid <> pg_backend_pid()";

/// PostgreSQL takes no changes any more, over no connection; returns what a change is answered.
pub async fn make_read_only(direct: &mut Direct, owner: &Client) -> Answer {
    let database = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I ";
    direct.execute(&format!("{database} SET default_transaction_read_only = on', current_database()); END $$")).await;
    direct.execute(END_OTHERS).await;
    eventually("a change is refused", || async {
        let answer = owner.post("/api/v1/workspaces", json!({ "name": "first" })).await;
        (answer.body["detail"].as_str()?.contains("takes no changes")).then_some(answer)
    })
    .await
}

/// It takes them again.
pub async fn make_writable(direct: &mut Direct) {
    direct.execute("SET default_transaction_read_only = off").await;
    let reset = "BEGIN READ WRITE; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$; COMMIT";
    direct.execute(reset).await;
    direct.execute(END_OTHERS).await;
}

#[tokio::test]
async fn a_database_that_becomes_read_only_is_told_and_comes_back() {
    let company = Company::start(Backend::Postgres, json!({ "default_role": "viewer" })).await;
    company.issuer.vouches("1", "ada@acme.test");
    let (world, owner) = (&company.world, company.tenant.owner.clone());
    let mut direct = world.setup.database.direct().await;
    let refused = make_read_only(&mut direct, &owner).await;
    assert!(!refused.header("retry-after").is_empty());
    refused.problem(503, "unavailable");
    owner.get("/api/v1/workspaces").await.ok(200);
    // Signing in is a change.
    let login = json!({ "email": "owner@acme.test", "password": PASSWORD });
    let login = world.client().post("/api/v1/auth/login", login).await;
    assert!(!login.header("retry-after").is_empty());
    login.problem(503, "unavailable");
    let (_, page) = company.sign_in().await;
    assert!(page.status == 503 && page.text.contains("takes no changes"), "{page:?}");
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ready = async || {
        let answer = http.get(format!("{}/readyz", world.server.ops)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    assert_eq!(ready().await, (503, "the database is read-only\n".to_owned()));
    assert_eq!(
        world.server.log().matches("the database is read-only").count(),
        1,
        "named once: {}",
        world.server.log()
    );
    make_writable(&mut direct).await;
    eventually("it is ready again", || async { (ready().await.0 == 200).then_some(()) }).await;
    owner.request(Method::POST, "/api/v1/workspaces", Some(json!({ "name": "first" })), &[]).await.ok(201);
}

#[tokio::test]
async fn a_database_that_says_nothing_is_answered_for_with_503() {
    let proxy = Proxy::to(Database::cluster_port()).await;
    let setup = Setup::new(Backend::Postgres).await;
    let through = setup.database.url_through(proxy.port);
    let setup = setup.with("KAIZEN_DATABASE_URL", through);
    let setup = setup.with("KAIZEN_CALLER_LOOKUP_SECONDS", "1").with("KAIZEN_DATABASE_ANSWER_SECONDS", "5");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let ops = Client::new(&world.server.ops);

    proxy.stall();
    // Far more than there are connections, twice: neither those that were open nor new ones keep anybody until the request's own
    // time is over.
    for _ in 0..2 {
        let anybody = async |number: usize| match number % 4 {
            0 => tenant.owner.post("/api/v1/workspaces", json!({ "name": "first" })).await,
            1 => tenant.owner.get("/api/v1/agents").await,
            2 => tenant.owner.get("/api/v1/audit/events").await,
            _ => world.client().post("/api/v1/auth/login", json!({ "email": "a@b.c", "password": "wrong" })).await,
        };
        for refused in join_all((0..40).map(anybody)).await {
            assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
            refused.problem(503, "unavailable");
        }
    }
    assert_eq!(ops.get("/readyz").await.status, 503);
    assert_eq!(ops.get("/healthz").await.status, 200);

    proxy.restore();
    eventually("it is ready again", || async { (ops.get("/readyz").await.status == 200).then_some(()) }).await;
    tenant.owner.get("/api/v1/agents").await.ok(200);
    tenant.workspace("first").await;
}
