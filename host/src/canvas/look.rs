//! Looking at the database: what other hosts stored, and what everyone here may still do.
//!
//! One query, about once a second and upon hints, tells where the canvas, its agent and the organization's audit trail
//! stand. Whatever changes access (roles, users, sessions, policies, the agent) is told in the audit trail in the same
//! transaction, so as long as that stands still, so does access; when it moved, or a hint or time says so, each member is
//! looked up and decided anew.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    access::{self, Access},
    frames,
    outbox::Close,
    patience,
    peers::send_all,
    room::Room,
};
use crate::{
    domain::{
        id::{SessionId, UserId},
        principal::Principal,
    },
    store::{StoreError, agents, canvas},
};

/// What is known of access may be so old when a message is judged by it.
const FRESH: Duration = Duration::from_millis(950);
/// Everyone is looked up anew after so long, whatever the audit trail says: sessions end by themselves.
const ANEW: Duration = Duration::from_secs(15);

/// What a member's access turned out to be.
enum Verdict {
    Allowed(Box<Principal>, Access),
    Closed(Close),
}

impl Room {
    /// As [`Room::look`]; a database that is away is told of, and tried again at the next tick.
    pub(super) async fn look_or_log(&mut self) {
        if let Err(error) = self.look().await {
            self.lost(&error);
        }
    }

    /// Makes sure that what is known of access is no older than a second.
    ///
    /// # Errors
    /// As the database says; then nothing may be done.
    pub(super) async fn freshen(&mut self) -> Result<(), StoreError> {
        if self.stale || self.known_at.elapsed() > FRESH {
            self.look().await?;
        }
        Ok(())
    }

    /// Looks: sends everyone what is new, and closes the sockets of those who may not be here any more. Returns what
    /// access is now decided by, the agent's revision and where the audit trail stood; nothing if the canvas is gone,
    /// with everyone's socket closed.
    ///
    /// # Errors
    /// As the database says, or [`StoreError::Unavailable`] if it says nothing in time; then everything stays as it was,
    /// and as old.
    pub(super) async fn look(&mut self) -> Result<Option<(i64, i64)>, StoreError> {
        let looked = self.look_until(self.parts.deadline()).await;
        self.reachable = looked.is_ok();
        looked
    }

    async fn look_until(&mut self, deadline: Instant) -> Result<Option<(i64, i64)>, StoreError> {
        let begun = Instant::now();
        let (organization, id) = (self.agent.organization_id, self.agent.canvas_id);
        let mut conn = patience::until(deadline, self.parts.store.read()).await?;
        let since = self.presence_since();
        let watched = canvas::watch(&mut conn, organization, id, &self.parts.host, since);
        let Some(watch) = patience::until(deadline, watched).await? else {
            self.close_all(Close::GONE);
            return Ok(None);
        };
        if watch.sequence > self.journal.sequence() {
            // Outlives a look that is given up: what was applied here must be passed on.
            let mut read = Vec::new();
            let followed = patience::until(deadline, self.journal.catch_up(&mut conn, &mut read)).await;
            self.pass_on(read);
            match followed {
                Err(StoreError::Stale) => {
                    drop(conn);
                    self.reopen().await?;
                    conn = patience::until(deadline, self.parts.store.read()).await?;
                }
                other => other?,
            }
        }
        if watch.agent_revision != self.agent.revision {
            match patience::until(deadline, agents::by_canvas(&mut conn, organization, id)).await? {
                Some(agent) => self.agent = agent,
                None => {
                    self.close_all(Close::GONE);
                    return Ok(None);
                }
            }
        }
        let now = (watch.agent_revision, watch.audit_sequence);
        let all = self.stale || self.looked_anew.elapsed() > ANEW;
        let doubtful: HashMap<_, Principal> = self
            .members
            .values()
            .filter(|member| all || member.decided_at != now)
            .map(|member| (who(&member.principal), member.principal.clone()))
            .collect();
        let mut present: HashMap<_, Option<Principal>> = doubtful.keys().map(|who| (*who, None)).collect();
        if !doubtful.is_empty() {
            let doubtful: Vec<Principal> = doubtful.into_values().collect();
            let again = self.parts.identity.all_again(&mut conn, &self.parts.clock, &doubtful);
            let again = patience::until(deadline, again).await?;
            present.extend(again.into_iter().map(|principal| (who(&principal), Some(principal))));
        }
        // Policies are read through a connection of their own: whoever holds one and waits for another waits forever.
        drop(conn);
        self.decide(present, now, deadline).await?;
        if all {
            (self.stale, self.looked_anew) = (false, begun);
        }
        self.known_at = begun;
        self.elsewhere.others = watch.elsewhere > 0;
        Ok(Some(now))
    }

    async fn decide(
        &mut self,
        present: HashMap<(UserId, Option<SessionId>), Option<Principal>>,
        now: (i64, i64),
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let agent = access::resource(&self.agent);
        let mut verdicts = HashMap::new();
        for (who, principal) in present {
            let verdict = match principal {
                None => Verdict::Closed(Close::SIGNED_OUT),
                Some(principal) => match patience::until(deadline, self.parts.access(&principal, &agent)).await? {
                    Some(access) => Verdict::Allowed(Box::new(principal), access),
                    None => Verdict::Closed(Close::FORBIDDEN),
                },
            };
            verdicts.insert(who, verdict);
        }
        let mut closed = Vec::new();
        for member in self.members.values_mut() {
            match verdicts.get(&who(&member.principal)) {
                None => {}
                Some(Verdict::Closed(close)) => closed.push((member.peer.clone(), *close)),
                Some(Verdict::Allowed(principal, access)) => {
                    member.principal = (**principal).clone();
                    member.decided_at = now;
                    if member.access != *access {
                        member.access = *access;
                        member.outbox.send(frames::access(*access));
                    }
                }
            }
        }
        for (peer, close) in closed {
            self.remove(&peer, |outbox| outbox.close(close));
        }
        Ok(())
    }

    /// Sends everyone what other hosts stored.
    pub(super) fn pass_on(&self, entries: Vec<canvas::Entry>) {
        for entry in entries {
            send_all(&self.members, None, &frames::ops(entry.sequence, &entry.actor, None, &entry.ops));
        }
    }

    /// This host slept for longer than the journal goes back, or the database was put back to an earlier state: reads the
    /// canvas anew and sends it to everyone.
    pub(super) async fn reopen(&mut self) -> Result<(), StoreError> {
        let deadline = Instant::now() + Duration::from_secs(self.parts.limits.canvas_join_seconds);
        self.journal = patience::until(deadline, self.parts.journal(&self.agent)).await?;
        self.shown = None;
        let (seq, graph) = self.graph_as_json();
        for member in self.members.values() {
            let peers = self.peers_of(&member.peer);
            let snapshot = frames::snapshot(seq, graph.clone(), member.access, &member.peer, &peers);
            member.outbox.send_snapshot(snapshot);
        }
        self.shown = None;
        Ok(())
    }
}

fn who(principal: &Principal) -> (UserId, Option<SessionId>) {
    (principal.user_id, principal.session_id)
}
