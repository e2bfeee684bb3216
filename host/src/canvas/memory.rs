//! What open canvases take of this host's memory, and what an organization's may.
//!
//! A room is counted before anything of it is read, as what the smallest one takes, and as what its graph takes once that is known
//! and whenever it changes. Beyond a bound no further canvas is opened, and those that are open only become smaller.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{outbox::Close, room::Room};
use crate::{
    config::limits::ServerLimits,
    domain::{canvas::Graph, id::OrganizationId},
};

/// Bytes of a room besides its graph: its inbox, and what it remembers of messages.
const ROOM: usize = 64 * 1024;
/// Bytes of one value besides its text: 72 of its own, and what lists and objects have room for beyond what they hold.
const VALUE: usize = 128;

/// Bytes that a message takes once it is read, about: there are no more values in it than its commas and brackets say.
pub(super) fn of_message(text: &str) -> usize {
    text.len() + VALUE * text.bytes().filter(|byte| b",[{".contains(byte)).count()
}

/// The memory of open canvases. Cheap to clone.
#[derive(Clone)]
pub(super) struct Memory {
    of_host: usize,
    of_organization: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    organizations: HashMap<OrganizationId, usize>,
}

/// What one room takes; given back when dropped.
pub(super) struct Share {
    memory: Memory,
    organization: OrganizationId,
    bytes: usize,
}

impl Memory {
    /// Nothing taken.
    pub(super) fn new(limits: &ServerLimits) -> Self {
        let mib = 1024 * 1024;
        Self {
            of_host: limits.canvas_rooms_mib * mib,
            of_organization: limits.canvas_rooms_mib_per_organization * mib,
            taken: Arc::default(),
        }
    }

    /// What a room takes before it is read.
    ///
    /// # Errors
    /// What to close with whoever wants it open: there is no memory left for it.
    pub(super) fn share(&self, organization: OrganizationId) -> Result<Share, Close> {
        let mut share = Share { memory: self.clone(), organization, bytes: 0 };
        if share.take(ROOM) { Ok(share) } else { Err(Close::MEMORY) }
    }
}

impl Share {
    /// Counts a room with this graph; whether that is within what may be taken.
    #[must_use]
    pub(super) fn holds(&mut self, graph: &Graph) -> bool {
        // The text once more: as it is sent to those who join.
        self.take(ROOM + 2 * graph.bytes() + VALUE * graph.values())
    }

    fn take(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let mut taken = self.memory.taken.lock();
        taken.bytes = (taken.bytes + bytes).saturating_sub(before);
        let of_host = taken.bytes;
        let organization = taken.organizations.entry(self.organization).or_default();
        *organization = (*organization + bytes).saturating_sub(before);
        let of_organization = *organization;
        if of_organization == 0 {
            taken.organizations.remove(&self.organization);
        }
        of_host <= self.memory.of_host && of_organization <= self.memory.of_organization
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.take(0);
    }
}

impl Room {
    /// Counts the graph as it is now.
    pub(super) fn count_memory(&mut self) {
        self.storage.out_of_memory = !self.memory.holds(self.journal.graph());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn organization(n: u128) -> OrganizationId {
        OrganizationId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn a_message_counts_as_what_it_takes_once_it_is_read() {
        let zeros = json!(vec![0; 1000]).to_string();
        assert_eq!(of_message(&zeros), zeros.len() + 1000 * VALUE);
        let nested = json!([[0], { "a": [0, 1] }, {}]).to_string();
        assert_eq!(of_message(&nested), nested.len() + 8 * VALUE);
        assert_eq!(of_message(&"x".repeat(1000)), 1000);
    }

    #[test]
    fn organizations_and_the_host_have_their_bounds_and_what_ends_is_given_back() {
        let (host, each) = (3, 2);
        let limits =
            ServerLimits { canvas_rooms_mib: host, canvas_rooms_mib_per_organization: each, ..ServerLimits::default() };
        let memory = Memory::new(&limits);
        let rooms = |mib: usize| mib * 1024 * 1024 / ROOM;
        let open = |n: u128| memory.share(organization(n));
        let mut acme: Vec<Share> = (0..rooms(each)).map(|_| open(1).ok().unwrap()).collect();
        assert_eq!(open(1).err(), Some(Close::MEMORY), "the organization's");
        let rival: Vec<Share> = (0..rooms(host - each)).map(|_| open(2).ok().unwrap()).collect();
        assert_eq!(open(2).err(), Some(Close::MEMORY), "the host's");
        acme.pop();
        let mut rest = open(2).ok().unwrap();
        // Values take memory, however short their text is.
        let graph: Graph =
            serde_json::from_value(json!({ "nodes": [{ "id": "a", "data": vec![0; 10_000] }], "edges": [] })).unwrap();
        assert!(!rest.holds(&graph));
        assert!(rest.bytes > 72 * 10_000, "{}", rest.bytes);
        assert!(rest.holds(&Graph::default()));
        drop((acme, rival, rest));
        let taken = memory.taken.lock();
        assert_eq!((taken.bytes, taken.organizations.len()), (0, 0));
    }
}
