//! Agents.

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        agent::Agent,
        id::{AgentId, CanvasId, OrganizationId, WorkspaceId},
    },
    on,
};

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization_id, workspace_id, name, description, labels, settings, canvas_id,
              created_by, created_at, updated_at, revision ",
            $after
        )
    };
}

/// Adds an agent.
///
/// # Errors
/// [`StoreError::Reference`] if the workspace is not one of the organization's.
pub async fn insert(tx: &mut Tx, agent: &Agent) -> Result<(), StoreError> {
    let sql = "INSERT INTO agents (id, organization_id, workspace_id, name, description, labels, settings, canvas_id,
                                   created_by, created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(agent.id)
        .bind(agent.organization_id)
        .bind(agent.workspace_id)
        .bind(&agent.name)
        .bind(&agent.description)
        .bind(&agent.labels)
        .bind(&agent.settings)
        .bind(agent.canvas_id)
        .bind(agent.created_by)
        .bind(agent.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One agent.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: AgentId,
) -> Result<Option<Agent>, StoreError> {
    let sql = columns!("SELECT", "FROM agents WHERE organization_id = $1 AND id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// One agent, locked against changes until the transaction ends; deployments of it may be made meanwhile.
///
/// # Errors
/// As the database says.
pub async fn lock(tx: &mut Tx, organization: OrganizationId, id: AgentId) -> Result<Option<Agent>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => columns!("SELECT", "FROM agents WHERE organization_id = $1 AND id = $2"),
        Tx::Postgres(_) => columns!("SELECT", "FROM agents WHERE organization_id = $1 AND id = $2 FOR NO KEY UPDATE"),
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// The agent that a canvas belongs to.
///
/// # Errors
/// As the database says.
pub async fn by_canvas(
    c: &mut impl Connection,
    organization: OrganizationId,
    canvas: CanvasId,
) -> Result<Option<Agent>, StoreError> {
    let sql = columns!("SELECT", "FROM agents WHERE organization_id = $1 AND canvas_id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(canvas).fetch_optional(c).await)?)
}

/// Agents after `after`, oldest first, of one workspace or of all.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    workspace: Option<WorkspaceId>,
    after: uuid::Uuid,
    limit: i64,
) -> Result<Vec<Agent>, StoreError> {
    let found = match workspace {
        None => {
            let sql = columns!("SELECT", "FROM agents WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3");
            on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await)?
        }
        Some(workspace) => {
            let sql = columns!(
                "SELECT",
                "FROM agents WHERE organization_id = $1 AND workspace_id = $4 AND id > $2 ORDER BY id LIMIT $3"
            );
            on!(c, |c| {
                sqlx::query_as(sql).bind(organization).bind(after).bind(limit).bind(workspace).fetch_all(c).await
            })?
        }
    };
    Ok(found)
}

/// Changes an agent that is still at `agent.revision`, and returns it as it is then.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn update(tx: &mut Tx, agent: &Agent) -> Result<Agent, StoreError> {
    let sql = columns!(
        "UPDATE agents SET name = $4, description = $5, labels = $6, settings = $7, updated_at = $8, revision = revision + 1
         WHERE organization_id = $1 AND id = $2 AND revision = $3 RETURNING",
        ""
    );
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(agent.organization_id)
        .bind(agent.id)
        .bind(agent.revision)
        .bind(&agent.name)
        .bind(&agent.description)
        .bind(&agent.labels)
        .bind(&agent.settings)
        .bind(agent.updated_at)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes an agent with its versions and its canvas.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile; [`StoreError::Reference`] while a deployment refers to it.
pub async fn delete(tx: &mut Tx, agent: &Agent) -> Result<(), StoreError> {
    let sql = "DELETE FROM agents WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let deleted = on!(tx, |c| {
        sqlx::query(sql)
            .bind(agent.organization_id)
            .bind(agent.id)
            .bind(agent.revision)
            .execute(c)
            .await?
            .rows_affected()
    });
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}
