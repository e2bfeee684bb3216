//! What one call may take. Whatever goes beyond ends the call, and only the call.
//!
//! | what | how it is held |
//! |---|---|
//! | memory, tables, instances | summed over the whole component, at each growth ([`wasmtime::ResourceLimiter`]) |
//! | processor | epoch ticks in which the guest ran; it also yields at each, so that it can't hold a thread |
//! | time | the clock on the wall, host calls included |
//! | stack | the engine's, so the same for all calls |
//! | requests, bytes out and in | counted over all requests of the call |
//! | log | lines and bytes; what is over is dropped and counted |
//! | values handed to the host | bytes for each transfer ("hostcall fuel"); host resources by number |
//! | calls at once | a semaphore for each plugin, another for all; waiting for them is bounded too |

use std::time::Duration;

use wasmtime::ResourceLimiter;

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
    /// Lines in the log.
    pub log_lines: usize,
    /// Bytes of one line; what is longer is cut.
    pub log_line_bytes: usize,
    /// HTTP requests.
    pub http_requests: u64,
    /// Bytes of all requests' headers and bodies.
    pub http_out_bytes: u64,
    /// Bytes of all answers' bodies.
    pub http_in_bytes: u64,
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
            log_lines: 200,
            log_line_bytes: 4 << 10,
            http_requests: 64,
            http_out_bytes: 16 << 20,
            http_in_bytes: 16 << 20,
            transfer_bytes: 4 << 20,
            resources: 1000,
        }
    }
}

impl Limits {
    /// For `describe`: nothing is granted, so nothing takes long.
    pub fn describe() -> Self {
        Self { cpu: Duration::from_secs(1), wall: Duration::from_secs(5), transfer_bytes: 1 << 20, ..Self::default() }
    }

    /// The processor time in ticks, at least one.
    pub(super) fn ticks(&self) -> u64 {
        u64::try_from(self.cpu.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).max(1)
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
    /// What was refused, to explain the trap that follows.
    pub exceeded: Option<Exceeded>,
}

impl Limiter {
    /// A limiter for one store.
    pub fn new(limits: &Limits) -> Self {
        Self { memory_left: limits.memory_bytes, table_left: limits.table_elements, exceeded: None }
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

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        32
    }

    fn memories(&self) -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_summed_over_all_memories() {
        let mut limiter = Limiter::new(&Limits { memory_bytes: 100, ..Limits::default() });
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(!limiter.memory_growing(0, 60, None).unwrap(), "a second memory shares the limit");
        assert_eq!(limiter.exceeded, Some(Exceeded::Memory));
        assert!(limiter.memory_growing(60, 100, None).unwrap());
        assert!(!limiter.memory_growing(100, 101, None).unwrap());
    }

    #[test]
    fn growth_that_cannot_succeed_is_not_counted() {
        let mut limiter = Limiter::new(&Limits { table_elements: 100, ..Limits::default() });
        assert!(!limiter.table_growing(0, 50, Some(10)).unwrap());
        assert!(limiter.table_growing(0, 100, None).unwrap());
    }
}
