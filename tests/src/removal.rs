//! What was deployed once can be deleted when nothing of it is deployed any more; a refusal says what keeps it.

use serde_json::{Value, json};

use crate::{
    deployments::Shop,
    harness::{Backend, Direct, Reply},
};

on_both!(
    what_was_deployed_once_can_be_deleted,
    an_organization_is_deleted_once_nothing_is_deployed,
    a_refusal_says_what_to_stop_or_cancel,
);

/// One deployment of each end: stopped, failed, cancelled.
async fn ends(shop: &Shop) -> [String; 3] {
    let owner = &shop.tenant.owner;
    let stopped = shop.deploy().await;
    shop.until(&stopped, "active").await;
    owner.post(&format!("/api/v1/deployments/{stopped}/stop"), json!({})).await.ok(202);
    shop.until(&stopped, "stopped").await;
    shop.gateway.stub.next([Reply::Status(401)]);
    let failed = shop.deploy().await;
    shop.until(&failed, "failed").await;
    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let cancelled = shop.deploy().await;
    shop.until(&cancelled, "running").await;
    owner.post(&format!("/api/v1/deployments/{cancelled}/cancel"), json!({})).await.ok(200);
    shop.until(&cancelled, "cancelled").await;
    shop.gateway.stub.until("the removal", |seen| seen.iter().filter(|s| s.method == "DELETE").nth(1).map(drop)).await;
    jobs_are_over(shop).await;
    [stopped, failed, cancelled]
}

async fn jobs_are_over(shop: &Shop) {
    crate::harness::eventually("no job is left", || async {
        let jobs = shop.tenant.owner.all("/api/v1/jobs").await;
        jobs.iter().all(|job| job["state"] != "queued" && job["state"] != "running").then_some(())
    })
    .await;
}

async fn rows(direct: &mut Direct, table: &str) -> i64 {
    direct.number(&format!("SELECT COUNT(*) FROM {table}")).await
}

async fn what_was_deployed_once_can_be_deleted(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let ends = ends(&shop).await;
    let workspace = owner.get(&format!("/api/v1/agents/{}", shop.agent)).await.ok(200)["workspace_id"].clone();
    let workspace = format!("/api/v1/workspaces/{}", workspace.as_str().expect("an id"));
    let kept = owner.delete(&workspace).await.problem(409, "conflict");
    assert!(kept["detail"].as_str().is_some_and(|why| why.contains("agents?workspace_id=")), "{kept}");
    owner.delete(&format!("/api/v1/gateways/{}", shop.gateway_id)).await.ok(204);
    owner.delete(&format!("/api/v1/agents/{}", shop.agent)).await.ok(204);
    owner.delete(&workspace).await.ok(204);
    for deployment in &ends {
        owner.get(&format!("/api/v1/deployments/{deployment}")).await.problem(404, "not_found");
    }
    let mut direct = shop.world.setup.database.direct().await;
    for table in ["deployments", "deployment_events", "agent_versions", "agents"] {
        assert_eq!(rows(&mut direct, table).await, 0, "{table}");
    }
    // The trail still tells of each, and holds.
    let trail = owner.all("/api/v1/audit/events").await;
    for deployment in &ends {
        assert!(trail.iter().any(|event| event.to_string().contains(deployment)), "{deployment}");
    }
    assert_eq!(owner.get("/api/v1/audit/verify").await.ok(200)["valid"], true);
}

async fn an_organization_is_deleted_once_nothing_is_deployed(backend: Backend) {
    let shop = Shop::start(backend).await;
    let rival = shop.world.tenant("rival").await;
    let theirs = rival.workspace("theirs").await;
    let helper = rival.agent(&theirs, "helper").await;
    let owner = &shop.tenant.owner;
    ends(&shop).await;
    let active = shop.deploy().await;
    shop.until(&active, "active").await;
    let one = format!("/api/v1/organizations/{}", shop.tenant.id);
    let one = format!("{one}?confirm=acme");
    let kept = owner.delete(&one).await.problem(409, "conflict");
    assert!(kept["detail"].as_str().is_some_and(|why| why.contains(&format!("{active}/stop"))), "{kept}");
    assert_eq!(owner.all("/api/v1/deployments").await.len(), 4, "a refusal removes nothing");
    owner.post(&format!("/api/v1/deployments/{active}/stop"), json!({})).await.ok(202);
    shop.until(&active, "stopped").await;
    jobs_are_over(&shop).await;
    owner.delete(&one).await.ok(204);
    owner.get("/api/v1/auth/me").await.problem(401, "unauthenticated");
    let mut direct = shop.world.setup.database.direct().await;
    for table in ["deployments", "deployment_events", "agent_versions", "jobs", "connections"] {
        assert_eq!(rows(&mut direct, table).await, 0, "{table}");
    }
    assert_eq!(rows(&mut direct, "organizations").await, 1);
    rival.owner.get(&format!("/api/v1/agents/{}", crate::harness::id(&helper))).await.ok(200);
}

async fn a_refusal_says_what_to_stop_or_cancel(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let active = shop.deploy().await;
    shop.until(&active, "active").await;
    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let running = shop.deploy().await;
    shop.until(&running, "running").await;
    for path in [format!("/api/v1/agents/{}", shop.agent), format!("/api/v1/gateways/{}", shop.gateway_id)] {
        let kept: Value = owner.delete(&path).await.problem(409, "conflict");
        let detail = kept["detail"].as_str().expect("a detail");
        assert!(
            detail.contains(&format!("{active}/stop")) && detail.contains(&format!("{running}/cancel")),
            "{detail}"
        );
    }
    // Taking it off fails: it is there for all anyone knows, and the answer says which job to retry.
    owner.post(&format!("/api/v1/deployments/{running}/cancel"), json!({})).await.ok(200);
    shop.until(&running, "cancelled").await;
    jobs_are_over(&shop).await;
    shop.gateway.stub.next([Reply::Status(401)]);
    let stop = owner.post(&format!("/api/v1/deployments/{active}/stop"), json!({})).await.ok(202);
    jobs_are_over(&shop).await;
    let kept = owner.delete(&format!("/api/v1/agents/{}", shop.agent)).await.problem(409, "conflict");
    let retry = format!("{}/retry", stop["job_id"].as_str().expect("an id"));
    assert!(kept["detail"].as_str().is_some_and(|why| why.contains(&retry)), "{kept}");
    owner.post(&format!("/api/v1/jobs/{retry}"), json!({})).await.ok(200);
    shop.until(&active, "stopped").await;
    jobs_are_over(&shop).await;
    owner.delete(&format!("/api/v1/agents/{}", shop.agent)).await.ok(204);
}
