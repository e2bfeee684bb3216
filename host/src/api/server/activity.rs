//! What goes on over a connection, and by when it has to go on: hyper's own timers begin only once it knows the version of
//! HTTP (hyper-util 0.1.21, `ReadVersion`), and HTTP/2 has none for a connection that nothing is asked over.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, Sleep},
};

use super::ceilings::Place;
use crate::config::limits::ServerLimits;

/// By when things have to happen on a connection.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// For a whole head, from the connection's beginning or from the head's first byte.
    pub head: Duration,
    /// Without a request under way.
    pub idle: Duration,
    /// Without the client taking anything of what is sent.
    pub stall: Duration,
    /// Whether the connection brings the requests of many clients: what one of them leaves untaken is not the others' fault.
    pub shared: bool,
}

impl TimeLimits {
    /// As set.
    pub fn new(limits: &ServerLimits) -> Self {
        Self {
            head: Duration::from_secs(limits.request_head_seconds),
            idle: Duration::from_secs(limits.keep_alive_seconds),
            stall: Duration::from_secs(limits.write_stall_seconds),
            shared: false,
        }
    }
}

/// What goes on over a connection. Times are milliseconds since it began, 0 for none.
#[derive(Debug)]
pub struct Activity {
    born: Instant,
    under_way: AtomicU32,
    /// Whether any request has arrived.
    asked: AtomicBool,
    http2: AtomicBool,
    /// It is a WebSocket now, which has limits of its own.
    pub(super) upgraded: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
    answers: Mutex<Answers>,
    /// It has been asked to close, to make room for others.
    pub(super) leaving: AtomicBool,
    pub(super) wake: Notify,
}

/// Since when each answer over HTTP/2 waits for the client to make room for its next piece (flow control).
#[derive(Debug, Default)]
struct Answers {
    waiting_since: Vec<u64>,
    /// Indices of no answer's any more.
    free: Vec<usize>,
}

/// In [`Answers`], of an answer that waits for the server, and of none.
const NOT_WAITING: u64 = u64::MAX;

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// No head, or half a head, has arrived in time.
    Head,
    /// Nothing was asked for long.
    Idle,
    /// The client does not take what is sent to it.
    Stalled,
}

impl Activity {
    /// Of a connection that begins now.
    pub fn new() -> Self {
        Self {
            born: Instant::now(),
            under_way: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            answers: Mutex::default(),
            leaving: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn at(&self, millis: u64) -> Instant {
        self.born + Duration::from_millis(millis)
    }

    /// A request's head has arrived.
    pub fn begin(&self, http2: bool) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        self.asked.store(true, Ordering::Relaxed);
        self.http2.store(http2, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    /// An answer has been handed over whole, or the client is gone.
    pub(super) fn end(&self) {
        self.idle_since.store(self.now(), Ordering::Relaxed);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }

    /// Watches an answer over HTTP/2 that waits for its client from now on. Returns its index.
    pub(super) fn watch_answer(&self) -> usize {
        let now = self.now();
        let mut answers = self.answers.lock();
        let index = answers.free.pop().unwrap_or(answers.waiting_since.len());
        match answers.waiting_since.get_mut(index) {
            Some(since) => *since = now,
            None => answers.waiting_since.push(now),
        }
        index
    }

    /// What this answer waits for from now on: the client, or the server.
    pub(super) fn answer_waits(&self, index: usize, for_client: bool) {
        let now = if for_client { self.now() } else { NOT_WAITING };
        if let Some(since) = self.answers.lock().waiting_since.get_mut(index) {
            *since = now;
        }
    }

    /// This answer has been handed over, or dropped.
    pub(super) fn forget_answer(&self, index: usize) {
        let mut answers = self.answers.lock();
        if let Some(since) = answers.waiting_since.get_mut(index) {
            *since = NOT_WAITING;
            answers.free.push(index);
        }
    }

    /// Since when the answer waits for its client that waits longest.
    fn longest_waiting(&self) -> Option<u64> {
        self.answers.lock().waiting_since.iter().copied().min().filter(|since| *since != NOT_WAITING)
    }

    /// Requests under way.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Acquire)
    }

    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Whether it has been asked to close, to make room for others.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether nothing is under way, the bytes of an answer included that the client has yet to take.
    pub fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
            && !self.upgraded.load(Ordering::Relaxed)
            && self.stalled_since.load(Ordering::Relaxed) == 0
    }

    /// Since when nothing is under way, unless something is or it is to close anyway.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let idle = self.is_idle() && !self.is_leaving();
        idle.then(|| self.at(self.idle_since.load(Ordering::Relaxed)))
    }

