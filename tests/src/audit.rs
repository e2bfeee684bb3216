//! The audit trail: written with the change, in one chain, and it tells.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Backend, Direct, Tenant, World, agent, id};

on_both!(
    every_change_is_in_the_trail_with_who_and_what,
    a_change_and_its_event_are_one,
    an_edited_event_is_found,
    a_dropped_event_is_found,
    a_reordered_event_is_found,
    many_at_once_make_one_chain,
);

async fn trail(tenant: &Tenant) -> Vec<Value> {
    tenant.owner.all("/api/v1/audit/events?limit=50").await
}

async fn verify(world: &World, tenant: &Tenant) -> Value {
    let report = tenant.owner.get("/api/v1/audit/verify").await.ok(200);
    // The operator's command says the same, and fails if the chain does not hold.
    let ran = world.setup.run(&["audit", "verify", "--organization", &tenant.id], "").await;
    assert_eq!(ran.status.success(), report["valid"] == true, "{report}\n{}{}", ran.stdout, ran.stderr);
    report
}

async fn every_change_is_in_the_trail_with_who_and_what(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let made = tenant.agent(&workspace, "helper").await;
    let one = format!("/api/v1/agents/{}", id(&made));
    let ada = tenant.person("ada", "developer").await;
    let changed = ada.patch(&one, json!({ "description": "changed by Ada" })).await;
    let request = changed.header("x-request-id");
    changed.ok(200);
    ada.delete(&one).await.ok(204);

    let events = trail(&tenant).await;
    let sequences: Vec<i64> = events.iter().map(|e| e["sequence"].as_i64().expect("sequence")).collect();
    assert_eq!(sequences, (1..=i64::try_from(events.len()).expect("few")).collect::<Vec<_>>(), "without gaps, from 1");
    let find = |action: &str, target: &str| {
        let found =
            events.iter().find(|e| e["action"] == action && e["target"].as_str().is_some_and(|t| t.ends_with(target)));
        found.unwrap_or_else(|| panic!("no {action} of {target}: {events:?}"))
    };
    find("workspace.create", &workspace);
    let created = find("agent.create", &id(&made));
    assert_eq!(created["actor"], format!("user/{}", tenant.owner.id));
    let update = find("agent.update", &id(&made));
    assert_eq!((&update["actor"], &update["outcome"]), (&json!(format!("user/{}", ada.id)), &json!("success")));
    assert!(update["details"].to_string().contains(&request), "{update}");
    assert!(
        update["details"].to_string().contains("changed by Ada")
            && update["details"].to_string().contains("Answers tickets."),
        "before and after: {update}"
    );
    find("agent.delete", &id(&made));
    find("membership.create", "");
    find("user.create", &ada.id);
    assert!(!events.iter().any(|e| e.to_string().contains("argon2")), "no secret is in the trail");
    let report = verify(&world, &tenant).await;
    assert_eq!(report["valid"], true, "{report}");

    let export = tenant.owner.get("/api/v1/audit/export").await;
    assert_eq!(export.status, 200);
    let lines: Vec<Value> = export.text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert!(lines.len() >= events.len(), "{} of {}", lines.len(), events.len());
    assert_eq!(lines[0]["hash"], events[0]["hash"]);
}

async fn a_change_and_its_event_are_one(backend: Backend) {
    let mut world = World::start(backend).await;
    let mut tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    // The database takes no event of this kind: then the change cannot be made either.
    let (refuse, allow) = match backend {
        Backend::Sqlite => (
            "CREATE TRIGGER refuse BEFORE INSERT ON audit_events WHEN NEW.action = 'agent.create'
             BEGIN SELECT RAISE(ABORT, 'refused by the test'); END",
            "DROP TRIGGER refuse",
        ),
        Backend::Postgres => (
            "ALTER TABLE audit_events ADD CONSTRAINT refuse CHECK (action <> 'agent.create') NOT VALID",
            "ALTER TABLE audit_events DROP CONSTRAINT refuse",
        ),
    };
    let mut direct: Direct = world.setup.database.direct().await;
    direct.execute(refuse).await;
    let key = [("idempotency-key", "once")];
    let create = || tenant.owner.request(Method::POST, "/api/v1/agents", Some(agent(&workspace, "first")), &key);
    let problem = create().await.problem(500, "internal");
    assert!(!problem.to_string().contains("refused by the test"), "internals are not told: {problem}");
    assert!(tenant.owner.all("/api/v1/agents").await.is_empty(), "nothing changed without its event");
    direct.execute(allow).await;
    create().await.ok(201);

    // Killed at any instant: as many agents as events that tell of them.
    for round in 0..3 {
        let creating = {
            let (owner, workspace) = (tenant.owner.clone(), workspace.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    let body = agent(&workspace, &format!("agent {round} {number}"));
                    let request = owner
                        .http
                        .post(format!("{}/api/v1/agents", owner.base))
                        .bearer_auth(owner.token.as_deref().unwrap_or_default());
                    if request.json(&body).send().await.is_err() {
                        return;
                    }
                }
            })
        };
        let before = direct.number("SELECT count(*) FROM agents").await;
        loop {
            if direct.number("SELECT count(*) FROM agents").await > before + 3 {
                break;
            }
            tokio::task::yield_now().await;
        }
        world.server.kill().await;
        creating.await.expect("it ends");
        world.again().await;
        tenant.owner.client = tenant.owner.at(&world.server.url);
        let agents = direct.number("SELECT count(*) FROM agents").await;
        let events = direct
            .number("SELECT count(*) FROM audit_events WHERE action = 'agent.create' AND outcome = 'success'")
            .await;
        assert_eq!(agents, events);
    }
    let report = verify(&world, &tenant).await;
    assert_eq!(report["valid"], true, "{report}");
}

