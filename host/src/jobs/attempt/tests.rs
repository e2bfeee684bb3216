use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use chrono::TimeDelta;

use super::*;
use crate::{
    domain::deployment::DeploymentState,
    jobs::{
        fixture::{Fixture, Tenant, eventually},
        start,
    },
    plugins::Registration,
    store::deployments::Change,
};

#[test]
fn the_document_says_how_long_an_error_is() {
    let schema = serde_json::to_value(<Job as utoipa::PartialSchema>::schema()).unwrap();
    assert_eq!(schema["properties"]["last_error"]["maxLength"], serde_json::json!(ERROR_LENGTH));
}

/// A deployment that a worker has begun.
async fn begun(fixture: &Fixture, app: &App) -> (Tenant, crate::domain::deployment::Deployment, Job) {
    let tenant = fixture.tenant().await;
    let (mut deployment, _) = fixture.deployment(&tenant, DeploymentState::Queued, JobKind::Deploy).await;
    let now = app.clock.now();
    let mut tx = fixture.store.begin().await.unwrap();
    let claimed = store::jobs::claim(&mut tx, "w", now, now + app.config.limits.job_lease(), 8).await.unwrap().unwrap();
    store::deployments::advance(&mut tx, &mut deployment, DeploymentState::Running, Change::default(), now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    (tenant, deployment, claimed.job)
}

async fn cancel(fixture: &Fixture, app: &App, deployment: &crate::domain::deployment::Deployment) {
    let now = app.clock.now();
    let mut tx = fixture.store.begin().await.unwrap();
    store::jobs::cancel(&mut tx, deployment.organization_id, deployment.job_id, now).await.unwrap().unwrap();
    let mut locked =
        store::deployments::lock(&mut tx, deployment.organization_id, deployment.id).await.unwrap().unwrap();
    store::deployments::advance(&mut tx, &mut locked, DeploymentState::Cancelled, Change::default(), now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_the_work_takes() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (_, _, job) = begun(&fixture, &app).await;
    let work = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok(())
    };
    let thief = async {
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let due = store::jobs::due(&mut fixture.store.read().await.unwrap(), app.clock.now(), 8).await.unwrap();
            assert!(!due, "the lease was let end");
        }
    };
    let (done, ()) = tokio::join!(guarded(&app, &job, work), thief);
    assert!(done.is_ok());
}

#[tokio::test]
async fn work_ends_soon_after_its_lease_is_somebody_else_s() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (_, _, job) = begun(&fixture, &app).await;
    let mut tx = fixture.store.begin().await.unwrap();
    store::jobs::release(&mut tx, "w", app.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    let finished = Arc::new(AtomicBool::new(false));
    let work = {
        let finished = finished.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            finished.store(true, Ordering::SeqCst);
            Ok(())
        }
    };
    let begun = Instant::now();
    let result = guarded(&app, &job, work).await;
    assert!(matches!(result, Err(Failure::Lost)));
    assert!(begun.elapsed() < Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!finished.load(Ordering::SeqCst));
}

#[tokio::test]
async fn work_ends_before_another_host_may_take_it_where_the_database_is_silent() {
    for fixture in Fixture::each().await {
        let app = fixture.app().await;
        let (_, _, job) = begun(&fixture, &app).await;
        // Every renewal waits for this transaction.
        let mut silent = fixture.store.begin().await.unwrap();
        store::jobs::hold(&mut silent, &job, app.clock.now()).await.unwrap();
        let (working, dropped) = tokio::sync::oneshot::channel::<()>();
        let clock = app.clock.clone();
        let ended = tokio::spawn(async move {
            dropped.await.unwrap_err();
            clock.now()
        });
        let work = async move {
            let _working = working;
            std::future::pending::<Result<(), Failure>>().await
        };
        assert!(matches!(guarded(&app, &job, work).await, Err(Failure::Lost)));
        let (ended, until) = (ended.await.unwrap(), job.lease_until.unwrap());
        assert!(ended < until, "it ended at {ended}, its lease at {until}");
        silent.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt_and_says_nothing_of_the_inside() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    let result: Result<(), Failure> = guarded(&app, &job, async { panic!("secret inside") }).await;
    let failure = result.unwrap_err();
    assert!(matches!(&failure, Failure::Retry { message, .. } if !message.contains("secret")));
    assert_eq!(settle(&app, &job, failure).await, "retried");
    let waiting = fixture.job(&tenant, job.id).await;
    assert_eq!((waiting.state, waiting.attempts, waiting.lease_until), (JobState::Queued, 1, None));
    assert!(waiting.run_at > app.clock.now());
    assert_eq!(fixture.seen(&deployment).await.status, DeploymentState::Running);
}

#[tokio::test]
async fn the_far_side_says_how_long_to_wait() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    let failure =
        Failure::Retry { message: "busy".to_owned(), after: Some(Duration::from_secs(600)), uncertain: false };
    assert_eq!(settle(&app, &job, failure).await, "retried");
    let wait = fixture.job(&tenant, job.id).await.run_at - app.clock.now();
    assert!(wait > TimeDelta::seconds(590) && wait < TimeDelta::seconds(670), "{wait}");
    let seen = fixture.seen(&deployment).await;
    assert_eq!(seen.error.as_deref(), Some("busy"));
    assert!(seen.progress.message.unwrap().contains("Attempt 1 of 5 failed: busy"));
}

