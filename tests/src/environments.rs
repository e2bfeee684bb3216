//! Environments: one spelling at every door, and what is brought to a gateway again is asked about as if it were deployed.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    deployments::{Shop, until},
    harness::{Backend, Client, Gateway, Reply, id},
};

on_both!(
    no_spelling_of_production_passes_its_policy,
    a_rollback_asks_what_deploying_asks,
    a_retry_asks_what_deploying_asks,
    a_job_is_cancelled_by_who_may_cancel_its_deployment,
    staging_is_rolled_back_to_what_staging_had,
    what_never_was_active_is_not_rolled_back,
);

/// As shipped in `policies/examples`.
pub const PRODUCTION_NEEDS_ADMIN: &str = r#"@id("production-needs-admin")
@description("Only admins deploy to production.")
forbid (principal, action == Kaizen::Action::"agent.deploy", resource)
when { context.environment == "production" && !(principal in Kaizen::Role::"admin") };"#;

/// Puts this policy in force, in place of what is.
pub async fn in_force(owner: &Client, text: &str) {
    let set = id(&owner.create("/api/v1/policies", json!({ "name": crate::harness::fresh_id() })).await);
    owner.create(&format!("/api/v1/policies/{set}/versions"), json!({ "text": text })).await;
    owner.post(&format!("/api/v1/policies/{set}/activate"), json!({ "version": 1 })).await.ok(200);
}

/// A gateway that takes any environment.
pub async fn open_gateway(owner: &Client, gateway: &Gateway, name: &str) -> String {
    let mut body = gateway.body(name);
    body.as_object_mut().expect("an object").remove("environment");
    id(&owner.create("/api/v1/gateways", body).await)
}

async fn deploy(client: &Client, shop: &Shop, body: Value) -> crate::harness::Answer {
    client.post(&format!("/api/v1/agents/{}/deploy", shop.agent), body).await
}

/// Deploys and waits until it is active; returns the deployment.
async fn deployed(client: &Client, shop: &Shop, body: Value) -> Value {
    let accepted = deploy(client, shop, body).await.ok(202);
    until(client, accepted["deployment_id"].as_str().expect("an id"), "active").await
}

async fn no_spelling_of_production_passes_its_policy(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let ben = shop.tenant.person("ben", "developer").await;
    in_force(owner, PRODUCTION_NEEDS_ADMIN).await;
    let gateway = open_gateway(owner, &shop.gateway, "open").await;
    let to = |environment: &str| json!({ "gateway_id": gateway, "environment": environment });
    for spelling in
        ["production", "Production", "PRODUCTION", " production ", "production\n", "\u{a0}production\u{2003}"]
    {
        let denied = deploy(&ben, &shop, to(spelling)).await.problem(403, "denied");
        assert!(denied.to_string().contains("production-needs-admin"), "{spelling:?}: {denied}");
    }
    for (spelling, code) in [
        ("pro\u{200b}duction", "U+200B"),
        ("\u{feff}production", "U+FEFF"),
        ("production\u{ad}", "U+00AD"),
        ("\u{202e}production", "U+202E"),
        ("pr\u{43e}duction", "U+043E"),
        ("product\u{131}on", "U+0131"),
        ("\u{ff50}roduction", "U+FF50"),
        ("produc\u{e0041}tion", "U+E0041"),
    ] {
        let why = deploy(&ben, &shop, to(spelling)).await.fault("/environment");
        assert!(why.contains(code), "{spelling:?}: {why}");
        let mut body = shop.gateway.body("imitation");
        body["environment"] = spelling.into();
        assert!(owner.post("/api/v1/gateways", body).await.fault("/environment").contains(code));
    }
    assert!(shop.gateway.registrations().is_empty());

    // A gateway's own has one spelling too, and one length.
    let mut body = shop.gateway.body("fixed");
    body["environment"] = " Production ".into();
    let fixed = owner.create("/api/v1/gateways", body.clone()).await;
    assert_eq!(fixed["environment"], "production");
    let fixed = id(&fixed);
    deploy(&ben, &shop, json!({ "gateway_id": fixed })).await.problem(403, "denied");
    deploy(&ben, &shop, json!({ "gateway_id": fixed, "environment": "PRODUCTION" })).await.problem(403, "denied");
    deploy(&ben, &shop, json!({ "gateway_id": fixed, "environment": "testing" })).await.fault("/environment");
    body["name"] = "long".into();
    body["environment"] = "x".repeat(64).into();
    owner.post("/api/v1/gateways", body.clone()).await.fault("/environment");
    body["environment"] = "x".repeat(63).into();
    let long = id(&owner.create("/api/v1/gateways", body).await);
    deployed(&ben, &shop, json!({ "gateway_id": long, "environment": "X".repeat(63) })).await;

    // What a server before stored without looking so closely does not pass either.
    let mut direct = shop.world.setup.database.direct().await;
    let old = "UPDATE connections SET environment = 'pr\u{43e}duction' WHERE name = 'fixed'";
    assert_eq!(direct.execute(old).await, 1);
    let refused = deploy(&ben, &shop, json!({ "gateway_id": fixed })).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("U+043E") && why.contains("PATCH")), "{refused}");
    owner.patch(&format!("/api/v1/gateways/{fixed}"), json!({ "environment": "PRODuction" })).await.ok(200);
    deploy(&ben, &shop, json!({ "gateway_id": fixed })).await.problem(403, "denied");
}

