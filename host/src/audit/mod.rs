//! The audit trail: recorded in the transaction of the change it tells of, delivered to sinks afterwards, verifiable.

pub mod denials;
mod dispatcher;
pub mod export;
pub mod verify;

use serde_json::Value;

pub use self::dispatcher::start;

use crate::{
    clock::Clock,
    domain::{
        audit::{Event, Outcome, chain_hash},
        id::OrganizationId,
    },
    request_id,
    store::{self, StoreError, Tx},
};

/// The actor of what nobody asked for.
const SYSTEM: &str = "system";

/// What is to be recorded.
pub struct Record<'a> {
    /// Whose chain.
    pub organization_id: OrganizationId,
    /// `user/{id}`, `identity_connection/{id}`, `system` or `anonymous`; `user/*` for denials of several people.
    pub actor: String,
    /// The Cedar action where there is one, e.g. `agent.deploy`.
    pub action: &'a str,
    /// `agent/{id}` and the like.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Changes, deciding policies. Never a secret. [`record`] puts in the ids of the request that is being answered.
    pub details: Value,
}

/// Appends to the organization's chain within the transaction of the change itself. The details get the ids of the request that is
/// being answered, unless the actor is `system`: what somebody's request does to other organizations is told without a trace of
/// who asked for it.
///
/// Takes the chain's lock: call it last, right before the commit.
///
/// # Errors
/// As the database says; the change must then not be committed.
pub async fn record(tx: &mut Tx, clock: &Clock, mut record: Record<'_>) -> Result<Event, StoreError> {
    if record.actor != SYSTEM {
        request_id::put_into(&mut record.details);
    }
    let mut event = Event {
        id: clock.id(),
        organization_id: record.organization_id,
        sequence: 0,
        occurred_at: clock.now(),
        actor: record.actor,
        action: record.action.to_owned(),
        target: record.target,
        outcome: record.outcome,
        details: record.details.to_string(),
        hash: String::new(),
    };
    let heads = tx.heads().clone();
    if let Some(guess) = heads.guess(record.organization_id) {
        let (sequence, previous) = &*guess;
        follow(&mut event, *sequence, previous);
        if store::audit::append_after(tx, &event, previous).await? {
            heads.appended(&event);
            return Ok(event);
        }
    }
    let (sequence, previous) = store::audit::lock_head(tx, record.organization_id).await?;
    follow(&mut event, sequence, &previous);
    if !store::audit::append_after(tx, &event, &previous).await? {
        // Nobody else can have moved a chain that is locked.
        return Err(sqlx::Error::RowNotFound.into());
    }
    heads.appended(&event);
    Ok(event)
}

/// Appends what concerns the installation and no organization to the chains of those that have platform administrators:
/// the ones who answer for it. Returns which these are; none before there is one. The actor is `system`.
///
/// Takes their chains' locks, in the order of their ids: call it last, right before the commit.
///
/// # Errors
/// As [`record`].
pub async fn record_for_operators(
    tx: &mut Tx,
    clock: &Clock,
    action: &str,
    target: &str,
    details: &Value,
) -> Result<Vec<OrganizationId>, StoreError> {
    let operators = store::users::operators(tx).await?;
    for organization_id in &operators {
        let event = Record {
            organization_id: *organization_id,
            actor: SYSTEM.to_owned(),
            action,
            target: target.to_owned(),
            outcome: Outcome::Success,
            details: details.clone(),
        };
        record(tx, clock, event).await?;
    }
    Ok(operators)
}

fn follow(event: &mut Event, sequence: i64, previous: &str) {
    event.sequence = sequence + 1;
    event.hash = chain_hash(previous, event);
}