    /// When it has to end, and why, as far as can be told now.
    fn deadline(&self, limits: &TimeLimits) -> Option<(Instant, Overdue)> {
        let written = Some(self.stalled_since.load(Ordering::Relaxed)).filter(|since| *since != 0);
        let stalled = |since| (self.at(since) + limits.stall, Overdue::Stalled);
        let deadline = if self.is_idle() {
            let head = self.head_since.load(Ordering::Relaxed);
            Some(if !self.asked.load(Ordering::Relaxed) {
                (self.born + limits.head, Overdue::Head)
            } else if head != 0 {
                (self.at(head) + limits.head, Overdue::Head)
            } else {
                (self.at(self.idle_since.load(Ordering::Relaxed)) + limits.idle, Overdue::Idle)
            })
        } else if self.is_http2() && !limits.shared {
            // hyper cannot reset one stream for this: a client that does not take one answer loses the connection, as over HTTP/1.
            self.longest_waiting().map(stalled)
        } else {
            None
        };
        deadline.into_iter().chain(written.map(stalled)).min_by_key(|(end, _)| *end)
    }

    /// Ready once the connection has to end. To be polled whenever something happened on it.
    pub fn poll_overdue(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>, limits: &TimeLimits) -> Poll<Overdue> {
        loop {
            let deadline = self.deadline(limits);
            let mut next = deadline.map(|(end, _)| end);
            // Answers over HTTP/2 begin to wait on tasks of their own, which wake nobody here: looked at that often, none waits
            // longer.
            let unseen = self.is_http2() && !limits.shared && !self.is_idle();
            if unseen || (next.is_none() && sleep.is_elapsed()) {
                let again = Instant::now() + limits.stall;
                next = Some(next.map_or(again, |end| end.min(again)));
            }
            if let Some(next) = next.filter(|next| *next < sleep.deadline() || sleep.is_elapsed()) {
                sleep.as_mut().reset(next);
            }
            ready!(sleep.as_mut().poll(cx));
            // It may have been put off since the sleep began.
            if let Some((_, why)) = deadline.filter(|(end, _)| *end <= Instant::now()) {
                return Poll::Ready(why);
            }
        }
    }
}

/// A connection's bytes, watched. It holds the connection's place, also once it is a WebSocket.
pub struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    _place: Place,
}

