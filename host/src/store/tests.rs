//! Sweeps: each runs until it is done, however much there is, in transactions of a bounded size.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::*;
use crate::{
    clock::Clock,
    domain::{deployment::DeploymentState, job::JobKind},
    jobs::fixture::{Fixture, Tenant},
    on,
};

/// More than two transactions remove.
const OLD: i64 = 2 * SWEEP_BATCH + 7;
/// Rows that are not old yet.
const NEW: i64 = 3;

type Remove = for<'a> fn(&'a mut Tx, DateTime<Utc>, i64) -> BoxFuture<'a, Result<u64, StoreError>>;

/// Runs a sweep, which is to remove [`OLD`] rows and leave as many as `left` in its table.
async fn sweeps(fixture: &Fixture, before: DateTime<Utc>, remove: Remove, (table, left): (&str, i64)) {
    let mut removed = Vec::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let running = CancellationToken::new();
    let sweep = fixture.store.sweep(&running, |tx, most| {
        let tell = tell.clone();
        Box::pin(async move {
            let removed = remove(tx, before, most).await?;
            tell.send(removed).unwrap();
            Ok(removed)
        })
    });
    assert_eq!(i64::try_from(sweep.await.unwrap()).unwrap(), OLD, "{table}");
    while let Ok(count) = told.try_recv() {
        removed.push(i64::try_from(count).unwrap());
    }
    assert_eq!(removed, [SWEEP_BATCH, SWEEP_BATCH, 7], "{table}");
    let sql = format!("SELECT COUNT(*) FROM {table}");
    let mut conn = fixture.store.read().await.unwrap();
    let found: i64 = on!(&mut conn, |c| sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(c).await).unwrap();
    assert_eq!(found, left, "{table}");
    drop(conn);
    let stopped = CancellationToken::new();
    stopped.cancel();
    let sweep = fixture.store.sweep(&stopped, |_, _| Box::pin(async { Err(StoreError::Stale) }));
    assert_eq!(sweep.await.unwrap(), 0);
}

/// [`OLD`] times, each with the time, and then [`NEW`] times.
fn times(now: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
    (0..OLD).map(move |_| now - TimeDelta::days(1)).chain((0..NEW).map(move |_| now + TimeDelta::days(1)))
}

async fn idempotency_keys(fixture: &Fixture, tenant: &Tenant, now: DateTime<Utc>) {
    let mut tx = fixture.store.begin().await.unwrap();
    for (n, at) in times(now).enumerate() {
        let (user, key) = (Uuid::nil().into(), n.to_string());
        idempotency::claim(&mut tx, tenant.organization, user, &key, "", at).await.unwrap();
    }
    tx.commit().await.unwrap();
    let forget: Remove = |tx, before, most| Box::pin(idempotency::forget(tx, before, most));
    sweeps(fixture, now, forget, ("idempotency_keys", NEW)).await;
}

async fn events_of_deployments(fixture: &Fixture, tenant: &Tenant, now: DateTime<Utc>) {
    let (over, _) = fixture.deployment(tenant, DeploymentState::Active, JobKind::Deploy).await;
    let mut tx = fixture.store.begin().await.unwrap();
    // The first and the last one are among them.
    let sql = "INSERT INTO deployment_events (organization_id, deployment_id, sequence, kind, occurred_at, status)
               VALUES ($1, $2, $3, 'progress', $4, 'running')";
    for sequence in 2..=OLD + 1 {
        on!(&mut tx, |c| sqlx::query(sql)
            .bind(tenant.organization)
            .bind(over.id)
            .bind(sequence)
            .bind(now)
            .execute(c)
            .await
            .map(drop))
        .unwrap();
    }
    let sql = "UPDATE deployments SET events = $2, finished_at = $3 WHERE id = $1";
    let ended = now - TimeDelta::days(1);
    on!(&mut tx, |c| sqlx::query(sql).bind(over.id).bind(OLD + 1).bind(ended).execute(c).await.map(drop)).unwrap();
    tx.commit().await.unwrap();
    fixture.deployment(tenant, DeploymentState::Active, JobKind::Deploy).await;
    let prune: Remove = |tx, before, most| Box::pin(deployments::prune_events(tx, before, most));
    // The last one of each stays.
    sweeps(fixture, now, prune, ("deployment_events", 2)).await;
}

