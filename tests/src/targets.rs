//! Deployment targets beside `nexus`: a Kubernetes cluster, and a webhook whose body people shape themselves. What is kept
//! from one attempt to the next is looked at on both databases; what a plugin is told, on one.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    deployments::until,
    harness::{
        Answer, Backend, CLUSTER_TOKEN, Kubernetes, NAMESPACE, Reply, Seen, Stub, Tenant, World, eventually, id,
    },
};

on_both!(an_agent_runs_in_a_cluster, a_rollout_that_is_called_off_leaves_nothing, a_webhook_gets_its_own_json_signed);

/// A tenant with an agent of one version.
struct Place {
    world: World,
    tenant: Tenant,
    agent: String,
}

impl Place {
    async fn start(agent: &str) -> Self {
        Self::on(Backend::Sqlite, agent).await
    }

    async fn on(backend: Backend, agent: &str) -> Self {
        let world = World::start(backend).await;
        let tenant = world.tenant("acme").await;
        let workspace = tenant.workspace("first").await;
        let agent = id(&tenant.agent(&workspace, agent).await);
        tenant.owner.create(&format!("/api/v1/agents/{agent}/versions"), json!({ "note": "first" })).await;
        Self { world, tenant, agent }
    }

    async fn gateway(&self, body: Value) -> String {
        id(&self.tenant.owner.create("/api/v1/gateways", body).await)
    }

    async fn check(&self, gateway: &str) -> Answer {
        self.tenant.owner.post(&format!("/api/v1/gateways/{gateway}/check"), json!({})).await
    }

    async fn deploy(&self, gateway: &str) -> String {
        let path = format!("/api/v1/agents/{}/deploy", self.agent);
        let accepted = self.tenant.owner.post(&path, json!({ "gateway_id": gateway })).await.ok(202);
        accepted["deployment_id"].as_str().expect("deployment_id").to_owned()
    }

    async fn until(&self, deployment: &str, status: &str) -> Value {
        until(&self.tenant.owner, deployment, status).await
    }

    async fn stop(&self, deployment: &str) {
        let answer = self.tenant.owner.post(&format!("/api/v1/deployments/{deployment}/stop"), json!({})).await;
        assert!((200..300).contains(&answer.status), "{}", answer.text);
        self.until(deployment, "stopped").await;
    }

    async fn workflow(&self) -> Value {
        let path = format!("/api/v1/agents/{}/versions/1", self.agent);
        self.tenant.owner.get(&path).await.ok(200)["workflow"].clone()
    }
}

fn refused(answer: &Answer, why: &str) {
    assert!([422, 502].contains(&answer.status) && answer.text.contains(why), "{}", answer.text);
}

