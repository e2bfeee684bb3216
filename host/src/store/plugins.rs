//! Plugins: components by digest, versions side by side, and which of them are in use. They belong to the installation,
//! not to a tenant: only who may manage what all tenants share changes them.

mod quarantine;
mod usage;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::{quarantine::*, usage::*};
use super::{Connection, StoreError, Tx};
use crate::{
    domain::{connection::Kind, id::UserId, plugin::Origin},
    on,
};

/// A plugin: what its versions have in common.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Plugin {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub kind: Kind,
    /// Unique among those of its kind.
    pub name: String,
    /// What new connections use.
    pub active_version: Option<String>,
    /// When its first version came.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
    /// Counts changes; the ETag.
    pub revision: i64,
}

/// One version, without the component itself.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Version {
    /// Whose.
    pub plugin_id: Uuid,
    /// Semantic version.
    pub version: String,
    /// What it is compatible with.
    pub line: String,
    /// SHA-256 of the component, hexadecimal.
    pub digest: String,
    /// Bytes of the component.
    pub size: i64,
    /// Where it came from.
    pub origin: Origin,
    /// The Ed25519 public key it is signed with, hexadecimal.
    pub signer: Option<String>,
    /// The signature, hexadecimal; without a signer, this server's own seal on what came with it.
    pub signature: Option<String>,
    /// JSON of a `ManifestView`.
    pub manifest: String,
    /// Whether connections may use it.
    pub enabled: bool,
    /// Who uploaded it.
    pub created_by: Option<UserId>,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

/// Of a line, the version that connections which follow it run.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Line {
    /// Whose.
    pub plugin_id: Uuid,
    /// The line.
    pub line: String,
    /// The version.
    pub version: String,
}

/// Activations that are remembered for the way back.
const REMEMBERED: i64 = 50;

macro_rules! plugins {
    ($after:literal) => {
        concat!("SELECT id, kind, name, active_version, created_at, updated_at, revision FROM plugins ", $after)
    };
}

macro_rules! versions {
    ($after:literal) => {
        concat!(
            "SELECT plugin_id, version, line, digest, size, origin, signer, signature, manifest, enabled, created_by,
                    created_at FROM plugin_versions ",
            $after
        )
    };
}

/// The generation: as long as it is the same, nothing has changed.
///
/// # Errors
/// As the database says.
pub async fn generation(c: &mut impl Connection) -> Result<i64, StoreError> {
    let sql = "SELECT generation FROM plugin_generation WHERE id = 1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).fetch_one(c).await)?)
}

/// Begins a change: waits for other changes to end, and raises the generation.
///
/// # Errors
/// As the database says.
pub async fn lock(tx: &mut Tx) -> Result<(), StoreError> {
    let sql = "UPDATE plugin_generation SET generation = generation + 1 WHERE id = 1";
    on!(tx, |c| sqlx::query(sql).execute(c).await.map(drop))?;
    Ok(())
}

/// All plugins, by kind and name.
///
/// # Errors
/// As the database says.
pub async fn all(c: &mut impl Connection) -> Result<Vec<Plugin>, StoreError> {
    Ok(on!(c, |c| sqlx::query_as(plugins!("ORDER BY kind, name")).fetch_all(c).await)?)
}

/// Plugins after `after`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn list(c: &mut impl Connection, after: Uuid, limit: i64) -> Result<Vec<Plugin>, StoreError> {
    let sql = plugins!("WHERE id > $1 ORDER BY id LIMIT $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(after).bind(limit).fetch_all(c).await)?)
}

/// One plugin.
///
/// # Errors
/// As the database says.
pub async fn get(c: &mut impl Connection, id: Uuid) -> Result<Option<Plugin>, StoreError> {
    Ok(on!(c, |c| sqlx::query_as(plugins!("WHERE id = $1")).bind(id).fetch_optional(c).await)?)
}

/// One plugin by its name.
///
/// # Errors
/// As the database says.
pub async fn named(c: &mut impl Connection, kind: Kind, name: &str) -> Result<Option<Plugin>, StoreError> {
    let sql = plugins!("WHERE kind = $1 AND name = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(kind).bind(name).fetch_optional(c).await)?)
}

/// All versions of all plugins, oldest first.
///
/// # Errors
/// As the database says.
pub async fn all_versions(c: &mut impl Connection) -> Result<Vec<Version>, StoreError> {
    Ok(on!(c, |c| sqlx::query_as(versions!("ORDER BY plugin_id, created_at, version")).fetch_all(c).await)?)
}

/// The versions of all plugins from `first` to `last`, oldest first.
///
/// # Errors
/// As the database says.
pub async fn versions_within(c: &mut impl Connection, first: Uuid, last: Uuid) -> Result<Vec<Version>, StoreError> {
    let sql = versions!("WHERE plugin_id >= $1 AND plugin_id <= $2 ORDER BY plugin_id, created_at, version");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(first).bind(last).fetch_all(c).await)?)
}

