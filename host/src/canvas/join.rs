//! Joining a room: may they, and what they are to know first.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    access::{self, Access},
    frames::{self, Frame},
    journal::LOOK_BACK,
    outbox::{Close, Out},
    patience,
    peers::Member,
    room::{Join, Room, failed},
};
use crate::{
    domain::principal::Principal,
    store::{StoreError, canvas},
};

/// A client that resumes is sent so many messages or bytes; if it missed more, the whole canvas.
const RESUME: (i64, i64) = (256, 1024 * 1024);

impl Room {
    /// Lets somebody in, or tells them why not.
    pub(super) async fn join(&mut self, join: Join) {
        let Join { peer, principal, outbox, client, since, joined } = join;
        let admitted = self.admit(principal).await;
        let result = match admitted {
            Ok((principal, access, decided_at)) => {
                let repeats = since.map_or(i64::MAX, |since| since.saturating_add(1))..=self.journal.sequence();
                let presence = Map::new();
                let mut member = Member {
                    peer: peer.clone(),
                    principal,
                    access,
                    decided_at,
                    outbox,
                    client,
                    repeats,
                    presence,
                    weight: 0,
                };
                let frame = frames::presence(&member.shown());
                member.weight = frame.len();
                self.welcome(member, &frame, since).await
            }
            Err(close) => Err(close),
        };
        if joined.send(result).is_err() {
            // Whoever asked has given up.
            self.remove(&peer, |outbox| outbox.close(Close::LATER));
        }
    }

    /// Whether there is room for them, and what they may do as of now.
    async fn admit(&mut self, principal: Principal) -> Result<(Principal, Access, (i64, i64)), Close> {
        if self.parts.stopping.is_cancelled() {
            return Err(Close::RESTART);
        }
        // While the database does not answer, those who wait to join are not made to wait for it one after the other.
        if self.members.len() >= self.parts.limits.canvas_sockets_per_canvas || !self.reachable {
            return Err(Close::LATER);
        }
        let looked = self.look().await;
        let decided_at =
            looked.inspect_err(|error| self.lost(error)).map_err(|error| failed(&error))?.ok_or(Close::GONE)?;
        let agent = access::resource(&self.agent);
        // Asked anew although the socket's handler did: what was revoked in between must not slip through.
        let admitted = async {
            let again = {
                let mut conn = self.parts.store.read().await?;
                self.parts.identity.again(&mut conn, &self.parts.clock, &principal).await?
            };
            let Some(principal) = again else { return Ok(Err(Close::SIGNED_OUT)) };
            let access = self.parts.access(&principal, &agent).await?;
            Ok(access.map(|access| (principal, access, decided_at)).ok_or(Close::FORBIDDEN))
        };
        patience::until(self.parts.deadline(), admitted).await.map_err(|error| failed(&error))?
    }

    /// Sends what the newcomer is to know first, and tells the others.
    async fn welcome(&mut self, member: Member, frame: &Frame, since: Option<i64>) -> Result<(), Close> {
        let seq = self.journal.sequence();
        let peers = self.peers_of(&member.peer);
        let missed = patience::until(self.parts.deadline(), self.missed(since)).await;
        match missed.map_err(|error| failed(&error))? {
            Some(missed) => {
                for entry in missed {
                    member.outbox.welcome(Out::Frame(frames::ops(entry.sequence, &entry.actor, None, &entry.ops)));
                }
                member.outbox.welcome(Out::Frame(frames::resumed(seq, member.access, &member.peer, &peers)));
            }
            None => {
                let (seq, graph) = self.graph_as_json();
                let snapshot = frames::snapshot(seq, graph, member.access, &member.peer, &peers);
                member.outbox.welcome(Out::Snapshot(snapshot));
            }
        }
        if !self.writable {
            member.outbox.welcome(Out::Frame(frames::status(false)));
        }
        self.tell(&member.peer, frame);
        self.members.insert(member.peer.clone(), member);
        Ok(())
    }

    /// Everyone but `peer`, on this host and others, as they are shown.
    pub(super) fn peers_of(&self, peer: &str) -> Vec<Value> {
        let here = self.members.values().filter(|member| member.peer != peer).map(Member::shown);
        here.chain(self.remote.iter().cloned()).collect()
    }

    /// The sequence, and the members of the graph at it as JSON, made once for all who join at the same sequence.
    pub(super) fn graph_as_json(&mut self) -> (i64, Bytes) {
        let seq = self.journal.sequence();
        match &self.shown {
            Some((known, graph)) if *known == seq => (seq, graph.clone()),
            _ => {
                let graph = frames::members(self.journal.graph());
                self.shown = Some((seq, graph.clone()));
                (seq, graph)
            }
        }
    }

    /// The messages after `since`, if all of them are still there and not too many.
    async fn missed(&self, since: Option<i64>) -> Result<Option<Vec<canvas::Entry>>, StoreError> {
        let seq = self.journal.sequence();
        let Some(since) = since.filter(|since| (0..=seq).contains(since) && seq - since <= RESUME.0.min(LOOK_BACK))
        else {
            return Ok(None);
        };
        if since == seq {
            return Ok(Some(Vec::new()));
        }
        let (organization, id) = (self.agent.organization_id, self.agent.canvas_id);
        let mut conn = self.parts.store.read().await?;
        let (_, bytes) = canvas::tail_size(&mut conn, organization, id, since).await?;
        if bytes > RESUME.1 {
            return Ok(None);
        }
        let mut entries = canvas::tail(&mut conn, organization, id, since, seq - since).await?;
        entries.retain(|entry| entry.sequence <= seq);
        let complete = entries.iter().map(|entry| entry.sequence).eq(since + 1..=seq);
        Ok(complete.then_some(entries))
    }
}
