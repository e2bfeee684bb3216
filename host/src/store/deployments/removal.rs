//! What deployments keep from being removed, and forgetting those that do not.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        deployment::DeploymentState,
        id::{AgentId, DeploymentId, GatewayId, JobId, OrganizationId},
    },
    on,
};

/// What is to be removed, and deployments may refer to.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// An agent.
    Agent(AgentId),
    /// A gateway.
    Gateway(GatewayId),
    /// The organization.
    Organization,
}

/// A deployment that is not over, or that a job still has to clean up after.
#[derive(Debug, sqlx::FromRow)]
pub struct Kept {
    /// Its id.
    pub id: DeploymentId,
    /// Where it stands.
    pub status: DeploymentState,
    /// The job that is at it, or was last.
    pub job_id: JobId,
}

macro_rules! kept {
    ($of:literal) => {
        concat!(
            "SELECT id, status, job_id FROM deployments WHERE organization_id = $1 AND ",
            $of,
            " AND (status NOT IN ('failed', 'cancelled', 'stopped')
                   OR EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = job_id AND j.state IN ('queued', 'running')))
             ORDER BY id LIMIT $3"
        )
    };
}

/// The deployments that keep something from being removed, oldest first.
///
/// # Errors
/// As the database says.
pub async fn kept(
    c: &mut impl Connection,
    organization: OrganizationId,
    of: Of,
    limit: i64,
) -> Result<Vec<Kept>, StoreError> {
    let (sql, id) = match of {
        Of::Agent(id) => (kept!("agent_id = $2"), id.0),
        Of::Gateway(id) => (kept!("gateway_id = $2"), id.0),
        Of::Organization => (kept!("organization_id = $2"), organization.0),
    };
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(limit).fetch_all(c).await)?)
}

macro_rules! forget {
    ($of:literal) => {
        concat!(
            "DELETE FROM deployments WHERE organization_id = $1 AND ",
            $of,
            " AND status IN ('failed', 'cancelled', 'stopped')
              AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = job_id AND j.state IN ('queued', 'running'))"
        )
    };
}

/// Forgets deployments that are over, before what they refer to is removed; the audit trail still tells of them. Those that
/// are [`kept`] stay, and keep it ([`StoreError::Reference`] from the removal).
///
/// # Errors
/// As the database says.
pub async fn forget(tx: &mut Tx, organization: OrganizationId, of: Of) -> Result<(), StoreError> {
    let (sql, id) = match of {
        Of::Agent(id) => (forget!("agent_id = $2"), id.0),
        Of::Gateway(id) => (forget!("gateway_id = $2"), id.0),
        Of::Organization => (forget!("organization_id = $2"), organization.0),
    };
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(id).execute(c).await.map(drop))?;
    Ok(())
}

/// Forgets deployments that were over before a time and that no rollback leads to, with their events; at most `limit` with each
/// statement. The audit trail still tells of them. Returns the most that one of them removed: where that is `limit`, there may be more.
///
/// # Errors
/// As the database says.
pub async fn prune(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    // What is asked outside is asked again of one that somebody lets begin again meanwhile.
    let statements = [
        // Never active: it replaced nothing.
        "DELETE FROM deployments WHERE activated_at IS NULL AND finished_at < $1 AND id IN
             (SELECT d.id FROM deployments AS d
              WHERE d.activated_at IS NULL AND d.finished_at < $1
                AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = d.job_id AND j.state IN ('queued', 'running'))
              ORDER BY d.finished_at LIMIT $2)",
        // Followed by one of the same version: whoever goes back to that version goes back to that one, or to a later one.
        "DELETE FROM deployments WHERE finished_at < $1 AND id IN
             (SELECT d.id FROM deployments AS d
              WHERE d.status = 'stopped' AND d.finished_at < $1
                AND d.version = (SELECT n.version FROM deployments AS n
                                 WHERE n.organization_id = d.organization_id AND n.agent_id = d.agent_id
                                   AND n.gateway_id = d.gateway_id AND n.environment = d.environment
                                   AND n.activated_at > d.activated_at
                                 ORDER BY n.activated_at LIMIT 1)
                AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = d.job_id AND j.state IN ('queued', 'running'))
              ORDER BY d.finished_at LIMIT $2)",
    ];
    let mut most = 0;
    for sql in statements {
        let removed = on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await?.rows_affected());
        most = most.max(removed);
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::{
        clock::Clock,
        domain::{deployment::Deployment, job::JobKind},
        jobs::fixture::Fixture,
        store::deployments::{active_before, get},
    };

    #[tokio::test]
    async fn what_no_rollback_leads_to_is_forgotten_and_rollbacks_lead_where_they_led() {
        use DeploymentState::{Active, Stopped};
        for fixture in Fixture::each().await {
            let (tenant, now) = (fixture.tenant().await, Clock::system().now());
            let mut all: Vec<Deployment> = Vec::new();
            let history: [(DeploymentState, i64, &str, i64); 8] = [
                (Stopped, 1, "production", 9),
                (Stopped, 1, "production", 9),
                (Stopped, 2, "production", 9),
                (Stopped, 1, "staging", 9),
                (Stopped, 2, "production", 0),
                (Stopped, 2, "production", 9),
                (Active, 1, "production", 0),
                (Stopped, 1, "production", 9),
            ];
            for (hour, (status, version, environment, days)) in (0..).zip(history) {
                let (made, _) = fixture.deployment(&tenant, status, JobKind::Deploy).await;
                let mut tx = fixture.store.begin().await.unwrap();
                let sql = "UPDATE deployments SET version = $2, environment = $3, activated_at = $4, finished_at = $5 WHERE id = $1";
                let activated = now - TimeDelta::days(100) + TimeDelta::hours(hour);
                let finished = (status == Stopped).then(|| now - TimeDelta::days(days));
                on!(&mut tx, |c| sqlx::query(sql)
                    .bind(made.id)
                    .bind(version)
                    .bind(environment)
                    .bind(activated)
                    .bind(finished)
                    .execute(c)
                    .await
                    .map(drop))
                .unwrap();
                let made = get(&mut tx, tenant.organization, made.id).await.unwrap().unwrap();
                tx.commit().await.unwrap();
                all.push(made);
            }
            let mut tx = fixture.store.begin().await.unwrap();
            let before = now - TimeDelta::days(1);
            assert_eq!(prune(&mut tx, before, 10).await.unwrap(), 0, "jobs are at them");
            on!(&mut tx, |c| sqlx::query("UPDATE jobs SET state = 'succeeded'").execute(c).await.map(drop)).unwrap();
            let mut led = Vec::new();
            for this in &all {
                led.push(active_before(&mut tx, this).await.unwrap().map(|before| before.id));
            }
            // Two that are followed by their own version; the fifth was stopped only today.
            assert_eq!(prune(&mut tx, before, 10).await.unwrap(), 2);
            for (n, (this, led)) in all.iter().zip(led).enumerate() {
                let kept = get(&mut tx, tenant.organization, this.id).await.unwrap();
                assert_eq!(kept.is_none(), [0, 2].contains(&n), "{n}");
                let leads = active_before(&mut tx, this).await.unwrap().map(|before| before.id);
                assert_eq!(leads, led, "{n}");
            }
            assert_eq!(prune(&mut tx, before, 10).await.unwrap(), 0);
        }
    }
}
