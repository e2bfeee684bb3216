//! Presence of other hosts' people without Redis: read from the database at each look, so about a second late.
//!
//! A host writes down who is on a canvas every [`ANNOUNCE`] while it has no Redis, and at each look while another host
//! does; whoever is alone pays one small row in ten seconds. A row counts as heard of when it changes: hosts' clocks need
//! not agree.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    patience,
    peers::{ANNOUNCE, send_all},
    room::Room,
};
use crate::store::{StoreError, presence};

/// Rows that did not change for longer are not looked at; hosts' clocks may differ by most of it.
const STALE: TimeDelta = TimeDelta::minutes(2);
/// After so long without a change a row is deleted.
const FORGOTTEN: TimeDelta = TimeDelta::minutes(10);

/// What this host wrote and read of one canvas.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// Whether other hosts write too, as of the last look.
    pub(super) others: bool,
    /// What was written last, and when.
    written: Option<(String, Instant)>,
    /// What was read of each host: when it had changed, and whom it told of.
    read: HashMap<String, (DateTime<Utc>, HashSet<String>)>,
}

impl Room {
    /// From when on presence in the database is looked at.
    pub(super) fn presence_since(&self) -> DateTime<Utc> {
        self.parts.clock.now() - STALE
    }

    /// Reads what other hosts wrote, if any do, and writes who is here if others should know. What fails is tried again at
    /// the next tick.
    pub(super) async fn share_presence(&mut self) {
        if !self.parts.store.is_shared() || !self.writable {
            return;
        }
        if self.members.is_empty() {
            self.withdraw_presence().await;
            return;
        }
        match self.exchange_presence(self.parts.deadline()).await {
            Ok(()) => {}
            // Those who only look on are told before somebody draws in vain.
            Err(error @ StoreError::Unwritable(..)) => self.lost(&error),
            Err(error) => tracing::debug!(%error, canvas = %self.agent.canvas_id, "presence was not exchanged"),
        }
    }

    async fn exchange_presence(&mut self, deadline: Instant) -> Result<(), StoreError> {
        let others = self.elsewhere.others;
        if others {
            let (organization, canvas) = (self.agent.organization_id, self.agent.canvas_id);
            let since = self.presence_since();
            let rows = async {
                let mut conn = self.parts.store.read().await?;
                presence::elsewhere(&mut conn, organization, canvas, &self.parts.host, since).await
            };
            let rows = patience::until(deadline, rows).await?;
            self.take_in(rows);
        }
        let due = self.elsewhere.written.as_ref().is_none_or(|(_, at)| at.elapsed() > ANNOUNCE);
        if others || (due && !self.parts.bus.is_linked()) {
            self.write_presence(due, deadline).await?;
        }
        Ok(())
    }

    /// Tells other hosts that nobody is here any more, if they were told of somebody.
    pub(super) async fn withdraw_presence(&mut self) {
        let told = self.elsewhere.written.as_ref().is_some_and(|(peers, _)| peers != "[]");
        if told && let Err(error) = self.write_presence(true, self.parts.deadline()).await {
            tracing::debug!(%error, canvas = %self.agent.canvas_id, "other hosts find out by themselves who has gone");
            self.elsewhere.written = None;
        }
    }

    /// Whom this host shows, as far as they fit.
    fn peers_to_write(&self) -> String {
        let mut left = self.parts.limits.canvas_presence_kib * 1024;
        let mut peers = Vec::new();
        for member in self.members.values() {
            let shown = member.shown().to_string();
            match left.checked_sub(shown.len() + 1) {
                Some(rest) => left = rest,
                None => break,
            }
            peers.push(shown);
        }
        format!("[{}]", peers.join(","))
    }

    async fn write_presence(&mut self, due: bool, deadline: Instant) -> Result<(), StoreError> {
        let peers = self.peers_to_write();
        let known = self.elsewhere.written.as_ref().map(|(peers, _)| peers);
        if !due && known == Some(&peers) {
            return Ok(());
        }
        let first = known.is_none();
        let (organization, canvas, now) = (self.agent.organization_id, self.agent.canvas_id, self.parts.clock.now());
        let row = presence::Row { host: self.parts.host.clone(), peers, updated_at: now };
        let written = async {
            let mut tx = self.parts.store.begin().await?;
            if first {
                presence::sweep(&mut tx, now - FORGOTTEN).await?;
            }
            presence::tell(&mut tx, organization, canvas, &row).await?;
            tx.commit().await
        };
        patience::until(deadline, written).await?;
        self.elsewhere.written = Some((row.peers, Instant::now()));
        Ok(())
    }

    fn take_in(&mut self, rows: Vec<presence::Row>) {
        let now = Instant::now();
        self.elsewhere.read.retain(|host, _| rows.iter().any(|row| row.host == *host));
        for presence::Row { host, peers, updated_at } in rows {
            let before = match self.elsewhere.read.get(&host) {
                Some((known, _)) if *known == updated_at => continue,
                Some((_, peers)) => peers.clone(),
                None => HashSet::new(),
            };
            let shown: Vec<Value> = serde_json::from_str(&peers).unwrap_or_default();
            let mut there = HashSet::new();
            for peer in shown {
                let Some(id) = peer.get("peer").and_then(Value::as_str).map(str::to_owned) else { continue };
                if !self.members.contains_key(&id) {
                    self.hear_of(&id, &peer.to_string(), now);
                    there.insert(id);
                }
            }
            for id in before.difference(&there) {
                self.hear_of(id, &json!({ "peer": id, "left": true }).to_string(), now);
            }
            self.elsewhere.read.insert(host, (updated_at, there));
        }
    }

    /// Takes in what another host says of a peer, and tells everyone here if there is news in it.
    pub(super) fn hear_of(&mut self, peer: &str, frame: &str, now: Instant) {
        if let Some(frame) = self.remote.heard(peer, frame, now) {
            send_all(&self.members, None, &frame);
        }
    }
}
