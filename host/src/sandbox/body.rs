//! Bytes on their way: those of an answer are counted and not waited for longer than the exchange may take, and those
//! that a guest writes are counted as it writes them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi::p2::{DynOutputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::egress::{BETWEEN, EXCHANGE, EgressError};

/// Bytes that may still come or go; shared by all requests of one call.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// What is left of it.
    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes from the budget; false, and nothing taken, where it does not suffice.
    pub fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// A stream that a guest writes to, whose bytes count when they are written.
pub(super) struct Counted {
    stream: DynOutputStream,
    budget: Arc<Budget>,
    over: Box<dyn Fn() -> wasmtime::Error + Send + Sync>,
}

impl Counted {
    /// Counts against `budget`; where it does not suffice, the guest is told `over()`, and nothing is written.
    pub(super) fn new(
        stream: DynOutputStream,
        budget: Arc<Budget>,
        over: impl Fn() -> wasmtime::Error + Send + Sync + 'static,
    ) -> Self {
        Self { stream, budget, over: Box::new(over) }
    }
}

#[async_trait::async_trait]
impl Pollable for Counted {
    async fn ready(&mut self) {
        self.stream.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for Counted {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if !self.budget.take(bytes.len() as u64) {
            return Err(StreamError::LastOperationFailed((self.over)()));
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.stream.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.stream.check_write()
    }

    async fn cancel(&mut self) {
        self.stream.cancel().await;
    }
}

/// The body of an answer. Dropping it closes the connection.
pub struct EgressBody {
    incoming: Incoming,
    budget: Arc<Budget>,
    whole: Duration,
    until: Pin<Box<Sleep>>,
    /// Longest wait between two frames; the timer runs while nothing comes.
    between: Duration,
    silence: Option<Pin<Box<Sleep>>>,
    _connection: AbortOnDropHandle<()>,
}

impl EgressBody {
    pub(super) fn new(
        incoming: Incoming,
        budget: Arc<Budget>,
        (until, whole): (Instant, Duration),
        between: Duration,
        connection: AbortOnDropHandle<()>,
    ) -> Self {
        let until = Box::pin(tokio::time::sleep_until(until));
        Self { incoming, budget, whole, until, between, silence: None, _connection: connection }
    }
}

impl Body for EgressBody {
    type Data = Bytes;
    type Error = EgressError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, EgressError>>> {
        let this = self.get_mut();
        if this.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(EgressError::Timeout { what: EXCHANGE, limit: this.whole })));
        }
        let polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_ready() {
            this.silence = None;
        } else if this.between < this.whole {
            let silence = this.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.between)));
            if silence.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(EgressError::Timeout { what: BETWEEN, limit: this.between })));
            }
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let size = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => data.len(),
                    (_, Some(trailers)) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
                    _ => 0,
                };
                if this.budget.take(size as u64) {
                    Poll::Ready(Some(Ok(frame)))
                } else {
                    Poll::Ready(Some(Err(EgressError::TooLarge("answer"))))
                }
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
