//! Which versions connections use, and what keeps a version while they do.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Dependent, Plugin, get, line, version};
use crate::{
    domain::{connection::Kind, id::OrganizationId},
    on,
    store::{Connection, StoreError, Tx},
};

/// A version that some connection names.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Pin {
    /// Of which kind.
    pub kind: Kind,
    /// The plugin's name.
    pub plugin: String,
    /// The version.
    pub plugin_version: String,
}

/// The versions that connections of any organization name.
///
/// # Errors
/// As the database says.
pub async fn pins(c: &mut impl Connection) -> Result<Vec<Pin>, StoreError> {
    let sql = "SELECT DISTINCT kind, plugin, plugin_version FROM connections WHERE plugin_version IS NOT NULL";
    Ok(on!(c, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

/// Which version a connection with this pin or else this line runs, if connections may use it. Until the transaction ends,
/// no version of the plugin is activated, disabled or removed: see [`seize`].
///
/// # Errors
/// As the database says.
pub async fn hold(
    tx: &mut Tx,
    kind: Kind,
    name: &str,
    pin: Option<&str>,
    of_line: Option<&str>,
) -> Result<Option<String>, StoreError> {
    macro_rules! sql {
        ($locking:literal) => {
            concat!("SELECT id, active_version FROM plugins WHERE kind = $1 AND name = $2", $locking)
        };
    }
    let sql = match tx {
        Tx::Sqlite(_) => sql!(""),
        Tx::Postgres(_) => sql!(" FOR SHARE"),
    };
    let found: Option<(Uuid, Option<String>)> =
        on!(tx, |c| sqlx::query_as(sql).bind(kind).bind(name).fetch_optional(c).await)?;
    let Some((plugin, active)) = found else { return Ok(None) };
    let runs = match (pin, of_line) {
        (Some(pin), _) => Some(pin.to_owned()),
        (None, Some(of_line)) => line(tx, plugin, of_line).await?,
        (None, None) => active,
    };
    let Some(runs) = runs else { return Ok(None) };
    let enabled = version(tx, plugin, &runs).await?.is_some_and(|version| version.enabled);
    Ok(enabled.then_some(runs))
}

/// One plugin, to be changed: until the transaction ends, no connection begins to use it, or changes how it does.
///
/// # Errors
/// As the database says.
pub async fn seize(tx: &mut Tx, id: Uuid) -> Result<Option<Plugin>, StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT id FROM plugins WHERE id = $1",
        Tx::Postgres(_) => "SELECT id FROM plugins WHERE id = $1 FOR UPDATE",
    };
    let _: Option<Uuid> = on!(tx, |c| sqlx::query_scalar(sql).bind(id).fetch_optional(c).await)?;
    get(tx, id).await
}

/// A connection that follows, of any organization.
#[derive(sqlx::FromRow)]
pub struct Following {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub organization_id: OrganizationId,
    /// What it follows; nothing: whatever is active.
    pub plugin_line: Option<String>,
    /// Counts its changes.
    pub revision: i64,
}

/// What a version has to fit of a connection that follows.
#[derive(sqlx::FromRow)]
pub struct Follower {
    /// Which.
    pub id: Uuid,
    /// Counts its changes.
    pub revision: i64,
    /// Its configuration.
    pub config: Json<Value>,
    /// The names of its secrets.
    pub secret_names: Json<Vec<String>>,
}

macro_rules! following {
    ($columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM connections WHERE kind = $1 AND plugin = $2 AND plugin_version IS NULL
                  AND (plugin_line = $3 OR plugin_line IS NULL) AND id > $4 ORDER BY id LIMIT $5"
        )
    };
}

/// The connections after `after`, of all organizations, that follow this line or whatever is active.
///
/// # Errors
/// As the database says.
pub async fn following_after(
    c: &mut impl Connection,
    (kind, name): (Kind, &str),
    line: &str,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Following>, StoreError> {
    let sql = following!("id, organization_id, plugin_line, revision");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(kind).bind(name).bind(line).bind(after).bind(limit).fetch_all(c).await)?)
}

