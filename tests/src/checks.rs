//! `/api/v1/authz/check` answers what the route would that does the thing.

use serde_json::{Value, json};

use crate::{
    deployments::Shop,
    environments::{PRODUCTION_NEEDS_ADMIN, in_force, open_gateway},
    harness::{Backend, Client, PASSWORD, World, id},
};

on_both!(
    deploying_is_answered_for_the_gateways_environment,
    what_takes_two_permissions_is_answered_for_both,
    ones_own_account_and_the_operators_are_answered_as_they_are,
    a_hundred_questions_are_answered_in_their_order,
);

async fn ask(client: &Client, action: &str, (kind, id): (&str, &str), context: Value) -> Value {
    let question = json!({ "action": action, "resource": { "type": kind, "id": id }, "context": context });
    client.post("/api/v1/authz/check", question).await.ok(200)
}

async fn deploying_is_answered_for_the_gateways_environment(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let ben = shop.tenant.person("ben", "developer").await;
    in_force(owner, PRODUCTION_NEEDS_ADMIN).await;
    let mut body = shop.gateway.body("fixed");
    body["environment"] = "production".into();
    let fixed = id(&owner.create("/api/v1/gateways", body).await);
    let open = open_gateway(owner, &shop.gateway, "open").await;
    let agent = ("agent", shop.agent.as_str());
    for (context, allowed) in [
        (json!({ "gateway_id": fixed }), false),
        (json!({ "gateway_id": fixed, "environment": " Production" }), false),
        (json!({ "gateway_id": open, "environment": "PRODUCTION" }), false),
        (json!({ "gateway_id": open, "environment": "testing" }), true),
        (json!({ "gateway_id": open }), true),
        (json!({ "gateway_id": shop.gateway_id }), true),
    ] {
        let answer = ask(&ben, "agent.deploy", agent, context.clone()).await;
        assert_eq!(answer["allowed"], allowed, "{context}: {answer}");
        let mut body = context;
        body["version"] = 1.into();
        let done = ben.post(&format!("/api/v1/agents/{}/deploy", shop.agent), body).await;
        assert_eq!(done.status, if allowed { 202 } else { 403 }, "{}", done.text);
    }
    // What deploying answers with 422 is no "allowed".
    for environment in ["testing", "pr\u{43e}duction"] {
        let question = json!({
            "action": "agent.deploy", "resource": { "type": "agent", "id": shop.agent },
            "context": { "gateway_id": fixed, "environment": environment },
        });
        let many = json!({ "checks": [question.clone()] });
        ben.post("/api/v1/authz/check", many).await.fault("/checks/0/context/environment");
        ben.post("/api/v1/authz/check", question).await.fault("/context/environment");
    }
}

async fn what_takes_two_permissions_is_answered_for_both(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let (ada, ben) = (shop.tenant.person("ada", "admin").await, shop.tenant.person("ben", "developer").await);
    in_force(owner, PRODUCTION_NEEDS_ADMIN).await;
    let open = open_gateway(owner, &shop.gateway, "open").await;
    let production = json!({ "gateway_id": open, "environment": "production" });
    let accepted = ada.post(&format!("/api/v1/agents/{}/deploy", shop.agent), production).await.ok(202);
    let deployment = accepted["deployment_id"].as_str().expect("an id");
    let testing = shop.deploy().await;
    for action in ["deployment.rollback", "job.retry"] {
        for (person, on, allowed) in
            [(&ben, deployment, false), (&ada, deployment, true), (&ben, testing.as_str(), true)]
        {
            let answer = ask(person, action, ("deployment", on), json!({})).await;
            assert_eq!(answer["allowed"], allowed, "{action}: {answer}");
        }
    }
    let denied = ask(&ben, "job.retry", ("deployment", deployment), json!({})).await;
    assert_eq!(
        (&denied["reason"], &denied["policies"][0]["id"]),
        (&json!("forbidden"), &json!("production-needs-admin"))
    );
}

async fn ones_own_account_and_the_operators_are_answered_as_they_are(backend: Backend) {
    let world = World::start(backend).await;
    let operator = world.operator().await;
    let (ada, eve) = (operator.person("ada", "admin").await, operator.person("eve", "viewer").await);
    let root = operator.owner.id.as_str();
    // Owners' accounts are for owners; a second owner who does not run the platform still does not reach who does.
    let second = operator.person("second", "owner").await;
    for (person, allowed) in [(&ada, false), (&second, false), (&operator.owner, true)] {
        let answer = ask(person, "user.update", ("user", root), json!({})).await;
        assert_eq!(answer["allowed"], allowed, "{answer}");
        let done = person.patch(&format!("/api/v1/users/{root}"), json!({ "attributes": {} })).await;
        assert_eq!(done.status, if allowed { 200 } else { 403 }, "{}", done.text);
    }
    let oneself = ("user", eve.id.as_str());
    for (properties, allowed) in [
        (json!(["name"]), true),
        (json!(["name", "password"]), true),
        (json!(["attributes"]), false),
        (json!(["name", "active"]), false),
        (Value::Null, false),
    ] {
        let answer = ask(&eve, "user.update", oneself, json!({ "properties": properties })).await;
        assert_eq!(answer["allowed"], allowed, "{properties}: {answer}");
    }
    let own = json!({ "name": "Eve", "password": "another violet harbour", "current_password": PASSWORD });
    eve.patch(&format!("/api/v1/users/{}", eve.id), own).await.ok(200);
    let other = ask(&eve, "user.update", ("user", &ada.id), json!({ "properties": ["name"] })).await;
    assert_eq!(other["allowed"], false, "{other}");
}

async fn a_hundred_questions_are_answered_in_their_order(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let rival = world.tenant("rival").await;
    let workspace = tenant.workspace("first").await;
    let theirs = id(&rival.agent(&rival.workspace("theirs").await, "hidden").await);
    let helper = id(&tenant.agent(&workspace, "helper").await);
    let eve = tenant.person("eve", "viewer").await;
    let checks: Vec<Value> = (0..100)
        .map(|n| {
            let action = if n % 2 == 0 { "agent.read" } else { "agent.delete" };
            let agent = if n % 10 == 9 { &theirs } else { &helper };
            json!({ "action": action, "resource": { "type": "agent", "id": agent } })
        })
        .collect();
    let answers = eve.post("/api/v1/authz/check", json!({ "checks": checks })).await.ok(200);
    let answers = answers["decisions"].as_array().expect("decisions");
    assert_eq!(answers.len(), 100);
    for (n, answer) in answers.iter().enumerate() {
        let expected = if n % 10 == 9 {
            "not_found"
        } else if n % 2 == 0 {
            "allowed"
        } else {
            "not_permitted"
        };
        assert_eq!(answer["reason"], expected, "{n}: {answer}");
    }
    let more = json!({ "checks": vec![checks[0].clone(); 101] });
    eve.post("/api/v1/authz/check", more).await.fault("/checks");
}
