//! Addresses that an earlier version stored in another spelling than the one they are compared in now.
//!
//! A domain beyond ASCII is stored by its A-labels since; such addresses are spelled anew with each start of the week after an upgrade. What is not accepted
//! at all any more stays as it is: nobody signs in by it, and the log says whose it is.

use serde_json::json;
use uuid::Uuid;

use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{audit::Outcome, email::Email},
    store::{
        Store, StoreError,
        users::{self, Unconverted},
    },
};

/// Users that are looked at with one statement.
pub(super) const BATCH: i64 = 200;

/// Spells stored addresses as they are compared now, each change with its audit event, where an upgrade may have left others.
///
/// # Errors
/// As the database says.
pub async fn addresses(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    store.after_migrations("addresses", clock.now(), Box::pin(all(store, clock))).await
}

pub(super) async fn all(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    let mut after = Uuid::nil();
    loop {
        let found = users::not_ascii(&mut store.read().await?, after, BATCH).await?;
        let Some(last) = found.last() else { return Ok(()) };
        after = last.id.into();
        for user in found {
            if address(store, clock, &user).await? == Address::NotAccepted {
                tracing::warn!(
                    organization_id = %user.organization_id, user_id = %user.id,
                    "the e-mail address of this user is not accepted any more: nobody signs in by it; make a new user with an \
                     address of ASCII characters and remove this one"
                );
            }
        }
    }
}

/// What became of an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// It is spelled as it is compared.
    Respelled,
    /// It is none, or somebody else's.
    NotAccepted,
    /// Another host was faster, or somebody has removed the user.
    ChangedMeanwhile,
}

pub(super) async fn address(store: &Store, clock: &Clock, user: &Unconverted) -> Result<Address, StoreError> {
    let (organization_id, user_id) = (user.organization_id, user.id);
    let mut tx = store.begin().await?;
    if let Ok(email) = Email::parse(&user.email)
        && users::respell(&mut tx, user, &email, clock.now()).await?
    {
        let changes = json!({ "before": { "email": user.email }, "after": { "email": email } });
        let event = Record {
            organization_id,
            actor: "system".to_owned(),
            action: "user.update",
            target: format!("user/{user_id}"),
            outcome: Outcome::Success,
            details: json!({ "changes": changes, "reason": "the domain is spelled as DNS has it" }),
        };
        audit::record(&mut tx, clock, event).await?;
        tx.commit().await?;
        return Ok(Address::Respelled);
    }
    let now = users::get(&mut tx, organization_id, user_id).await?;
    let as_it_was = now.is_some_and(|now| now.email == user.email);
    Ok(if as_it_was { Address::NotAccepted } else { Address::ChangedMeanwhile })
}
