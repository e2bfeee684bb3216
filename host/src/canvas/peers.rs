//! Who is on a canvas: the sockets of this host, and what other hosts say of theirs.
//!
//! Presence is never stored. Each host tells the others, through the bus, of its own peers: when something changes, every
//! [`ANNOUNCE`], and when a host asks; a peer that was not heard of for [`FORGET`] is gone, with its host most likely.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    access::Access,
    frames::{self, Frame, PRESENCE},
    outbox::Outbox,
};
use crate::domain::principal::Principal;

/// Between two times that a host says who is there.
pub const ANNOUNCE: Duration = Duration::from_secs(10);
/// After so long, a peer of another host that was not heard of is gone.
const FORGET: Duration = Duration::from_secs(30);
/// Peers of other hosts that are remembered, for each canvas.
const REMOTE: usize = 1024;
/// What a frame may have beyond what the peer sent: who it is.
const WHO: usize = 4 * 1024;

/// A socket of this host.
pub struct Member {
    /// Names the socket, for others.
    pub peer: String,
    /// Who, as last looked up.
    pub principal: Principal,
    /// What they may do, as last decided.
    pub access: Access,
    /// What that was decided by: the agent's revision, and where the audit trail stood.
    pub decided_at: (i64, i64),
    /// Where to send.
    pub outbox: Outbox,
    /// How the client calls itself, if it does.
    pub client: Option<String>,
    /// For a client without a name: where its repeats are looked for.
    pub repeats: std::ops::RangeInclusive<i64>,
    /// What it last told of itself.
    pub presence: Map<String, Value>,
    /// Bytes of the frame that tells of it.
    pub weight: usize,
}

impl Member {
    /// As others see it: what it told of itself, and who it is.
    pub fn shown(&self) -> Value {
        let mut shown = self.presence.clone();
        for taken in ["type", "left"] {
            shown.retain(|key, _| key != taken);
        }
        shown.insert("peer".into(), self.peer.clone().into());
        shown.insert("actor".into(), self.actor().into());
        shown.insert("name".into(), self.principal.name.clone().into());
        Value::Object(shown)
    }

    /// As in the audit trail.
    pub fn actor(&self) -> String {
        format!("user/{}", self.principal.user_id)
    }
}

/// The sockets of this host, by peer.
pub type Members = BTreeMap<String, Member>;

/// Queues a frame for everyone but one.
pub fn send_all(members: &Members, but: Option<&str>, frame: &Frame) {
    for member in members.values().filter(|member| Some(member.peer.as_str()) != but) {
        member.outbox.send(frame.clone());
    }
}

/// The peers of other hosts.
pub struct Remote {
    peers: HashMap<String, Known>,
    /// Bytes of all of them, and at the most.
    bytes: usize,
    most: usize,
}

/// A peer of another host: how it is shown, in how many bytes, and when it was heard of last.
struct Known {
    shown: Value,
    bytes: usize,
    heard: Instant,
}

impl Remote {
    /// None, and never more than `most` bytes of them.
    pub fn new(most: usize) -> Self {
        Self { peers: HashMap::new(), bytes: 0, most }
    }

    /// Takes in what another host says of a peer, and returns the frame to pass on if there is news in it. What is over the bounds is
    /// not taken in.
    pub fn heard(&mut self, peer: &str, frame: &str, now: Instant) -> Option<Frame> {
        if frame.len() > PRESENCE + WHO {
            return None;
        }
        let Ok(Value::Object(mut shown)) = serde_json::from_str::<Value>(frame) else { return None };
        if shown.get("peer").and_then(Value::as_str) != Some(peer) {
            return None;
        }
        if shown.get("left") == Some(&Value::Bool(true)) {
            let known = self.peers.remove(peer)?;
            self.bytes -= known.bytes;
            return Some(frames::left(peer, known.shown.get("actor")));
        }
        shown.retain(|key, _| key != "type");
        let (shown, bytes, count) = (Value::Object(shown), frame.len(), self.peers.len());
        let known = self.peers.get_mut(peer);
        let (before, is_new) = (known.as_ref().map_or(0, |known| known.bytes), known.is_none());
        let over = bytes > before && self.bytes - before + bytes > self.most;
        if let Some(known) = known {
            known.heard = now;
            if known.shown == shown {
                return None;
            }
        }
        if over || (is_new && count >= REMOTE) {
            metrics::counter!("kaizen_canvas_presence_dropped_total").increment(1);
            return None;
        }
        self.bytes = self.bytes - before + bytes;
        self.peers.insert(peer.to_owned(), Known { shown: shown.clone(), bytes, heard: now });
        Some(frames::presence(&shown))
    }

    /// Forgets those that were not heard of for long; returns the frames that say so.
    pub fn forget(&mut self, now: Instant) -> Vec<Frame> {
        let gone: Vec<_> = self.peers.extract_if(|_, known| now.duration_since(known.heard) > FORGET).collect();
        self.bytes -= gone.iter().map(|(_, known)| known.bytes).sum::<usize>();
        gone.iter().map(|(peer, known)| frames::left(peer, known.shown.get("actor"))).collect()
    }

    /// All of them, as they are shown.
    pub fn iter(&self) -> impl Iterator<Item = &Value> {
        self.peers.values().map(|known| &known.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_elsewhere_is_told_of_once_and_forgotten_with_its_host() {
        let now = Instant::now();
        let mut remote = Remote::new(1024);
        let says = |x: i64| format!(r#"{{"type":"presence","peer":"p","actor":"user/1","x":{x}}}"#);
        assert!(remote.heard("p", &says(1), now).is_some());
        assert!(remote.heard("p", &says(1), now).is_none(), "nothing new");
        assert!(remote.heard("p", &says(2), now).is_some_and(|frame| frame.as_str().contains("\"x\":2")));
        assert!(remote.heard("q", &says(2), now).is_none(), "about another peer than it says");
        assert!(remote.heard("p", "{", now).is_none());
        assert!(remote.forget(now + FORGET / 2).is_empty());
        let gone = remote.forget(now + FORGET * 2);
        assert_eq!(gone.len(), 1);
        assert!(gone[0].as_str().contains("user/1") && gone[0].as_str().contains("\"left\":true"));
        assert!(remote.heard("p", r#"{"peer":"p","left":true}"#, now).is_none(), "it was gone already");
    }

    #[test]
    fn peers_elsewhere_take_no_more_than_their_bound_and_make_room_again() {
        let now = Instant::now();
        let mut remote = Remote::new(200);
        let says = |peer: &str, bytes: usize| format!(r#"{{"peer":"{peer}","x":"{}"}}"#, "x".repeat(bytes));
        assert!(remote.heard("p", &says("p", 50), now).is_some());
        assert!(remote.heard("q", &says("q", 150), now).is_none(), "over it");
        assert!(
            remote.heard("p", &says("p", 150), now).is_some(),
            "the same peer's takes the place of what it said before"
        );
        assert!(remote.heard("q", &says("q", 50), now).is_none());
        assert!(remote.heard("p", r#"{"peer":"p","left":true}"#, now).is_some());
        assert!(remote.heard("q", &says("q", 50), now).is_some());
        assert_eq!(remote.forget(now + FORGET * 2).len(), 1);
        assert_eq!(remote.bytes, 0);
    }
}
