//! Deploying through the sandboxed `nexus` plugin: progress, retries, calling off, stopping, going back.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Backend, Client, Event, Events, Gateway, KEY, Reply, Tenant, World, eventually, id};

on_both!(
    a_version_is_deployed_with_progress,
    what_the_gateway_fails_at_is_tried_again,
    what_the_gateway_refuses_is_not_tried_again,
    a_repeated_request_deploys_once,
    a_deployment_is_called_off,
    a_deployment_is_stopped,
    a_deployment_is_rolled_back,
    a_gateway_is_checked,
    a_gateway_that_is_in_use_stays,
);

/// A tenant with an agent, two versions of it, and a gateway.
pub struct Shop {
    pub world: World,
    pub tenant: Tenant,
    pub gateway: Gateway,
    pub gateway_id: String,
    pub agent: String,
}

impl Shop {
    pub async fn start(backend: Backend) -> Self {
        Self::on(World::start(backend).await).await
    }

    pub async fn on(world: World) -> Self {
        let tenant = world.tenant("acme").await;
        let gateway = Gateway::start().await;
        let gateway_id = tenant.gateway(&gateway, "west").await;
        let workspace = tenant.workspace("first").await;
        let agent = id(&tenant.agent(&workspace, "helper").await);
        let shop = Self { world, tenant, gateway, gateway_id, agent };
        shop.cut("first").await;
        shop
    }

    pub async fn cut(&self, note: &str) -> Value {
        self.tenant.owner.create(&format!("/api/v1/agents/{}/versions", self.agent), json!({ "note": note })).await
    }

    /// Asks for a deployment of the newest version; returns its id.
    pub async fn deploy(&self) -> String {
        let path = format!("/api/v1/agents/{}/deploy", self.agent);
        let accepted = self.tenant.owner.post(&path, json!({ "gateway_id": self.gateway_id })).await.ok(202);
        assert_eq!(accepted["status"], "queued", "{accepted}");
        assert!(accepted["job_id"].is_string(), "{accepted}");
        accepted["deployment_id"].as_str().expect("deployment_id").to_owned()
    }

    pub async fn until(&self, deployment: &str, status: &str) -> Value {
        until(&self.tenant.owner, deployment, status).await
    }
}

/// Waits until a deployment has this status; fails if it ends in another one.
pub async fn until(client: &Client, deployment: &str, status: &str) -> Value {
    let path = format!("/api/v1/deployments/{deployment}");
    eventually(&format!("the deployment is {status}"), || async {
        let now = client.get(&path).await.ok(200);
        let over = ["failed", "cancelled", "stopped"].contains(&now["status"].as_str().expect("status"));
        assert!(!over || now["status"] == status, "it ended: {now}");
        (now["status"] == status).then_some(now)
    })
    .await
}

fn statuses(events: &[Event]) -> Vec<String> {
    let mut all: Vec<String> = events.iter().filter_map(|e| e.data["status"].as_str().map(str::to_owned)).collect();
    all.dedup();
    all
}

