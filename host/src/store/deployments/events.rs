//! What is told of deployments while they go on.

use chrono::{DateTime, Utc};

use super::super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        deployment::{Deployment, DeploymentEvent, DeploymentState, EventKind, Progress},
        id::{DeploymentId, OrganizationId},
    },
    on,
};

/// Events of one deployment from which on its progress is told by no more of them: how often it is postponed, and for how many reasons,
/// has no bound of its own. Events of its states are always told.
const EVENTS: i64 = 2_000;

/// Records how far a deployment has come; with an event if there is to be one, unless it has [`EVENTS`] already. Does nothing once it is
/// settled.
///
/// # Errors
/// As the database says.
pub async fn progress(
    tx: &mut Tx,
    deployment: &Deployment,
    progress: &Progress,
    error: Option<&str>,
    event: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE deployments SET progress_percent = $3, progress_message = $4, error = COALESCE($5, error), updated_at = $6
               WHERE organization_id = $1 AND id = $2 AND status IN ('running', 'stopping')
               RETURNING events";
    let events: Option<i64> = on!(tx, |c| sqlx::query_scalar(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(progress.percent)
        .bind(&progress.message)
        .bind(error)
        .bind(now)
        .fetch_optional(c)
        .await)?;
    if event && events.is_some_and(|events| events < EVENTS) {
        add_event(tx, deployment, EventKind::Progress, progress, now).await?;
    }
    Ok(())
}

/// Tells those who follow a deployment, which is as it is now.
///
/// # Errors
/// As the database says.
pub(super) async fn add_event(
    tx: &mut Tx,
    deployment: &Deployment,
    kind: EventKind,
    progress: &Progress,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let next =
        "UPDATE deployments SET events = events + 1 WHERE organization_id = $1 AND id = $2 RETURNING events, status";
    let (sequence, status): (i64, DeploymentState) =
        on!(tx, |c| { sqlx::query_as(next).bind(deployment.organization_id).bind(deployment.id).fetch_one(c).await })?;
    let sql = "INSERT INTO deployment_events (organization_id, deployment_id, sequence, kind, occurred_at, status, percent, message)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    on!(tx, |c| sqlx::query(sql)
        .bind(deployment.organization_id)
        .bind(deployment.id)
        .bind(sequence)
        .bind(kind)
        .bind(now)
        .bind(status)
        .bind(progress.percent)
        .bind(&progress.message)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// A deployment's events after `after`, in order.
///
/// # Errors
/// As the database says.
pub async fn events(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: DeploymentId,
    after: i64,
    limit: i64,
) -> Result<Vec<DeploymentEvent>, StoreError> {
    let sql = "SELECT sequence, kind, occurred_at, status, percent, message FROM deployment_events
               WHERE organization_id = $1 AND deployment_id = $2 AND sequence > $3 ORDER BY sequence LIMIT $4";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Removes events of deployments that were over before a time, at most `limit`, but for the last one of each. Returns how many.
///
/// # Errors
/// As the database says.
pub async fn prune_events(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM deployment_events WHERE (deployment_id, sequence) IN
                   (SELECT e.deployment_id, e.sequence FROM deployments AS d
                    JOIN deployment_events AS e ON e.organization_id = d.organization_id AND e.deployment_id = d.id
                    WHERE d.finished_at < $1 AND e.sequence < d.events LIMIT $2)";
    Ok(on!(tx, |c| sqlx::query(sql).bind(before).bind(limit).execute(c).await.map(|done| done.rows_affected()))?)
}

#[cfg(test)]
mod tests {
    use super::{super::lock, *};
    use crate::{clock::Clock, domain::job::JobKind, jobs::fixture::Fixture, store::deployments::advance};

    #[tokio::test]
    async fn a_deployment_has_so_many_events_of_its_progress_and_all_of_its_states() {
        for fixture in Fixture::each().await {
            let tenant = fixture.tenant().await;
            let (deployment, _) = fixture.deployment(&tenant, DeploymentState::Running, JobKind::Deploy).await;
            let now = Clock::system().now();
            let mut tx = fixture.store.begin().await.unwrap();
            let sql = "UPDATE deployments SET events = $2 WHERE id = $1";
            on!(&mut tx, |c| sqlx::query(sql).bind(deployment.id).bind(EVENTS - 1).execute(c).await.map(drop)).unwrap();
            for message in ["one", "two"] {
                let told = Progress { percent: None, message: Some(message.to_owned()) };
                progress(&mut tx, &deployment, &told, None, true, now).await.unwrap();
            }
            let mut locked = lock(&mut tx, tenant.organization, deployment.id).await.unwrap().unwrap();
            assert_eq!(locked.progress.message.as_deref(), Some("two"));
            advance(&mut tx, &mut locked, DeploymentState::Failed, Default::default(), now).await.unwrap();
            let told = events(&mut tx, tenant.organization, deployment.id, EVENTS - 1, 10).await.unwrap();
            let told: Vec<_> = told.into_iter().map(|event| (event.sequence, event.status, event.message)).collect();
            let expected = [
                (EVENTS, DeploymentState::Running, Some("one".to_owned())),
                (EVENTS + 1, DeploymentState::Failed, None),
            ];
            assert_eq!(told, expected);
        }
    }
}