async fn a_rollback_asks_what_deploying_asks(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let (ada, ben) = (shop.tenant.person("ada", "admin").await, shop.tenant.person("ben", "developer").await);
    in_force(owner, PRODUCTION_NEEDS_ADMIN).await;
    let gateway = open_gateway(owner, &shop.gateway, "open").await;
    let production = |version: i64| json!({ "gateway_id": gateway, "environment": "production", "version": version });
    deployed(&ada, &shop, production(1)).await;
    shop.cut("second").await;
    let second = id(&deployed(&ada, &shop, production(2)).await);
    deploy(&ben, &shop, production(1)).await.problem(403, "denied");
    let rollback = format!("/api/v1/deployments/{second}/rollback");
    let denied = ben.post(&rollback, json!({})).await.problem(403, "denied");
    assert!(denied.to_string().contains("production-needs-admin"), "{denied}");
    let back = ada.post(&rollback, json!({})).await.ok(202);
    let back = until(&ada, back["deployment_id"].as_str().expect("an id"), "active").await;
    assert_eq!((&back["environment"], &back["version"]), (&json!("production"), &json!(1)), "{back}");
    let sent = shop.gateway.registrations().pop().expect("a registration");
    assert_eq!(sent.body["config"]["environment"], "production", "{}", sent.body);

    // A gateway that is for something else meanwhile is not brought production's version.
    owner.patch(&format!("/api/v1/gateways/{gateway}"), json!({ "environment": "staging" })).await.ok(200);
    let other = ada.post(&rollback, json!({})).await.problem(409, "conflict");
    assert!(other["detail"].as_str().is_some_and(|why| why.contains("staging")), "{other}");
}

async fn a_retry_asks_what_deploying_asks(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let (ada, ben) = (shop.tenant.person("ada", "admin").await, shop.tenant.person("ben", "developer").await);
    in_force(owner, PRODUCTION_NEEDS_ADMIN).await;
    let gateway = open_gateway(owner, &shop.gateway, "open").await;
    shop.gateway.stub.next([Reply::Status(401)]);
    let production = json!({ "gateway_id": gateway, "environment": "production" });
    let accepted = deploy(&ada, &shop, production).await.ok(202);
    let deployment = accepted["deployment_id"].as_str().expect("an id");
    until(&ada, deployment, "failed").await;
    let retry = format!("/api/v1/jobs/{}/retry", accepted["job_id"].as_str().expect("an id"));
    let denied = ben.post(&retry, json!({})).await.problem(403, "denied");
    assert!(denied.to_string().contains("production-needs-admin"), "{denied}");
    assert_eq!(shop.gateway.registrations().len(), 1);
    ada.post(&retry, json!({})).await.ok(200);
    // It may be seen as failed until the retry is committed and no longer: the answer came after that.
    let done = until(&ada, deployment, "active").await;
    assert_eq!(done["environment"], "production");

    // Taking off again is what stopping is.
    shop.gateway.stub.next([Reply::Status(401)]);
    let stop = ada.post(&format!("/api/v1/deployments/{deployment}/stop"), json!({})).await.ok(202);
    let job = format!("/api/v1/jobs/{}", stop["job_id"].as_str().expect("an id"));
    crate::harness::eventually("the removal has failed", || async {
        (ada.get(&job).await.ok(200)["state"] == "failed").then_some(())
    })
    .await;
    in_force(
        owner,
        r#"@id("no-stopping") forbid (principal, action == Kaizen::Action::"deployment.stop", resource)
           unless { principal in Kaizen::Role::"admin" };"#,
    )
    .await;
    ben.post(&format!("{job}/retry"), json!({})).await.problem(403, "denied");
    ada.post(&format!("{job}/retry"), json!({})).await.ok(200);
    until(&ada, deployment, "stopped").await;
}

