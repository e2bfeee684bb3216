//! What the audit trail tells of drawing: `canvas.edit`, not once for each operation but for each window of one person on
//! one canvas and one host.
//!
//! The first message of a window is stored together with an event (`details.window` is `opened`, with its sequence), in
//! one transaction. When the window ends, after [`WINDOW`] or when the person's last socket here closes, a second event
//! (`closed`) tells the first and last sequence and how many messages there were, if there was more than that first one.
//! What a crash leaves without its second event is in the journal, message by message, with the actor, until that forgets
//! it: beyond 1,024 messages or `canvas_journal_kib`.
//! Refusals are [`denials`](crate::audit::denials) like any other.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{
        audit::Outcome,
        id::{AgentId, CanvasId, OrganizationId, UserId},
    },
    store::{StoreError, Tx},
};

/// How long one event speaks for.
pub const WINDOW: Duration = Duration::from_secs(600);
/// The action, as in the audit trail; Cedar's is `agent.update`.
pub const ACTION: &str = "canvas.edit";

/// One person's edits since the window was opened.
#[derive(Debug, Clone, Copy)]
struct Window {
    opened: chrono::DateTime<chrono::Utc>,
    first: i64,
    last: i64,
    messages: u64,
}

/// The open windows of a room on this host.
pub struct Edits {
    clock: Clock,
    organization: OrganizationId,
    agent: AgentId,
    canvas: CanvasId,
    open: HashMap<UserId, Window>,
}

/// A window that ended and is yet to be told of.
#[derive(Debug)]
pub struct Closed(UserId, Window);

impl Edits {
    /// None open.
    pub fn new(clock: Clock, organization: OrganizationId, agent: AgentId, canvas: CanvasId) -> Self {
        Self { clock, organization, agent, canvas, open: HashMap::new() }
    }

    /// Records, within the transaction that stores them, the messages that open a window. Last in the transaction.
    ///
    /// # Errors
    /// As the database says.
    pub async fn record(&self, tx: &mut Tx, stored: &[(UserId, i64)]) -> Result<bool, StoreError> {
        let mut told: Vec<UserId> = Vec::new();
        for (user, sequence) in stored {
            if !self.open.contains_key(user) && !told.contains(user) {
                told.push(*user);
                let details = json!({ "canvas_id": self.canvas, "window": "opened", "first_sequence": sequence });
                audit::record(tx, &self.clock, self.event(*user, details)).await?;
            }
        }
        Ok(!told.is_empty())
    }

    /// Counts messages once they are committed.
    pub fn committed(&mut self, stored: &[(UserId, i64)]) {
        let opened = self.clock.now();
        for (user, sequence) in stored {
            let new = Window { opened, first: *sequence, last: *sequence, messages: 0 };
            let window = self.open.entry(*user).or_insert(new);
            window.last = *sequence;
            window.messages += 1;
        }
    }

    /// The windows that ended: those of people who are not `present`, and those that were open for long enough. They stay
    /// until [`Edits::forget`], so that a database that is away loses none. One of a single message needs no second event.
    pub fn ended(&mut self, present: impl Fn(UserId) -> bool) -> Vec<Closed> {
        let now = self.clock.now();
        let over = |user: UserId, window: &Window| {
            !present(user) || (now - window.opened).to_std().is_ok_and(|open| open >= WINDOW)
        };
        self.open.retain(|user, window| window.messages > 1 || !over(*user, window));
        let ended = self.open.iter().filter(|(user, window)| over(**user, window));
        ended.map(|(user, window)| Closed(*user, *window)).collect()
    }

    /// Forgets windows whose ends are recorded.
    pub fn forget(&mut self, ended: &[Closed]) {
        for Closed(user, _) in ended {
            self.open.remove(user);
        }
    }

    /// Records the ends of windows. Last in the transaction.
    ///
    /// # Errors
    /// As the database says.
    pub async fn record_ends(&self, tx: &mut Tx, ended: &[Closed]) -> Result<(), StoreError> {
        for Closed(user, window) in ended {
            let details = json!({
                "canvas_id": self.canvas,
                "window": "closed",
                "first_sequence": window.first,
                "last_sequence": window.last,
                "messages": window.messages,
            });
            audit::record(tx, &self.clock, self.event(*user, details)).await?;
        }
        Ok(())
    }

    fn event(&self, user: UserId, details: Value) -> Record<'static> {
        Record {
            organization_id: self.organization,
            actor: format!("user/{user}"),
            action: ACTION,
            target: format!("agent/{}", self.agent),
            outcome: Outcome::Success,
            details,
        }
    }
}
