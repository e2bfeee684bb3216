//! Who holds which role where.

use uuid::Uuid;

use super::{Connection, StoreError, Tx};
use crate::{
    domain::{
        id::{MembershipId, OrganizationId, UserId},
        user::Membership,
    },
    on,
};

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!($before, " id, organization_id, user_id, workspace_id, role, created_at, updated_at, revision ", $after)
    };
}

/// Adds a membership.
///
/// # Errors
/// [`StoreError::Reference`] if the user or the workspace is not one of the organization's; [`StoreError::Duplicate`] if
/// the user holds this role there already.
pub async fn insert(tx: &mut Tx, membership: &Membership) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO memberships (id, organization_id, user_id, workspace_id, role, created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $6, $6, 1)";
    on!(tx, |c| sqlx::query(sql)
        .bind(membership.id)
        .bind(membership.organization_id)
        .bind(membership.user_id)
        .bind(membership.workspace_id)
        .bind(membership.role.as_str())
        .bind(membership.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One membership.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Connection,
    organization: OrganizationId,
    id: MembershipId,
) -> Result<Option<Membership>, StoreError> {
    let sql = columns!("SELECT", "FROM memberships WHERE organization_id = $1 AND id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Memberships after `after`, oldest first, of one user or of all.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Connection,
    organization: OrganizationId,
    user: Option<UserId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Membership>, StoreError> {
    Ok(match user {
        None => {
            let sql =
                columns!("SELECT", "FROM memberships WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3");
            on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(c).await?)
        }
        Some(user) => {
            let sql = columns!(
                "SELECT",
                "FROM memberships WHERE organization_id = $1 AND user_id = $4 AND id > $2 ORDER BY id LIMIT $3"
            );
            on!(c, |c| sqlx::query_as(sql).bind(organization).bind(after).bind(limit).bind(user).fetch_all(c).await?)
        }
    })
}

/// Changes the role of a membership still at `membership.revision`, and returns it as it is then.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile; [`StoreError::Duplicate`] if the user holds that role there already.
pub async fn update(tx: &mut Tx, membership: &Membership) -> Result<Membership, StoreError> {
    let sql = columns!(
        "UPDATE memberships SET role = $4, updated_at = $5, revision = revision + 1
         WHERE organization_id = $1 AND id = $2 AND revision = $3 RETURNING",
        ""
    );
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(membership.organization_id)
        .bind(membership.id)
        .bind(membership.revision)
        .bind(membership.role.as_str())
        .bind(membership.updated_at)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes a membership.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn delete(tx: &mut Tx, membership: &Membership) -> Result<(), StoreError> {
    let sql = "DELETE FROM memberships WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let deleted = on!(tx, |c| sqlx::query(sql)
        .bind(membership.organization_id)
        .bind(membership.id)
        .bind(membership.revision)
        .execute(c)
        .await?
        .rows_affected());
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// Orders the transactions that could take an organization's last owner away: until this one ends, the others wait here.
///
/// # Errors
/// As the database says.
pub async fn lock_owners(tx: &mut Tx, organization: OrganizationId) -> Result<(), StoreError> {
    // Weaker than FOR UPDATE: rows that refer to the organization may still be added meanwhile.
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT 1 FROM organizations WHERE id = $1",
        Tx::Postgres(_) => "SELECT 1 FROM organizations WHERE id = $1 FOR NO KEY UPDATE",
    };
    on!(tx, |c| sqlx::query(sql).bind(organization).execute(c).await.map(drop))?;
    Ok(())
}

/// How many active users own the organization.
///
/// # Errors
/// As the database says.
pub async fn owners(c: &mut impl Connection, organization: OrganizationId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(DISTINCT u.id) FROM memberships m
               JOIN users u ON u.organization_id = m.organization_id AND u.id = m.user_id
               WHERE m.organization_id = $1 AND m.role = 'owner' AND m.workspace_id IS NULL AND u.active";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).fetch_one(c).await)?)
}

/// Whether a user owns the organization.
///
/// # Errors
/// As the database says.
pub async fn is_owner(c: &mut impl Connection, organization: OrganizationId, user: UserId) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM memberships
               WHERE organization_id = $1 AND user_id = $2 AND role = 'owner' AND workspace_id IS NULL";
    let found: i64 = on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(user).fetch_one(c).await?);
    Ok(found > 0)
}
