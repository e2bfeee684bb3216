//! Brings a version of an agent to a gateway, through the gateway's plugin.
//!
//! Cancelling wins: a deployment that was cancelled while the gateway was asked stays cancelled, and what the gateway
//! registered is removed again by a job. Where the end of an earlier attempt is not known (`uncertain`: its worker died, it
//! ran into a limit, the connection broke, the gateway was not done yet), the gateway is asked once more, with the same
//! idempotency key, to learn the registration that is to be removed.

use std::time::Duration;

use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{attempt::Failure, enqueue};
use crate::{
    app::App,
    audit::{self, Record},
    bus::Hint,
    domain::{
        audit::Outcome,
        connection::Kind,
        deployment::{Deployment, DeploymentState, Progress},
        job::{Job, JobKind, JobState, Payload},
    },
    plugins::{self, Attempt, Binding, Registration, Release},
    store::{self, StoreError, Tx, deployments::Change},
};

/// At the most one event for the watchers in this time: what comes faster is folded together.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Progress events of one attempt at the most; from then on only the deployment itself shows how far it is.
const PROGRESS_EVENTS: usize = 200;
/// Reports of a plugin that wait to be folded together.
const PROGRESS_QUEUE: usize = 64;

/// One attempt.
pub(super) async fn run(app: &App, job: &Job) -> Result<JobState, Failure> {
    let deployment = match begin(app, job).await? {
        Begun::Deploy(deployment) => *deployment,
        Begun::Over(state) => return Ok(state),
    };
    let (binding, release) = prepare(app, &deployment).await?;
    let attempt = Attempt {
        idempotency_key: deployment.id.to_string(),
        attempt: u32::try_from(job.attempts).unwrap_or(u32::MAX),
    };
    let (sender, receiver) = mpsc::channel(PROGRESS_QUEUE);
    let (result, ()) =
        tokio::join!(app.plugins.deploy(&binding, &attempt, release, sender), report(app, job, &deployment, receiver));
    Ok(finish(app, job, result?).await?)
}

enum Begun {
    Deploy(Box<Deployment>),
    Over(JobState),
}

/// Marks the deployment as running, unless it was called off before anything could have reached the gateway.
async fn begin(app: &App, job: &Job) -> Result<Begun, Failure> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    let found = store::deployments::lock(&mut tx, job.organization_id, job.payload.deployment_id).await?;
    let Some(mut deployment) = found else { return Err(Failure::Fatal("the deployment was removed".to_owned())) };
    let over = match deployment.status {
        DeploymentState::Queued => {
            store::deployments::advance(&mut tx, &mut deployment, DeploymentState::Running, Change::default(), now)
                .await?;
            None
        }
        DeploymentState::Running => None,
        DeploymentState::Cancelled if job.uncertain => None,
        DeploymentState::Cancelled => Some(JobState::Cancelled),
        state => return Err(Failure::Fatal(format!("the deployment is {}", state.as_str()))),
    };
    if let Some(state) = over {
        store::jobs::finish(&mut tx, job, state, None, now).await?;
    }
    tx.commit().await?;
    app.bus.publish(Hint::Deployment { deployment: deployment.id });
    Ok(over.map_or(Begun::Deploy(Box::new(deployment)), Begun::Over))
}

async fn prepare(app: &App, deployment: &Deployment) -> Result<(Binding, Release), Failure> {
    let mut conn = app.store.read().await?;
    let organization = deployment.organization_id;
    let version = store::versions::get(&mut conn, organization, deployment.agent_id, Some(deployment.version)).await?;
    let (version, workflow) = version.ok_or_else(|| Failure::Fatal("the version was removed".to_owned()))?;
    let binding = gateway(app, &mut conn, deployment).await?;
    let release = Release {
        deployment_id: deployment.id.0,
        agent_id: deployment.agent_id.0,
        agent_name: deployment.agent_name.clone(),
        version: u32::try_from(version.number).unwrap_or(u32::MAX),
        environment: deployment.environment.clone(),
        workflow,
        digest: version.digest,
    };
    Ok((binding, release))
}

/// The gateway's plugin with its configuration and secrets, as they are now.
pub(super) async fn gateway(app: &App, conn: &mut store::Conn, deployment: &Deployment) -> Result<Binding, Failure> {
    let (organization, id) = (deployment.organization_id, deployment.gateway_id.0);
    let found = store::connections::get(conn, organization, Kind::DeploymentTarget, id).await?;
    let connection = found.ok_or_else(|| Failure::Fatal("the gateway was removed".to_owned()))?;
    if !connection.active {
        return Err(Failure::Fatal("the gateway is switched off (`active` is false)".to_owned()));
    }
    plugins::bind(&app.secrets, &connection).map_err(|error| Failure::Fatal(error.to_string()))
}

