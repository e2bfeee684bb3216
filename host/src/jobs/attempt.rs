//! One attempt at a job: its lease is renewed while it runs, and its end is written under its fence.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{deploy, undeploy};
use crate::{
    app::App,
    bus::Hint,
    domain::job::{Job, JobKind, JobState, backoff},
    lease::{Lease, Lost, while_held},
    plugins::PluginError,
    store::{self, StoreError, Tx, jobs::Claimed},
};

/// The longest pause between two attempts, unless the far side asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Characters of an error that are kept.
const ERROR_LENGTH: usize = 2000;

/// Why an attempt ended without its job being done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Worth another attempt.
    #[error("{message}")]
    Retry {
        /// What went wrong.
        message: String,
        /// How long the far side asks to wait.
        after: Option<Duration>,
        /// Whether the far side may have done something all the same.
        uncertain: bool,
    },
    /// It did not come to an attempt.
    #[error("{message}")]
    Postponed {
        /// What is in the way.
        message: String,
        /// When to come back.
        after: Duration,
    },
    /// Another attempt would end the same way.
    #[error("{0}")]
    Fatal(String),
    /// The job is no longer this worker's.
    #[error("the lease has ended, or another worker has the job")]
    Lost,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stale => Failure::Lost,
            error => Failure::Retry { message: format!("the database: {error}"), after: None, uncertain: true },
        }
    }
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Self {
        let message = error.to_string();
        match error {
            // Also who says when to come back may have begun: a cluster that still starts pods, a pipeline that is at it.
            PluginError::Unavailable { retry_after, .. } => {
                Failure::Retry { message, after: retry_after, uncertain: true }
            }
            PluginError::Postponed { after, .. } => Failure::Postponed { message, after },
            error if error.retryable() => Failure::Retry { message, after: None, uncertain: true },
            _ => Failure::Fatal(message),
        }
    }
}

/// Runs one attempt to its end, and writes down how it ended. Never fails: what cannot be written is taken over by another
/// worker when the lease ends.
pub(super) async fn attempt(app: App, claimed: Claimed) {
    let kind = claimed.job.kind.as_str();
    let begun = Instant::now();
    let job = claimed.job.clone();
    tracing::info!(job = %job.id, kind, attempt = job.attempts, "job begins");
    let work = {
        let app = app.clone();
        async move { work(&app, &claimed).await }
    };
    let outcome = match guarded(&app, &job, work).await {
        Ok(state) => state.as_str(),
        Err(failure) => settle(&app, &job, failure).await,
    };
    tracing::info!(job = %job.id, kind, attempt = job.attempts, outcome, "job ends");
    metrics::counter!("kaizen_jobs_total", "kind" => kind, "outcome" => outcome).increment(1);
    metrics::histogram!("kaizen_job_seconds", "kind" => kind).record(begun.elapsed().as_secs_f64());
}

async fn work(app: &App, claimed: &Claimed) -> Result<JobState, Failure> {
    let job = &claimed.job;
    if claimed.exhausted {
        return Err(Failure::Fatal(format!(
            "given up after {} attempts: the last worker did not come back",
            job.attempts
        )));
    }
    match job.kind {
        JobKind::Deploy => deploy::run(app, job).await,
        JobKind::Undeploy => undeploy::run(app, job).await,
    }
}

/// Runs `work` on a task of its own while its lease is held, and drops it where it is not any more.
async fn guarded<T: Send + 'static>(
    app: &App,
    job: &Job,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let length = app.config.limits.job_lease();
    let left = job.lease_until.and_then(|until| (until - app.clock.now()).to_std().ok()).unwrap_or_default();
    let lease = Lease { of: format!("job {}", job.id), length, until: Instant::now() + left };
    let renew = {
        let (app, job) = (app.clone(), job.clone());
        move || {
            let (app, job) = (app.clone(), job.clone());
            async move {
                let mut tx = app.store.begin().await?;
                store::jobs::renew(&mut tx, &job, app.clock.now() + length).await?;
                tx.commit().await
            }
        }
    };
    match AbortOnDropHandle::new(tokio::spawn(while_held(lease, renew, work))).await {
        Ok(Ok(result)) => result,
        Ok(Err(Lost)) => Err(Failure::Lost),
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
            tracing::error!(job = %job.id, panic = text, "a job panicked");
            let message = "a defect in the server; its log has more".to_owned();
            Err(Failure::Retry { message, after: None, uncertain: true })
        }
        Err(_) => Err(Failure::Lost),
    }
}

