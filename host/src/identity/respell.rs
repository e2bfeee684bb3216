//! Addresses that an earlier version stored in another spelling than the one they are compared in now.
//!
//! A domain beyond ASCII is stored by its A-labels since; such addresses are spelled anew at the start. What is not accepted
//! at all any more stays as it is: nobody signs in by it, and the log says whose it is.

use serde_json::json;
use uuid::Uuid;

use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{audit::Outcome, email::Email},
    store::{Store, StoreError, users},
};

/// Users that are looked at with one statement.
const BATCH: i64 = 200;

/// Spells stored addresses as they are compared now, each change with its audit event.
///
/// # Errors
/// As the database says.
pub async fn addresses(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    let mut after = Uuid::nil();
    loop {
        let found = users::not_ascii(&mut store.read().await?, after, BATCH).await?;
        let Some(last) = found.last() else { return Ok(()) };
        after = last.id.into();
        for user in found {
            let (organization_id, user_id) = (user.organization_id, user.id);
            let mut tx = store.begin().await?;
            if let Ok(email) = Email::parse(&user.email)
                && users::respell(&mut tx, &user, &email, clock.now()).await?
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
                continue;
            }
            // Another host may have been faster, or somebody has removed the user.
            let now = users::get(&mut tx, organization_id, user_id).await?;
            drop(tx);
            if now.is_none_or(|now| now.email != user.email) {
                continue;
            }
            tracing::warn!(
                %organization_id, %user_id,
                "the e-mail address of this user is not accepted any more: nobody signs in by it; make a new user with an \
                 address of ASCII characters and remove this one"
            );
        }
    }
}