impl Watched {
    /// Of this connection.
    pub fn new(stream: TcpStream, activity: Arc<Activity>, place: Place) -> Self {
        Self { stream, activity, _place: place }
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        let stalled = &self.activity.stalled_since;
        match result {
            Poll::Pending if stalled.load(Ordering::Relaxed) == 0 => {
                stalled.store(self.activity.now(), Ordering::Relaxed)
            }
            Poll::Ready(_) if stalled.load(Ordering::Relaxed) != 0 => {
                // It has not been idle while its client had something to take.
                self.activity.idle_since.store(self.activity.now(), Ordering::Relaxed);
                stalled.store(0, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let activity = &self.activity;
        // Between requests, HTTP/2 has frames that are none: only how long nothing is asked counts there.
        let between = activity.is_idle() && !activity.is_http2() && activity.head_since.load(Ordering::Relaxed) == 0;
        if between && buf.filled().len() > before {
            activity.head_since.store(activity.now(), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::StatusCode};

    use super::*;
    use crate::api::server::body::UnderWay;

    const LIMITS: TimeLimits = TimeLimits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        stall: Duration::from_secs(30),
        shared: false,
    };

    impl Activity {
        fn after(&self, seconds: u64) -> Result<(), Overdue> {
            let over = self.deadline(&LIMITS).filter(|(end, _)| *end <= self.at(seconds * 1000));
            over.map_or(Ok(()), |(_, why)| Err(why))
        }
    }

    #[test]
    fn a_connection_that_asks_nothing_ends_soon_and_one_that_asked_later() {
        let activity = Arc::new(Activity::new());
        assert_eq!(activity.after(9), Ok(()));
        assert_eq!(activity.after(10), Err(Overdue::Head));
        let request = UnderWay::new(activity.clone(), false);
        assert_eq!(activity.after(600), Ok(()), "a request under way has limits of its own");
        drop(request);
        activity.idle_since.store(600_000, Ordering::Relaxed);
        assert_eq!(activity.after(674), Ok(()));
        assert_eq!(activity.after(675), Err(Overdue::Idle));
    }

    #[test]
    fn half_a_head_has_to_become_a_whole_one() {
        let activity = Arc::new(Activity::new());
        drop(UnderWay::new(activity.clone(), false));
        activity.head_since.store(5_000, Ordering::Relaxed);
        assert_eq!(activity.after(14), Ok(()));
        assert_eq!(activity.after(15), Err(Overdue::Head));
        let _request = UnderWay::new(activity.clone(), false);
        assert_eq!(activity.after(15), Ok(()));
    }

    #[test]
    fn a_client_that_takes_nothing_is_cut_off() {
        let activity = Arc::new(Activity::new());
        let _request = UnderWay::new(activity.clone(), false);
        activity.stalled_since.store(1_000, Ordering::Relaxed);
        assert_eq!(activity.after(30), Ok(()));
        assert_eq!(activity.after(31), Err(Overdue::Stalled));
    }

    #[test]
    fn a_connection_is_not_idle_while_bytes_of_an_answer_are_to_be_taken() {
        let activity = Arc::new(Activity::new());
        drop(UnderWay::new(activity.clone(), false));
        assert!(activity.is_idle() && activity.idle_since().is_some());
        activity.stalled_since.store(70_000, Ordering::Relaxed);
        assert!(!activity.is_idle() && activity.idle_since().is_none(), "it makes no room, and is not cut at a stop");
        assert_eq!(activity.after(99), Ok(()));
        assert_eq!(activity.after(100), Err(Overdue::Stalled));
    }

    #[test]
    fn what_one_client_of_a_proxy_leaves_untaken_does_not_end_the_proxys_connection() {
        let activity = Arc::new(Activity::new());
        let shared = TimeLimits { shared: true, ..LIMITS };
        let _untaken = UnderWay::new(activity.clone(), true).until_sent(StatusCode::OK, Body::from("answer"));
        assert!(activity.deadline(&LIMITS).is_some() && activity.deadline(&shared).is_none());
        activity.stalled_since.store(1_000, Ordering::Relaxed);
        let (_, why) = activity.deadline(&shared).unwrap();
        assert_eq!(why, Overdue::Stalled, "the proxy itself takes nothing");
    }

    #[test]
    fn the_answer_that_waits_longest_for_its_client_ends_an_http2_connection() {
        let activity = Arc::new(Activity::new());
        let request = || UnderWay::new(activity.clone(), true);
        let (asked, waiting) = (request(), request().until_sent(StatusCode::OK, Body::from("answer")));
        let since = |index: usize, seconds: u64| activity.answers.lock().waiting_since[index] = seconds * 1000;
        since(0, 1);
        assert_eq!(activity.after(30), Ok(()));
        assert_eq!(activity.after(31), Err(Overdue::Stalled), "the server has yet to answer another request");
        let lively = asked.until_sent(StatusCode::OK, Body::from("answer"));
        since(1, 29);
        drop(request().until_sent(StatusCode::OK, Body::from("reset at once")));
        assert_eq!(activity.after(31), Err(Overdue::Stalled), "others are lively");
        activity.answer_waits(0, false);
        assert_eq!(activity.after(58), Ok(()), "the server has yet to make the next piece");
        assert_eq!(activity.after(59), Err(Overdue::Stalled));
        drop((lively, waiting));
        assert!(activity.longest_waiting().is_none());
        assert_eq!(activity.answers.lock().free.len(), 3, "as many as there were at once");
    }

    #[test]
    fn a_websocket_is_not_idle() {
        let activity = Arc::new(Activity::new());
        drop(UnderWay::new(activity.clone(), false).until_sent(StatusCode::SWITCHING_PROTOCOLS, Body::empty()));
        assert!(activity.after(600).is_ok() && activity.idle_since().is_none());
    }
}
