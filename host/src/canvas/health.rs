//! A database that does not answer, or takes no changes: everyone is told that nothing is stored, until it is again.

use std::time::Duration;

use tokio::time::Instant;

use super::{Parts, frames, journal::Journal, outbox::Close, patience, peers::send_all, room::Room};
use crate::{
    domain::{agent::Agent, canvas::Limits},
    store::{StoreError, canvas},
};

impl Parts {
    /// How long one exchange with the database may take.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.limits.canvas_database_ms)
    }

    /// Until when an exchange that begins now may take.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }

    /// What messages may make of a canvas.
    fn graph_limits(&self) -> Limits {
        let set = &self.limits;
        Limits {
            nodes: set.canvas_nodes,
            edges: set.canvas_edges,
            graph: set.canvas_graph_kib * 1024,
            values: set.canvas_values,
            ..Limits::CANVAS
        }
    }

    /// Reads the agent's canvas.
    ///
    /// # Errors
    /// As the database says.
    pub(super) async fn journal(&self, agent: &Agent) -> Result<Journal, StoreError> {
        let (organization, canvas) = (agent.organization_id, agent.canvas_id);
        Journal::open(&self.store, &self.clock, organization, canvas, self.patience(), self.graph_limits()).await
    }
}

impl Room {
    /// The database did not answer, or took no change: nothing is stored until it does, and everyone is told so once. Other
    /// faults are only logged: they concern what was asked, not the database.
    pub(super) fn lost(&mut self, error: &StoreError) {
        let canvas = self.agent.canvas_id;
        match error {
            StoreError::Unavailable(_) => {}
            StoreError::Unwritable(..) => self.refused = true,
            _ => {
                tracing::error!(%error, %canvas, "canvas: internal error");
                return;
            }
        }
        metrics::counter!("kaizen_canvas_database_failures_total").increment(1);
        if std::mem::replace(&mut self.writable, false) {
            tracing::warn!(%error, %canvas, "the canvas takes no changes until the database does");
            send_all(&self.members, None, &frames::status(false));
        }
    }

    /// While nothing is stored: asks whether it could be again. Waits for the canvas's lock, as a commit would, so that
    /// whatever is under way from before has ended.
    pub(super) async fn try_writing(&mut self) {
        if self.writable || !self.reachable {
            return;
        }
        let (organization, canvas) = (self.agent.organization_id, self.agent.canvas_id);
        let refused = self.refused;
        let locked = async {
            if refused {
                // To be let in is not enough: a database without space, too, locks what is there.
                self.parts.store.try_writing().await?;
            }
            let mut tx = self.parts.store.begin().await?;
            canvas::lock(&mut tx, organization, canvas).await?;
            tx.commit().await
        };
        match patience::until(self.parts.deadline(), locked).await {
            Ok(()) => {
                (self.writable, self.refused) = (true, false);
                tracing::info!(%canvas, "the database can be written: the canvas takes changes again");
                send_all(&self.members, None, &frames::status(true));
            }
            Err(error) => tracing::debug!(%error, %canvas, "the canvas still takes no changes"),
        }
    }

    /// Closes everyone if the database did not confirm for too long that they may be here.
    pub(super) fn close_unconfirmed(&mut self) {
        let most = Duration::from_secs(self.parts.limits.canvas_unconfirmed_seconds);
        if !self.members.is_empty() && self.known_at.elapsed() > most {
            tracing::warn!(canvas = %self.agent.canvas_id, "access could not be confirmed: all sockets are closed");
            self.close_all(Close::UNCONFIRMED);
        }
    }
}
