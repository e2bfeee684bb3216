//! Versions that are taken out of use: into quarantine and out of it, disabled, removed.

use super::{ChangeError, conflict};
use crate::{
    clock::Clock,
    domain::id::UserId,
    store::{
        StoreError, Tx,
        plugins::{self as rows, Dependent, Plugin, Quarantine, Version},
    },
};

/// Puts a version's component into quarantine: it is refused at every call from now on, on every host, and cannot be
/// installed or activated. What is in use stays so in the tables, so that a release undoes it. Returns the connections of
/// all organizations that run it.
///
/// # Errors
/// As the database says.
pub async fn quarantine(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    version: &Version,
    (reason, by): (&str, UserId),
) -> Result<Vec<Dependent>, StoreError> {
    let quarantine = Quarantine {
        digest: version.digest.clone(),
        reason: reason.to_owned(),
        created_by: by,
        created_at: clock.now(),
    };
    rows::put_quarantine(tx, &quarantine).await?;
    rows::touch(tx, plugin, clock.now()).await?;
    rows::dependents(tx, plugin, version).await
}

/// Takes a version's component out of quarantine. Returns the connections of all organizations that run it again.
///
/// # Errors
/// [`ChangeError::Conflict`] if it is in none.
pub async fn release(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    version: &Version,
) -> Result<Vec<Dependent>, ChangeError> {
    if !rows::delete_quarantine(tx, &version.digest).await? {
        return conflict(format!("version {} is not in quarantine", version.version));
    }
    rows::touch(tx, plugin, clock.now()).await?;
    Ok(rows::dependents(tx, plugin, version).await?)
}

/// Refuses while connections use a version; none can begin to until the transaction ends, as the plugin is seized.
async fn unused(tx: &mut Tx, plugin: &Plugin, version: &Version) -> Result<(), ChangeError> {
    let pinned = rows::pinned(tx, plugin, &version.version).await?;
    let mut following = 0;
    if rows::line(tx, plugin.id, &version.line).await?.as_ref() == Some(&version.version) {
        following += rows::followers(tx, plugin, &version.line).await?;
    }
    if plugin.active_version.as_ref() == Some(&version.version) {
        following += rows::followers_of_all(tx, plugin).await?;
    }
    if pinned + following == 0 {
        return Ok(());
    }
    conflict(format!(
        "version {} is in use: connections that name it: {pinned}, connections that follow it: {following}; change these or activate another version first",
        version.version
    ))
}

/// Takes a version out of use: connections can no longer begin to use it.
///
/// # Errors
/// [`ChangeError::Conflict`] while connections use it.
pub async fn disable(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    version: &mut Version,
) -> Result<(), ChangeError> {
    unused(tx, plugin, version).await?;
    rows::forget(tx, plugin.id, &version.version).await?;
    version.enabled = false;
    rows::put_version(tx, version).await?;
    if plugin.active_version.as_ref() == Some(&version.version) {
        plugin.active_version = None;
    }
    Ok(rows::touch(tx, plugin, clock.now()).await?)
}

/// Removes a version, its component if no other version has the same, and the plugin with its last version.
///
/// # Errors
/// [`ChangeError::Conflict`] while connections use it, if it is part of this server, and while it is in quarantine.
pub async fn remove(tx: &mut Tx, clock: &Clock, plugin: &mut Plugin, version: &Version) -> Result<(), ChangeError> {
    if crate::plugins::bundled_by_digest().contains_key(&version.digest) {
        return conflict(format!(
            "version {} is part of this server and would be back at its next start: disable it instead",
            version.version
        ));
    }
    if rows::quarantine(tx, &version.digest).await?.is_some() {
        return conflict(format!(
            "version {} is in quarantine and stays, so that its component is known if it comes again: release it first",
            version.version
        ));
    }
    unused(tx, plugin, version).await?;
    rows::forget(tx, plugin.id, &version.version).await?;
    rows::delete_version(tx, plugin.id, &version.version).await?;
    rows::sweep_artifacts(tx).await?;
    if rows::versions(tx, plugin.id).await?.is_empty() {
        return Ok(rows::delete(tx, plugin.id).await?);
    }
    if plugin.active_version.as_ref() == Some(&version.version) {
        plugin.active_version = None;
    }
    Ok(rows::touch(tx, plugin, clock.now()).await?)
}
