//! Which version is in use: activation, and going back.

use super::{ChangeError, changes, conflict, usable};
use crate::{
    clock::Clock,
    plugins::{
        Changes, Plugin as Ready,
        fit::{self, Examined, Misfits},
    },
    store::{
        StoreError, Tx,
        plugins::{self as rows, Activation, Dependent, Plugin, Version},
    },
};

/// Makes a version the one that new connections use and its line runs, and remembers what was before.
pub(in crate::plugins) async fn set(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    version: &mut Version,
) -> Result<(), StoreError> {
    if !version.enabled {
        version.enabled = true;
        rows::put_version(tx, version).await?;
    }
    if let Some(previous) = plugin.active_version.clone() {
        let line_previous = rows::line(tx, plugin.id, &version.line).await?;
        let activation = Activation { version: version.version.clone(), previous, line_previous };
        rows::push_activation(tx, plugin.id, &activation).await?;
    }
    rows::set_line(tx, version).await?;
    plugin.active_version = Some(version.version.clone());
    rows::touch(tx, plugin, clock.now()).await
}

/// What the caller accepts with an activation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accepted {
    /// That it reaches more.
    pub capabilities: bool,
    /// That connections which it does not fit keep the version that they run.
    pub pins: bool,
}

/// What an activation did.
pub struct Activated {
    /// How the version differs from what it takes the place of.
    pub changes: Changes,
    /// Connections that name the version they run from now on.
    pub pinned: Option<Misfits>,
}

/// Activates a version, which is loaded as `ready` and whose followers-to-be were looked at. Returns nothing if it was active already.
///
/// # Errors
/// [`ChangeError::Growth`] and [`ChangeError::Misfits`] where that is not accepted; [`ChangeError::Moved`] where they have to be looked at
/// again.
pub async fn activate(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    version: &mut Version,
    (ready, examined): (&Ready, &Examined),
    accepted: Accepted,
) -> Result<Option<Activated>, ChangeError> {
    let of_line = rows::line(tx, plugin.id, &version.line).await?;
    if plugin.active_version.as_ref() == Some(&version.version) && of_line.as_ref() == Some(&version.version) {
        return Ok(None);
    }
    if ready.digest != version.digest {
        return conflict("another component took this version's place just now: send it again");
    }
    usable(tx, &plugin.name, &version.version, &version.digest).await?;
    let changes = changes(tx, plugin, version).await?;
    if changes.grows && !accepted.capabilities {
        return Err(ChangeError::Growth(Box::new(changes)));
    }
    let pinned = match fit::misfits(tx, (ready, examined), plugin, version).await? {
        Some(misfits) if !accepted.pins => return Err(ChangeError::Misfits(misfits)),
        Some(misfits) => {
            fit::pin(tx, clock, &misfits).await?;
            Some(misfits)
        }
        None => None,
    };
    set(tx, clock, plugin, version).await?;
    Ok(Some(Activated { changes, pinned }))
}

/// What a rollback did.
pub struct RolledBack {
    /// What was gone back from.
    pub last: Activation,
    /// Connections that were changed to fit only what was gone back from. They run what is gone back to nevertheless:
    /// whoever rolls back does it because something is broken.
    pub misfits: Vec<Misfits>,
    /// Connections that followed the line of what was gone back from, which ran nothing before: they follow what is gone
    /// back to from now on.
    pub moved: Vec<Dependent>,
}

/// Goes back to what was in use before `last`, the last activation; `ready` are the versions that were. All that was
/// accepted then, so it needs no acceptance now.
///
/// # Errors
/// [`ChangeError::Conflict`] if there is nothing to go back to, or `last` is no longer the last one; [`ChangeError::Moved`].
pub async fn rollback(
    tx: &mut Tx,
    clock: &Clock,
    plugin: &mut Plugin,
    last: Option<&Activation>,
    (ready, examined): (&[std::sync::Arc<Ready>], &Examined),
) -> Result<RolledBack, ChangeError> {
    let Some(popped) = rows::pop_activation(tx, plugin.id).await? else {
        return conflict("there is no earlier version to go back to");
    };
    if last != Some(&popped) {
        return conflict("the active version changed just now: look at it, and send this again if it is still wanted");
    }
    let mut misfits = Vec::new();
    for ready in ready {
        if let Some(row) = rows::version(tx, plugin.id, &ready.manifest.version).await? {
            misfits.extend(fit::misfits(tx, (ready, examined), plugin, &row).await?);
        }
    }
    let mut moved = Vec::new();
    match &popped.line_previous {
        Some(of_line) => {
            if let Some(of_line) = rows::version(tx, plugin.id, of_line).await? {
                rows::set_line(tx, &of_line).await?;
            }
        }
        None => {
            let left = rows::version(tx, plugin.id, &popped.version).await?;
            let previous = rows::version(tx, plugin.id, &popped.previous).await?;
            if let (Some(left), Some(previous)) = (left, previous) {
                let ready = ready.iter().find(|ready| ready.manifest.version == previous.version);
                if let Some(ready) = ready {
                    misfits.extend(fit::misfits_of_line(tx, (ready, examined), plugin, &left, &previous).await?);
                }
                rows::clear_line(tx, plugin.id, &left.line).await?;
                moved = rows::follow_instead(tx, plugin, &left.line, &previous.line, clock.now()).await?;
                if rows::line(tx, plugin.id, &previous.line).await?.is_none() {
                    rows::set_line(tx, &previous).await?;
                }
            }
        }
    }
    plugin.active_version = Some(popped.previous.clone());
    rows::touch(tx, plugin, clock.now()).await?;
    Ok(RolledBack { last: popped, misfits, moved })
}