#[tokio::test]
async fn what_did_not_begin_is_no_attempt() {
    for fixture in Fixture::each().await {
        let app = fixture.app().await;
        let (tenant, deployment, mut job) = begun(&fixture, &app).await;
        // Also where no attempt would be left.
        job.attempts = job.max_attempts;
        let suspended = "calls are suspended".to_owned();
        let failure = Failure::from(PluginError::Postponed { message: suspended, after: Duration::from_secs(100) });
        assert_eq!(settle(&app, &job, failure).await, "postponed");
        let waiting = fixture.job(&tenant, job.id).await;
        assert_eq!((waiting.state, waiting.attempts, waiting.uncertain), (JobState::Queued, 0, false));
        let wait = waiting.run_at - app.clock.now();
        assert!(wait > TimeDelta::seconds(90) && wait < TimeDelta::seconds(115), "{wait}");
        let seen = fixture.seen(&deployment).await;
        assert_eq!(seen.status, DeploymentState::Running);
        assert!(seen.progress.message.unwrap().starts_with("Waiting: calls are suspended"));
    }
}

#[tokio::test]
async fn what_is_postponed_again_and_again_is_told_once_for_each_reason() {
    for fixture in Fixture::each().await {
        let app = fixture.app().await;
        let (tenant, deployment, mut job) = begun(&fixture, &app).await;
        let mut told = Vec::new();
        for reason in ["busy", "busy", "busy", "suspended", "suspended", "busy"] {
            let failure = Failure::Postponed { message: reason.to_owned(), after: Duration::from_secs(1) };
            assert_eq!(settle(&app, &job, failure).await, "postponed");
            let mut tx = fixture.store.begin().await.unwrap();
            let at = app.clock.now() + TimeDelta::hours(1);
            job = store::jobs::claim(&mut tx, "w", at, at, 8).await.unwrap().unwrap().job;
            let (organization, id) = (tenant.organization, deployment.id);
            told = store::deployments::events(&mut tx, organization, id, 0, 100).await.unwrap();
            tx.commit().await.unwrap();
            assert!(fixture.seen(&deployment).await.progress.message.unwrap().contains(reason));
        }
        let told: Vec<String> = told.into_iter().filter_map(|event| event.message).collect();
        let told: Vec<&str> = told.iter().filter_map(|text| text.split(';').next()).collect();
        assert_eq!(told, ["Waiting: busy", "Waiting: suspended", "Waiting: busy"]);
    }
}

#[tokio::test]
async fn what_cannot_work_fails_at_once_and_is_told_in_the_trail() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    let failure = Failure::from(PluginError::Rejected("no such model".to_owned()));
    assert_eq!(settle(&app, &job, failure).await, "failed");
    let seen = fixture.seen(&deployment).await;
    assert_eq!(seen.status, DeploymentState::Failed);
    assert!(seen.error.unwrap().contains("no such model") && seen.finished_at.is_some());
    assert_eq!(fixture.job(&tenant, job.id).await.state, JobState::Failed);
    assert_eq!(fixture.trail(&tenant).await, [("deployment.failed".to_owned(), "failure".to_owned())]);
    // What comes late is not written any more.
    assert_eq!(settle(&app, &job, Failure::Fatal("late".to_owned())).await, "lost");
    assert_eq!(fixture.trail(&tenant).await.len(), 1);
}

#[tokio::test]
async fn the_last_attempt_is_not_repeated() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (_, deployment, mut job) = begun(&fixture, &app).await;
    job.attempts = job.max_attempts;
    let failure = Failure::Retry { message: "away".to_owned(), after: None, uncertain: true };
    assert_eq!(settle(&app, &job, failure).await, "failed");
    assert_eq!(fixture.seen(&deployment).await.status, DeploymentState::Failed);
}

