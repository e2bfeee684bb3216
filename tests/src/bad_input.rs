//! Bad input ends in one clear line that names what to change, or in a problem document; nothing is half-written.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Backend, Database, Direct, Proxy, Setup, World, agent};

on_both!(a_database_newer_than_the_binary_is_left_alone, bodies_that_do_not_hold_up);

/// The one line in which the server refuses to start.
async fn refused(setup: Setup, args: &[&str]) -> String {
    let line = setup.run(args, "").await.refusal();
    assert!(line.starts_with("kaizen: "), "{line}");
    line
}

#[tokio::test]
async fn a_wrong_setting_is_named_with_the_nearest_known_one() {
    let cases = [
        ("KAIZEN_LISTN", "127.0.0.1:0", vec!["KAIZEN_LISTN", "`listen`"]),
        ("KAIZEN_DATABSE_URL", "sqlite:x", vec!["KAIZEN_DATABSE_URL", "`database_url`"]),
        ("KAIZEN_LISTEN", "nowhere", vec!["KAIZEN_LISTEN", "127.0.0.1:8080"]),
        ("KAIZEN_DATABASE_URL", "mysql://user:hidden@db/x", vec!["KAIZEN_DATABASE_URL", "sqlite:", "postgres://"]),
        ("KAIZEN_EGRESS_ALLOW_PRIVATE", "10.0.0.0/99", vec!["KAIZEN_EGRESS_ALLOW_PRIVATE", "10.0.0.0/8"]),
        ("KAIZEN_CORS_ORIGINS", "https://a.example/path", vec!["KAIZEN_CORS_ORIGINS", "origin"]),
        ("KAIZEN_MASTER_KEY", "abc", vec!["KAIZEN_MASTER_KEY", "64 hexadecimal"]),
        ("KAIZEN_PUBLIC_URL", "studio", vec!["KAIZEN_PUBLIC_URL", "https://"]),
        ("KAIZEN_REDIS_URL", "http://redis", vec!["KAIZEN_REDIS_URL", "redis://"]),
    ];
    for (name, value, expected) in cases {
        let line = refused(Setup::new(Backend::Sqlite).await.with(name, value), &["serve"]).await;
        for part in expected {
            assert!(line.contains(part), "{name}={value}: `{part}` is not in: {line}");
        }
        assert!(!line.contains("hidden"), "a password is shown: {line}");
    }
}

