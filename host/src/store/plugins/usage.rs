//! Which versions connections use, and what keeps a version while they do.

use uuid::Uuid;

use super::Plugin;
use crate::{
    domain::connection::Kind,
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

/// Holds a version until the transaction ends, so that it is neither disabled nor removed meanwhile, and tells whether
/// connections may use it.
///
/// # Errors
/// As the database says.
pub async fn hold(tx: &mut Tx, kind: Kind, name: &str, version: &str) -> Result<bool, StoreError> {
    macro_rules! sql {
        ($locking:literal) => {
            concat!(
                "SELECT enabled FROM plugin_versions
                 WHERE plugin_id = (SELECT id FROM plugins WHERE kind = $1 AND name = $2) AND version = $3",
                $locking
            )
        };
    }
    let sql = match tx {
        Tx::Sqlite(_) => sql!(""),
        Tx::Postgres(_) => sql!(" FOR SHARE"),
    };
    let enabled: Option<bool> =
        on!(tx, |c| sqlx::query_scalar(sql).bind(kind).bind(name).bind(version).fetch_optional(c).await)?;
    Ok(enabled.unwrap_or(false))
}

/// Keeps connections from beginning to use a version until the transaction ends.
///
/// # Errors
/// As the database says.
pub async fn seize(tx: &mut Tx, plugin: Uuid, version: &str) -> Result<(), StoreError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT enabled FROM plugin_versions WHERE plugin_id = $1 AND version = $2",
        Tx::Postgres(_) => "SELECT enabled FROM plugin_versions WHERE plugin_id = $1 AND version = $2 FOR UPDATE",
    };
    let _: Option<bool> = on!(tx, |c| sqlx::query_scalar(sql).bind(plugin).bind(version).fetch_optional(c).await)?;
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