/// Writes down a failed attempt: put back for later, or given up. Returns the outcome for the metrics.
async fn settle(app: &App, job: &Job, failure: Failure) -> &'static str {
    let again = match &failure {
        Failure::Lost => return "lost",
        Failure::Retry { after, uncertain, .. } => {
            (job.attempts < job.max_attempts).then_some(Again { after: *after, uncertain: *uncertain, counts: true })
        }
        Failure::Postponed { after, .. } => Some(Again { after: Some(*after), uncertain: false, counts: false }),
        Failure::Fatal(_) => None,
    };
    let message: String = failure.to_string().chars().take(ERROR_LENGTH).collect();
    tracing::warn!(job = %job.id, attempt = job.attempts, error = message, retried = again.is_some(), "an attempt failed");
    for pause in [1, 2, 4, 0] {
        let written = match again {
            Some(again) => {
                put_back(app, job, &message, again).await.map(|()| if again.counts { "retried" } else { "postponed" })
            }
            None => give_up(app, job, &message).await.map(|()| "failed"),
        };
        match written {
            Ok(outcome) => return outcome,
            Err(StoreError::Stale) => return "lost",
            Err(error) => tracing::warn!(job = %job.id, %error, "could not write down how an attempt ended"),
        }
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
    "lost"
}

/// How a job is taken up again.
#[derive(Debug, Clone, Copy)]
struct Again {
    /// When, if somebody said so.
    after: Option<Duration>,
    /// The far side may have done something all the same.
    uncertain: bool,
    /// It was an attempt.
    counts: bool,
}

async fn put_back(app: &App, job: &Job, message: &str, again: Again) -> Result<(), StoreError> {
    let now = app.clock.now();
    let failures = u32::try_from(job.attempts).unwrap_or(u32::MAX);
    let pause = backoff(failures, again.after, LONGEST_PAUSE, u64::from_be_bytes(app.clock.bytes()));
    let mut tx = app.store.begin().await?;
    let held = store::jobs::hold(&mut tx, job, now).await?;
    // Who called it off does not wait for a pause that was meant for success.
    let run_at = if held.cancel_requested && !job.cancel_requested { now } else { now + pause };
    let attempt = again.counts.then_some(job.attempts);
    note(&mut tx, job, message, pause, attempt, now).await?;
    if !again.counts {
        store::jobs::uncount(&mut tx, job).await?;
    }
    store::jobs::later(&mut tx, job, run_at, message, again.uncertain, now).await?;
    tx.commit().await?;
    app.bus.publish(Hint::Deployment { deployment: job.payload.deployment_id });
    Ok(())
}

/// Tells the deployment's watchers why nothing seems to happen. What waits for a long time is put back each second, perhaps: then they
/// are told when it waits for something else.
async fn note(
    tx: &mut Tx,
    job: &Job,
    message: &str,
    pause: Duration,
    attempt: Option<i64>,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<(), StoreError> {
    let found = store::deployments::lock(tx, job.organization_id, job.payload.deployment_id).await?;
    let Some(deployment) = found else { return Ok(()) };
    let seconds = pause.as_secs_f64();
    let told = match attempt {
        Some(attempt) => {
            format!("Attempt {attempt} of {} failed: {message}; the next in {seconds:.1} s", job.max_attempts)
        }
        None => format!("Waiting: {message}; trying in {seconds:.1} s"),
    };
    let progress = crate::domain::deployment::Progress { percent: deployment.progress.percent, message: Some(told) };
    let event = attempt.is_some() || job.last_error.as_deref() != Some(message);
    store::deployments::progress(tx, &deployment, &progress, Some(message), event, now).await
}

async fn give_up(app: &App, job: &Job, message: &str) -> Result<(), StoreError> {
    match job.kind {
        JobKind::Deploy => deploy::give_up(app, job, message).await,
        JobKind::Undeploy => undeploy::give_up(app, job, message).await,
    }
}

#[cfg(test)]
mod tests;
