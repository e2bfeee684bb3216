//! Background jobs: our `jobs` table is the queue and the truth about it, apalis runs what is claimed from it.
//!
//! apalis brings the monitor that supervises workers, the worker that asks for no more than it can take, and layers;
//! its storages do not count attempts across crashes, fence acknowledgements by the worker's name alone, and need a second
//! writer to the SQLite file. So `backend.rs` gives apalis a backend of our own over the `jobs` table: enqueuing is one
//! `INSERT` in the transaction of the change, claiming counts the attempt and moves the fence, and every write of a running
//! attempt names its fence.
//!
//! | what happens | what follows |
//! |---|---|
//! | a host dies | its lease ends (`job_lease_seconds`), another host takes the job over: an attempt more |
//! | a lease cannot be renewed | the attempt is dropped before another host may take the job over |
//! | a host stalls and comes back | it asks for its leases before it goes on; where the fence has moved, its writes are refused |
//! | a kind is not known to this version | the job waits for a host that knows it; the log and `kaizen_jobs_of_unknown_kinds` tell of it |
//! | every attempt kills its host | attempts are counted when claiming: the job is given up |
//! | an attempt fails | put back with `run_at` in the future: back-off with jitter, or as the far side asks |
//! | the plugin's calls are suspended, or too many are under way | put back until then; it was no attempt, and watchers are told once for each reason |
//! | an attempt panics | as a failed attempt |
//! | the host is asked to stop | nothing more is claimed; what runs may end within `job_stop_seconds`, the rest is given back |

mod attempt;
mod backend;
mod deploy;
#[cfg(test)]
pub(crate) mod fixture;
mod streams;
mod undeploy;

use std::{panic::AssertUnwindSafe, time::Duration};

use apalis::prelude::{Monitor, WorkerBuilder, WorkerBuilderExt};
use futures::FutureExt;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::streams::{Stream, Streams};
use self::{attempt::attempt, backend::Claims};
use crate::{
    app::App,
    clock::Clock,
    config::limits::ServerLimits,
    domain::{
        id::{JobId, OrganizationId},
        job::{JobKind, Payload},
    },
    store::{self, StoreError, Tx, jobs::Claimed},
};

/// How long a stopping host tries to give its jobs back: a database that hangs must not hold it up.
const RELEASE: Duration = Duration::from_secs(4);
/// How often what is old is removed.
const PRUNING: Duration = Duration::from_secs(600);

/// What the routes share with the background work. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    /// Event streams that are open.
    pub streams: Streams,
}

impl Jobs {
    /// None running.
    pub fn new(limits: &ServerLimits) -> Self {
        Self { streams: Streams::new(limits) }
    }
}

/// Adds a job within the transaction of the change that causes it. Publish [`crate::bus::Hint::Job`] after the commit, so that it is
/// picked up at once; without it that takes up to a second.
///
/// # Errors
/// As the database says.
pub async fn enqueue(
    tx: &mut Tx,
    clock: &Clock,
    organization: OrganizationId,
    kind: JobKind,
    payload: Payload,
) -> Result<JobId, StoreError> {
    let now = clock.now();
    let id = clock.id();
    let job = store::jobs::NewJob {
        id,
        organization_id: organization,
        kind,
        payload,
        max_attempts: attempts(kind),
        run_at: now,
        now,
    };
    store::jobs::insert(tx, &job).await?;
    Ok(id)
}

/// Attempts at the most. Nobody watches an undeployment as closely, and giving it up leaves something behind.
fn attempts(kind: JobKind) -> i64 {
    match kind {
        JobKind::Deploy => 5,
        JobKind::Undeploy => 10,
    }
}

/// Starts this host's workers on `app.tasks`; they end after `app.stopping`.
pub fn start(app: &App) {
    app.tasks.spawn(work(app.clone()));
    app.tasks.spawn(prune(app.clone()));
}

