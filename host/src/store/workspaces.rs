//! Workspaces.

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{OrganizationId, WorkspaceId},
        tenancy::Workspace,
    },
    on,
};

/// Adds a workspace.
///
/// # Errors
/// [`StoreError::Duplicate`] if the organization has one of this name.
pub async fn insert(tx: &mut Tx, workspace: &Workspace) -> Result<(), StoreError> {
    let sql = "INSERT INTO workspaces (id, organization_id, name, description, created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $5, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(workspace.id)
        .bind(workspace.organization_id)
        .bind(&workspace.name)
        .bind(&workspace.description)
        .bind(workspace.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One workspace.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: WorkspaceId,
) -> Result<Option<Workspace>, StoreError> {
    let sql = "SELECT id, organization_id, name, description, created_at, updated_at, revision
               FROM workspaces WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Workspaces after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    after: uuid::Uuid,
    limit: i64,
) -> Result<Vec<Workspace>, StoreError> {
    let sql = "SELECT id, organization_id, name, description, created_at, updated_at, revision
               FROM workspaces WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Changes a workspace that is still at `workspace.revision`, and returns it as it is then.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn update(tx: &mut Tx, workspace: &Workspace) -> Result<Workspace, StoreError> {
    let sql = "UPDATE workspaces SET name = $4, description = $5, updated_at = $6, revision = revision + 1
               WHERE organization_id = $1 AND id = $2 AND revision = $3
               RETURNING id, organization_id, name, description, created_at, updated_at, revision";
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(workspace.organization_id)
        .bind(workspace.id)
        .bind(workspace.revision)
        .bind(&workspace.name)
        .bind(&workspace.description)
        .bind(workspace.updated_at)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes an empty workspace.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile; [`StoreError::Reference`] while an agent is in it.
pub async fn delete(tx: &mut Tx, workspace: &Workspace) -> Result<(), StoreError> {
    let sql = "DELETE FROM workspaces WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let deleted = on!(tx, |c| {
        let delete = sqlx::query(sql).bind(workspace.organization_id).bind(workspace.id).bind(workspace.revision);
        delete.execute(c).await?.rows_affected()
    });
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}
