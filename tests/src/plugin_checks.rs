//! What somebody is told who checks a connection whose far side does not answer as it should.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::JoinHandle};

use crate::{
    deployments::Shop,
    harness::{Backend, Client, Reply, Setup, Stub, World, eventually, id},
};

fn webhook(name: &str, url: &str) -> Value {
    json!({
        "name": name, "plugin": "webhook", "config": { "url": url }, "secrets": { "signing-key": "0123456789abcdef" },
        "active": false,
    })
}

/// Makes a sink; returns the path of its check.
async fn checked(owner: &Client, body: Value) -> String {
    format!("/api/v1/audit-sinks/{}/check", id(&owner.create("/api/v1/audit-sinks", body).await))
}

/// A check ends before the request does, so that what is told is why, and not that the API took too long; and it counts as a
/// failure.
#[tokio::test]
async fn a_check_that_hangs_is_told_of_and_counts() {
    let setup = Setup::new(Backend::Sqlite).await.with("KAIZEN_PLUGIN_CHECK_SECONDS", "1");
    let world = World::with(setup.with("KAIZEN_PLUGIN_TRIP_FAILURES", "1")).await;
    let tenant = world.tenant("acme").await;
    let far = Stub::start(|_| Reply::Status(204)).await;
    let check = checked(&tenant.owner, webhook("siem", &far.url)).await;
    far.next([Reply::Hold]);
    let problem = tenant.owner.post(&check, json!({})).await.problem(502, "upstream");
    let why = problem["detail"].as_str().expect("text");
    assert!(why.contains("did not answer in time"), "{why}");
    assert!(why.contains("calls are suspended until") && why.contains("after 1 failures in a row"), "{why}");
    assert_eq!(far.seen().len(), 1);
    tenant.owner.post(&check, json!({})).await.ok(200);
}

#[tokio::test]
async fn one_check_of_a_connection_at_a_time() {
    let world = World::start(Backend::Sqlite).await;
    let tenant = world.tenant("acme").await;
    let far = Stub::start(|_| Reply::Status(204)).await;
    let check = checked(&tenant.owner, webhook("siem", &far.url)).await;
    let other = checked(&tenant.owner, webhook("other", &far.url)).await;
    far.next([Reply::Hold]);
    let first = {
        let (owner, check) = (tenant.owner.client.clone(), check.clone());
        tokio::spawn(async move { owner.post(&check, json!({})).await })
    };
    far.held(1).await;
    let second = tenant.owner.post(&check, json!({})).await;
    assert_eq!(second.header("retry-after"), "1");
    let problem = second.problem(409, "conflict");
    assert!(problem["detail"].as_str().expect("text").contains("being checked already"), "{problem}");
    // Another connection's is its own matter.
    tenant.owner.post(&other, json!({})).await.ok(200);
    far.release();
    first.await.expect("an answer").ok(200);
    tenant.owner.post(&check, json!({})).await.ok(200);
}

/// Hangs up in the middle of every TLS handshake, as a load balancer does that is being restarted: with an end of the stream or
/// with a reset, in turn. Returns its port and how often that was done.
async fn cut_in_the_handshake() -> (u16, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (port, count) = (listener.local_addr().expect("bound").port(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // What was not read when it is closed makes a reset of it.
            let resets = counted.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            let mut hello = vec![0; if resets { 1 } else { 16 << 10 }];
            let read = stream.read(&mut hello).await;
            assert!(read.is_ok_and(|read| read > 0), "a client says hello");
        }
    });
    (port, count, task)
}

/// Nobody has to set anything right: it is no matter of the certificate.
#[tokio::test]
async fn a_handshake_that_is_cut_is_no_bad_certificate_and_a_deployment_goes_on_trying() {
    let mut shop = Shop::start(Backend::Sqlite).await;
    let owner = shop.tenant.owner.client.clone();
    let (port, cut, far) = cut_in_the_handshake().await;
    let mut body = shop.gateway.body("behind TLS");
    body["config"]["api_url"] = format!("https://127.0.0.1:{port}").into();
    let gateway = id(&owner.create("/api/v1/gateways", body).await);
    for how in ["an end", "a reset"] {
        let problem =
            owner.post(&format!("/api/v1/gateways/{gateway}/check"), json!({})).await.problem(502, "upstream");
        let why = problem["detail"].as_str().expect("text");
        assert!(why.contains("broke the connection off") && !why.contains("certificate"), "{how}: {why}");
    }
    let before = cut.load(Ordering::SeqCst);
    assert!(before >= 2, "both ways were met");
    shop.gateway_id = gateway;
    let deployment = shop.deploy().await;
    eventually("it is tried again", || async { (cut.load(Ordering::SeqCst) >= before + 2).then_some(()) }).await;
    let now = owner.get(&format!("/api/v1/deployments/{deployment}")).await.ok(200);
    assert!(["queued", "running"].contains(&now["status"].as_str().expect("text")), "{now}");
    far.abort();
}
