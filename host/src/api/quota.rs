//! Refuses to add to what an organization has as many of as it may.

use super::problem::{Problem, Result};
use crate::{
    app::App,
    domain::id::OrganizationId,
    store::{Tx, quota::Counted},
};

/// To be called in the transaction that adds one; see [`Allowances::room`](crate::store::quota::Allowances::room).
///
/// # Errors
/// 409 that names what there is too much of, the bound, and the operator's setting.
pub async fn room(app: &App, tx: &mut Tx, organization: OrganizationId, what: Counted) -> Result<()> {
    if app.allowances.room(tx, organization, what).await? {
        return Ok(());
    }
    let (things, setting) = match what {
        Counted::Users => ("users", "users_per_organization"),
        Counted::Workspaces => ("workspaces", "workspaces_per_organization"),
        Counted::Memberships(_) => ("roles of this user", "memberships_per_user"),
        Counted::Agents => ("agents", "agents_per_organization"),
        Counted::Connections(_) => ("connections of this kind", "connections_per_organization"),
        Counted::WaitingJobs => ("jobs waiting", "jobs_waiting_per_organization"),
    };
    let most = app.allowances.most(what);
    Err(Problem::conflict(format!(
        "There are {most} {things} already, as many as an organization may have here: remove some first, or ask the operator to raise `{setting}`."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{deployment::DeploymentState, job::JobKind},
        jobs::fixture::{Fixture, Tenant},
        store,
    };

    #[tokio::test]
    async fn an_organization_has_so_many_jobs_waiting_and_keeps_no_other_from_its_own() {
        for fixture in Fixture::each().await {
            let app = fixture.app().await;
            let (busy, other) = (fixture.tenant().await, fixture.tenant().await);
            let refused = async |tenant: &Tenant| {
                let mut tx = fixture.store.begin().await.unwrap();
                room(&app, &mut tx, tenant.organization, Counted::WaitingJobs).await.err().map(|problem| problem.detail)
            };
            for _ in 0..2 {
                assert_eq!(refused(&busy).await, None);
                fixture.deployment(&busy, DeploymentState::Queued, JobKind::Deploy).await;
            }
            let why = refused(&busy).await.expect("there are two");
            assert!(why.contains("There are 2 jobs waiting") && why.contains("jobs_waiting_per_organization"), "{why}");
            assert_eq!(refused(&other).await, None);
            // What runs does not wait.
            let now = app.clock.now();
            let mut tx = fixture.store.begin().await.unwrap();
            store::jobs::claim(&mut tx, "w", now, now + app.config.limits.job_lease(), 8).await.unwrap().unwrap();
            tx.commit().await.unwrap();
            assert_eq!(refused(&busy).await, None);
        }
    }
}