#[tokio::test]
async fn a_registration_makes_it_active_with_its_audit_event() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    let registration = Registration { id: "r-1".to_owned(), endpoint: Some("http://g/r-1".to_owned()) };
    assert_eq!(deploy::finish(&app, &job, registration).await.unwrap(), JobState::Succeeded);
    let seen = fixture.seen(&deployment).await;
    assert_eq!((seen.status, seen.registration_id.as_deref()), (DeploymentState::Active, Some("r-1")));
    assert_eq!((seen.endpoint.as_deref(), seen.progress.percent), (Some("http://g/r-1"), Some(100)));
    assert_eq!(fixture.trail(&tenant).await, [("deployment.active".to_owned(), "success".to_owned())]);
    let mut conn = fixture.store.read().await.unwrap();
    let events = store::deployments::events(&mut conn, tenant.organization, deployment.id, 0, 10).await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (event.sequence, event.status)).collect();
    assert_eq!(told, [(1, DeploymentState::Queued), (2, DeploymentState::Running), (3, DeploymentState::Active)]);
}

#[tokio::test]
async fn cancelling_wins_over_a_late_registration_which_is_removed_again() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    cancel(&fixture, &app, &deployment).await;
    assert!(fixture.job(&tenant, job.id).await.cancel_requested);
    let registration = Registration { id: "late".to_owned(), endpoint: None };
    assert_eq!(deploy::finish(&app, &job, registration).await.unwrap(), JobState::Cancelled);
    let seen = fixture.seen(&deployment).await;
    assert_eq!((seen.status, seen.registration_id.as_deref()), (DeploymentState::Cancelled, Some("late")));
    let cleanup = fixture.job(&tenant, seen.job_id).await;
    assert_eq!((cleanup.kind, cleanup.state), (JobKind::Undeploy, JobState::Queued));
    assert_eq!(cleanup.payload.deployment_id, deployment.id);
}

#[tokio::test]
async fn what_was_cancelled_before_it_began_never_reaches_the_gateway() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let tenant = fixture.tenant().await;
    let (deployment, id) = fixture.deployment(&tenant, DeploymentState::Queued, JobKind::Deploy).await;
    cancel(&fixture, &app, &deployment).await;
    assert_eq!(fixture.job(&tenant, id).await.state, JobState::Cancelled);
    assert!(!store::jobs::due(&mut fixture.store.read().await.unwrap(), app.clock.now(), 8).await.unwrap());
}

#[tokio::test]
async fn a_stalled_attempt_cannot_finish_over_its_successor() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (_, deployment, stalled) = begun(&fixture, &app).await;
    let later = app.clock.now() + TimeDelta::seconds(5);
    let mut tx = fixture.store.begin().await.unwrap();
    let successor =
        store::jobs::claim(&mut tx, "other", later, later + TimeDelta::seconds(30), 8).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert_eq!((successor.job.id, successor.job.attempts), (stalled.id, 2));
    let registration = || Registration { id: "r".to_owned(), endpoint: None };
    assert!(matches!(deploy::finish(&app, &stalled, registration()).await, Err(StoreError::Stale)));
    assert_eq!(settle(&app, &stalled, Failure::Fatal("late".to_owned())).await, "lost");
    assert_eq!(fixture.seen(&deployment).await.status, DeploymentState::Running);
    assert_eq!(deploy::finish(&app, &successor.job, registration()).await.unwrap(), JobState::Succeeded);
    assert_eq!(fixture.seen(&deployment).await.status, DeploymentState::Active);
}

#[tokio::test]
async fn workers_pick_jobs_up_run_them_and_stop_when_asked() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let tenant = fixture.tenant().await;
    start(&app);
    let (deployment, id) = fixture.deployment(&tenant, DeploymentState::Queued, JobKind::Deploy).await;
    app.bus.publish(Hint::Job);
    eventually("the job is run", || async { fixture.job(&tenant, id).await.state.over() }).await;
    let seen = fixture.seen(&deployment).await;
    assert_eq!(seen.status, DeploymentState::Failed);
    assert!(seen.error.unwrap().contains("switched off"));
    app.stopping.cancel();
    app.tasks.close();
    tokio::time::timeout(Duration::from_secs(5), app.tasks.wait()).await.expect("stops soon");
}

#[tokio::test]
async fn a_job_of_a_host_that_died_is_taken_over_when_its_lease_ends() {
    let fixture = Fixture::sqlite().await;
    let app = fixture.app().await;
    let (tenant, deployment, job) = begun(&fixture, &app).await;
    start(&app);
    // Nobody renews: the fixture's lease is a second.
    eventually("the job is taken over", || async { fixture.job(&tenant, job.id).await.state.over() }).await;
    let over = fixture.job(&tenant, job.id).await;
    assert_eq!((over.attempts, over.fence), (2, 2));
    assert_eq!(fixture.seen(&deployment).await.status, DeploymentState::Failed);
    app.stopping.cancel();
    app.tasks.close();
    app.tasks.wait().await;
}
