//! Connections: identity connections, gateways and audit sinks.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Connection as Conn, StoreError, Tx};
use crate::{
    domain::{connection::Kind, id::OrganizationId},
    on,
};

/// A connection, as stored.
#[derive(Clone, sqlx::FromRow)]
pub struct Connection {
    /// Its id; an `IdentityConnectionId`, `GatewayId` or `AuditSinkId`, by its kind.
    pub id: Uuid,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// What it is.
    pub kind: Kind,
    /// For people; unique among those of its kind.
    pub name: String,
    /// The plugin that speaks to the far side.
    pub plugin: String,
    /// The version that it runs whatever is active; see `plugins::Wanted`.
    pub plugin_version: Option<String>,
    /// Otherwise, what the version that it runs is compatible with.
    pub plugin_line: Option<String>,
    /// Valid against the plugin's schema.
    pub config: Json<Value>,
    /// Sealed for this row; see `plugins::bind`.
    pub secrets: Vec<u8>,
    /// The names of the secrets that are set.
    pub secret_names: Json<Vec<String>>,
    /// For gateways.
    pub environment: Option<String>,
    /// For gateways; policies see them.
    pub labels: Json<BTreeMap<String, String>>,
    /// Whether it is in use.
    pub active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    pub revision: i64,
}

macro_rules! columns {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization_id, kind, name, plugin, plugin_version, plugin_line, config, secrets, secret_names,
              environment, labels, active, created_at, updated_at, revision ",
            $after
        )
    };
}

/// Adds a connection.
///
/// # Errors
/// [`StoreError::Duplicate`] if there is one of this kind and name.
pub async fn insert(tx: &mut Tx, connection: &Connection) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO connections (id, organization_id, kind, name, plugin, config, secrets, secret_names, environment,
                                        labels, active, created_at, updated_at, revision, plugin_version, plugin_line)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, 1, $13, $14)";
    on!(tx, |c| sqlx::query(sql)
        .bind(connection.id)
        .bind(connection.organization_id)
        .bind(connection.kind)
        .bind(&connection.name)
        .bind(&connection.plugin)
        .bind(&connection.config)
        .bind(&connection.secrets)
        .bind(&connection.secret_names)
        .bind(&connection.environment)
        .bind(&connection.labels)
        .bind(connection.active)
        .bind(connection.created_at)
        .bind(&connection.plugin_version)
        .bind(&connection.plugin_line)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// One connection of a kind.
///
/// # Errors
/// As the database says.
pub async fn get(
    c: &mut impl Conn,
    organization: OrganizationId,
    kind: Kind,
    id: Uuid,
) -> Result<Option<Connection>, StoreError> {
    let sql = columns!("SELECT", "FROM connections WHERE organization_id = $1 AND kind = $2 AND id = $3");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(kind).bind(id).fetch_optional(c).await)?)
}

/// One connection of a kind, of whatever organization: where a sign-in begins, nobody is known yet, and the connection
/// says which organization it is into.
///
/// # Errors
/// As the database says.
pub async fn of_any_organization(c: &mut impl Conn, kind: Kind, id: Uuid) -> Result<Option<Connection>, StoreError> {
    let sql = columns!("SELECT", "FROM connections WHERE kind = $1 AND id = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(kind).bind(id).fetch_optional(c).await)?)
}

/// Connections of a kind after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(
    c: &mut impl Conn,
    organization: OrganizationId,
    kind: Kind,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Connection>, StoreError> {
    let sql = columns!(
        "SELECT",
        "FROM connections WHERE organization_id = $1 AND kind = $2 AND id > $3 ORDER BY id LIMIT $4"
    );
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(kind).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Whether an organization has a connection of a kind in use.
///
/// # Errors
/// As the database says.
pub async fn any_active(c: &mut impl Conn, organization: OrganizationId, kind: Kind) -> Result<bool, StoreError> {
    let sql = "SELECT id FROM connections WHERE organization_id = $1 AND kind = $2 AND active LIMIT 1";
    let found: Option<Uuid> =
        on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(kind).fetch_optional(c).await?);
    Ok(found.is_some())
}

/// Whether a connection is in use, and its revision; both stay so until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn lock(tx: &mut Tx, organization: OrganizationId, id: Uuid) -> Result<Option<(bool, i64)>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT active, revision FROM connections WHERE organization_id = $1 AND id = $2",
        Tx::Postgres(_) => "SELECT active, revision FROM connections WHERE organization_id = $1 AND id = $2 FOR SHARE",
    };
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(organization).bind(id).fetch_optional(c).await)?)
}