#[tokio::test]
async fn the_file_comes_first_then_the_environment_then_flags() {
    let setup = Setup::new(Backend::Sqlite).await;
    std::fs::write(setup.dir().join("kaizen.toml"), "lisen = \"127.0.0.1:0\"\n").expect("written");
    let line = refused(setup, &["serve"]).await;
    assert!(line.contains("kaizen.toml") && line.contains("`lisen`") && line.contains("`listen`"), "{line}");

    let setup = Setup::new(Backend::Sqlite).await.without("KAIZEN_LOG");
    std::fs::write(
        setup.dir().join("kaizen.toml"),
        "listen = \"nowhere\"\nlog = \"warn\"\ncors_origins = [\"https://a.example\"]\n",
    )
    .expect("written");
    let line = refused(setup, &["serve", "--listen", "elsewhere"]).await;
    assert!(line.contains("--listen") && line.contains("elsewhere"), "the flag counts: {line}");

    let setup = Setup::new(Backend::Sqlite).await;
    std::fs::write(setup.dir().join("kaizen.toml"), "listen = \"unterminated\n").expect("written");
    let line = refused(setup, &["serve"]).await;
    assert!(line.contains("kaizen.toml") && line.contains("line 1"), "{line}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for name in ["KAIZEN_LISTEN", "KAIZEN_OPS_LISTEN"] {
        let setup = Setup::new(Backend::Sqlite).await.with(name, &address);
        let data = setup.data_dir();
        let line = refused(setup, &["serve"]).await;
        let setting = name.trim_start_matches("KAIZEN_").to_lowercase();
        assert!(line.contains(&address) && line.to_lowercase().contains(&setting), "{line}");
        assert!(!data.join("kaizen.db").exists(), "nothing was begun");
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_named_without_its_password() {
    let proxy = Proxy::to(Database::cluster_port()).await;
    proxy.cut();
    let url = format!("postgres://kaizen:hidden-password@127.0.0.1:{}/kaizen", proxy.port);
    for args in [&["serve"] as &[&str], &["migrate"]] {
        let line = refused(Setup::new(Backend::Sqlite).await.with("KAIZEN_DATABASE_URL", &url), args).await;
        assert!(line.contains("database"), "{line}");
        assert!(!line.contains("hidden-password"), "{line}");
    }
    let nowhere = Setup::new(Backend::Sqlite).await.with("KAIZEN_DATABASE_URL", "sqlite:/no/such/folder/kaizen.db");
    let line = refused(nowhere, &["serve"]).await;
    assert!(line.contains("database") || line.contains("/no/such/folder"), "{line}");
}

async fn a_database_newer_than_the_binary_is_left_alone(backend: Backend) {
    let setup = Setup::new(backend).await;
    std::fs::create_dir_all(setup.data_dir()).expect("a folder");
    let migrated = setup.run(&["migrate"], "").await;
    assert!(migrated.status.success(), "{}", migrated.stderr);
    let again = setup.run(&["migrate"], "").await;
    assert!(again.status.success(), "migrating twice does nothing: {}", again.stderr);
    let mut direct: Direct = setup.database.direct().await;
    let blob = if backend == Backend::Postgres { "'\\x00'::bytea" } else { "x'00'" };
    let future = format!(
        "INSERT INTO kaizen_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'future', TRUE, {blob}, 0)"
    );
    direct.execute(&future).await;
    let tables = if backend == Backend::Postgres {
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    } else {
        "SELECT count(*) FROM sqlite_master"
    };
    let before = direct.number(tables).await;
    for args in [&["serve"] as &[&str], &["migrate"]] {
        let line = setup.run(args, "").await.refusal();
        assert!(line.contains("9999") && line.contains("newer"), "{line}");
    }
    assert_eq!(direct.number(tables).await, before, "nothing was changed");
}

async fn bodies_that_do_not_hold_up(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let owner = &tenant.owner;
    let raw = |body: String, kind: &'static str| {
        let client = owner.client.clone();
        async move {
            let request = client
                .http
                .post(format!("{}/api/v1/agents", client.base))
                .bearer_auth(client.token.expect("signed in"));
            let response = request.header("content-type", kind).body(body).send().await.expect("an answer");
            crate::harness::Answer::read("POST /api/v1/agents".into(), response).await
        }
    };
    let malformed = raw("{\"name\": ".into(), "application/json").await.problem(400, "malformed");
    assert!(malformed["detail"].as_str().expect("text").contains("line 1"), "{malformed}");
    raw(String::new(), "application/json").await.problem(400, "malformed");
    raw("name=x".into(), "application/x-www-form-urlencoded").await.problem(415, "unsupported_media_type");
    raw(format!("{{\"name\": \"{}\"}}", "x".repeat(2 << 20)), "application/json").await.problem(413, "too_large");
    raw(format!("{{\"settings\": {{\"a\": {}", "[".repeat(100_000)), "application/json")
        .await
        .problem(400, "malformed");

    let with = |name: &str, value: serde_json::Value| {
        let mut body = agent(&workspace, "helper");
        body[name] = value;
        body
    };
    owner.post("/api/v1/agents", with("name", json!(7))).await.fault("/name");
    owner.post("/api/v1/agents", with("name", json!(""))).await.fault("/name");
    owner.post("/api/v1/agents", with("name", json!("x".repeat(1000)))).await.fault("/name");
    owner.post("/api/v1/agents", with("workspace_id", json!("not-an-id"))).await.fault("/workspace_id");
    owner.post("/api/v1/agents", with("settings", json!({ "temperature": 3 }))).await.fault("/settings/temperature");
    let unknown = owner.post("/api/v1/agents", with("nmae", json!("x"))).await.problem(422, "invalid");
    assert!(unknown.to_string().contains("nmae"), "{unknown}");
    assert_eq!(owner.all("/api/v1/agents").await.len(), 0, "nothing was half-written");

    owner.get("/api/v1/agents/not-an-id").await.problem(404, "not_found");
    owner.get("/api/v1/nothing").await.problem(404, "not_found");
    world.client().get("/nothing").await.problem(404, "not_found");
    owner.request(Method::PUT, "/api/v1/agents", Some(json!({})), &[]).await.problem(405, "method_not_allowed");
    owner
        .request(
            Method::POST,
            "/api/v1/workspaces",
            Some(json!({ "name": "x" })),
            &[("idempotency-key", &"k".repeat(300))],
        )
        .await
        .problem(400, "malformed");
    owner.post("/api/v1/workspaces", json!({ "name": "first" })).await.problem(409, "conflict");
    let first = format!("/api/v1/workspaces/{workspace}");
    let bad_etag = owner.request(Method::PATCH, &first, Some(json!({ "name": "x" })), &[("if-match", "nonsense")]);
    bad_etag.await.problem(400, "malformed");
}

#[tokio::test]
async fn the_operator_s_command_refuses_what_does_not_hold_up() {
    let setup = Setup::new(Backend::Sqlite).await;
    let create =
        |owner: &'static str| ["admin", "create-organization", "--name", "acme", "--owner", owner, "--password-stdin"];
    let short = setup.run(&create("owner@acme.test"), "short\n").await.refusal();
    assert!(short.to_lowercase().contains("password"), "{short}");
    let address = setup.run(&create("nobody"), "quiet meadow copper kettle\n").await;
    assert!(!address.status.success());
    assert!(address.stderr.contains("--owner") && address.stderr.contains("e-mail"), "{}", address.stderr);
    let made = setup.run(&create("owner@acme.test"), "quiet meadow copper kettle\n").await.json();
    assert!(uuid::Uuid::parse_str(made["organization_id"].as_str().expect("an id")).is_ok());
    assert!(uuid::Uuid::parse_str(made["user_id"].as_str().expect("an id")).is_ok());
    let world = World::with(setup).await;
    let owner = world.client().login("owner@acme.test", "quiet meadow copper kettle").await;
    assert_eq!(owner.all("/api/v1/users").await.len(), 1, "what was refused left nobody behind");
}

#[tokio::test]
async fn an_unknown_command_says_which_there_are() {
    let setup = Setup::new(Backend::Sqlite).await;
    let ran = setup.run(&["sevre"], "").await;
    assert!(!ran.status.success());
    assert!(ran.stderr.contains("serve"), "{}", ran.stderr);
    let help = setup.run(&["--help"], "").await;
    assert!(help.status.success());
    for command in ["serve", "demo", "migrate", "admin", "audit", "openapi"] {
        assert!(help.stdout.contains(command), "{command} is not in {}", help.stdout);
    }
}
