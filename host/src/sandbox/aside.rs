//! Where guests go that compute for long: threads of their own, which the machine serves after all others.
//!
//! A call begins on the thread that asks for it, where a short one costs nothing more. A guest gives way at each epoch tick;
//! one that was found running at [`LONG`] ticks is carried over to these threads and goes on there. So an endless loop takes
//! a server's own threads for a few ticks at the most, and from then on only what nobody else wants of the processor.

use std::{future::poll_fn, pin::Pin, task::Poll, thread};

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use super::limits::Usage;

/// Ticks after which a call computes for long. One may be bad luck: a tick finds one short call in many.
const LONG: u64 = 2;
/// How far these threads stand back (`nice`): about a tenth of the processor where others want all of it, so that
/// honest work still comes to its end.
const NICE: i32 = 10;

/// The threads. They end when it is dropped, at the next tick of what still runs there.
pub(super) struct Aside(Option<Runtime>);

impl Aside {
    /// Starts one thread for each processor.
    ///
    /// # Errors
    /// If the system gives none.
    pub(super) fn new() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(2, usize::from))
            .thread_name("kaizen-guest")
            .on_thread_start(|| {
                if let Err(error) = rustix::process::nice(NICE) {
                    tracing::debug!(%error, "guests that compute for long run at the priority of all others");
                }
            })
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs a call to its end: here, or aside once it computes for long. Dropping this ends the call.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        usage: &Usage,
        call: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut call: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(call);
        let here = poll_fn(|task| match call.as_mut().poll(task) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if usage.ticks() >= LONG => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        if let Some(done) = here.await {
            return done;
        }
        let Some(runtime) = &self.0 else { return call.await };
        match AbortOnDropHandle::new(runtime.spawn(call)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Cancelled: only where the threads end, and then nobody waits for this.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed where this may be dropped: in an async task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_computes_for_long_goes_on_elsewhere_and_ends_when_dropped() {
        let aside = Aside::new().unwrap();
        let short = Usage::default();
        let name = || thread::current().name().unwrap_or_default().to_owned();
        let here = name();
        let ended = aside.run(&short, async move {
            tokio::task::yield_now().await;
            name()
        });
        assert_eq!(ended.await, here);

        let long = std::sync::Arc::new(Usage::default());
        let ticking = long.clone();
        let ended = aside.run(&long, async move {
            for _ in 0..LONG {
                ticking.tick();
                tokio::task::yield_now().await;
            }
            name()
        });
        assert_eq!(ended.await, "kaizen-guest");

        let (held, mut gone) = tokio::sync::oneshot::channel::<()>();
        let endless = aside.run(&long, async move {
            let _held = held;
            loop {
                tokio::task::yield_now().await;
            }
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), endless).await.is_err());
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), &mut gone).await;
        assert!(ended.is_ok_and(|gone| gone.is_err()), "a call that nobody waits for ends");
    }
}
