//! What waits to be sent to one socket: bounded, and given up rather than waited for.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frames::{Frame, Snapshot};

/// Frames that may wait.
const FRAMES: usize = 512;
/// Why a socket is closed (RFC 6455, section 7.4): code and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close(pub u16, pub &'static str);

impl Close {
    /// Nobody is signed in, or not any more.
    pub const SIGNED_OUT: Self = Self(4401, "not signed in");
    /// Policies do not allow it, or not any more; or a page of another origin.
    pub const FORBIDDEN: Self = Self(4403, "no longer allowed");
    /// There is no such canvas, or it is another organization's, or its agent was deleted.
    pub const GONE: Self = Self(4404, "no such canvas");
    /// What was to be sent did not fit the queue, or was not taken.
    pub const SLOW: Self = Self(4408, "too slow; reconnect with ?since=");
    /// A message that did not come to its end.
    pub const LATE: Self = Self(4408, "a message took too long to arrive; reconnect with ?since=");
    /// A message over the limit.
    pub const TOO_LARGE: Self = Self(4413, "message too large");
    /// A message that is not text.
    pub const NOT_TEXT: Self = Self(1003, "text frames only");
    /// A name for itself that is not one.
    pub const CLIENT: Self = Self(1008, "client must be 1 to 64 of A-Z a-z 0-9 - _ .");
    /// A query parameter that is unknown or given twice.
    pub const QUERY: Self = Self(1008, "the query may have since, ticket and client, each once");
    /// Nothing was heard for too long.
    pub const SILENT: Self = Self(1001, "no answer to pings");
    /// The server stops; another host may take over.
    pub const RESTART: Self = Self(1012, "the server restarts; reconnect with ?since=");
    /// Too many sockets on this host, too many of the organization wait to be let in, or the database is away.
    pub const LATER: Self = Self(1013, "try again later");
    /// The database did not confirm for too long that the socket may be open.
    pub const UNCONFIRMED: Self = Self(1013, "the database is away; reconnect with ?since=");
    /// The canvases that are open take as much of the host's memory as they may.
    pub const MEMORY: Self = Self(1013, "too much is open on this host already; try again later");
    /// The person's or the organization's share of sockets is used up.
    pub const CROWDED: Self = Self(4429, "too many sockets; close others first");
    /// More was sent than `reject rate` asked for, again and again.
    pub const FLOOD: Self = Self(4429, "too many messages; slow down, then reconnect with ?since=");
    /// A defect.
    pub const DEFECT: Self = Self(1011, "something went wrong here; reconnect");
}

/// A frame, or the end after the frames before it.
#[derive(Debug)]
pub enum Out {
    /// To be sent.
    Frame(Frame),
    /// The whole canvas, to be sent.
    Snapshot(Snapshot),
    /// The last.
    Close(Close),
}

impl Out {
    /// Bytes that wait with it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.len(),
            Self::Snapshot(snapshot) => snapshot.parts.iter().map(bytes::Bytes::len).sum(),
            Self::Close(_) => 0,
        }
    }
}

/// What waits, and as how many bytes it counts.
#[derive(Debug)]
struct Queued(Out, usize);

/// The room's end of a socket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Queued>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: AtomicUsize,
    /// Bytes that may wait, but for what a newcomer is to know first. Frames are shared by all sockets of a room.
    most: usize,
    close: OnceLock<Close>,
    closed: CancellationToken,
}

impl State {
    fn close(&self, close: Close) {
        if self.close.set(close).is_ok() {
            metrics::counter!("kaizen_canvas_closes_total", "code" => close.0.to_string()).increment(1);
        }
        self.closed.cancel();
    }
}

/// The socket's end.
#[derive(Debug)]
pub struct Outgoing {
    queue: mpsc::Receiver<Queued>,
    state: Arc<State>,
}

/// Both ends of a queue in which so many bytes may wait.
pub fn pair(most: usize) -> (Outbox, Outgoing) {
    let (sender, queue) = mpsc::channel(FRAMES);
    let state = Arc::new(State { most, ..State::default() });
    (Outbox { queue: sender, state: state.clone() }, Outgoing { queue, state })
}

impl Outbox {
    /// Queues a frame. A socket whose queue is full is closed as too slow; it can resume where it stopped.
    pub fn send(&self, frame: Frame) {
        let bytes = frame.len();
        self.queue(Out::Frame(frame), bytes);
    }

    /// Queues the whole canvas, as [`Outbox::send`].
    pub fn send_snapshot(&self, snapshot: Snapshot) {
        let out = Out::Snapshot(snapshot);
        let bytes = out.bytes();
        self.queue(out, bytes);
    }

    /// Queues what a newcomer is to know first, whose size has bounds of its own. It is not counted: otherwise a canvas larger than
    /// what may wait could never be joined.
    pub fn welcome(&self, out: Out) {
        self.queue(out, 0);
    }