/// Writes down what the plugin reports, until it hangs up. Progress that cannot be written is only missed.
async fn report(app: &App, job: &Job, deployment: &Deployment, mut reports: mpsc::Receiver<plugins::Progress>) {
    let mut events = 0;
    let mut next = Instant::now();
    while let Some(mut latest) = reports.recv().await {
        // Take what comes until the next write is due; the last one says it all.
        let mut open = true;
        while open && let Ok(more) = tokio::time::timeout_at(next, reports.recv()).await {
            match more {
                Some(report) => latest = report,
                None => open = false,
            }
        }
        let progress =
            Progress { percent: latest.percent.map(|p| i64::from(p.min(100))), message: Some(latest.message) };
        events += 1;
        if let Err(error) = write(app, job, deployment, &progress, events <= PROGRESS_EVENTS).await {
            tracing::debug!(job = %job.id, %error, "progress was not written");
        }
        next = Instant::now() + PROGRESS_EVERY;
    }
}

async fn write(
    app: &App,
    job: &Job,
    deployment: &Deployment,
    progress: &Progress,
    event: bool,
) -> Result<(), StoreError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    store::deployments::progress(&mut tx, deployment, progress, None, event, now).await?;
    tx.commit().await?;
    app.bus.publish(Hint::Deployment { deployment: deployment.id });
    Ok(())
}

/// The gateway has it: active, or, where it was called off meanwhile, to be removed again.
pub(super) async fn finish(app: &App, job: &Job, registration: Registration) -> Result<JobState, StoreError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    let found = store::deployments::lock(&mut tx, job.organization_id, job.payload.deployment_id).await?;
    let mut deployment = found.ok_or(StoreError::Stale)?;
    let state = if deployment.status == DeploymentState::Cancelled {
        let payload = Payload { deployment_id: deployment.id };
        let cleanup = enqueue(&mut tx, &app.clock, job.organization_id, JobKind::Undeploy, payload).await?;
        store::deployments::set_cleanup(&mut tx, &deployment, &registration.id, cleanup, now).await?;
        store::jobs::finish(&mut tx, job, JobState::Cancelled, None, now).await?;
        JobState::Cancelled
    } else {
        let change = Change {
            registration_id: Some(registration.id),
            endpoint: registration.endpoint,
            progress: Some(Progress { percent: Some(100), message: Some("Active".to_owned()) }),
            ..Change::default()
        };
        store::deployments::advance(&mut tx, &mut deployment, DeploymentState::Active, change, now).await?;
        store::jobs::finish(&mut tx, job, JobState::Succeeded, None, now).await?;
        tell(app, &mut tx, job, &deployment, "deployment.active", Outcome::Success).await?;
        JobState::Succeeded
    };
    tx.commit().await?;
    hints(app, &deployment);
    Ok(state)
}

/// It did not work and is not tried again.
pub(super) async fn give_up(app: &App, job: &Job, message: &str) -> Result<(), StoreError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    store::jobs::hold(&mut tx, job, now).await?;
    let found = store::deployments::lock(&mut tx, job.organization_id, job.payload.deployment_id).await?;
    let cancelled = found.as_ref().is_some_and(|deployment| deployment.status == DeploymentState::Cancelled);
    let state = if cancelled { JobState::Cancelled } else { JobState::Failed };
    store::jobs::finish(&mut tx, job, state, Some(message), now).await?;
    if let Some(mut deployment) = found
        && deployment.status.may_become(DeploymentState::Failed)
    {
        let change = Change { error: Some(message.to_owned()), ..Change::default() };
        store::deployments::advance(&mut tx, &mut deployment, DeploymentState::Failed, change, now).await?;
        tell(app, &mut tx, job, &deployment, "deployment.failed", Outcome::Failure).await?;
    }
    tx.commit().await?;
    app.bus.publish(Hint::Audit { organization: job.organization_id });
    app.bus.publish(Hint::Deployment { deployment: job.payload.deployment_id });
    Ok(())
}

/// The audit event of a deployment's end.
pub(super) async fn tell(
    app: &App,
    tx: &mut Tx,
    job: &Job,
    deployment: &Deployment,
    action: &str,
    outcome: Outcome,
) -> Result<(), StoreError> {
    let record = Record {
        organization_id: deployment.organization_id,
        actor: "system".to_owned(),
        action,
        target: format!("deployment/{}", deployment.id),
        outcome,
        details: json!({
            "job_id": job.id,
            "attempt": job.attempts,
            "agent_id": deployment.agent_id,
            "version": deployment.version,
            "gateway_id": deployment.gateway_id,
            "environment": deployment.environment,
            "registration_id": deployment.registration_id,
            "endpoint": deployment.endpoint,
            "error": deployment.error,
        }),
    };
    audit::record(tx, &app.clock, record).await.map(drop)
}

/// Wakes whoever waits for a deployment's end.
pub(super) fn hints(app: &App, deployment: &Deployment) {
    app.bus.publish(Hint::Deployment { deployment: deployment.id });
    app.bus.publish(Hint::Audit { organization: deployment.organization_id });
    app.bus.publish(Hint::Job);
}
