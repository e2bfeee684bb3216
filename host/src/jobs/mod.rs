//! Leases and the apalis runner; one job a file.

/// Background jobs.
#[derive(Clone, Default)]
pub struct Jobs {}

impl Jobs {
    /// None running.
    pub fn new() -> Self {
        Self {}
    }
}