async fn a_version_is_deployed_with_progress(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    shop.gateway.stub.next([Reply::Hold]);
    let deployment = shop.deploy().await;
    let stream = Events::open(owner, &format!("/api/v1/deployments/{deployment}/events"), None).await;
    shop.gateway.stub.held(1).await;
    shop.gateway.stub.release();
    let events = stream.rest().await;
    let seen = statuses(&events);
    assert_eq!(seen.last().map(String::as_str), Some("active"), "{events:?}");
    assert!(seen.iter().all(|s| ["queued", "running", "active"].contains(&s.as_str())), "{seen:?}");
    let percents: Vec<i64> = events.iter().filter_map(|e| e.data["percent"].as_i64()).collect();
    assert!(percents.len() >= 2 && percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    let ids: Vec<i64> = events.iter().filter_map(|e| e.id.as_deref()?.parse().ok()).collect();
    assert!(ids.len() == events.len() && ids.windows(2).all(|pair| pair[0] < pair[1]), "{events:?}");

    // Reconnecting tells what was missed, and nothing twice.
    let path = format!("/api/v1/deployments/{deployment}/events");
    let rest = Events::open(owner, &path, Some(&ids[1].to_string())).await.rest().await;
    assert_eq!(rest.iter().filter_map(|e| e.id.as_deref()?.parse::<i64>().ok()).collect::<Vec<_>>(), ids[2..]);

    let done = shop.until(&deployment, "active").await;
    let registration = done["registration_id"].as_str().expect("registration_id");
    assert_eq!(done["endpoint"], format!("{}/api/v1/agents/{registration}", shop.gateway.stub.url));
    assert_eq!((&done["version"], &done["environment"]), (&json!(1), &json!("staging")));
    let registered = shop.gateway.agents();
    let agent = &registered[registration];
    assert_eq!(agent["name"], "helper");
    assert_eq!(agent["config"]["deployment_id"], deployment.as_str());
    let version = owner.get(&format!("/api/v1/agents/{}/versions/1", shop.agent)).await.ok(200);
    assert_eq!(agent["config"]["digest"], version["digest"]);
    assert_eq!(agent["config"]["workflow"], version["workflow"]);
    let job = owner.get(&format!("/api/v1/jobs/{}", done["job_id"].as_str().expect("job_id"))).await.ok(200);
    assert_eq!((&job["state"], &job["attempts"]), (&json!("succeeded"), &json!(1)), "{job}");
    for shown in [done.to_string(), job.to_string(), owner.get("/api/v1/gateways").await.text, shop.world.server.log()]
    {
        assert!(!shown.contains(KEY), "the gateway's key is shown: {shown}");
    }
    let stored =
        std::fs::read(shop.world.setup.data_dir().parent().expect("a folder").join("kaizen.db")).unwrap_or_default();
    assert!(
        !stored.windows(KEY.len()).any(|bytes| bytes == KEY.as_bytes()),
        "the key lies in the database in the clear"
    );
}

async fn what_the_gateway_fails_at_is_tried_again(backend: Backend) {
    let shop = Shop::start(backend).await;
    shop.gateway.stub.next([Reply::Status(500), Reply::TooMany(1), Reply::Cut]);
    let deployment = shop.deploy().await;
    let done = shop.until(&deployment, "active").await;
    assert_eq!(shop.gateway.registrations().len(), 4);
    let keys: BTreeSet<_> = shop.gateway.registrations().iter().map(|r| r.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys.len(), 1, "every attempt carries the same key");
    assert_eq!(shop.gateway.agents().len(), 1);
    let job =
        shop.tenant.owner.get(&format!("/api/v1/jobs/{}", done["job_id"].as_str().expect("job_id"))).await.ok(200);
    assert_eq!((&job["state"], &job["attempts"]), (&json!("succeeded"), &json!(4)), "{job}");
}

async fn what_the_gateway_refuses_is_not_tried_again(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    shop.gateway.stub.next([Reply::Status(401)]);
    let deployment = shop.deploy().await;
    let failed = shop.until(&deployment, "failed").await;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("401")), "it says why: {failed}");
    let events = Events::open(owner, &format!("/api/v1/deployments/{deployment}/events"), None).await.rest().await;
    assert_eq!(statuses(&events).last().map(String::as_str), Some("failed"), "{events:?}");
    assert_eq!(shop.gateway.registrations().len(), 1);
    let trail = owner.all("/api/v1/audit/events").await;
    assert!(trail.iter().any(|e| e["outcome"] == "failure" && e.to_string().contains(&deployment)), "{trail:?}");

    // Once the cause is mended, the same job is tried again.
    let retry = format!("/api/v1/jobs/{}/retry", failed["job_id"].as_str().expect("job_id"));
    let again = owner.post(&retry, json!({})).await;
    assert!((200..300).contains(&again.status), "{}", again.text);
    eventually("it is active", || async {
        let now = owner.get(&format!("/api/v1/deployments/{deployment}")).await.ok(200);
        (now["status"] == "active").then_some(())
    })
    .await;
    assert_eq!(owner.post(&retry, json!({})).await.status, 409, "what succeeded is not tried again");
}

