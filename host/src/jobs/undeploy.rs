//! Takes a deployment off its gateway: because somebody stops it, or because it was cancelled too late.

use super::{
    attempt::Failure,
    deploy::{gateway, hints, tell},
};
use crate::{
    app::App,
    bus::Hint,
    domain::{
        audit::Outcome,
        deployment::{Deployment, DeploymentState, Progress},
        job::{Job, JobState},
    },
    plugins::Attempt,
    store::{self, StoreError, deployments::Change},
};

/// One attempt.
pub(super) async fn run(app: &App, job: &Job) -> Result<JobState, Failure> {
    let mut conn = app.store.read().await?;
    let found = store::deployments::get(&mut conn, job.organization_id, job.payload.deployment_id).await?;
    let Some(deployment) = found else { return Err(Failure::Fatal("the deployment was removed".to_owned())) };
    if !matches!(deployment.status, DeploymentState::Stopping | DeploymentState::Cancelled) {
        return Err(Failure::Fatal(format!("the deployment is {}", deployment.status.as_str())));
    }
    if let Some(registration) = &deployment.registration_id {
        let binding = gateway(app, &mut conn, &deployment).await?;
        drop(conn);
        let attempt =
            Attempt { idempotency_key: job.id.to_string(), attempt: u32::try_from(job.attempts).unwrap_or(u32::MAX) };
        app.plugins.undeploy(&binding, &attempt, registration).await?;
    } else {
        drop(conn);
    }
    Ok(finish(app, job).await?)
}

/// The gateway no longer has it.
async fn finish(app: &App, job: &Job) -> Result<JobState, StoreError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    let found = store::deployments::lock(&mut tx, job.organization_id, job.payload.deployment_id).await?;
    let mut deployment: Deployment = found.ok_or(StoreError::Stale)?;
    store::jobs::finish(&mut tx, job, JobState::Succeeded, None, now).await?;
    if deployment.status == DeploymentState::Stopping {
        let progress = Progress { percent: Some(100), message: Some("Stopped".to_owned()) };
        let change = Change { progress: Some(progress), ..Change::default() };
        store::deployments::advance(&mut tx, &mut deployment, DeploymentState::Stopped, change, now).await?;
        tell(app, &mut tx, job, &deployment, "deployment.stopped", Outcome::Success).await?;
    } else {
        tell(app, &mut tx, job, &deployment, "deployment.cleaned_up", Outcome::Success).await?;
    }
    tx.commit().await?;
    hints(app, &deployment);
    Ok(JobState::Succeeded)
}

/// The gateway could not be made to remove it. The deployment stays as it is, with the error, until the job is retried.
pub(super) async fn give_up(app: &App, job: &Job, message: &str) -> Result<(), StoreError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    let found = store::deployments::lock(&mut tx, job.organization_id, job.payload.deployment_id).await?;
    store::jobs::finish(&mut tx, job, JobState::Failed, Some(message), now).await?;
    if let Some(mut deployment) = found {
        let told = format!("Not stopped: {message}; retry the job {} to try again", job.id);
        let progress = Progress { percent: None, message: Some(told) };
        store::deployments::progress(&mut tx, &deployment, &progress, Some(message), true, now).await?;
        deployment.error = Some(message.to_owned());
        let action =
            if deployment.status == DeploymentState::Stopping { "deployment.stopped" } else { "deployment.cleaned_up" };
        tell(app, &mut tx, job, &deployment, action, Outcome::Failure).await?;
    }
    tx.commit().await?;
    app.bus.publish(Hint::Audit { organization: job.organization_id });
    app.bus.publish(Hint::Deployment { deployment: job.payload.deployment_id });
    Ok(())
}