async fn a_job_is_cancelled_by_who_may_cancel_its_deployment(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let ben = shop.tenant.person("ben", "developer").await;
    in_force(
        owner,
        r#"@id("no-cancelling") forbid (principal, action == Kaizen::Action::"deployment.cancel", resource)
           unless { principal in Kaizen::Role::"owner" };"#,
    )
    .await;
    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let deployment = shop.deploy().await;
    let job = shop.until(&deployment, "running").await["job_id"].as_str().expect("an id").to_owned();
    ben.post(&format!("/api/v1/deployments/{deployment}/cancel"), json!({})).await.problem(403, "denied");
    ben.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await.problem(403, "denied");
    owner.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await.ok(200);
    shop.until(&deployment, "cancelled").await;
}

async fn staging_is_rolled_back_to_what_staging_had(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let gateway = open_gateway(owner, &shop.gateway, "open").await;
    shop.cut("second").await;
    shop.cut("third").await;
    let to = |environment: &str, version: i64| json!({ "gateway_id": gateway, "environment": environment, "version": version });
    deployed(owner, &shop, to("staging", 1)).await;
    deployed(owner, &shop, to("production", 3)).await;
    let second = id(&deployed(owner, &shop, to("Staging", 2)).await);
    let back = owner.post(&format!("/api/v1/deployments/{second}/rollback"), json!({})).await.ok(202);
    let back = until(owner, back["deployment_id"].as_str().expect("an id"), "active").await;
    assert_eq!((&back["environment"], &back["version"]), (&json!("staging"), &json!(1)), "{back}");
    let production = owner.all("/api/v1/deployments").await;
    let production = production.iter().find(|d| d["environment"] == "production").expect("production's");
    let rollback = format!("/api/v1/deployments/{}/rollback", id(production));
    owner.post(&rollback, json!({})).await.problem(409, "conflict");
}

async fn what_never_was_active_is_not_rolled_back(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let first = shop.deploy().await;
    shop.until(&first, "active").await;
    shop.cut("second").await;
    shop.gateway.stub.next([Reply::Status(401)]);
    let second = shop.deploy().await;
    let job = shop.until(&second, "failed").await["job_id"].as_str().expect("an id").to_owned();
    let rollback = format!("/api/v1/deployments/{second}/rollback");
    let refused = owner.post(&rollback, json!({})).await.problem(409, "conflict");
    let detail = refused["detail"].as_str().expect("a detail");
    assert!(detail.contains("failed") && detail.contains(&job), "it says what to do: {detail}");
    let keyed = owner.request(Method::POST, &rollback, Some(json!({})), &[("idempotency-key", "back")]).await;
    keyed.problem(409, "conflict");
    assert_eq!(owner.all("/api/v1/deployments").await.len(), 2, "nothing was deployed");

    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let third = shop.deploy().await;
    shop.until(&third, "running").await;
    let rollback = format!("/api/v1/deployments/{third}/rollback");
    let refused = owner.post(&rollback, json!({})).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("cancel it")), "{refused}");
    owner.post(&format!("/api/v1/deployments/{third}/cancel"), json!({})).await.ok(200);
    let refused = owner.post(&rollback, json!({})).await.problem(409, "conflict");
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("cancelled")), "{refused}");
}