/// A tenant with a few events, and a connection that may do what the server's own may not.
async fn tampered(backend: Backend, sql: &str) -> (World, Tenant, Value) {
    let world = World::start(backend).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("other").await);
    for number in 0..4 {
        tenant.workspace(&format!("workspace {number}")).await;
    }
    let report = verify(&world, &tenant).await;
    assert_eq!(report["valid"], true, "{report}");
    let mut direct = world.setup.database.direct().await;
    let (organization, guard) = match backend {
        Backend::Sqlite => (
            format!("x'{}'", tenant.id.replace('-', "")),
            "DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete;",
        ),
        Backend::Postgres => (format!("'{}'", tenant.id), "ALTER TABLE audit_events DISABLE TRIGGER ALL;"),
    };
    // As it is, the database itself refuses.
    let edit = sql.replace("ORG", &organization);
    assert!(direct.try_execute(&edit).await.is_err(), "the table lets itself be edited");
    direct.execute(guard).await;
    direct.execute(&edit).await;
    let report = verify(&world, &tenant).await;
    assert_eq!(report["valid"], false, "{report}");
    let untouched = verify(&world, &other).await;
    assert_eq!(untouched["valid"], true, "{untouched}");
    (world, tenant, report)
}

async fn an_edited_event_is_found(backend: Backend) {
    let sql = "UPDATE audit_events SET actor = 'user/someone-else' WHERE organization_id = ORG AND sequence = 3";
    let (_world, _tenant, report) = tampered(backend, sql).await;
    assert_eq!(
        (&report["first_fault"]["sequence"], &report["first_fault"]["kind"]),
        (&json!(3), &json!("altered")),
        "{report}"
    );
}

async fn a_dropped_event_is_found(backend: Backend) {
    let sql = "DELETE FROM audit_events WHERE organization_id = ORG AND sequence = 4";
    let (_world, _tenant, report) = tampered(backend, sql).await;
    assert_eq!(
        (&report["first_fault"]["sequence"], &report["first_fault"]["kind"]),
        (&json!(4), &json!("missing")),
        "{report}"
    );
}

async fn a_reordered_event_is_found(backend: Backend) {
    let sql = "UPDATE audit_events SET sequence = -2 WHERE organization_id = ORG AND sequence = 2;
               UPDATE audit_events SET sequence = 2 WHERE organization_id = ORG AND sequence = 3;
               UPDATE audit_events SET sequence = 3 WHERE organization_id = ORG AND sequence = -2;";
    let (_world, _tenant, report) = tampered(backend, sql).await;
    assert_eq!(
        (&report["first_fault"]["sequence"], &report["first_fault"]["kind"]),
        (&json!(2), &json!("altered")),
        "{report}"
    );
}

async fn many_at_once_make_one_chain(backend: Backend) {
    let world = World::start(backend).await;
    let (tenant, other) = (world.tenant("acme").await, world.tenant("other").await);
    let create = |number: usize| {
        let owner = if number.is_multiple_of(2) { &tenant.owner } else { &other.owner };
        owner.create("/api/v1/workspaces", json!({ "name": format!("workspace {number}") }))
    };
    futures::future::join_all((0..40).map(create)).await;
    for tenant in [&tenant, &other] {
        let report = verify(&world, tenant).await;
        assert_eq!(report["valid"], true, "{report}");
        let events = trail(tenant).await;
        assert_eq!(events.iter().filter(|e| e["action"] == "workspace.create").count(), 20);
    }
}
