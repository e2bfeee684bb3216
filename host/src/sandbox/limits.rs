//! What one call may take. Whatever goes beyond ends the call, and only the call.
//!
//! | what | how it is held |
//! |---|---|
//! | memory, tables, instances | summed over the whole component, at each growth ([`wasmtime::ResourceLimiter`]) |
//! | memory of all calls | taken from one account as memories grow, and given back with the store |
//! | processor | time of its thread in which the call was polled ([`Usage`]); epochs only make it yield |
//! | time | the clock on the wall, host calls included |
//! | stack | the engine's, so the same for all calls |
//! | requests, bytes out and in | counted over all requests of the call, bytes out as they are written |
//! | sockets and files | permits of the call and of all calls ([`super::descriptors`]) |
//! | folders | bytes and files of one connection, and how many there are of one organization ([`super::folders`]); threads of their own wait for the disk |
//! | time of one request | from looking up the name to the last byte; ends before the call does, so that the guest is told |
//! | log | bytes of a line, and lines a second of one connection; what is over is dropped and counted |
//! | refusals | each distinct reason is logged once; after some hundred the call ends |
//! | values handed to the host | bytes for each transfer ("hostcall fuel"); host resources by number |
//! | calls at once | places for each connection, plugin, organization and all together ([`super::scheduler`]) |
//!
//! [`Bounds`] are the operator's settings; what they are called there is in `config::plugins`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use uuid::Uuid;
use wasmtime::ResourceLimiter;

use super::scheduler::Caller;
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
    /// Open streams, requests, files and the like, at once. Each may hold up to [`BODY_CHUNK`] twice on the host.
    pub resources: usize,
    /// Bytes of one set of header fields, as they lie in the host's memory.
    pub header_bytes: usize,
    /// Sockets and files that the call may open, and requests under way at once.
    pub descriptors: usize,
    /// Refusals after which the call is stopped.
    pub refusals: u32,
}

