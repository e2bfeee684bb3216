//! The database in trouble, and what must not trouble it.

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use reqwest::Method;
use serde_json::json;

use crate::{
    harness::{
        Answer, Backend, Client, Database, Direct, Gateway, PASSWORD, Proxy, Server, Setup, World, eventually, id,
        within,
    },
    identities::Company,
    sso_failures::metric,
};

on_both!(
    refused_deployments_do_not_keep_others_from_reading,
    characters_that_a_database_refuses_are_refused_before,
    a_full_disk_is_told_and_room_is_used_at_once,
    a_defect_in_looking_callers_up_is_not_told_as_a_database_that_is_away,
);

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
    for method in ["password", "sso"] {
        let counted = metric(world, &format!("method=\"{method}\" outcome=\"database_unwritable\"")).await;
        assert!(counted, "a sign-in by {method} is counted under its code");
    }
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ready = async || {
        let answer = http.get(format!("{}/readyz", world.server.ops)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    assert_eq!(ready().await, (503, "the database is read-only\n".to_owned()));
    let reads = Client::new(&world.server.ops).get("/readyz/reads").await;
    assert_eq!((reads.status, reads.text.as_str()), (200, "ready\n"), "load balancers go on sending what is only read");
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

/// Whether the server, which was started with `SIGXFSZ` ignored, finds no room for what it writes: not for its log either.
fn fill(server: &Server, full: bool) {
    let soft = if full { "--fsize=0:" } else { "--fsize=unlimited:" };
    let done = std::process::Command::new("prlimit").args(["--pid", &server.pid().to_string(), soft]).status();
    assert!(done.expect("`prlimit` is needed, of util-linux").success());
}

async fn a_full_disk_is_told_and_room_is_used_at_once(backend: Backend) {
    let world = World::with(Setup::new(backend).await.run_by(&["env", "--ignore-signal=XFSZ"])).await;
    let owner = world.tenant("acme").await.owner;
    let mut direct = world.setup.database.direct().await;
    match backend {
        Backend::Sqlite => fill(&world.server, true),
        // As PostgreSQL says it: its own disk is not this test's.
        Backend::Postgres => {
            let full = "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
                        END $$;
                        CREATE TRIGGER full_disk BEFORE INSERT ON audit_events EXECUTE FUNCTION full_disk();
                        CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON write_probe EXECUTE FUNCTION full_disk();";
            direct.execute(full).await;
        }
    }
    let login = json!({ "email": owner.email, "password": PASSWORD });
    let workspace = json!({ "name": "first" });
    let nobody = world.client();
    for refused in [
        owner.post("/api/v1/workspaces", workspace.clone()).await,
        owner.patch(&format!("/api/v1/users/{}", owner.id), json!({ "name": "Ada" })).await,
        nobody.post("/api/v1/auth/login", login.clone()).await,
    ] {
        assert_eq!(refused.header("retry-after"), "5", "{refused:?}");
        let problem = refused.problem(503, "unavailable");
        assert!(problem["detail"].as_str().expect("text").contains("takes no changes"), "{problem}");
    }
    assert!(metric(&world, "method=\"password\" outcome=\"database_unwritable\"").await);
    assert!(owner.all("/api/v1/workspaces").await.iter().all(|one| one["name"] != "first"), "nothing of it is there");
    let ops = Client::new(&world.server.ops);
    let why = "the database's disk is full or cannot be written";
    eventually("/readyz says why", || async {
        let ready = ops.get("/readyz").await;
        (ready.status == 503 && ready.text.contains(why)).then_some(())
    })
    .await;
    if backend == Backend::Postgres {
        assert_eq!(world.server.log().matches(why).count(), 1, "named once: {}", world.server.log());
    }
    match backend {
        Backend::Sqlite => fill(&world.server, false),
        Backend::Postgres => drop(direct.execute("DROP FUNCTION full_disk CASCADE").await),
    }
    owner.post("/api/v1/workspaces", workspace).await.ok(201);
    nobody.post("/api/v1/auth/login", login).await.ok(200);
    eventually("it is ready again", || async { (ops.get("/readyz").await.status == 200).then_some(()) }).await;
    assert_eq!(owner.get("/api/v1/audit/verify").await.ok(200)["valid"], true);
}

/// Several requests share a look-up, and its error.
async fn a_defect_in_looking_callers_up_is_not_told_as_a_database_that_is_away(backend: Backend) {
    let world = World::start(backend).await;
    let owner = world.tenant("acme").await.owner;
    let mut direct = world.setup.database.direct().await;
    direct.execute("ALTER TABLE sessions RENAME TO sessions_elsewhere").await;
    for answer in join_all((0..30).map(|_| owner.get("/api/v1/agents"))).await {
        let problem = answer.problem(500, "internal");
        assert!(!problem.to_string().contains("sessions"), "internals are not told: {problem}");
    }
    direct.execute("ALTER TABLE sessions_elsewhere RENAME TO sessions").await;
    owner.get("/api/v1/agents").await.ok(200);
}

#[tokio::test]
async fn more_requests_of_an_organization_than_may_wait_are_refused_and_no_others() {
    let setup = Setup::new(Backend::Postgres).await.with("KAIZEN_CALLER_LOOKUPS_PER_ORGANIZATION", "2");
    let world = World::with(setup.with("KAIZEN_CALLER_LOOKUP_SECONDS", "60")).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let mut direct = world.setup.database.direct().await;
    // No look-up ends.
    direct.execute("BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await;
    let refused = |answer: Answer| {
        assert_eq!(answer.header("retry-after"), "1", "{answer:?}");
        let problem = answer.problem(503, "unavailable");
        assert!(problem["detail"].as_str().expect("text").contains("of your organization wait"), "{problem}");
    };
    let mut asked: FuturesUnordered<_> = (0..40).map(|_| tenant.owner.get("/api/v1/agents")).collect();
    let flood = async {
        // Two wait, and at most two are in each of the two look-ups.
        for _ in 0..34 {
            refused(asked.next().await.expect("an answer"));
        }
        direct.execute("COMMIT").await;
        let mut served = 0;
        while let Some(answer) = asked.next().await {
            if answer.status == 200 { served += 1 } else { refused(answer) }
        }
        served
    };
    let (theirs, served) = tokio::join!(other.owner.get("/api/v1/agents"), flood);
    theirs.ok(200);
    assert!((3..=6).contains(&served), "{served}");
    tenant.owner.get("/api/v1/agents").await.ok(200);
}

#[tokio::test]
async fn a_deadlock_is_answered_with_503_and_the_next_try_succeeds() {
    let world = World::start(Backend::Postgres).await;
    let owner = world.tenant("acme").await.owner;
    let mut direct = world.setup.database.direct().await;
    // Of those that wait for each other, PostgreSQL ends the one that has waited for so long: it is to be the server's, and before
    // `database_lock_seconds` are over.
    let later =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''3s''', current_database()); END $$";
    direct.execute(later).await;
    direct.execute(END_OTHERS).await;
    eventually("the server has connected anew", || async {
        (owner.get("/api/v1/workspaces").await.status == 200).then_some(())
    })
    .await;
    direct.execute("SET deadlock_timeout = '60s'; BEGIN; SELECT 1 FROM audit_heads FOR UPDATE").await;
    let mut watching = world.setup.database.direct().await;
    let create = async || owner.post("/api/v1/workspaces", json!({ "name": "first" })).await;
    let close_the_circle = async {
        let waiting =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        within("the server waits for the chain's head", async { while watching.number(waiting).await == 0 {} }).await;
        direct.execute("SELECT 1 FROM organizations FOR UPDATE; ROLLBACK").await;
    };
    let (refused, ()) = tokio::join!(create(), close_the_circle);
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    refused.problem(503, "unavailable");
    assert!(world.server.log().contains("deadlock detected"), "{}", world.server.log());
    create().await.ok(201);
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

#[tokio::test]
async fn an_organization_that_asks_more_than_may_wait_is_answered_at_once_and_keeps_nobody_else() {
    let proxy = Proxy::to(Database::cluster_port()).await;
    let setup = Setup::new(Backend::Postgres).await;
    let through = setup.database.url_through(proxy.port);
    let setup = setup.with("KAIZEN_DATABASE_URL", through).with("KAIZEN_CALLER_LOOKUPS_PER_ORGANIZATION", "2");
    let world = World::with(setup.with("KAIZEN_CALLER_LOOKUP_SECONDS", "2")).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("globex").await);
    let question =
        |tenant: &str| json!({ "action": "organization.read", "resource": { "type": "organization", "id": tenant } });
    let ask = async |owner: &Client, tenant: &str| owner.post("/api/v1/authz/check", question(tenant)).await;
    // Then the keys that tokens are verified with are known.
    ask(&tenant.owner, &tenant.id).await.ok(200);
    ask(&other.owner, &other.id).await.ok(200);

    proxy.stall();
    let asked = join_all((0..20).map(|_| ask(&tenant.owner, &tenant.id)));
    let (asked, beside) = tokio::join!(asked, ask(&other.owner, &other.id));
    let says = |answer: &Answer, what: &str| answer.body["detail"].as_str().is_some_and(|detail| detail.contains(what));
    let crowded = asked.iter().filter(|answer| says(answer, "requests of your organization wait")).count();
    // Two look up at once, at the most two each, and two wait.
    assert!(crowded >= 14, "{crowded}");
    assert!(says(&beside, "database does not answer"), "another organization has its place: {}", beside.text);
    for answer in asked.into_iter().chain([beside]) {
        assert_eq!(answer.header("retry-after"), "1");
        answer.problem(503, "unavailable");
    }

    proxy.restore();
    eventually("questions are answered again", || async {
        let answer = ask(&tenant.owner, &tenant.id).await;
        (answer.status == 200).then_some(())
    })
    .await;
}
