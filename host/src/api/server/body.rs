//! The answer to a request, and how long the request is under way: until all of it has been handed over.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes},
    http::StatusCode,
};
use hyper::body::{Body as _, Frame, SizeHint};

use super::activity::Activity;

/// Counts a request as under way until its answer has been handed over, or dropped.
pub struct UnderWay(Arc<Activity>);

impl UnderWay {
    /// A request whose head has arrived.
    pub fn new(activity: Arc<Activity>, http2: bool) -> Self {
        activity.begin(http2);
        Self(activity)
    }

    /// The body of its answer.
    pub fn until_sent(self, status: StatusCode, body: Body) -> WatchedBody {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.0.upgraded.store(true, Ordering::Relaxed);
        }
        // Over HTTP/1, that a client takes nothing shows in what cannot be written.
        let watched = self.0.is_http2() && !body.is_end_stream();
        let index = watched.then(|| self.0.watch_answer());
        WatchedBody { body, rest: Bytes::new(), index, under_way: self }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What is handed over of an answer at once. hyper takes the next piece once there is room for it, over HTTP/2 in the client's
/// window: so it shows whether the client takes anything, and little of an answer lies in hyper's buffers.
pub(super) const PIECE: usize = 16 * 1024;

/// The body of an answer; the request is under way as long as it is there.
pub struct WatchedBody {
    body: Body,
    /// What has come from it and is not handed over.
    rest: Bytes,
    /// In the activity, over HTTP/2.
    index: Option<usize>,
    under_way: UnderWay,
}

impl WatchedBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                None => return Poll::Ready(None),
                Some(Err(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Ok(data)) => self.rest = data,
            }
        }
        // Over HTTP/2 the last byte is a piece of its own: the request is under way until the client has made room for the whole
        // answer, not only for the first byte of its last piece.
        let last = usize::from(self.index.is_some());
        let piece = self.rest.split_to(self.rest.len().saturating_sub(last).clamp(1, PIECE).min(self.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.under_way.0.forget_answer(index);
        }
    }
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let piece = self.poll_piece(cx);
        if let Some(index) = self.index {
            // What the server has yet to make keeps nobody from taking it.
            self.under_way.0.answer_waits(index, piece.is_ready());
        }
        piece
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper.saturating_add(rest));
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_handed_over_in_pieces_and_whole() {
        use http_body_util::BodyExt as _;
        let bytes: Bytes = (0..=u8::MAX).cycle().take(100_000).collect();
        // Over HTTP/2 the last byte comes by itself.
        for (http2, size, pieces) in [(false, 100_000, 7), (true, 100_000, 8), (false, PIECE, 1), (true, PIECE, 2)] {
            let (activity, bytes) = (Arc::new(Activity::new()), bytes.slice(..size));
            let mut body = UnderWay::new(activity.clone(), http2).until_sent(StatusCode::OK, Body::from(bytes.clone()));
            let (mut whole, mut taken) = (Vec::new(), 0);
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                assert!(piece.len() <= PIECE && !activity.is_idle());
                whole.extend_from_slice(&piece);
                taken += 1;
                let left = hyper::body::Body::size_hint(&body).exact();
                assert_eq!(left, Some((bytes.len() - whole.len()) as u64));
            }
            assert_eq!((&whole[..], taken), (&bytes[..], pieces));
            assert!(hyper::body::Body::is_end_stream(&body));
        }
    }
}
