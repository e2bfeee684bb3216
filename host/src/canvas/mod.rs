//! Rooms, sockets, the journal.

pub mod edits;
pub mod journal;
#[cfg(test)]
mod journal_tests;
#[cfg(test)]
mod testing;

/// The canvas rooms of this host.
#[derive(Clone, Default)]
pub struct Canvases {}

impl Canvases {
    /// None open.
    pub fn new() -> Self {
        Self {}
    }
}
