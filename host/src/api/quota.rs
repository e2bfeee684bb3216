//! Refuses to add to what an organization has as many of as it may.

use super::problem::{Problem, Result};
use crate::{
    app::App,
    domain::id::OrganizationId,
    store::{
        Tx,
        quota::{self, Counted},
    },
};

/// To be called in the transaction that adds one. Two at once may both be let in by it: the bound is one of order, not of safety.
///
/// # Errors
/// 409 that names what there is too much of, the bound, and the operator's setting.
pub async fn room(app: &App, tx: &mut Tx, organization: OrganizationId, what: Counted) -> Result<()> {
    let limits = &app.config.limits;
    let (most, things, setting) = match what {
        Counted::Users => (limits.users_per_organization, "users", "users_per_organization"),
        Counted::Workspaces => (limits.workspaces_per_organization, "workspaces", "workspaces_per_organization"),
        Counted::Memberships(_) => (limits.memberships_per_user, "roles of this user", "memberships_per_user"),
        Counted::Agents => (limits.agents_per_organization, "agents", "agents_per_organization"),
        Counted::Connections(_) => {
            (limits.connections_per_organization, "connections of this kind", "connections_per_organization")
        }
        Counted::WaitingJobs => (limits.jobs_waiting_per_organization, "jobs waiting", "jobs_waiting_per_organization"),
    };
    if quota::count(tx, organization, what, most).await? < most {
        return Ok(());
    }
    Err(Problem::conflict(format!(
        "There are {most} {things} already, as many as an organization may have here: remove some first, or ask the operator to raise `{setting}`."
    )))
}
