//! Organizations: the one table whose rows are the tenants themselves.

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{id::OrganizationId, tenancy::Organization},
    on,
};

/// Adds an organization.
///
/// # Errors
/// As the database says.
pub async fn insert(tx: &mut Tx, organization: &Organization) -> Result<(), StoreError> {
    let sql = "INSERT INTO organizations (id, name, created_at, updated_at, revision) VALUES ($1, $2, $3, $3, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(organization.id)
        .bind(&organization.name)
        .bind(organization.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One organization.
///
/// # Errors
/// As the database says.
pub async fn get(c: &mut impl Connection, id: OrganizationId) -> Result<Option<Organization>, StoreError> {
    let sql = "SELECT id, name, policy_version_id, created_at, updated_at, revision FROM organizations WHERE id = $1";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(id).fetch_optional(c).await)?)
}

/// All tenants after `after`, oldest first: for platform administrators.
///
/// # Errors
/// As the database says.
pub async fn list(c: &mut impl Connection, after: uuid::Uuid, limit: i64) -> Result<Vec<Organization>, StoreError> {
    let sql = "SELECT id, name, policy_version_id, created_at, updated_at, revision
               FROM organizations WHERE id > $1 ORDER BY id LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Renames an organization that is still at `organization.revision`, and returns it as it is then.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn update(tx: &mut Tx, organization: &Organization) -> Result<Organization, StoreError> {
    let sql = "UPDATE organizations SET name = $3, updated_at = $4, revision = revision + 1
               WHERE id = $1 AND revision = $2
               RETURNING id, name, policy_version_id, created_at, updated_at, revision";
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(organization.id)
        .bind(organization.revision)
        .bind(&organization.name)
        .bind(organization.updated_at)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes an organization with everything that is its own, but for its audit trail.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile; [`StoreError::Reference`] while it has agents deployed.
pub async fn delete(tx: &mut Tx, organization: &Organization) -> Result<(), StoreError> {
    // Agents go first: their foreign key keeps a workspace from being removed under them.
    let agents = "DELETE FROM agents WHERE organization_id = $1";
    on!(tx, |c| sqlx::query(agents).bind(organization.id).execute(c).await.map(drop))?;
    let sql = "DELETE FROM organizations WHERE id = $1 AND revision = $2";
    let deleted = on!(tx, |c| {
        sqlx::query(sql).bind(organization.id).bind(organization.revision).execute(c).await?.rows_affected()
    });
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}
