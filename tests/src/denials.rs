//! Denials in the audit trail: the first of each at once, repeats as one event with a count, none unseen.

use serde_json::{Value, json};

use crate::harness::{Backend, Person, Setup, Tenant, World, eventually, id};

on_both!(repeated_denials_are_one_event, denials_of_many_targets_are_bounded, each_tenant_has_its_own_bounds);

async fn denied(tenant: &Tenant) -> Vec<Value> {
    tenant.owner.all("/api/v1/audit/events?outcome=denied").await
}

/// How many denials the trail tells of, those that are counted included.
fn told(events: &[Value]) -> u64 {
    events.iter().map(|event| event["details"]["repeated"].as_u64().unwrap_or(1)).sum()
}

async fn metric(world: &World, name: &str) -> u64 {
    let text =
        reqwest::get(format!("{}/metrics", world.server.ops)).await.expect("metrics").text().await.expect("text");
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Changes this agent a number of times, which is denied each time.
async fn knock(person: &Person, agent: &str, times: usize) {
    for n in 0..times {
        let denied = person.patch(&format!("/api/v1/agents/{agent}"), json!({ "description": n.to_string() })).await;
        denied.problem(403, "denied");
    }
}

async fn repeated_denials_are_one_event(backend: Backend) {
    let setup = Setup::new(backend).await.with("KAIZEN_DENIAL_WINDOW_SECONDS", "3600");
    let mut world = World::with(setup).await;
    let mut tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let agent = id(&tenant.agent(&workspace, "helper").await);
    let eve = tenant.person("eve", "viewer").await;
    knock(&eve, &agent, 1).await;
    assert_eq!(denied(&tenant).await.len(), 1, "the first is there once it is answered");
    knock(&eve, &agent, 39).await;
    // Another action of the same person is another matter.
    eve.delete(&format!("/api/v1/agents/{agent}")).await.problem(403, "denied");
    assert_eq!(denied(&tenant).await.len(), 2);
    assert_eq!(metric(&world, "kaizen_denials_total").await, 41, "the metric counts all");

    // Whoever asks the host to stop finds the count in the trail.
    world.server.stop().await;
    world.again().await;
    tenant.owner.client = tenant.owner.client.at(&world.server.url);
    let events = denied(&tenant).await;
    assert_eq!((events.len(), told(&events)), (3, 41), "{events:?}");
    let repeats = events.last().expect("the repeats");
    let told = &repeats["details"];
    assert_eq!((&told["repeated"], &repeats["action"]), (&json!(39), &json!("agent.update")), "{repeats}");
    assert_eq!(repeats["target"], format!("agent/{agent}"));
    assert!(told["since"].is_string() && told["until"].is_string() && told["decision"]["reason"].is_string(), "{told}");
    assert_eq!(tenant.owner.get("/api/v1/audit/verify").await.ok(200)["valid"], true);
}

async fn denials_of_many_targets_are_bounded(backend: Backend) {
    let setup = Setup::new(backend)
        .await
        .with("KAIZEN_DENIAL_WINDOW_SECONDS", "1")
        .with("KAIZEN_DENIALS_PER_PERSON", "3")
        .with("KAIZEN_DENIALS_PER_ORGANIZATION", "100");
    let world = World::with(setup).await;
    let tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let eve = tenant.person("eve", "viewer").await;
    let mut agents = Vec::new();
    for n in 0..8 {
        agents.push(id(&tenant.agent(&workspace, &format!("agent {n}")).await));
    }
    for agent in agents.iter().cycle().take(80) {
        knock(&eve, agent, 1).await;
    }
    // Windows end by themselves, and then the trail tells of every one.
    let events = eventually("all are told of", || async {
        let events = denied(&tenant).await;
        (told(&events) == 80).then_some(events)
    })
    .await;
    assert!(events.iter().any(|event| event["target"] == "agent/*"), "{events:?}");
    assert!(events.len() < 80, "{}", events.len());
}

async fn each_tenant_has_its_own_bounds(backend: Backend) {
    let setup = Setup::new(backend)
        .await
        .with("KAIZEN_DENIAL_WINDOW_SECONDS", "3600")
        .with("KAIZEN_DENIALS_PER_ORGANIZATION", "2");
    let world = World::with(setup).await;
    let (tenant, rival) = (world.tenant("acme").await, world.tenant("rival").await);
    let workspace = tenant.workspace("first").await;
    let eve = tenant.person("eve", "viewer").await;
    for n in 0..10 {
        let agent = id(&tenant.agent(&workspace, &format!("agent {n}")).await);
        knock(&eve, &agent, 2).await;
    }
    assert!(denied(&tenant).await.len() <= 4, "{:?}", denied(&tenant).await);
    let theirs = id(&rival.agent(&rival.workspace("theirs").await, "helper").await);
    let mallory = rival.person("mallory", "viewer").await;
    knock(&mallory, &theirs, 1).await;
    assert_eq!(denied(&rival).await.len(), 1, "another tenant's noise does not hide theirs");
}

#[tokio::test]
async fn a_denial_that_could_not_be_recorded_while_the_host_stopped_is_in_the_trail() {
    let setup = Setup::new(Backend::Postgres).await.with("KAIZEN_DATABASE_LOCK_SECONDS", "3");
    let mut world = World::with(setup).await;
    let mut tenant = world.tenant("acme").await;
    let workspace = tenant.workspace("first").await;
    let agent = id(&tenant.agent(&workspace, "helper").await);
    let eve = tenant.person("eve", "viewer").await;
    let (mut holder, mut watcher) = (world.setup.database.direct().await, world.setup.database.direct().await);
    holder.execute("BEGIN; SELECT 1 FROM audit_heads FOR UPDATE").await;
    let path = format!("/api/v1/agents/{agent}");
    let description = json!({ "description": "x" });
    let denial = eve.patch(&path, description);
    let stopping = async {
        let waiting =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while watcher.number(waiting).await == 0 {
            tokio::task::yield_now().await;
        }
        world.server.signal(nix::sys::signal::Signal::SIGTERM);
    };
    let (answer, ()) = tokio::join!(denial, stopping);
    // What is written next waits for the lock, and gets it.
    holder.execute("COMMIT").await;
    answer.problem(503, "unavailable");
    world.server.stop_status().await;
    world.again().await;
    tenant.owner.client = tenant.owner.client.at(&world.server.url);
    let events = denied(&tenant).await;
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&event["action"], &event["details"]["repeated"]), (&json!("agent.update"), &json!(1)), "{event}");
}
