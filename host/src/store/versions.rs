//! Agent versions: immutable, numbered, each with its digest.

use super::{Connection, StoreError, Tx, agents};
use crate::{
    domain::{
        agent::{Agent, Version},
        id::{AgentId, OrganizationId},
    },
    on,
};

/// Locks the agent until the transaction ends, and returns it as it is then, with the number that its next version has.
///
/// # Errors
/// As the database says.
pub async fn next(
    tx: &mut Tx,
    organization: OrganizationId,
    agent: AgentId,
) -> Result<Option<(Agent, i64)>, StoreError> {
    let Some(locked) = agents::lock(tx, organization, agent).await? else { return Ok(None) };
    let number = next_number(tx, organization, agent).await?;
    Ok(Some((locked, number)))
}

/// The number that the next version of an agent has, unless another is quicker. Versions are removed only with their agent, so there is
/// one fewer.
///
/// # Errors
/// As the database says.
pub async fn next_number(
    c: &mut impl Connection,
    organization: OrganizationId,
    agent: AgentId,
) -> Result<i64, StoreError> {
    let sql = "SELECT COALESCE(MAX(number), 0) + 1 FROM agent_versions WHERE organization_id = $1 AND agent_id = $2";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(agent).fetch_one(c).await)?)
}

/// Bytes of the versions of an organization's agents.
///
/// # Errors
/// As the database says.
pub async fn bytes(c: &mut impl Connection, organization: OrganizationId) -> Result<i64, StoreError> {
    let sql = "SELECT CAST(COALESCE(SUM(version_bytes), 0) AS BIGINT) FROM agents
               WHERE organization_id = $1 AND version_bytes > 0";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}

/// Adds a version with its workflow, and its bytes to those of its agent's versions.
///
/// # Errors
/// As the database says.
pub async fn insert(
    tx: &mut Tx,
    organization: OrganizationId,
    version: &Version,
    workflow: &str,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO agent_versions (id, organization_id, agent_id, number, digest, workflow, note, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    on!(tx, |c| sqlx::query(sql)
        .bind(version.id)
        .bind(organization)
        .bind(version.agent_id)
        .bind(version.number)
        .bind(&version.digest)
        .bind(workflow)
        .bind(&version.note)
        .bind(version.created_by)
        .bind(version.created_at)
        .execute(c)
        .await
        .map(drop))?;
    let sql = "UPDATE agents SET version_bytes = version_bytes + $3 WHERE organization_id = $1 AND id = $2";
    let bytes = i64::try_from(workflow.len()).unwrap_or(i64::MAX);
    on!(tx, |c| sqlx::query(sql).bind(organization).bind(version.agent_id).bind(bytes).execute(c).await.map(drop))?;
    Ok(())
}

/// One version with its workflow; the newest if no number is given.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    agent: AgentId,
    number: Option<i64>,
) -> Result<Option<(Version, String)>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        version: Version,
        workflow: String,
    }
    // 0 stands for the newest below.
    if number.is_some_and(|number| number < 1) {
        return Ok(None);
    }
    let sql = "SELECT id, agent_id, number, digest, note, created_by, created_at, workflow FROM agent_versions
               WHERE organization_id = $1 AND agent_id = $2 AND ($3 = 0 OR number = $3) ORDER BY number DESC LIMIT 1";
    let found: Option<Row> = on!(c, |c| {
        sqlx::query_as(sql).bind(organization).bind(agent).bind(number.unwrap_or(0)).fetch_optional(c).await
    })?;
    Ok(found.map(|row| (row.version, row.workflow)))
}

/// Versions after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    agent: AgentId,
    after: uuid::Uuid,
    limit: i64,
) -> Result<Vec<Version>, StoreError> {
    let sql = "SELECT id, agent_id, number, digest, note, created_by, created_at FROM agent_versions
               WHERE organization_id = $1 AND agent_id = $2 AND id > $3 ORDER BY id LIMIT $4";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(agent).bind(after).bind(limit).fetch_all(c).await)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fixture::Fixture;

    #[tokio::test]
    async fn versions_of_before_the_bound_count() {
        for fixture in Fixture::each_after(20).await {
            let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
            fixture.store.migrate().await.unwrap();
            let mut conn = fixture.store.read().await.unwrap();
            for organization in [tenant.organization, other.organization] {
                assert_eq!(bytes(&mut conn, organization).await.unwrap(), 2, "`{{}}`");
            }
        }
    }
}
