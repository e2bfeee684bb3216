//! Policies that err where nobody reads it in an answer: counted for the operator, logged within a bound, kept for the tenant.

use serde_json::{Value, json};

use crate::{
    canvas::Team,
    harness::{Backend, Client, Setup, World},
    policies::{activate, create},
};

on_both!(an_open_canvas_that_a_policy_errs_on_is_closed_and_told, so_many_organizations_are_named_in_the_log);

/// Nobody has the attribute.
const CLEARED: &str = r#"@id("cleared")
permit (principal, action == Kaizen::Action::"agent.read", resource) when { principal.attributes.clearance >= 3 };"#;

/// A server that logs such errors when it stops, and not before.
async fn setup(backend: Backend) -> Setup {
    Setup::new(backend).await.with("KAIZEN_POLICY_ERROR_SECONDS", "3600")
}

/// The lines of the log that say this.
fn lines(world: &World, says: &str) -> Vec<Value> {
    let log = world.server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == says).collect()
}

const ONE: &str = "policies in force could not be evaluated";
const MORE: &str = "policies of further organizations could not be evaluated";

async fn an_open_canvas_that_a_policy_errs_on_is_closed_and_told(backend: Backend) {
    let mut team = Team::on(World::with(setup(backend).await).await).await;
    let mut sockets = [team.join(&team.ada).await, team.join(&team.ben).await, team.join(&team.ben).await];
    let set = create(&team.tenant.owner, CLEARED).await;
    activate(&team.tenant.owner, &set, &json!(1)).await;
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, 4403, "an error denies");
    }
    let metrics = Client::new(&team.world.server.ops).get("/metrics").await.text;
    let counted = |line: &str| line.starts_with("kaizen_policy_errors_total{") && line.contains("absent");
    assert!(metrics.lines().any(counted), "{metrics}");
    team.world.server.stop().await;
    let told = lines(&team.world, ONE);
    let [line] = told.as_slice() else { panic!("one line, however often: {told:?}") };
    assert_eq!((&line["policy"], &line["organization"]), (&json!("cleared"), &json!(team.tenant.id)), "{line}");
    team.world.again().await;
    let owner = team.tenant.owner.client.at(&team.world.server.url);
    let told = owner.get(&format!("/api/v1/policies/{set}/errors")).await.ok(200);
    let error = &told["items"][0];
    assert_eq!(
        (&error["policy"], &error["line"], &told["version"]),
        (&json!("cleared"), &json!(1), &json!(1)),
        "{told}"
    );
    assert!(error["count"].as_i64() >= Some(2) && error["message"].to_string().contains("clearance"), "{told}");
}

async fn so_many_organizations_are_named_in_the_log(backend: Backend) {
    let mut world = World::with(setup(backend).await.with("KAIZEN_POLICY_ERROR_LOG_LINES", "1")).await;
    for name in ["acme", "globex", "initech"] {
        let tenant = world.tenant(name).await;
        let workspace = tenant.workspace("first").await;
        tenant.agent(&workspace, "helper").await;
        let set = create(&tenant.owner, CLEARED).await;
        activate(&tenant.owner, &set, &json!(1)).await;
        assert!(tenant.owner.all("/api/v1/agents").await.is_empty(), "an error denies");
    }
    world.server.stop().await;
    let (named, further) = (lines(&world, ONE), lines(&world, MORE));
    assert_eq!(named.len(), 1, "{named:?}");
    let [further] = further.as_slice() else { panic!("one line: {further:?}") };
    assert_eq!(further["organizations"], 2, "{further}");
}