async fn an_agent_runs_in_a_cluster(backend: Backend) {
    let place = Place::on(backend, "Support & \"Sales\"").await;
    let cluster = Kubernetes::start().await;
    let gateway = place.gateway(cluster.body("west", json!({ "replicas": 2, "env": { "LOG": "debug" } }))).await;
    place.check(&gateway).await.ok(200);
    assert!(cluster.objects().is_empty(), "checking makes nothing");

    // The API server is away and busy for a moment.
    cluster.stub.next([Reply::Status(503), Reply::TooMany(1), Reply::Cut]);
    let deployment = place.deploy(&gateway).await;
    let done = place.until(&deployment, "active").await;
    let name = format!("agent-{deployment}");
    assert_eq!(done["registration_id"], format!("{NAMESPACE}/{name}"));
    assert_eq!(done["endpoint"], format!("http://{name}.{NAMESPACE}.svc:8080"));
    assert_eq!((&done["progress"]["percent"], &done["environment"]), (&json!(100), &json!("staging")));
    let objects = cluster.objects();
    assert_eq!(objects.keys().collect::<Vec<_>>(), ["ConfigMap", "Deployment", "Service"]);
    let workflow = objects["ConfigMap"]["data"]["workflow.json"].as_str().expect("text");
    assert_eq!(serde_json::from_str::<Value>(workflow).expect("JSON"), place.workflow().await);
    let digest = hex::encode(Sha256::digest(workflow));
    let annotations = &objects["Deployment"]["metadata"]["annotations"];
    assert_eq!(annotations["kaizen.studio/digest"], digest.as_str(), "its bytes are those of the digest");
    assert_eq!(annotations["kaizen.studio/agent-name"], "Support & \"Sales\"");
    assert_eq!(objects["Deployment"]["spec"]["replicas"], 2);
    assert_eq!(objects["Service"]["spec"]["selector"], json!({ "app.kubernetes.io/instance": name }));

    // One of the three is gone already, by somebody else.
    cluster.remove(&format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"));
    place.stop(&deployment).await;
    assert!(cluster.objects().is_empty());
    assert!(!place.world.server.log().contains(CLUSTER_TOKEN), "the token is in the log");
}

#[tokio::test]
async fn a_rollout_that_fails_says_why_and_leaves_nothing() {
    let place = Place::start("helper").await;
    let cluster = Kubernetes::start().await;
    let gateway = place.gateway(cluster.body("west", json!({}))).await;
    cluster.break_pods(Some("ReplicaSet \"agent\" has timed out progressing."));
    let failed = place.until(&place.deploy(&gateway).await, "failed").await;
    assert!(failed["error"].as_str().is_some_and(|why| why.contains("timed out progressing")), "{failed}");
    assert!(cluster.objects().is_empty());
}

/// The pods are not ready, and somebody gives up: what was applied already is removed, though no attempt has ended well.
async fn a_rollout_that_is_called_off_leaves_nothing(backend: Backend) {
    let place = Place::on(backend, "helper").await;
    let cluster = Kubernetes::start().await;
    cluster.hold_pods(true);
    let config = json!({ "ready_seconds": 4, "progress_deadline_seconds": 3600 });
    let gateway = place.gateway(cluster.body("west", config)).await;
    let deployment = place.deploy(&gateway).await;
    eventually("an attempt has ended and another one waits", || async {
        let now = place.tenant.owner.get(&format!("/api/v1/deployments/{deployment}")).await.ok(200);
        now["error"].as_str().is_some_and(|why| why.contains("not ready")).then_some(())
    })
    .await;
    assert_eq!(cluster.objects().len(), 3);
    cluster.hold_pods(false);
    place.tenant.owner.post(&format!("/api/v1/deployments/{deployment}/cancel"), json!({})).await.ok(200);
    eventually("nothing is left in the cluster", || async { cluster.objects().is_empty().then_some(()) }).await;
    place.until(&deployment, "cancelled").await;
}

#[tokio::test]
async fn fields_of_others_in_a_cluster_are_left_to_them() {
    let place = Place::start("helper").await;
    let cluster = Kubernetes::start().await;
    let gateway = place.gateway(cluster.body("west", json!({}))).await;
    cluster.stub.next([Reply::Hold]);
    let deployment = place.deploy(&gateway).await;
    cluster.stub.held(1).await;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/agent-{deployment}");
    let theirs = json!({ "kind": "ConfigMap", "data": { "workflow.json": "{}" } });
    cluster.occupy(&path, theirs.clone(), "/data/workflow.json", "kubectl-edit");
    cluster.stub.release();
    let failed = place.until(&deployment, "failed").await;
    let why = failed["error"].as_str().expect("why");
    for part in ["kubectl-edit", "workflow.json", "force_conflicts"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(cluster.objects()["ConfigMap"], theirs);
}

#[tokio::test]
async fn what_is_wrong_with_a_cluster_is_named() {
    let place = Place::start("helper").await;
    let cluster = Kubernetes::start().await;
    let mut body = cluster.body("token", json!({}));
    body["secrets"]["token"] = "another".into();
    refused(&place.check(&place.gateway(body).await).await, "`token`");
    let namespace = place.gateway(cluster.body("namespace", json!({ "namespace": "not-there" }))).await;
    refused(&place.check(&namespace).await, "not-there");
    let misnamed = place.gateway(cluster.body("misnamed", json!({ "env": { "a b=": "x" } }))).await;
    refused(&place.check(&misnamed).await, "environment variable name");
    let portal = Stub::start(|_| Reply::Status(404)).await;
    let elsewhere = place.gateway(cluster.body("elsewhere", json!({ "api_url": portal.url }))).await;
    refused(&place.check(&elsewhere).await, "no Kubernetes API server");
    // The token doesn't follow a redirect.
    let thief = Stub::start(|_| Reply::Status(200)).await;
    let target = thief.url.clone();
    let redirecting = Stub::start(move |_| Reply::Redirect(target.clone())).await;
    let redirected = place.gateway(cluster.body("redirected", json!({ "api_url": redirecting.url }))).await;
    refused(&place.check(&redirected).await, "redirect");
    assert!(thief.seen().is_empty());
    let bad = cluster.body("bad", json!({ "namespace": "../kube-system" }));
    place.tenant.owner.post("/api/v1/gateways", bad).await.fault("/config/namespace");
}

const SIGNING_KEY: &str = "whsec_c2lnbmluZy1rZXktdGhhdC1tdXN0LW5vdC1sZWFr";

fn webhook(receiver: &Stub, config: Value) -> Value {
    let mut all = json!({ "url": format!("{}/hooks", receiver.url) });
    all.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
    json!({
        "name": "hooks", "plugin": "webhook", "config": all, "secrets": { "signing-key": SIGNING_KEY },
        "environment": "staging",
    })
}

/// As Standard Webhooks has it (HMAC-SHA256 over `ID.TIMESTAMP.BODY`, the key being base64 after `whsec_`).
fn standard_signature(seen: &Seen) -> String {
    let header = |name: &str| seen.headers[name].to_str().expect("text").to_owned();
    let key = STANDARD.decode(SIGNING_KEY.trim_start_matches("whsec_")).expect("base64");
    let signed =
        [header("webhook-id").as_bytes(), b".", header("webhook-timestamp").as_bytes(), b".", &seen.raw].concat();
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(&key);
    let pad = |with: u8| block.iter().map(|byte| byte ^ with).collect::<Vec<_>>();
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(signed).finalize();
    let mac = Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize();
    format!("v1,{}", STANDARD.encode(mac))
}

fn actions(receiver: &Stub, action: &str) -> Vec<Seen> {
    receiver.seen().into_iter().filter(|seen| seen.headers["kaizen-action"] == action).collect()
}

async fn a_webhook_gets_its_own_json_signed(backend: Backend) {
    // A name that would break out of a template made of text.
    let place = Place::on(backend, r#"x", "admin": "{{workflow}}{{secret:signing-key}}"#).await;
    let receiver = Stub::start(|seen| match seen.headers["kaizen-action"].to_str().expect("text") {
        "deploy" => Reply::Json(202, json!({ "id": 17, "endpoint": "https://agents.example.com/17" })),
        _ => Reply::Status(204),
    })
    .await;
    let template = json!({
        "event_type": "deploy-{{environment}}",
        "client_payload": { "what": "{{agent_name}} v{{version}}", "version": "{{version}}", "workflow": "{{workflow}}",
            "id": "{{registration_id}}", "action": "{{action}}" },
    });
    let gateway = place.gateway(webhook(&receiver, json!({ "template": template }))).await;
    place.check(&gateway).await.ok(200);
    receiver.next([
        Reply::TooMany(1),
        Reply::Cut,
        Reply::Json(202, json!({ "status": "pending", "message": "2 of 3 regions" })),
    ]);
    let deployment = place.deploy(&gateway).await;
    let done = place.until(&deployment, "active").await;
    assert_eq!((&done["registration_id"], &done["endpoint"]), (&json!("17"), &json!("https://agents.example.com/17")));
    let deploys = actions(&receiver, "deploy");
    assert_eq!(deploys.len(), 4);
    for seen in &deploys {
        assert_eq!(seen.headers["webhook-id"], deploys[0].headers["webhook-id"], "every attempt has the same id");
        assert_eq!(seen.headers["webhook-signature"], standard_signature(seen).as_str());
        assert_eq!(seen.raw, deploys[0].raw);
    }
    let body = &deploys[0].body;
    assert_eq!(body["event_type"], "deploy-staging");
    let payload = &body["client_payload"];
    assert_eq!(payload["what"], r#"x", "admin": "{{workflow}}{{secret:signing-key}} v1"#);
    assert_eq!((&payload["version"], &payload["workflow"]), (&json!(1), &place.workflow().await));
    assert_eq!((&payload["id"], payload.get("admin")), (&Value::Null, None));
    place.stop(&deployment).await;
    let undeployed = actions(&receiver, "undeploy");
    assert_eq!(undeployed[0].body["client_payload"]["id"], "17");
    let shown = format!("{}{:?}", place.world.server.log(), receiver.seen());
    assert!(!shown.contains("must-not-leak") && !shown.contains(SIGNING_KEY), "the key is shown");
}

#[tokio::test]
async fn what_a_webhook_refuses_is_told_and_not_tried_again() {
    let place = Place::start("helper").await;
    let receiver = Stub::start(|_| Reply::Json(422, json!({ "message": "no such region" }))).await;
    let gateway = place.gateway(webhook(&receiver, json!({}))).await;
    let failed = place.until(&place.deploy(&gateway).await, "failed").await;
    assert!(failed["error"].as_str().is_some_and(|why| why.contains("no such region")), "{failed}");
    assert_eq!(receiver.seen().len(), 1);
    let misspelt = place
        .gateway({
            let mut body = webhook(&receiver, json!({ "template": { "a": "{{agentname}}" } }));
            body["name"] = "misspelt".into();
            body
        })
        .await;
    refused(&place.check(&misspelt).await, "agentname");
    assert_eq!(receiver.seen().len(), 1, "nothing was sent");
}
