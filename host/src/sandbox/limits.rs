//! What one call may take. Whatever goes beyond ends the call, and only the call.
//!
//! | what | how it is held |
//! |---|---|
//! | memory, tables, instances | summed over the whole component, at each growth ([`wasmtime::ResourceLimiter`]) |
//! | processor | epoch ticks in which the guest ran; it also yields at each, and after a few it goes [aside](super::aside) |
//! | time | the clock on the wall, host calls included |
//! | stack | the engine's, so the same for all calls |
//! | requests, bytes out and in | counted over all requests of the call |
//! | time of one request | from looking up the name to the last byte; ends before the call does, so that the guest is told |
//! | log | bytes of a line, and lines a second of one connection; what is over is dropped and counted |
//! | values handed to the host | bytes for each transfer ("hostcall fuel"); host resources by number |
//! | calls at once | turns for each connection, each plugin and all together; waiting for them is bounded too |
//!
//! [`Bounds`] are the operator's settings; what they are called there is in `config::plugins`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use wasmtime::ResourceLimiter;

use crate::clock::Clock;

/// Length of an epoch. A guest is interrupted this often to see whether it may go on.
pub const TICK: Duration = Duration::from_millis(10);

/// The limits of one call.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of linear memory, all memories together.
    pub memory_bytes: usize,
    /// Elements of tables, all tables together.
    pub table_elements: usize,
    /// Time in which the guest itself runs.
    pub cpu: Duration,
    /// Time from the first instruction to the result.
    pub wall: Duration,
    /// Bytes of one line; what is longer is cut.
    pub log_line_bytes: usize,
    /// HTTP requests.
    pub http_requests: u64,
    /// Bytes of all requests' headers and bodies.
    pub http_out_bytes: u64,
    /// Bytes of all answers' bodies.
    pub http_in_bytes: u64,
    /// Time of one request with its whole answer; at most nine tenths of what is left of the call.
    pub http_exchange: Duration,
    /// Bytes that one result, or one argument of a host function, may have.
    pub transfer_bytes: usize,
    /// Open streams, requests, files and the like, at once.
    pub resources: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            table_elements: 200_000,
            cpu: Duration::from_secs(5),
            wall: Duration::from_secs(30),
            log_line_bytes: 4 << 10,
            http_requests: 64,
            http_out_bytes: 16 << 20,
            http_in_bytes: 16 << 20,
            http_exchange: Duration::from_secs(20),
            transfer_bytes: 4 << 20,
            resources: 1000,
        }
    }
}

impl Limits {
    /// For `describe`: nothing is granted, so nothing takes long.
    #[must_use]
    pub fn describe(&self) -> Self {
        Self {
            cpu: self.cpu.min(Duration::from_secs(1)),
            wall: self.wall.min(Duration::from_secs(5)),
            transfer_bytes: self.transfer_bytes.max(1 << 20),
            ..self.clone()
        }
    }

    /// The processor time in ticks, at least one.
    pub(super) fn ticks(&self) -> u64 {
        u64::try_from(self.cpu.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// What the operator lets plugins take: of one call, and of all together.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Of one call.
    pub call: Limits,
    /// The time that a deployment may take, from the first instruction to the result; longer than other calls.
    pub deploy: Duration,
    /// Bytes of stack of one call.
    pub stack_bytes: usize,
    /// Core instances of one component.
    pub instances: u32,
    /// Calls at once of all plugins together; each has its place in the pool.
    pub calls: u32,
    /// Calls at once of one plugin.
    pub calls_per_plugin: u32,
    /// Calls at once of one connection.
    pub calls_per_connection: u32,
    /// Log lines of one connection in each second.
    pub log_lines_per_second: u32,
    /// Failures in a row after which a connection's calls are suspended.
    pub trip_failures: u32,
    /// How long they are suspended the first time; each further time twice as long.
    pub trip_pause: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            call: Limits::default(),
            deploy: Duration::from_secs(120),
            stack_bytes: 1 << 20,
            instances: 20,
            calls: 64,
            calls_per_plugin: 32,
            calls_per_connection: 8,
            log_lines_per_second: 50,
            trip_failures: 5,
            trip_pause: Duration::from_secs(10),
        }
    }
}