    fn queue(&self, out: Out, bytes: usize) {
        if self.state.closed.is_cancelled() {
            return;
        }
        let waiting = self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + bytes <= self.state.most;
        if !fits || self.queue.try_send(Queued(out, bytes)).is_err() {
            self.close(Close::SLOW);
        }
    }

    /// Closes at once; what waits is not sent.
    pub fn close(&self, close: Close) {
        self.state.close(close);
    }

    /// Whether the socket is closed, or its task has ended.
    pub fn is_closed(&self) -> bool {
        self.state.closed.is_cancelled() || self.queue.is_closed()
    }

    /// Closes after what waits is sent.
    pub fn finish(&self, close: Close) {
        if self.queue.try_send(Queued(Out::Close(close), 0)).is_err() {
            self.close(close);
        }
    }
}

impl Outgoing {
    /// The next to send. Once closed, only that.
    pub async fn next(&mut self) -> Out {
        let next = tokio::select! {
            biased;
            () = self.state.closed.cancelled() => None,
            next = self.queue.recv() => next,
        };
        self.taken(next)
    }

    /// The next to send, if there is one already.
    pub fn ready(&mut self) -> Option<Out> {
        if self.state.closed.is_cancelled() {
            return Some(self.taken(None));
        }
        let next = self.queue.try_recv().ok()?;
        Some(self.taken(Some(next)))
    }

    /// Ends when the socket is to be closed at once.
    pub fn closed(&self) -> impl Future<Output = ()> + use<> {
        self.state.closed.clone().cancelled_owned()
    }

    /// Gives up what waits, and lets the room know.
    pub fn give_up(&mut self, close: Close) {
        self.state.close(close);
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
    }

    /// Why the socket is closed; a defect if nobody said.
    pub fn reason(&self) -> Close {
        self.state.close.get().copied().unwrap_or(Close::DEFECT)
    }

    fn taken(&self, next: Option<Queued>) -> Out {
        match next {
            Some(Queued(out, bytes)) => {
                self.state.bytes.fetch_sub(bytes, Ordering::Relaxed);
                out
            }
            // The room is gone without a word.
            None => Out::Close(self.reason()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 1024;

    fn frame(bytes: usize) -> Frame {
        "x".repeat(bytes).into()
    }

    #[tokio::test]
    async fn a_queue_that_is_full_closes_as_too_slow() {
        let (outbox, mut outgoing) = pair(BYTES);
        for _ in 0..=FRAMES {
            outbox.send(frame(1));
        }
        assert!(matches!(outgoing.next().await, Out::Close(Close::SLOW)));
    }

    #[tokio::test]
    async fn bytes_are_bounded_but_one_frame_fits_where_nothing_waits() {
        let (outbox, mut outgoing) = pair(BYTES);
        outbox.send(frame(BYTES + 1));
        assert!(matches!(outgoing.next().await, Out::Frame(_)));
        outbox.send(frame(BYTES));
        assert!(matches!(outgoing.next().await, Out::Frame(_)));
        outbox.send(frame(BYTES));
        outbox.send(frame(1));
        assert!(matches!(outgoing.next().await, Out::Close(Close::SLOW)));
    }

    #[tokio::test]
    async fn what_a_newcomer_is_told_first_does_not_count() {
        let (outbox, mut outgoing) = pair(BYTES);
        for _ in 0..3 {
            outbox.welcome(Out::Frame(frame(BYTES)));
        }
        outbox.send(frame(BYTES));
        assert!(!outbox.is_closed());
        for _ in 0..4 {
            assert!(matches!(outgoing.next().await, Out::Frame(_)));
        }
        outbox.send(frame(BYTES));
        outbox.send(frame(1));
        assert!(matches!(outgoing.next().await, Out::Close(Close::SLOW)));
    }

    #[tokio::test]
    async fn giving_up_frees_what_waits_and_keeps_the_reason() {
        let (outbox, mut outgoing) = pair(BYTES);
        outbox.send(frame(BYTES));
        outgoing.give_up(Close::SLOW);
        assert!(outbox.is_closed());
        outbox.close(Close::DEFECT);
        assert_eq!(outgoing.reason(), Close::SLOW);
        assert!(outgoing.queue.try_recv().is_err());
    }

    #[tokio::test]
    async fn finishing_sends_what_waits_and_revoking_does_not() {
        let (outbox, mut outgoing) = pair(BYTES);
        outbox.send(frame(1));
        outbox.finish(Close::RESTART);
        assert!(matches!(outgoing.next().await, Out::Frame(_)));
        assert!(matches!(outgoing.next().await, Out::Close(Close::RESTART)));
        outbox.send(frame(1));
        outbox.close(Close::SIGNED_OUT);
        outbox.close(Close::SLOW);
        assert!(matches!(outgoing.ready(), Some(Out::Close(Close::SIGNED_OUT))));
    }
}