/// All versions of one plugin, oldest first.
///
/// # Errors
/// As the database says.
pub async fn versions(c: &mut impl Connection, plugin: Uuid) -> Result<Vec<Version>, StoreError> {
    let sql = versions!("WHERE plugin_id = $1 ORDER BY created_at, version");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(plugin).fetch_all(c).await)?)
}

/// One version.
///
/// # Errors
/// As the database says.
pub async fn version(c: &mut impl Connection, plugin: Uuid, version: &str) -> Result<Option<Version>, StoreError> {
    let sql = versions!("WHERE plugin_id = $1 AND version = $2");
    Ok(on!(c, |c| sqlx::query_as(sql).bind(plugin).bind(version).fetch_optional(c).await)?)
}

/// Which versions the lines of all plugins run.
///
/// # Errors
/// As the database says.
pub async fn lines(c: &mut impl Connection) -> Result<Vec<Line>, StoreError> {
    let sql = "SELECT plugin_id, line, version FROM plugin_lines ORDER BY plugin_id, line";
    Ok(on!(c, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

/// The component of this digest.
///
/// # Errors
/// As the database says.
pub async fn artifact(c: &mut impl Connection, digest: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT wasm FROM plugin_artifacts WHERE digest = $1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(digest).fetch_optional(c).await)?)
}

/// Keeps a component, if it is not there already.
///
/// # Errors
/// As the database says.
pub async fn put_artifact(tx: &mut Tx, digest: &str, wasm: &[u8], now: DateTime<Utc>) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO plugin_artifacts (digest, wasm, created_at) VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING";
    on!(tx, |c| sqlx::query(sql).bind(digest).bind(wasm).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

/// Removes components that no version is of any more.
///
/// # Errors
/// As the database says.
pub async fn sweep_artifacts(tx: &mut Tx) -> Result<(), StoreError> {
    let sql = "DELETE FROM plugin_artifacts
               WHERE NOT EXISTS (SELECT 1 FROM plugin_versions v WHERE v.digest = plugin_artifacts.digest)";
    on!(tx, |c| sqlx::query(sql).execute(c).await.map(drop))?;
    Ok(())
}

/// Adds a plugin without versions.
///
/// # Errors
/// [`StoreError::Duplicate`] if there is one of this kind and name.
pub async fn insert(tx: &mut Tx, plugin: &Plugin) -> Result<(), StoreError> {
    let sql = "INSERT INTO plugins (id, kind, name, active_version, created_at, updated_at, revision)
               VALUES ($1, $2, $3, $4, $5, $5, $6)";
    on!(tx, |c| sqlx::query(sql)
        .bind(plugin.id)
        .bind(plugin.kind)
        .bind(&plugin.name)
        .bind(&plugin.active_version)
        .bind(plugin.created_at)
        .bind(plugin.revision)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Sets what new connections use, and counts the change.
///
/// # Errors
/// As the database says.
pub async fn touch(tx: &mut Tx, plugin: &mut Plugin, now: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "UPDATE plugins SET active_version = $2, updated_at = $3, revision = revision + 1 WHERE id = $1
               RETURNING revision";
    plugin.updated_at = now;
    plugin.revision =
        on!(tx, |c| sqlx::query_scalar(sql).bind(plugin.id).bind(&plugin.active_version).bind(now).fetch_one(c).await)?;
    Ok(())
}

/// Removes a plugin that has no versions.
///
/// # Errors
/// As the database says.
pub async fn delete(tx: &mut Tx, plugin: Uuid) -> Result<(), StoreError> {
    on!(tx, |c| sqlx::query("DELETE FROM plugins WHERE id = $1").bind(plugin).execute(c).await.map(drop))?;
    Ok(())
}

/// Adds a version, or replaces the one of this number.
///
/// # Errors
/// As the database says.
pub async fn put_version(tx: &mut Tx, version: &Version) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO plugin_versions (plugin_id, version, line, digest, size, origin, signer, signature, manifest,
                                            enabled, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
               ON CONFLICT (plugin_id, version) DO UPDATE SET digest = excluded.digest, size = excluded.size,
                   signer = excluded.signer, signature = excluded.signature, manifest = excluded.manifest,
                   enabled = excluded.enabled";
    on!(tx, |c| sqlx::query(sql)
        .bind(version.plugin_id)
        .bind(&version.version)
        .bind(&version.line)
        .bind(&version.digest)
        .bind(version.size)
        .bind(version.origin)
        .bind(&version.signer)
        .bind(&version.signature)
        .bind(&version.manifest)
        .bind(version.enabled)
        .bind(version.created_by)
        .bind(version.created_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Removes a version, with what remembers it.
///
/// # Errors
/// As the database says.
pub async fn delete_version(tx: &mut Tx, plugin: Uuid, version: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM plugin_versions WHERE plugin_id = $1 AND version = $2";
    on!(tx, |c| sqlx::query(sql).bind(plugin).bind(version).execute(c).await.map(drop))?;
    Ok(())
}

/// Sets what connections that follow a line run.
///
/// # Errors
/// As the database says.
pub async fn set_line(tx: &mut Tx, version: &Version) -> Result<(), StoreError> {
    let sql = "INSERT INTO plugin_lines (plugin_id, line, version) VALUES ($1, $2, $3)
               ON CONFLICT (plugin_id, line) DO UPDATE SET version = excluded.version";
    on!(tx, |c| sqlx::query(sql)
        .bind(version.plugin_id)
        .bind(&version.line)
        .bind(&version.version)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// What connections that follow this line run.
///
/// # Errors
/// As the database says.
pub async fn line(c: &mut impl Connection, plugin: Uuid, line: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT version FROM plugin_lines WHERE plugin_id = $1 AND line = $2";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(plugin).bind(line).fetch_optional(c).await)?)
}

/// Lets a line run nothing any more.
///
/// # Errors
/// As the database says.
pub async fn clear_line(tx: &mut Tx, plugin: Uuid, line: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM plugin_lines WHERE plugin_id = $1 AND line = $2";
    on!(tx, |c| sqlx::query(sql).bind(plugin).bind(line).execute(c).await.map(drop))?;
    Ok(())
}

/// Takes a version out of its line, and out of what there is to go back to.
///
/// # Errors
/// As the database says.
pub async fn forget(tx: &mut Tx, plugin: Uuid, version: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM plugin_lines WHERE plugin_id = $1 AND version = $2";
    on!(tx, |c| sqlx::query(sql).bind(plugin).bind(version).execute(c).await.map(drop))?;
    let sql = "DELETE FROM plugin_activations
               WHERE plugin_id = $1 AND (version = $2 OR previous = $2 OR line_previous = $2)";
    on!(tx, |c| sqlx::query(sql).bind(plugin).bind(version).execute(c).await.map(drop))?;
    Ok(())
}

/// What was in use before a version was activated.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Activation {
    /// What was activated.
    pub version: String,
    /// What new connections used before.
    pub previous: String,
    /// What connections that follow its line ran before.
    pub line_previous: Option<String>,
}

/// Remembers what was in use before.
///
/// # Errors
/// As the database says.
pub async fn push_activation(tx: &mut Tx, plugin: Uuid, activation: &Activation) -> Result<(), StoreError> {
    let sql = "INSERT INTO plugin_activations (plugin_id, number, version, previous, line_previous)
               SELECT $1, COALESCE(MAX(number), 0) + 1, $2, $3, $4 FROM plugin_activations WHERE plugin_id = $1";
    on!(tx, |c| sqlx::query(sql)
        .bind(plugin)
        .bind(&activation.version)
        .bind(&activation.previous)
        .bind(&activation.line_previous)
        .execute(c)
        .await
        .map(drop))?;
    let sql = "DELETE FROM plugin_activations WHERE plugin_id = $1 AND number <=
                   (SELECT MAX(number) FROM plugin_activations WHERE plugin_id = $1) - $2";
    on!(tx, |c| sqlx::query(sql).bind(plugin).bind(REMEMBERED).execute(c).await.map(drop))?;
    Ok(())
}

/// The last activation.
///
/// # Errors
/// As the database says.
pub async fn last_activation(c: &mut impl Connection, plugin: Uuid) -> Result<Option<Activation>, StoreError> {
    let sql = "SELECT version, previous, line_previous FROM plugin_activations
               WHERE plugin_id = $1 ORDER BY number DESC LIMIT 1";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(plugin).fetch_optional(c).await)?)
}

/// The last activation; forgotten thereby.
///
/// # Errors
/// As the database says.
pub async fn pop_activation(tx: &mut Tx, plugin: Uuid) -> Result<Option<Activation>, StoreError> {
    let sql = "DELETE FROM plugin_activations WHERE plugin_id = $1 AND number =
                   (SELECT MAX(number) FROM plugin_activations WHERE plugin_id = $1)
               RETURNING version, previous, line_previous";
    Ok(on!(tx, |c| sqlx::query_as(sql).bind(plugin).fetch_optional(c).await)?)
}
