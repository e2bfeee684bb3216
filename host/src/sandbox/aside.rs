//! Where guests go that compute for long: threads of their own, which the machine serves after all others.
//!
//! A call begins on the thread that asks for it, where a short one costs nothing more. What it takes of the processor there
//! is summed, and each wait for something pays off a quarter of its length: a call that computes for more than a quarter
//! of its time is carried over to these threads once it has [`LONG`] on its account, and goes on there. So an endless
//! loop takes a server's own threads for a few epochs at the most, and from then on only what nobody else wants of the
//! processor; a call that waits for servers elsewhere stays, however often it waits.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

use super::limits::Usage;

/// Processor time, less what its waits paid off, after which a call computes for long.
const LONG: Duration = Duration::from_millis(20);
/// A wait pays off its length divided by this.
const PAID_OFF: u32 = 4;
/// How far these threads stand back (`nice`): about a tenth of the processor where others want all of it, so that
/// honest work still comes to its end.
const NICE: i32 = 10;

/// The threads. They end when it is dropped, at the next yield of what still runs there.
pub(super) struct Aside(Option<Runtime>);

/// A call of which each poll is timed.
struct Timed<F> {
    call: Pin<Box<F>>,
    usage: Arc<Usage>,
    /// Threads for what waits for the disk of its folders.
    disk: Option<Handle>,
    /// Of the last poll.
    took: Duration,
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let _entered = this.disk.as_ref().map(Handle::enter);
        this.usage.begin();
        let polled = this.call.as_mut().poll(task);
        this.took = this.usage.end();
        polled
    }
}

/// How much more a call computed than its waits have paid off.
#[derive(Default)]
struct Balance {
    owed: Duration,
    waits_since: Option<Instant>,
}

impl Balance {
    fn goes_on(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.owed = self.owed.saturating_sub(since.elapsed() / PAID_OFF);
        }
    }

    /// Whether it computes for long. What was only made to yield does not wait.
    fn computed(&mut self, took: Duration, yielded: bool) -> bool {
        self.owed += took;
        self.waits_since = (!yielded).then(Instant::now);
        self.owed >= LONG
    }
}

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

    /// Runs a call to its end: here, or aside once it computes for long. What it does with files waits on the threads of `disk`.
    /// Dropping this ends the call.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        usage: &Arc<Usage>,
        disk: Option<Handle>,
        call: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut call = Timed { call: Box::pin(call), usage: usage.clone(), disk, took: Duration::ZERO };
        let mut balance = Balance::default();
        let here = poll_fn(|task| {
            balance.goes_on();
            match Pin::new(&mut call).poll(task) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if balance.computed(call.took, usage.yielded()) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Some(done) = here.await {
            return done;
        }
        let Some(runtime) = &self.0 else { return call.await };
        usage.moves();
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

    /// Keeps the processor busy for as long as this takes of it.
    fn compute(usage: &Usage, time: Duration) {
        let begun = usage.poll();
        while usage.poll() < begun + time {
            std::hint::spin_loop();
        }
    }

    #[tokio::test]
    async fn what_computes_for_long_goes_on_elsewhere_and_ends_when_dropped() {
        let aside = Aside::new().unwrap();
        let short = Arc::new(Usage::default());
        let name = || thread::current().name().unwrap_or_default().to_owned();
        let here = name();
        let ended = aside.run(&short, None, async move {
            tokio::task::yield_now().await;
            name()
        });
        assert_eq!((ended.await, short.moved()), (here, false));

        let long = Arc::new(Usage::default());
        let busy = long.clone();
        let ended = aside.run(&long, None, async move {
            // A short breath in between changes nothing.
            for _ in 0..3 {
                compute(&busy, LONG / 2);
                tokio::task::yield_now().await;
            }
            name()
        });
        assert_eq!((ended.await.as_str(), long.moved()), ("kaizen-guest", true));
        assert!(long.cpu() >= LONG * 3 / 2, "{:?}", long.cpu());

        let (held, mut gone) = tokio::sync::oneshot::channel::<()>();
        let endless = aside.run(&long, None, async move {
            let _held = held;
            loop {
                tokio::task::yield_now().await;
            }
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), endless).await.is_err());
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), &mut gone).await;
        assert!(ended.is_ok_and(|gone| gone.is_err()), "a call that nobody waits for ends");
    }

    #[test]
    fn waits_pay_off_a_quarter_of_their_length_and_yields_nothing() {
        let ago = |milliseconds| Some(Instant::now() - Duration::from_millis(milliseconds));
        let mut balance = Balance::default();
        assert!(!balance.computed(Duration::from_millis(15), false));
        balance.waits_since = ago(60);
        balance.goes_on();
        assert!(!balance.computed(Duration::from_millis(15), false), "60 ms of waiting paid for 15 ms");
        balance.waits_since = ago(4);
        balance.goes_on();
        assert!(balance.computed(Duration::from_millis(15), false), "4 ms did not");
        let mut looping = Balance::default();
        assert!(!looping.computed(Duration::from_millis(12), true) && looping.waits_since.is_none());
        looping.goes_on();
        assert!(looping.computed(Duration::from_millis(12), true));
    }
}
