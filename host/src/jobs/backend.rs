//! What apalis pulls from: claims on our own `jobs` table.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use apalis::prelude::{Backend, Task, TaskBuilder, TaskId, WorkerContext};
use apalis_core::backend::{BackendConfig, finalize::Ephemeral};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tower::layer::util::Identity;

use crate::{
    app::App,
    bus::Hint,
    store::{self, StoreError, jobs::Claimed},
};

/// How often the table is looked at without a hint: for retries whose time has come, leases that ended, hints that were lost.
const POLL: Duration = Duration::from_secs(1);

/// An apalis backend: one claimed job after the other, each claimed only once the worker has room for it.
pub(super) struct Claims {
    claims: BoxStream<'static, Claimed>,
}

impl Claims {
    /// Claims for this owner.
    pub(super) fn new(app: App, owner: String) -> Self {
        let hints = app.bus.subscribe();
        let claims = stream::unfold((app, owner, hints), |(app, owner, mut hints)| async move {
            let claimed = next(&app, &owner, &mut hints).await;
            Some((claimed, (app, owner, hints)))
        });
        Self { claims: claims.boxed() }
    }
}

async fn next(app: &App, owner: &str, hints: &mut Receiver<Hint>) -> Claimed {
    loop {
        match claim(app, owner).await {
            Ok(Some(claimed)) => return claimed,
            Ok(None) => hinted(hints).await,
            Err(error) => {
                tracing::warn!(%error, "could not look for jobs; trying again");
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

async fn claim(app: &App, owner: &str) -> Result<Option<Claimed>, StoreError> {
    let now = app.clock.now();
    let limits = &app.config.limits;
    let each = limits.jobs_running_per_organization;
    if !store::jobs::due(&mut app.store.read().await?, now, each).await? {
        return Ok(None);
    }
    let mut tx = app.store.begin().await?;
    let claimed = store::jobs::claim(&mut tx, owner, now, now + limits.job_lease(), each).await?;
    // Also without one: a job that cannot be read was set aside.
    tx.commit().await?;
    Ok(claimed)
}

/// Returns when there may be a job: after a hint, or after [`POLL`].
async fn hinted(hints: &mut Receiver<Hint>) {
    let hint = async {
        loop {
            match hints.recv().await {
                Ok(Hint::Job | Hint::Resync) | Err(RecvError::Lagged(_)) => return,
                Ok(_) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    drop(tokio::time::timeout(POLL, hint).await);
}

impl Backend for Claims {
    type Task = Task<Claimed>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Task<Claimed>, Infallible>>> {
        self.claims.poll_next_unpin(cx).map(|claimed| {
            claimed.map(|claimed| {
                let id = TaskId::String(format!("{}.{}", claimed.job.id, claimed.job.fence));
                Ok(TaskBuilder::new(claimed).task_id(id).build())
            })
        })
    }

    /// A claim that was made while the worker closed is given back with everything else the owner still holds.
    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Claims {
    type Args = Claimed;
    type Id = String;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
