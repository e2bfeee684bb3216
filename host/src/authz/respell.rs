//! Environments that an earlier version stored in another spelling than the one they are compared in now.
//!
//! Migration 0011 did what SQL can: the letters that the database knows small ones of, and spaces. Other white space, and on
//! SQLite letters beyond ASCII, are left to each start of the week after an upgrade: policies on `deployment.*`, and rolling back to
//! what was deployed before, compare what is stored. What can be no environment any more stays as it is.

use uuid::Uuid;

use crate::{
    clock::Clock,
    domain::{environment::Environment, id::OrganizationId},
    store::{
        Store, StoreError,
        environments::{self, Of, Stored},
    },
};

/// Spellings that are looked at with one statement.
const SPELLINGS: i64 = 200;
/// Rows that are changed in one transaction.
const ROWS: u32 = 500;

/// Spells stored environments as they are compared now, where an upgrade may have left others. Several hosts may do so at once.
///
/// # Errors
/// As the database says.
pub async fn environments(store: &Store, clock: &Clock) -> Result<(), StoreError> {
    store.after_migrations("environments", clock.now(), Box::pin(in_parts(store, ROWS))).await
}

async fn in_parts(store: &Store, rows: u32) -> Result<(), StoreError> {
    for of in [Of::Gateways, Of::Deployments] {
        let mut changed = 0;
        let mut after = Stored { organization_id: OrganizationId(Uuid::nil()), environment: String::new() };
        loop {
            let found = environments::unusual(&mut store.read().await?, of, &after, SPELLINGS).await?;
            let Some(last) = found.last() else { break };
            after = last.clone();
            for stored in &found {
                changed += everywhere(store, of, stored, rows).await?;
            }
        }
        if changed > 0 {
            tracing::info!(?of, changed, "environments that an earlier version stored were spelled anew");
        }
    }
    Ok(())
}

/// Spells one environment anew wherever its organization has it; returns in how many rows.
async fn everywhere(store: &Store, of: Of, stored: &Stored, rows: u32) -> Result<u64, StoreError> {
    let mut changed = 0;
    let Some(spelled) = spelled(&stored.environment).filter(|spelled| *spelled != stored.environment) else {
        return Ok(changed);
    };
    loop {
        let mut tx = store.begin().await?;
        let part = environments::respell(&mut tx, of, stored, &spelled, i64::from(rows)).await?;
        tx.commit().await?;
        changed += part;
        if part < u64::from(rows) {
            return Ok(changed);
        }
    }
}

/// As deploying has it: blank is none.
fn spelled(stored: &str) -> Option<String> {
    if stored.trim().is_empty() { Some(String::new()) } else { Environment::parse(stored).ok().map(String::from) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{connection::Kind, deployment::DeploymentState, job::JobKind},
        jobs::fixture::Fixture,
        on,
        store::connections,
    };

    async fn store_as(store: &Store, of: Of, id: Uuid, environment: &str) {
        let sql = match of {
            Of::Gateways => "UPDATE connections SET environment = $2 WHERE id = $1",
            Of::Deployments => "UPDATE deployments SET environment = $2 WHERE id = $1",
        };
        let mut tx = store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql).bind(id).bind(environment).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn environments_of_an_earlier_version_are_spelled_as_they_are_compared() {
        for fixture in Fixture::each().await {
            let tenant = fixture.tenant().await;
            store_as(&fixture.store, Of::Gateways, tenant.gateway.0, "\u{a0}Production").await;
            let mut deployments = Vec::new();
            for (stored, spelled) in [
                ("production\u{a0}", "production"),
                ("production\u{a0}", "production"),
                ("production\u{a0}", "production"),
                ("\tproduction\n", "production"),
                ("Production", "production"),
                ("PR\u{dc}FUNG", "pr\u{fc}fung"),
                ("eu  west", "eu west"),
                ("\u{3000}", ""),
                // No environment is called so any more.
                ("Pr\u{43e}d", "Pr\u{43e}d"),
                ("pr\u{fc}fung", "pr\u{fc}fung"),
                ("staging", "staging"),
                ("", ""),
            ] {
                let (deployment, _) = fixture.deployment(&tenant, DeploymentState::Failed, JobKind::Deploy).await;
                store_as(&fixture.store, Of::Deployments, deployment.id.0, stored).await;
                deployments.push((deployment, stored, spelled));
            }
            // Two hosts that start together; then one that starts later.
            let start = || {
                let store = fixture.store.clone();
                tokio::spawn(async move { in_parts(&store, 2).await })
            };
            let (one, two) = (start(), start());
            one.await.unwrap().unwrap();
            two.await.unwrap().unwrap();
            start().await.unwrap().unwrap();
            for (deployment, stored, spelled) in deployments {
                assert_eq!(fixture.seen(&deployment).await.environment, spelled, "{stored:?}");
            }
            let mut conn = fixture.store.read().await.unwrap();
            let (organization, gateway) = (tenant.organization, tenant.gateway.0);
            let gateway = connections::get(&mut conn, organization, Kind::DeploymentTarget, gateway).await;
            let gateway = gateway.unwrap().unwrap();
            assert_eq!((gateway.environment.as_deref(), gateway.revision), (Some("production"), 2), "once");
        }
    }

    #[tokio::test]
    async fn environments_are_looked_through_for_a_week_after_an_upgrade() {
        for fixture in Fixture::each().await {
            let clock = Clock::fixed(Clock::system().now(), 1);
            let tenant = fixture.tenant().await;
            let (deployment, _) = fixture.deployment(&tenant, DeploymentState::Failed, JobKind::Deploy).await;
            // The second time as a host of the earlier version writes it, which is replaced last.
            for (days, spelled) in [(0, "production"), (6, "production"), (2, "\tProduction")] {
                clock.advance(chrono::TimeDelta::days(days));
                store_as(&fixture.store, Of::Deployments, deployment.id.0, "\tProduction").await;
                let (one, two) =
                    tokio::join!(environments(&fixture.store, &clock), environments(&fixture.store, &clock));
                one.and(two).unwrap();
                assert_eq!(fixture.seen(&deployment).await.environment, spelled);
            }
        }
    }
}
