//! Work under a lease of the database, such as a job or the delivery to an audit sink: renewed while the work runs, and the work
//! stops before another host may take it over.
//!
//! | what happens | what follows |
//! |---|---|
//! | a renewal fails | it is tried again as long as the lease lasts |
//! | none succeeds, or the database says nothing | the work is dropped when nine tenths of the lease have passed |
//! | somebody else has it | the work is dropped |
//! | this host stalled for longer than that | the work stands still, the database is asked once, and it goes on or is dropped |
//!
//! What a plugin computes on the threads for long calls, and a request that it sent already, do not stand still while the database is
//! asked; they end with the work.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::store::StoreError;

/// The lease has ended, or is somebody else's.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost;

/// A lease that this host has.
#[derive(Debug, Clone)]
pub struct Lease {
    /// What is held, for the log.
    pub of: String,
    /// How long it lasts from each renewal.
    pub length: Duration,
    /// From when on others may take it.
    pub until: Instant,
}

impl Lease {
    /// When the work must have stopped: earlier, as it takes a moment, and other hosts' clocks may be a little ahead.
    fn stops(&self) -> Instant {
        self.until.checked_sub(self.length / 10).unwrap_or(self.until)
    }
}

/// Awaits `work` and renews its lease meanwhile, three times in its length. On a task of its own, so that a database that is slow to
/// renew does not hold the work up, nor asks for a connection while the work has one.
///
/// # Errors
/// [`Lost`]; the work was dropped then.
pub async fn while_held<T, R>(
    lease: Lease,
    renew: impl FnMut() -> R + Send + 'static,
    work: impl Future<Output = T>,
) -> Result<T, Lost>
where
    R: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let (tell, mut told) = watch::channel(Some(lease.stops()));
    let _ends_with_this = AbortOnDropHandle::new(tokio::spawn(keep(lease, renew, tell)));
    let mut work = pin!(work);
    loop {
        let held = *told.borrow_and_update();
        let Some(stops) = held else { return Err(Lost) };
        let goes_on = poll_fn(|task| if Instant::now() < stops { work.as_mut().poll(task) } else { Poll::Pending });
        tokio::select! {
            biased;
            result = goes_on => return Ok(result),
            changed = told.changed() => if changed.is_err() { return Err(Lost) },
        }
    }
}

/// Renews the lease and tells until when the work may go on, or that it may not.
async fn keep<R>(mut lease: Lease, mut renew: impl FnMut() -> R, tell: watch::Sender<Option<Instant>>)
where
    R: Future<Output = Result<(), StoreError>> + Send,
{
    let length = lease.length;
    let mut next = lease.until.checked_sub(length * 2 / 3).unwrap_or_else(Instant::now);
    loop {
        sleep_until(next).await;
        let asked = Instant::now();
        // This host did not run for a while: perhaps nobody has taken it over.
        let stalled = asked >= lease.stops();
        let in_time = if stalled { asked + length } else { lease.stops() };
        let again = Instant::now() + length / 10;
        match timeout_at(in_time, renew()).await {
            Ok(Ok(())) => {
                (lease.until, next) = (asked + length, asked + length / 3);
                tell.send_replace(Some(lease.stops()));
                continue;
            }
            // Also the end of work that has just given back what it held.
            Ok(Err(StoreError::Stale)) => tracing::debug!(lease = lease.of, "the lease is not held any more"),
            Ok(Err(error)) if !stalled && again < lease.stops() => {
                tracing::warn!(lease = lease.of, %error, "could not renew a lease; trying again");
                next = again;
                continue;
            }
            Ok(Err(error)) => tracing::warn!(lease = lease.of, %error, "lost a lease: it could not be renewed in time"),
            Err(_) => tracing::warn!(lease = lease.of, "lost a lease: the database did not answer in time"),
        }
        tell.send_replace(None);
        return;
    }
}

#[cfg(test)]
mod tests;
