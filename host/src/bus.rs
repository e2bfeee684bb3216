//! Hints between hosts, and between the rooms of one host: "something changed, look again".
//!
//! A hint may be lost, repeated or late; whoever relies on one also looks at the database now and then. Within one
//! process hints go through a broadcast channel; with `KAIZEN_REDIS_URL` also through Redis.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::domain::id::{CanvasId, DeploymentId, OrganizationId};

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "hint", rename_all = "snake_case")]
pub enum Hint {
    /// Operations were committed to a canvas, up to this sequence.
    Canvas {
        /// Which canvas.
        canvas: CanvasId,
        /// The last committed sequence.
        sequence: i64,
    },
    /// Presence of one peer, to be shown to the others and never stored: the frame, ready to send.
    Presence {
        /// Which canvas.
        canvas: CanvasId,
        /// Who sent it, so that it is not sent back.
        peer: String,
        /// JSON text frame.
        frame: String,
    },
    /// Roles, users, sessions or policies of an organization changed: check open sockets again.
    Access {
        /// Which organization.
        organization: OrganizationId,
    },
    /// A job may be ready to run.
    Job,
    /// A deployment has a new event.
    Deployment {
        /// Which deployment.
        deployment: DeploymentId,
    },
    /// An audit event was committed.
    Audit {
        /// Which organization.
        organization: OrganizationId,
    },
}

/// Publishes and receives hints. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    local: broadcast::Sender<Hint>,
}

impl Bus {
    /// A bus within this process only.
    pub fn local() -> Self {
        Self { local: broadcast::channel(4096).0 }
    }

    /// Tells everyone, here and on the other hosts. Never waits and never fails.
    pub fn publish(&self, hint: Hint) {
        drop(self.local.send(hint));
    }

    /// All hints from now on. A receiver that lags behind learns so from [`broadcast::error::RecvError::Lagged`]
    /// and must then look at the database for everything it follows.
    pub fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.local.subscribe()
    }
}