async fn deployments_that_were_never_active(fixture: &Fixture, tenant: &Tenant, now: DateTime<Utc>) {
    let mut tx = fixture.store.begin().await.unwrap();
    for sql in ["DELETE FROM deployments", "DELETE FROM jobs"] {
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
    }
    tx.commit().await.unwrap();
    // One that was active once, one whose job is at it, and one that is on its way: all three stay.
    let (stopped, _) = fixture.deployment(tenant, DeploymentState::Stopped, JobKind::Undeploy).await;
    fixture.deployment(tenant, DeploymentState::Cancelled, JobKind::Undeploy).await;
    let mut tx = fixture.store.begin().await.unwrap();
    let sql = "UPDATE deployments SET finished_at = $1, activated_at = CASE WHEN id = $2 THEN $1 END";
    let ended = now - TimeDelta::days(1);
    on!(&mut tx, |c| sqlx::query(sql).bind(ended).bind(stopped.id).execute(c).await.map(drop)).unwrap();
    let sql = "DELETE FROM jobs WHERE id = $1";
    on!(&mut tx, |c| sqlx::query(sql).bind(stopped.job_id).execute(c).await.map(drop)).unwrap();
    tx.commit().await.unwrap();
    fixture.deployment(tenant, DeploymentState::Running, JobKind::Deploy).await;
    let mut tx = fixture.store.begin().await.unwrap();
    let sql = "INSERT INTO deployments (id, organization_id, agent_id, version_id, version, gateway_id, environment, status, job_id,
                                        created_by, created_at, updated_at, finished_at)
               SELECT $2, organization_id, agent_id, version_id, version, gateway_id, environment, 'failed', $2,
                      created_by, created_at, updated_at, $3 FROM deployments WHERE id = $1";
    for at in times(now) {
        let id: Uuid = Clock::system().id();
        on!(&mut tx, |c| sqlx::query(sql).bind(stopped.id).bind(id).bind(at).execute(c).await.map(drop)).unwrap();
    }
    tx.commit().await.unwrap();
    let prune: Remove = |tx, before, most| Box::pin(deployments::prune(tx, before, most));
    sweeps(fixture, now, prune, ("deployments", NEW + 3)).await;
}

async fn ended_jobs(fixture: &Fixture, tenant: &Tenant, now: DateTime<Utc>) {
    let mut tx = fixture.store.begin().await.unwrap();
    on!(&mut tx, |c| sqlx::query("DELETE FROM jobs").execute(c).await.map(drop)).unwrap();
    let sql = "INSERT INTO jobs (id, organization_id, kind, payload, subject_id, state, run_at, max_attempts, created_at, updated_at,
                                 finished_at)
               VALUES ($1, $2, 'deployment.deploy', '{}', $1, 'succeeded', $3, 1, $3, $3, $3)";
    for at in times(now) {
        let id: Uuid = Clock::system().id();
        on!(&mut tx, |c| sqlx::query(sql).bind(id).bind(tenant.organization).bind(at).execute(c).await.map(drop))
            .unwrap();
    }
    tx.commit().await.unwrap();
    let prune: Remove = |tx, before, most| Box::pin(jobs::prune(tx, before, most));
    sweeps(fixture, now, prune, ("jobs", NEW)).await;
}

async fn ended_sessions(fixture: &Fixture, tenant: &Tenant, now: DateTime<Utc>) {
    let mut tx = fixture.store.begin().await.unwrap();
    for at in times(now) {
        let id: Uuid = Clock::system().id();
        let session = sessions::NewSession {
            id: id.into(),
            organization_id: tenant.organization,
            user_id: tenant.user,
            method: "password",
            cookie_hash: id.as_bytes(),
            refresh_family: id.as_bytes(),
            user_agent: "",
            created_at: now,
            expires_at: at,
        };
        sessions::insert(&mut tx, &session).await.unwrap();
        let whose = (tenant.organization, id.into());
        sessions::insert_refresh(&mut tx, id.as_bytes(), whose, now, at).await.unwrap();
    }
    tx.commit().await.unwrap();
    let sweep: Remove = |tx, before, most| Box::pin(sessions::sweep(tx, before, most));
    sweeps(fixture, now, sweep, ("sessions", NEW)).await;
    let mut conn = fixture.store.read().await.unwrap();
    let sql = "SELECT COUNT(*) FROM refresh_tokens";
    let left: i64 = on!(&mut conn, |c| sqlx::query_scalar(sql).fetch_one(c).await).unwrap();
    assert_eq!(left, NEW);
}

#[tokio::test]
async fn a_sweep_removes_all_that_is_old_a_part_at_a_time() {
    for fixture in Fixture::each().await {
        let (tenant, now) = (fixture.tenant().await, Clock::system().now());
        idempotency_keys(&fixture, &tenant, now).await;
        events_of_deployments(&fixture, &tenant, now).await;
        deployments_that_were_never_active(&fixture, &tenant, now).await;
        ended_jobs(&fixture, &tenant, now).await;
        ended_sessions(&fixture, &tenant, now).await;
    }
}
