//! What one canvas, and all canvases of an organization, may take of the database; of memory, see [`memory`](super::memory).
//!
//! A canvas's journal is bounded by forgetting what is old each time a snapshot is made. Only what no snapshot covers cannot be
//! forgotten, and snapshots have their own bounds ([`Limits`](crate::domain::canvas::Limits)). How much an organization's canvases take
//! together is counted when a canvas is opened and after each of its snapshots, so each open canvas may go beyond by what it stores in
//! between. Whoever is beyond may still remove, look on, and be seen.

use std::time::Duration;

use tokio::time::Instant;

use super::{frames::Refusal, patience, room::Room};
use crate::{
    domain::canvas::Op,
    store::{StoreError, canvas},
};

/// The code of what is refused.
const STORAGE_FULL: &str = "storage_full";
/// How often an organization that is beyond its bound is counted anew.
const COUNT: Duration = Duration::from_secs(5);

/// What a room knows of its organization's canvases.
pub(super) struct Storage {
    /// They take more than they may.
    full: bool,
    /// Those that are open take more memory than they may.
    pub(super) out_of_memory: bool,
    counted: Instant,
}

impl Storage {
    /// As long as nothing is known.
    pub(super) fn new(now: Instant) -> Self {
        Self { full: false, out_of_memory: false, counted: now }
    }
}

impl Room {
    /// Why these operations are not stored, where they would add to what takes too much already.
    pub(super) fn no_space_for(&self, ops: &[Op]) -> Option<Refusal> {
        if ops.iter().all(|op| matches!(op, Op::NodeRemove { .. } | Op::EdgeRemove { .. })) {
            return None;
        }
        let limits = &self.parts.limits;
        if self.storage.full {
            let most = limits.canvas_storage_mib_per_organization;
            let detail = format!(
                "your organization's canvases together take more than {most} MiB: remove nodes or delete agents, or ask the operator \
                 to raise `canvas_storage_mib_per_organization`"
            );
            return Some(Refusal::new(STORAGE_FULL, detail));
        }
        if self.storage.out_of_memory {
            let detail = "the canvases that are open take as much of the server's memory as they may: close some, remove nodes, or ask \
                          the operator to raise `canvas_rooms_mib_per_organization` or `canvas_rooms_mib`";
            return Some(Refusal::new(STORAGE_FULL, detail));
        }
        let loose = i64::try_from(self.journal.loose_bytes()).unwrap_or(i64::MAX);
        if loose > limits.canvas_journal_kib * 1024 {
            let detail = "the messages of this canvas could not be taken together yet; send this one again later";
            return Some(Refusal::new(STORAGE_FULL, detail));
        }
        None
    }

    /// After messages were stored: makes a snapshot if it is time, and counts anew. While the organization takes too much each removal
    /// is worth one.
    pub(super) async fn compact(&mut self) {
        let keep = self.parts.limits.canvas_journal_kib * 1024;
        let compacted = patience::until(self.parts.deadline(), self.journal.compact(keep, self.storage.full)).await;
        match compacted {
            Ok(false) => {}
            Ok(true) => self.count_or_log().await,
            Err(error) => {
                let canvas = self.agent.canvas_id;
                tracing::warn!(%error, %canvas, "no snapshot was made; tried again after more messages");
            }
        }
    }

    /// At a tick: what takes too much may take less by now, and a journal that could not be taken together is tried again.
    pub(super) async fn count_again(&mut self) {
        if !self.writable || self.storage.counted.elapsed() < COUNT {
            return;
        }
        let loose = i64::try_from(self.journal.loose_bytes()).unwrap_or(i64::MAX);
        if loose > self.parts.limits.canvas_journal_kib * 1024 {
            self.storage.counted = Instant::now();
            let keep = self.parts.limits.canvas_journal_kib * 1024;
            if let Err(error) = patience::until(self.parts.deadline(), self.journal.compact(keep, true)).await {
                tracing::warn!(%error, canvas = %self.agent.canvas_id, "still no snapshot was made");
            }
        }
        if self.storage.full {
            self.count_or_log().await;
        }
    }

    pub(super) async fn count_or_log(&mut self) {
        self.storage.counted = Instant::now();
        match patience::until(self.parts.deadline(), self.count()).await {
            Ok(full) => {
                if full && !self.storage.full {
                    let organization = self.agent.organization_id;
                    tracing::warn!(%organization, "the organization's canvases take more than they may: only removals are stored");
                }
                self.storage.full = full;
            }
            Err(error) => {
                tracing::warn!(%error, canvas = %self.agent.canvas_id, "how much the canvases take was not counted");
            }
        }
    }

    async fn count(&self) -> Result<bool, StoreError> {
        let mut conn = self.parts.store.read().await?;
        let bytes = canvas::bytes(&mut conn, self.agent.organization_id).await?;
        Ok(bytes > self.parts.limits.canvas_storage_mib_per_organization.saturating_mul(1024 * 1024))
    }
}