/// Bytes of one write to a request's body; two of them may wait on the host.
pub const BODY_CHUNK: usize = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            table_elements: 200_000,
            cpu: Duration::from_secs(5),
            wall: Duration::from_secs(25),
            log_line_bytes: 4 << 10,
            http_requests: 64,
            http_out_bytes: 16 << 20,
            http_in_bytes: 16 << 20,
            http_exchange: Duration::from_secs(20),
            transfer_bytes: 4 << 20,
            resources: 128,
            header_bytes: 32 << 10,
            descriptors: 16,
            refusals: 100,
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
            resources: self.resources.min(32),
            http_requests: 0,
            refusals: self.refusals.min(32),
            descriptors: 0,
            ..self.clone()
        }
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
    /// Calls at once of one organization.
    pub calls_per_organization: u32,
    /// Calls at once of one connection.
    pub calls_per_connection: u32,
    /// Of all calls at once, the places that only sign-in may take.
    pub calls_for_sign_in: u32,
    /// Of the places of one plugin, and of the others of all, the share that only organizations may take which have no call there.
    pub calls_for_newcomers_percent: u32,
    /// Calls of all plugins together that may wait for a place.
    pub waiting: u32,
    /// Calls of one organization that may wait for a place.
    pub waiting_per_organization: u32,
    /// Calls of one connection that may wait for a place.
    pub waiting_per_connection: u32,
    /// How long a call waits for its place.
    pub queue: Duration,
    /// The time that a check may take, which somebody waits for.
    pub check: Duration,
    /// Checks of one organization's connections in a minute.
    pub checks_per_minute: u32,
    /// Bytes of linear memory of all calls together; an eighth of it is kept for sign-in.
    pub memory_total_bytes: usize,
    /// Bytes of linear memory of one organization's calls.
    pub memory_per_organization_bytes: usize,
    /// Sockets and files of all calls together.
    pub descriptors_total: usize,
    /// Bytes of address space of a process that compiles one component.
    pub compile_memory_bytes: u64,
    /// Processor time to compile one component, on all processors together.
    pub compile_cpu: Duration,
    /// Time to compile one component.
    pub compile_wall: Duration,
    /// Patterns of a configuration's schema, with every `$ref` followed.
    pub schema_patterns: usize,
    /// Bytes of these patterns, compiled.
    pub schema_patterns_bytes: usize,
    /// Time to compile a schema, or to apply it to one configuration.
    pub schema_time: Duration,
    /// Bytes of one connection's configuration.
    pub config_bytes: usize,
    /// Bytes of one secret of a connection.
    pub secret_bytes: usize,
    /// Bytes that one connection's folder may hold.
    pub folder_bytes: u64,
    /// Files and folders in one connection's folder.
    pub folder_files: u64,
    /// Folders of one organization's connections, those of deleted ones included.
    pub folders_per_organization: u64,
    /// Threads that wait for the disk of the folders.
    pub folder_threads: usize,
    /// Calls of one organization among those that wait for their folders before they begin.
    pub folder_threads_per_organization: usize,
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
            calls_per_organization: 16,
            calls_per_connection: 8,
            calls_for_sign_in: 8,
            calls_for_newcomers_percent: 25,
            waiting: 1024,
            waiting_per_organization: 128,
            waiting_per_connection: 64,
            queue: Duration::from_secs(10),
            check: Duration::from_secs(15),
            checks_per_minute: 60,
            memory_total_bytes: 2 << 30,
            memory_per_organization_bytes: 512 << 20,
            descriptors_total: 1024,
            compile_memory_bytes: 4 << 30,
            compile_cpu: Duration::from_secs(300),
            compile_wall: Duration::from_secs(240),
            schema_patterns: 64,
            schema_patterns_bytes: 2 << 20,
            schema_time: Duration::from_secs(5),
            config_bytes: 64 << 10,
            secret_bytes: 16 << 10,
            folder_bytes: 1 << 30,
            folder_files: 1000,
            folders_per_organization: 16,
            folder_threads: 32,
            folder_threads_per_organization: 8,
            log_lines_per_second: 50,
            trip_failures: 5,
            trip_pause: Duration::from_secs(10),
        }
    }
}

/// What a call has used so far. Times are of the processor, on the thread that polls the call.
#[derive(Debug, Default)]
pub struct Usage {
    /// Nanoseconds of all polls that are over.
    spent: AtomicU64,
    /// The thread's clock when the present poll began.
    began: AtomicU64,
    /// The present poll ended because the guest was made to yield, not because it waits.
    yielded: AtomicBool,
    /// It went on in the background.
    moved: AtomicBool,
    memory: AtomicUsize,
}

/// Nanoseconds that this thread has had of the processor.
fn thread_clock() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or_default())
}

impl Usage {
    /// Processor time of the call so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    /// Bytes of linear memory, all memories together. They never shrink, so in the end it is the peak.
    pub fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// Whether it computed for so long that it went on in the background.
    pub fn moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }

    /// A poll begins, on this thread.
    pub(super) fn begin(&self) {
        self.began.store(thread_clock(), Ordering::Relaxed);
        self.yielded.store(false, Ordering::Relaxed);
    }

    /// The poll is over. Returns the processor time that it took.
    pub(super) fn end(&self) -> Duration {
        let poll = self.poll();
        self.spent.fetch_add(u64::try_from(poll.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        poll
    }

    /// Within a poll: the time that it has taken so far.
    pub(super) fn poll(&self) -> Duration {
        Duration::from_nanos(thread_clock().saturating_sub(self.began.load(Ordering::Relaxed)))
    }

    /// The guest is made to yield, although it would go on.
    pub(super) fn yields(&self) {
        self.yielded.store(true, Ordering::Relaxed);
    }

    /// Whether the poll that just ended did so because the guest was made to yield.
    pub(super) fn yielded(&self) -> bool {
        self.yielded.load(Ordering::Relaxed)
    }

    pub(super) fn moves(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }
}

/// Linear memory of all calls together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryAccount {
    total: usize,
    per_organization: usize,
    taken: Arc<Mutex<MemoryTaken>>,
}

