//! What every change has in common: may the caller, and is it told in the audit trail.

use serde_json::{Value, json};

use super::problem::{Problem, ProblemType, Result};
use crate::{
    app::App,
    audit::{
        self, Record,
        denials::{self, Denial},
    },
    authz::{Action, Context, Decision, Resource},
    bus::Hint,
    domain::{audit::Outcome, principal::Principal},
    store::Tx,
};

impl App {
    /// Refuses unless policies allow it. A refused change is recorded, where it does not repeat one that was
    /// ([`denials`]); a refused read is only counted.
    ///
    /// # Errors
    /// 404 for another tenant's; 403 with the reasons and the deciding policies.
    pub async fn require(&self, caller: &Principal, action: Action, on: &Resource, context: &Context) -> Result<()> {
        if on.organization != caller.organization_id {
            return Err(Problem::not_found("thing"));
        }
        let decision = self.authz.check(&self.store, caller, action, on, context).await?;
        if decision.allowed {
            return Ok(());
        }
        metrics::counter!("kaizen_denials_total", "action" => action.as_str()).increment(1);
        if !action.reads() {
            self.record_denial(caller, action, on, decision.to_json()).await?;
        }
        Err(denied(&decision))
    }

    /// Refuses what is no matter of policies, and records it: a rule of the server's own that a tenant cannot change.
    ///
    /// # Errors
    /// Always: 403 with the reason.
    pub async fn refuse(&self, caller: &Principal, action: Action, on: &Resource, reason: &str) -> Result<()> {
        metrics::counter!("kaizen_denials_total", "action" => action.as_str()).increment(1);
        self.record_denial(caller, action, on, json!({ "allowed": false, "reason": reason })).await?;
        Err(Problem::new(ProblemType::Denied, reason))
    }

    async fn record_denial(&self, caller: &Principal, action: Action, on: &Resource, decision: Value) -> Result<()> {
        let kind = on.kind.as_str();
        let denial = Denial {
            organization: caller.organization_id,
            actor: actor(caller),
            action: action.as_str(),
            kind,
            target: format!("{kind}/{}", on.id),
        };
        Ok(denials::record(self, denial, json!({ "decision": decision })).await?)
    }
}

/// The answer to what policies refuse.
pub fn denied(decision: &Decision) -> Problem {
    let mut problem = Problem::new(ProblemType::Denied, decision.sentence());
    problem.denial = Some(decision.to_json());
    problem
}

/// A user as the audit trail names them.
pub fn actor(caller: &Principal) -> String {
    format!("user/{}", caller.user_id)
}

/// Records the change in the caller's organization, commits it, and tells who listens.
///
/// # Errors
/// As the database says; then nothing of the change is kept.
pub async fn change(
    app: &App,
    mut tx: Tx,
    caller: &Principal,
    action: Action,
    target: String,
    details: Value,
) -> Result<()> {
    let event = Record {
        organization_id: caller.organization_id,
        actor: actor(caller),
        action: action.as_str(),
        target,
        outcome: Outcome::Success,
        details: json!({ "changes": details }),
    };
    audit::record(&mut tx, &app.clock, event).await?;
    tx.commit().await?;
    app.bus.publish(Hint::Audit { organization: caller.organization_id });
    Ok(())
}