/// The same with their configurations.
///
/// # Errors
/// As the database says.
pub async fn followers_after(
    c: &mut impl Connection,
    (kind, name): (Kind, &str),
    line: &str,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Follower>, StoreError> {
    let sql = following!("id, revision, config, secret_names");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(kind).bind(name).bind(line).bind(after).bind(limit).fetch_all(c).await)?)
}

/// One connection, with what a version has to fit of it.
///
/// # Errors
/// As the database says.
pub async fn follower(
    c: &mut impl Connection,
    organization: OrganizationId,
    connection: Uuid,
) -> Result<Option<Follower>, StoreError> {
    let sql = "SELECT id, revision, config, secret_names FROM connections WHERE organization_id = $1 AND id = $2";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(organization).bind(connection).fetch_optional(c).await)?)
}

/// Lets a connection that follows name a version from now on; it is a change of the connection.
///
/// # Errors
/// As the database says.
pub async fn pin(
    tx: &mut Tx,
    organization: OrganizationId,
    connection: Uuid,
    version: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "UPDATE connections SET plugin_version = $3, plugin_line = NULL, updated_at = $4, revision = revision + 1
               WHERE organization_id = $1 AND id = $2 AND plugin_version IS NULL";
    on!(tx, |c| sqlx::query(sql)
        .bind(organization)
        .bind(connection)
        .bind(version)
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// How many connections of all organizations name this version.
///
/// # Errors
/// As the database says.
pub async fn pinned(c: &mut impl Connection, plugin: &Plugin, version: &str) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM connections WHERE kind = $1 AND plugin = $2 AND plugin_version = $3";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(plugin.kind).bind(&plugin.name).bind(version).fetch_one(c).await)?)
}

/// How many connections of all organizations follow this line.
///
/// # Errors
/// As the database says.
pub async fn followers(c: &mut impl Connection, plugin: &Plugin, line: &str) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM connections
               WHERE kind = $1 AND plugin = $2 AND plugin_version IS NULL AND plugin_line = $3";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(plugin.kind).bind(&plugin.name).bind(line).fetch_one(c).await)?)
}

/// How many connections of all organizations follow whatever is active: those from before there were versions.
///
/// # Errors
/// As the database says.
pub async fn followers_of_all(c: &mut impl Connection, plugin: &Plugin) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM connections
               WHERE kind = $1 AND plugin = $2 AND plugin_version IS NULL AND plugin_line IS NULL";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(plugin.kind).bind(&plugin.name).fetch_one(c).await)?)
}

/// Lets the connections that follow one line follow another; it is a change of each. Returns them, in the order of
/// organizations.
///
/// # Errors
/// As the database says.
pub async fn follow_instead(
    tx: &mut Tx,
    plugin: &Plugin,
    line: &str,
    instead: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Dependent>, StoreError> {
    let sql = "UPDATE connections SET plugin_line = $4, updated_at = $5, revision = revision + 1
               WHERE kind = $1 AND plugin = $2 AND plugin_version IS NULL AND plugin_line = $3
               RETURNING id, organization_id";
    let mut moved: Vec<Dependent> = on!(tx, |c| sqlx::query_as(sql)
        .bind(plugin.kind)
        .bind(&plugin.name)
        .bind(line)
        .bind(instead)
        .bind(now)
        .fetch_all(c)
        .await)?;
    moved.sort_by_key(|one| (one.organization_id, one.id));
    Ok(moved)
}

/// Makes connections from before there were versions follow a line. Returns how many there were.
///
/// # Errors
/// As the database says.
pub async fn adopt(tx: &mut Tx, plugin: &Plugin, line: &str) -> Result<u64, StoreError> {
    let sql = "UPDATE connections SET plugin_line = $3
               WHERE kind = $1 AND plugin = $2 AND plugin_version IS NULL AND plugin_line IS NULL";
    Ok(on!(tx, |c| {
        sqlx::query(sql).bind(plugin.kind).bind(&plugin.name).bind(line).execute(c).await?.rows_affected()
    }))
}
