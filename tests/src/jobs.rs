//! Jobs outlive the worker that began them.

use serde_json::json;

use crate::{
    deployments::Shop,
    harness::{Backend, Client, Reply, Setup, World, eventually},
};

on_both!(a_job_is_taken_over_when_its_worker_is_killed, a_job_that_was_asked_for_is_never_lost);

async fn short_lease(backend: Backend) -> Setup {
    Setup::new(backend).await.with("KAIZEN_JOB_LEASE_SECONDS", "2")
}

async fn a_job_is_taken_over_when_its_worker_is_killed(backend: Backend) {
    let mut shop = Shop::on(World::with(short_lease(backend).await).await).await;
    shop.gateway.stub.next([Reply::Hold]);
    let deployment = shop.deploy().await;
    // The gateway has the request, and the worker dies before it hears the answer.
    shop.gateway.stub.held(1).await;
    shop.world.server.kill().await;
    shop.gateway.stub.release();
    shop.world.again().await;
    shop.tenant.owner.client = shop.tenant.owner.at(&shop.world.server.url);
    let done = shop.until(&deployment, "active").await;
    assert_eq!(shop.gateway.registrations().len(), 2);
    assert_eq!(shop.gateway.agents().len(), 1, "deployed once, though tried twice");
    let job =
        shop.tenant.owner.get(&format!("/api/v1/jobs/{}", done["job_id"].as_str().expect("job_id"))).await.ok(200);
    assert_eq!((&job["state"], &job["attempts"]), (&json!("succeeded"), &json!(2)), "{job}");
    let verified = shop.tenant.owner.get("/api/v1/audit/verify").await.ok(200);
    assert_eq!(verified["valid"], true, "{verified}");
}

async fn a_job_that_was_asked_for_is_never_lost(backend: Backend) {
    let mut shop = Shop::on(World::with(short_lease(backend).await).await).await;
    let mut asked = Vec::new();
    for _ in 0..3 {
        // Killed at once after the 202.
        asked.push(shop.deploy().await);
        shop.world.server.kill().await;
        shop.world.again().await;
        shop.tenant.owner.client = shop.tenant.owner.at(&shop.world.server.url);
    }
    for deployment in &asked {
        shop.until(deployment, "active").await;
    }
    assert_eq!(shop.gateway.agents().len(), 3);
}

/// A host that only answers requests leaves the jobs to those that work; a worker that dies is replaced by another.
#[tokio::test]
async fn workers_of_several_hosts_share_the_jobs() {
    let setup = std::sync::Arc::new(short_lease(Backend::Postgres).await);
    let api = setup.start_with(&["--role", "api"]).await;
    let shop = Shop::on(World { server: api, setup: setup.clone() }).await;
    shop.gateway.stub.next([Reply::Hold]);
    let deployment = shop.deploy().await;
    let metrics = Client::new(&shop.world.server.ops).get("/metrics").await;
    assert_eq!(metrics.status, 200);

    let mut first = setup.start_with(&["--role", "worker", "--listen", "127.0.0.1:0"]).await;
    shop.gateway.stub.held(1).await;
    let second = setup.start_with(&["--role", "worker", "--listen", "127.0.0.1:0"]).await;
    first.kill().await;
    shop.gateway.stub.release();
    shop.until(&deployment, "active").await;
    assert_eq!(shop.gateway.agents().len(), 1);
    drop(second);
}

#[tokio::test]
async fn a_stopping_worker_finishes_what_it_holds() {
    let mut shop = Shop::start(Backend::Sqlite).await;
    shop.gateway.stub.next([Reply::Hold]);
    let deployment = shop.deploy().await;
    shop.gateway.stub.held(1).await;
    shop.world.server.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("the server takes no requests any more", || async {
        let answer = shop.tenant.owner.http.get(format!("{}/api/v1/auth/me", shop.tenant.owner.base)).send().await;
        answer.is_err().then_some(())
    })
    .await;
    shop.gateway.stub.release();
    assert_eq!(shop.world.server.stop_status().await.code(), Some(0));
    shop.world.again().await;
    shop.tenant.owner.client = shop.tenant.owner.at(&shop.world.server.url);
    shop.until(&deployment, "active").await;
    assert_eq!(shop.gateway.registrations().len(), 1, "the first attempt was the only one");
}
