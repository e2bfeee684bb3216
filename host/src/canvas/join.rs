//! Joining a room: may they, and what they are to know first.

use serde_json::{Map, Value};

use super::{
    access::{self, Access},
    frames,
    journal::LOOK_BACK,
    outbox::Close,
    peers::Member,
    room::{Join, Room, failed},
};
use crate::{
    domain::principal::Principal,
    store::{StoreError, canvas},
};

/// Sockets in one room, at the most.
const SOCKETS: usize = 256;
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
                let member = Member { peer, principal, access, decided_at, outbox, client, repeats, presence };
                self.welcome(member, since).await
            }
            Err(close) => Err(close),
        };
        // Whoever asked may have given up; their `Leave` follows then.
        let _ = joined.send(result);
    }

    /// Whether there is room for them, and what they may do as of now.
    async fn admit(&mut self, principal: Principal) -> Result<(Principal, Access, (i64, i64)), Close> {
        if self.parts.stopping.is_cancelled() {
            return Err(Close::RESTART);
        }
        if self.members.len() >= SOCKETS {
            return Err(Close::LATER);
        }
        let decided_at = self.look().await.map_err(|error| failed(&error))?.ok_or(Close::GONE)?;
        let agent = access::resource(&self.agent);
        // Asked anew although the socket's handler did: what was revoked in between must not slip through.
        let principal = {
            let mut conn = self.parts.store.read().await.map_err(|error| failed(&error))?;
            let again = self.parts.identity.again(&mut conn, &self.parts.clock, &principal).await;
            again.map_err(|error| failed(&error))?.ok_or(Close::SIGNED_OUT)?
        };
        match self.parts.access(&principal, &agent).await.map_err(|error| failed(&error))? {
            Some(access) => Ok((principal, access, decided_at)),
            None => Err(Close::FORBIDDEN),
        }
    }

    /// Sends what the newcomer is to know first, and tells the others.
    async fn welcome(&mut self, member: Member, since: Option<i64>) -> Result<(), Close> {
        let seq = self.journal.sequence();
        let peers: Vec<Value> = self.members.values().map(Member::shown).chain(self.remote.iter().cloned()).collect();
        match self.missed(since).await.map_err(|error| failed(&error))? {
            Some(missed) => {
                for entry in missed {
                    member.outbox.send(frames::ops(entry.sequence, &entry.actor, None, &entry.ops));
                }
                member.outbox.send(frames::resumed(seq, member.access, &member.peer, &peers));
            }
            None => {
                let graph = self.journal.graph();
                member.outbox.send(frames::snapshot(seq, graph, member.access, &member.peer, &peers));
            }
        }
        self.tell(&member);
        metrics::gauge!("kaizen_canvas_sockets").increment(1.0);
        self.members.insert(member.peer.clone(), member);
        Ok(())
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
        let (_, length) = canvas::tail_size(&mut conn, organization, id, since).await?;
        if length > RESUME.1 {
            return Ok(None);
        }
        let mut entries = canvas::tail(&mut conn, organization, id, since, seq - since).await?;
        entries.retain(|entry| entry.sequence <= seq);
        let complete = entries.iter().map(|entry| entry.sequence).eq(since + 1..=seq);
        Ok(complete.then_some(entries))
    }
}