#[derive(Debug, Default)]
struct MemoryTaken {
    all: usize,
    of: HashMap<Uuid, usize>,
}

impl MemoryAccount {
    /// An account of so many bytes, and so many for each organization.
    pub fn new(total: usize, per_organization: usize) -> Self {
        Self { total, per_organization, taken: Arc::default() }
    }

    fn take(&self, bytes: usize, caller: &Caller) -> bool {
        let kept = if caller.signs_in { 0 } else { self.total / 8 };
        let mut taken = self.taken.lock();
        let all = taken.all.saturating_add(bytes);
        let of =
            caller.organization.map(|id| (id, taken.of.get(&id).copied().unwrap_or_default().saturating_add(bytes)));
        if all > self.total - kept || of.is_some_and(|(_, of)| of > self.per_organization) {
            return false;
        }
        taken.all = all;
        taken.of.extend(of);
        true
    }

    fn give_back(&self, bytes: usize, caller: &Caller) {
        let mut taken = self.taken.lock();
        taken.all = taken.all.saturating_sub(bytes);
        if let Some(id) = caller.organization
            && let Some(of) = taken.of.get_mut(&id)
        {
            *of = of.saturating_sub(bytes);
            if *of == 0 {
                taken.of.remove(&id);
            }
        }
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
    /// Linear memory of all calls together.
    MemoryOfAll,
    /// Tables.
    Tables,
    /// Processor time.
    Cpu,
}

/// Sums what one store holds.
pub struct Limiter {
    memory_left: usize,
    table_left: usize,
    account: MemoryAccount,
    caller: Caller,
    taken: usize,
    usage: Arc<Usage>,
    /// What was refused, to explain the trap that follows.
    pub exceeded: Option<Exceeded>,
}

impl Limiter {
    /// A limiter for one store.
    pub fn new(limits: &Limits, account: MemoryAccount, caller: Caller, usage: Arc<Usage>) -> Self {
        let (memory_left, table_left) = (limits.memory_bytes, limits.table_elements);
        Self { memory_left, table_left, account, caller, taken: 0, usage, exceeded: None }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.account.give_back(self.taken, &self.caller);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        // The slot of the pool is the other bound; growth beyond it fails after this, and must not be counted.
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        match self.memory_left.checked_sub(more) {
            Some(_) if fits && !self.account.take(more, &self.caller) => {
                self.exceeded = Some(Exceeded::MemoryOfAll);
                Ok(false)
            }
            Some(left) if fits => {
                self.memory_left = left;
                self.taken = self.taken.saturating_add(more);
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
        Limiter::new(limits, MemoryAccount::new(usize::MAX, usize::MAX), Caller::default(), Arc::default())
    }

    #[test]
    fn memory_is_shared_by_all_calls_and_comes_back_with_them() {
        let account = MemoryAccount::new(80, 50);
        let call = |organization: u128, signs_in| {
            let organization = Some(Uuid::from_u128(organization));
            let caller = Caller { organization, signs_in, ..Caller::default() };
            Limiter::new(&Limits::default(), account.clone(), caller, Arc::default())
        };
        let mut calls = [call(1, false), call(1, false), call(2, false), call(3, true)];
        let mut grow = |call: usize, bytes| calls[call].memory_growing(0, bytes, None).unwrap();
        assert!(grow(0, 40) && !grow(1, 20), "one organization leaves some to others");
        assert!(!grow(2, 40) && grow(2, 30), "and all of them together some to sign-in");
        assert!(grow(3, 10));
        assert_eq!((calls[1].exceeded, account.taken.lock().all), (Some(Exceeded::MemoryOfAll), 80));
        drop(calls);
        let taken = account.taken.lock();
        assert!(taken.all == 0 && taken.of.is_empty());
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
