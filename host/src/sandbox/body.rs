//! The body of an answer on its way in: counted, and not waited for longer than the exchange may take.

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

use super::egress::{EXCHANGE, EgressError};

/// Bytes that may still come or go; shared by all requests of one call.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Takes from the budget; false, and nothing taken, where it does not suffice.
    pub fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// The body of an answer. Dropping it closes the connection.
pub struct EgressBody {
    incoming: Incoming,
    budget: Arc<Budget>,
    whole: Duration,
    until: Pin<Box<Sleep>>,
    _connection: AbortOnDropHandle<()>,
}

impl EgressBody {
    pub(super) fn new(
        incoming: Incoming,
        budget: Arc<Budget>,
        (until, whole): (Instant, Duration),
        connection: AbortOnDropHandle<()>,
    ) -> Self {
        Self { incoming, budget, whole, until: Box::pin(tokio::time::sleep_until(until)), _connection: connection }
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
        match Pin::new(&mut this.incoming).poll_frame(cx) {
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