/// Runs workers until the host stops. The name is new at every start: what an earlier process held under its own stays
/// held until the lease ends.
async fn work(app: App) {
    let owner = format!("worker-{}", app.clock.id::<Uuid>());
    while !app.stopping.is_cancelled() {
        let stopping = app.stopping.clone();
        let run = monitor(&app, &owner).run_with_signal(async move {
            stopping.cancelled().await;
            Ok(())
        });
        match AssertUnwindSafe(run).catch_unwind().await {
            Ok(Ok(())) if app.stopping.is_cancelled() => {}
            Ok(end) => tracing::warn!(?end, "the job workers ended; starting them again"),
            Err(_) => tracing::error!("the job workers panicked; starting them again"),
        }
        release(&app, &owner).await;
        if !app.stopping.is_cancelled() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn monitor(app: &App, owner: &str) -> Monitor {
    let drain = Duration::from_secs(app.config.limits.job_stop_seconds);
    let (app, owner) = (app.clone(), owner.to_owned());
    Monitor::new()
        .register(move |restarts| {
            let handler = {
                let app = app.clone();
                // On a task of its own: apalis polls all attempts and the next claim on one, where each may hold a connection.
                move |claimed: Claimed| {
                    let attempt = AbortOnDropHandle::new(tokio::spawn(attempt(app.clone(), claimed)));
                    async move {
                        if let Err(error) = attempt.await
                            && error.is_panic()
                        {
                            tracing::error!(%error, "a job's attempt panicked; its lease ends, and another begins");
                        }
                    }
                }
            };
            WorkerBuilder::new(format!("{owner}-{restarts}"))
                .backend(Claims::new(app.clone(), owner.clone()))
                .catch_panic()
                .concurrency(app.config.limits.jobs_running)
                .build(handler)
        })
        .should_restart(|worker, error| {
            tracing::warn!(worker = worker.name(), %error, "a job worker ended; starting it again");
            true
        })
        .shutdown_timeout(drain)
}

/// Gives back what is still held, so that another host need not wait for the lease to end.
async fn release(app: &App, owner: &str) {
    let released = async {
        let mut tx = app.store.begin().await?;
        let released = store::jobs::release(&mut tx, owner, app.clock.now()).await?;
        tx.commit().await?;
        Ok::<_, StoreError>(released)
    };
    match tokio::time::timeout(RELEASE, released).await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => {
            tracing::info!(count, "gave back jobs that were still running");
            app.bus.publish(crate::bus::Hint::Job);
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "could not give back jobs; another host takes them over when their leases end")
        }
        Err(_) => {
            tracing::warn!("could not give back jobs in time; another host takes them over when their leases end")
        }
    }
}

/// Tells of jobs that wait for a host of another version: nobody else would notice that there is none.
async fn tell_unknown(app: &App) {
    let unknown = async { store::jobs::unknown(&mut app.store.read().await?).await };
    match unknown.await {
        Ok(unknown) => {
            let count: i64 = unknown.iter().map(|(_, count)| count).sum();
            metrics::gauge!("kaizen_jobs_of_unknown_kinds").set(count as f64);
            if count > 0 {
                tracing::warn!(?unknown, "jobs of kinds that this version does not know wait for a host that does");
            }
        }
        Err(error) => tracing::debug!(%error, "could not look for jobs of unknown kinds"),
    }
}

/// Removes jobs that were over long ago, deployments that were and that no rollback leads to, and events of all that were.
async fn prune(app: App) {
    app.stopping.run_until_cancelled(tell_unknown(&app)).await;
    while app.stopping.run_until_cancelled(tokio::time::sleep(PRUNING)).await.is_some() {
        let days =
            |days: u64| app.clock.now() - chrono::TimeDelta::days(i64::try_from(days).unwrap_or(i64::MAX / 1000));
        let limits = &app.config.limits;
        let (jobs, events) = (days(limits.job_days), days(limits.deployment_event_days));
        let over = days(limits.deployment_days);
        let pruned = async {
            let jobs = app.store.sweep(&app.stopping, |tx, most| Box::pin(store::jobs::prune(tx, jobs, most)));
            let jobs = jobs.await?;
            let told =
                app.store.sweep(&app.stopping, |tx, most| Box::pin(store::deployments::prune_events(tx, events, most)));
            let told = told.await?;
            let over = app.store.sweep(&app.stopping, |tx, most| Box::pin(store::deployments::prune(tx, over, most)));
            Ok::<_, StoreError>((jobs, told, over.await?))
        };
        match pruned.await {
            Ok((jobs, events, deployments)) => {
                tracing::debug!(jobs, events, deployments, "removed old jobs, events of deployments, and deployments");
            }
            Err(error) => tracing::warn!(%error, "could not remove all old jobs and deployments; trying again later"),
        }
        app.stopping.run_until_cancelled(tell_unknown(&app)).await;
    }
}