/// Changes a connection that is still at `connection.revision`, and returns it as it is then.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile.
pub async fn update(tx: &mut Tx, connection: &Connection) -> Result<Connection, StoreError> {
    let sql = columns!(
        "UPDATE connections SET name = $4, config = $5, secrets = $6, secret_names = $7, environment = $8, labels = $9,
                active = $10, updated_at = $11, plugin_version = $12, plugin_line = $13, revision = revision + 1
         WHERE organization_id = $1 AND id = $2 AND revision = $3 RETURNING",
        ""
    );
    let updated = on!(tx, |c| sqlx::query_as(sql)
        .bind(connection.organization_id)
        .bind(connection.id)
        .bind(connection.revision)
        .bind(&connection.name)
        .bind(&connection.config)
        .bind(&connection.secrets)
        .bind(&connection.secret_names)
        .bind(&connection.environment)
        .bind(&connection.labels)
        .bind(connection.active)
        .bind(connection.updated_at)
        .bind(&connection.plugin_version)
        .bind(&connection.plugin_line)
        .fetch_optional(c)
        .await)?;
    updated.ok_or(StoreError::Stale)
}

/// Removes a connection.
///
/// # Errors
/// [`StoreError::Stale`] if it changed meanwhile; [`StoreError::Reference`] while a deployment refers to it.
pub async fn delete(tx: &mut Tx, connection: &Connection) -> Result<(), StoreError> {
    let sql = "DELETE FROM connections WHERE organization_id = $1 AND id = $2 AND revision = $3";
    let deleted = on!(tx, |c| {
        sqlx::query(sql)
            .bind(connection.organization_id)
            .bind(connection.id)
            .bind(connection.revision)
            .execute(c)
            .await?
            .rows_affected()
    });
    if deleted == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// The connections of an organization that use a plugin.
///
/// # Errors
/// As the database says.
pub async fn ids_of_plugin(
    c: &mut impl Conn,
    organization: OrganizationId,
    kind: Kind,
    plugin: &str,
) -> Result<Vec<Uuid>, StoreError> {
    let sql = "SELECT id FROM connections WHERE organization_id = $1 AND kind = $2 AND plugin = $3";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(organization).bind(kind).bind(plugin).fetch_all(c).await)?)
}

/// A connection's secrets, as stored, and whose they are.
#[derive(sqlx::FromRow)]
pub struct Sealed {
    /// The connection.
    pub id: Uuid,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Sealed for this row.
    pub secrets: Vec<u8>,
}

/// The secrets of connections after `after`, of all organizations: for the rotation of the master key.
///
/// # Errors
/// As the database says.
pub async fn sealed(c: &mut impl Conn, after: Uuid, limit: i64) -> Result<Vec<Sealed>, StoreError> {
    let sql = "SELECT id, organization_id, secrets FROM connections WHERE id > $1 ORDER BY id LIMIT $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await)?)
}

/// Replaces secrets that are still as they were read; whether they were. The same secrets otherwise encrypted are no
/// change of the connection: its revision stays.
///
/// # Errors
/// As the database says.
pub async fn reseal(tx: &mut Tx, before: &Sealed, after: &[u8]) -> Result<bool, StoreError> {
    let sql = "UPDATE connections SET secrets = $4 WHERE organization_id = $1 AND id = $2 AND secrets = $3";
    let replaced = on!(tx, |c| {
        sqlx::query(sql)
            .bind(before.organization_id)
            .bind(before.id)
            .bind(&before.secrets)
            .bind(after)
            .execute(c)
            .await?
            .rows_affected()
    });
    Ok(replaced == 1)
}
