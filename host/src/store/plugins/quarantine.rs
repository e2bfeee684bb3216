//! Components that nobody may call or install, by digest; and the connections that would run them.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Plugin, Version};
use crate::{
    domain::id::{OrganizationId, UserId},
    on,
    store::{Connection, StoreError, Tx},
};

/// A component in quarantine.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Quarantine {
    /// SHA-256 of the component, hexadecimal.
    pub digest: String,
    /// Why.
    pub reason: String,
    /// By whom.
    pub created_by: UserId,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// All components in quarantine.
///
/// # Errors
/// As the database says.
pub async fn quarantines(c: &mut impl Connection) -> Result<Vec<Quarantine>, StoreError> {
    let sql = "SELECT digest, reason, created_by, created_at FROM plugin_quarantine ORDER BY digest";
    Ok(on!(c, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

/// The quarantine of one component.
///
/// # Errors
/// As the database says.
pub async fn quarantine(c: &mut impl Connection, digest: &str) -> Result<Option<Quarantine>, StoreError> {
    let sql = "SELECT digest, reason, created_by, created_at FROM plugin_quarantine WHERE digest = $1";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(digest).fetch_optional(c).await)?)
}

/// Puts a component into quarantine, or replaces the reason.
///
/// # Errors
/// As the database says.
pub async fn put_quarantine(tx: &mut Tx, quarantine: &Quarantine) -> Result<(), StoreError> {
    let sql = "INSERT INTO plugin_quarantine (digest, reason, created_by, created_at) VALUES ($1, $2, $3, $4)
               ON CONFLICT (digest) DO UPDATE SET reason = excluded.reason, created_by = excluded.created_by,
                   created_at = excluded.created_at";
    on!(tx, |c| sqlx::query(sql)
        .bind(&quarantine.digest)
        .bind(&quarantine.reason)
        .bind(quarantine.created_by)
        .bind(quarantine.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Takes a component out of quarantine; tells whether it was there.
///
/// # Errors
/// As the database says.
pub async fn delete_quarantine(tx: &mut Tx, digest: &str) -> Result<bool, StoreError> {
    let sql = "DELETE FROM plugin_quarantine WHERE digest = $1";
    Ok(on!(tx, |c| sqlx::query(sql).bind(digest).execute(c).await?.rows_affected() > 0))
}

/// A connection that runs a version, of any organization.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Dependent {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub organization_id: OrganizationId,
}

/// The connections of all organizations that run a version: they name it, or follow what it is active for. In the order of
/// organizations.
///
/// # Errors
/// As the database says.
pub async fn dependents(
    c: &mut impl Connection,
    plugin: &Plugin,
    version: &Version,
) -> Result<Vec<Dependent>, StoreError> {
    let of_line = super::line(c, plugin.id, &version.line).await?.filter(|active| *active == version.version);
    let of_all = plugin.active_version.as_ref() == Some(&version.version);
    let sql = "SELECT id, organization_id FROM connections WHERE kind = $1 AND plugin = $2 AND (plugin_version = $3
                   OR (plugin_version IS NULL AND plugin_line = $4)
                   OR (plugin_version IS NULL AND plugin_line IS NULL AND $5))
               ORDER BY organization_id, id";
    Ok(on!(c, |c| sqlx::query_as(sql)
        .bind(plugin.kind)
        .bind(&plugin.name)
        .bind(&version.version)
        .bind(of_line.as_ref().map(|_| version.line.as_str()))
        .bind(of_all)
        .fetch_all(c)
        .await)?)
}
