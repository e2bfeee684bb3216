//! Rooms, sockets, the journal.

/// The canvas rooms of this host.
#[derive(Clone, Default)]
pub struct Canvases {}

impl Canvases {
    /// None open.
    pub fn new() -> Self {
        Self {}
    }
}