/// What a call has used so far.
#[derive(Debug, Default)]
pub struct Usage {
    ticks: AtomicU64,
    memory: AtomicUsize,
}

impl Usage {
    /// Epoch ticks ([`TICK`]) that found the guest running.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Bytes of linear memory, all memories together. They never shrink, so in the end it is the peak.
    pub fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// Counts a tick; returns how many there were.
    pub(super) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Log lines of one connection: so many in each second, whatever the number of calls.
pub struct LogRate {
    per_second: u32,
    clock: Clock,
    /// The second, and the lines in it.
    window: Mutex<(i64, u32)>,
}

impl LogRate {
    /// At most `per_second` lines in each second of `clock`.
    pub fn new(per_second: u32, clock: Clock) -> Self {
        Self { per_second, clock, window: Mutex::new((i64::MIN, 0)) }
    }

    /// Whether there is room for one more line; counts it.
    pub fn take(&self) -> bool {
        let second = self.clock.now().timestamp();
        let mut window = self.window.lock();
        if window.0 != second {
            *window = (second, 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 <= self.per_second
    }
}

/// The limit that a call ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// Linear memory.
    Memory,
    /// Tables.
    Tables,
    /// Processor time.
    Cpu,
}

/// Sums what one store holds.
pub struct Limiter {
    memory_left: usize,
    table_left: usize,
    usage: Arc<Usage>,
    /// What was refused, to explain the trap that follows.
    pub exceeded: Option<Exceeded>,
}

impl Limiter {
    /// A limiter for one store.
    pub fn new(limits: &Limits, usage: Arc<Usage>) -> Self {
        Self { memory_left: limits.memory_bytes, table_left: limits.table_elements, usage, exceeded: None }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        // The slot of the pool is the other bound; growth beyond it fails after this, and must not be counted.
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        match self.memory_left.checked_sub(more) {
            Some(left) if fits => {
                self.memory_left = left;
                self.usage.memory.fetch_add(more, Ordering::Relaxed);
                Ok(true)
            }
            _ => {
                self.exceeded = Some(Exceeded::Memory);
                Ok(false)
            }
        }
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        match self.table_left.checked_sub(more) {
            Some(left) if fits => {
                self.table_left = left;
                Ok(true)
            }
            _ => {
                self.exceeded = Some(Exceeded::Tables);
                Ok(false)
            }
        }
    }

    // How many of each one component may have is the pool's to say ([`super::engine`]); a store has one component.
    fn instances(&self) -> usize {
        usize::MAX
    }

    fn tables(&self) -> usize {
        usize::MAX
    }

    fn memories(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(limits: &Limits) -> Limiter {
        Limiter::new(limits, Arc::default())
    }

    #[test]
    fn memory_is_summed_over_all_memories() {
        let mut limiter = limiter(&Limits { memory_bytes: 100, ..Limits::default() });
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(!limiter.memory_growing(0, 60, None).unwrap(), "a second memory shares the limit");
        assert_eq!(limiter.exceeded, Some(Exceeded::Memory));
        assert!(limiter.memory_growing(60, 100, None).unwrap());
        assert!(!limiter.memory_growing(100, 101, None).unwrap());
        assert_eq!(limiter.usage.memory(), 100, "what was refused was not used");
    }

    #[test]
    fn lines_are_counted_by_the_second() {
        let clock = Clock::fixed(chrono::DateTime::UNIX_EPOCH, 1);
        let rate = LogRate::new(2, clock.clone());
        assert_eq!([rate.take(), rate.take(), rate.take()], [true, true, false]);
        clock.advance(chrono::TimeDelta::milliseconds(999));
        assert!(!rate.take());
        clock.advance(chrono::TimeDelta::milliseconds(1));
        assert!(rate.take());
    }

    #[test]
    fn growth_that_cannot_succeed_is_not_counted() {
        let mut limiter = limiter(&Limits { table_elements: 100, ..Limits::default() });
        assert!(!limiter.table_growing(0, 50, Some(10)).unwrap());
        assert!(limiter.table_growing(0, 100, None).unwrap());
    }
}