async fn a_repeated_request_deploys_once(backend: Backend) {
    let shop = Shop::start(backend).await;
    let path = format!("/api/v1/agents/{}/deploy", shop.agent);
    let body = Some(json!({ "gateway_id": shop.gateway_id }));
    let key = [("idempotency-key", "deploy-1")];
    let ask = || shop.tenant.owner.request(Method::POST, &path, body.clone(), &key);
    let (one, two) = tokio::join!(ask(), ask());
    let (one, two) = (one.ok(202), two.ok(202));
    assert_eq!(one, two);
    shop.until(one["deployment_id"].as_str().expect("an id"), "active").await;
    assert_eq!(shop.tenant.owner.all("/api/v1/deployments").await.len(), 1);
    assert_eq!(shop.gateway.registrations().len(), 1);
    for bad in
        [json!({ "gateway_id": crate::harness::fresh_id() }), json!({ "gateway_id": shop.gateway_id, "version": 99 })]
    {
        let answer = shop.tenant.owner.post(&path, bad).await;
        assert!([404, 422].contains(&answer.status), "{}", answer.text);
    }
}

async fn a_deployment_is_called_off(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    // While it waits for another attempt.
    shop.gateway.stub.next([Reply::TooMany(3600)]);
    let waiting = shop.deploy().await;
    shop.gateway
        .stub
        .until("the first attempt", |seen| seen.iter().any(|s| s.path.ends_with("/register")).then_some(()))
        .await;
    let cancel = owner.post(&format!("/api/v1/deployments/{waiting}/cancel"), json!({})).await;
    assert!((200..300).contains(&cancel.status), "{}", cancel.text);
    shop.until(&waiting, "cancelled").await;
    // The gateway may have begun all the same: it is asked once more, and what it then has is removed.
    shop.gateway.stub.until("the removal", |seen| seen.iter().any(|s| s.method == "DELETE").then_some(())).await;

    // In the middle of an attempt: what the gateway took meanwhile is taken back.
    shop.gateway.stub.next([Reply::Hold]);
    let running = shop.deploy().await;
    shop.gateway.stub.held(1).await;
    let cancel = owner.post(&format!("/api/v1/deployments/{running}/cancel"), json!({})).await;
    assert!((200..300).contains(&cancel.status), "{}", cancel.text);
    shop.gateway.stub.release();
    shop.until(&running, "cancelled").await;
    eventually("nothing is left at the gateway", || async { shop.gateway.agents().is_empty().then_some(()) }).await;

    let done = shop.deploy().await;
    shop.until(&done, "active").await;
    owner.post(&format!("/api/v1/deployments/{done}/cancel"), json!({})).await.problem(409, "conflict");
    assert_eq!(shop.gateway.agents().len(), 1);
}

async fn a_deployment_is_stopped(backend: Backend) {
    let shop = Shop::start(backend).await;
    let deployment = shop.deploy().await;
    shop.until(&deployment, "active").await;
    assert_eq!(shop.gateway.agents().len(), 1);
    shop.gateway.stub.next([Reply::Status(503)]);
    let stop = format!("/api/v1/deployments/{deployment}/stop");
    let answer = shop.tenant.owner.post(&stop, json!({})).await;
    assert!((200..300).contains(&answer.status), "{}", answer.text);
    shop.until(&deployment, "stopped").await;
    assert!(shop.gateway.agents().is_empty());
    assert_eq!(shop.gateway.stub.seen_with("DELETE").len(), 2, "the gateway was away once");
    shop.tenant.owner.post(&stop, json!({})).await.problem(409, "conflict");
}

async fn a_deployment_is_rolled_back(backend: Backend) {
    let shop = Shop::start(backend).await;
    let owner = &shop.tenant.owner;
    let first = shop.deploy().await;
    shop.until(&first, "active").await;
    shop.cut("second").await;
    let second = shop.deploy().await;
    assert_eq!(shop.until(&second, "active").await["version"], 2);
    let back = owner.post(&format!("/api/v1/deployments/{second}/rollback"), json!({})).await.ok(202);
    let third = back["deployment_id"].as_str().expect("a deployment of its own");
    let third = shop.until(third, "active").await;
    assert_eq!((&third["version"], &third["rollback_of"]), (&json!(1), &json!(second)), "{third}");
    let nothing = owner.post(&format!("/api/v1/deployments/{first}/rollback"), json!({})).await;
    assert_eq!(nothing.status, 409, "there was nothing before the first: {}", nothing.text);
}

async fn a_gateway_is_checked(backend: Backend) {
    let world = World::start(backend).await;
    let tenant = world.tenant("acme").await;
    let gateway = Gateway::start().await;
    let owner = &tenant.owner;
    let check = |id: String| async move { owner.post(&format!("/api/v1/gateways/{id}/check"), json!({})).await };
    check(tenant.gateway(&gateway, "good").await).await.ok(200);
    let mut body = gateway.body("gone");
    body["config"]["api_url"] = format!("http://127.0.0.1:{}", crate::harness::free_port()).into();
    let gone = check(id(&tenant.owner.create("/api/v1/gateways", body).await)).await;
    gone.problem(502, "upstream");

    // What the configuration's schema says is checked when it is saved.
    let mut body = gateway.body("bad");
    body["config"]["api_url"] = "not an address".into();
    tenant.owner.post("/api/v1/gateways", body).await.fault("/config/api_url");
    let mut body = gateway.body("bad");
    body["config"]["unknown"] = 1.into();
    tenant.owner.post("/api/v1/gateways", body).await.problem(422, "invalid");
    let mut body = gateway.body("bad");
    body["secrets"] = json!({});
    let missing = tenant.owner.post("/api/v1/gateways", body).await.problem(422, "invalid");
    assert!(missing.to_string().contains("api-key"), "{missing}");
    let mut body = gateway.body("bad");
    body["plugin"] = "no-such-plugin".into();
    let unknown = tenant.owner.post("/api/v1/gateways", body).await.fault("/plugin");
    assert!(unknown.contains("nexus"), "it names those there are: {unknown}");
}

async fn a_gateway_that_is_in_use_stays(backend: Backend) {
    let shop = Shop::start(backend).await;
    let deployment = shop.deploy().await;
    shop.until(&deployment, "active").await;
    shop.tenant.owner.delete(&format!("/api/v1/gateways/{}", shop.gateway_id)).await.problem(409, "conflict");
    shop.tenant.owner.delete(&format!("/api/v1/agents/{}", shop.agent)).await.problem(409, "conflict");
    shop.until(&deployment, "active").await;
}

/// Without the operator's word a plugin reaches nothing on this machine, and the denial says which setting would allow it.
#[tokio::test]
async fn a_plugin_reaches_no_private_address_by_itself() {
    let setup = crate::harness::Setup::new(Backend::Sqlite).await.without("KAIZEN_EGRESS_ALLOW_PRIVATE");
    let shop = Shop::on(World::with(setup).await).await;
    let check = shop.tenant.owner.post(&format!("/api/v1/gateways/{}/check", shop.gateway_id), json!({})).await;
    assert!([422, 502].contains(&check.status), "{}", check.text);
    assert!(check.text.to_lowercase().contains("egress_allow_private"), "{}", check.text);
    assert!(shop.gateway.stub.seen().is_empty());
    let deployment = shop.deploy().await;
    let failed = shop.until(&deployment, "failed").await;
    assert!(failed["error"].as_str().expect("why").to_lowercase().contains("egress_allow_private"), "{failed}");
    assert!(shop.gateway.stub.seen().is_empty());
}
