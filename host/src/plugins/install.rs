//! Changes of what is installed, each within a transaction of the caller's: register, activate, roll back, disable,
//! quarantine, remove. Nothing of it shows before the commit; afterwards [`super::Plugins::changed`] makes it run here and tells the
//! other hosts.
//!
//! A version that arrives is only kept. A platform administrator activates it: then new connections use it, and so do
//! those that follow its line (what it is compatible with, see [`crate::domain::plugin::line`]). Where it reaches more
//! than what these run so far, or does not fit one of them ([`super::fit`]), that must be accepted.

use serde_json::json;

use super::{
    Busy, Candidate, Changes, ManifestView, Plugin as Ready,
    fit::{self, Examined, Misfits},
    registry,
};
use crate::{
    clock::Clock,
    domain::{
        id::UserId,
        plugin::{self, Origin},
    },
    store::{
        Connection, StoreError, Tx,
        plugins::{self as rows, Activation, Dependent, Plugin, Quarantine, Version},
    },
};

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not go together with what is there.
    #[error("{0}")]
    Conflict(String),
    /// It reaches more than what is in use, and nobody accepted that.
    #[error(
        "version {} reaches more than what is in use: {}; send `accept_capabilities: true` to accept that",
        .0.to,
        .0.growth().join("; ")
    )]
    Growth(Box<Changes>),
    /// Connections would run it that it does not fit.
    #[error(
        "version {} does not fit {} of the connections that would run it (`errors` names the first): their organizations can \
         change them, or name the version they run (`plugin_version`); or send `pin_misfits: true`, and these keep the version \
         they run",
        .0.version,
        .0.connections.len()
    )]
    Misfits(Misfits),
    /// A connection was changed while it was looked at whether a version fits it.
    #[error("connections that would run it were changed just now: send it again")]
    Moved,
    /// The server has too much to do to look at that.
    #[error(transparent)]
    Busy(#[from] Busy),
}

fn conflict<T>(message: impl Into<String>) -> Result<T, ChangeError> {
    Err(ChangeError::Conflict(message.into()))
}

/// A version in its place.
pub struct Registered {
    /// Its plugin.
    pub plugin: Plugin,
    /// The version.
    pub version: Version,
    /// It was not there before.
    pub fresh: bool,
    /// It was there, and only its signature is new.
    pub renewed: bool,
    /// It was there with other bytes, which were in quarantine: so are the new ones.
    pub quarantined: Option<Quarantine>,
}

/// Keeps a version and activates nothing.
///
/// # Errors
/// [`ChangeError::Conflict`] if there is another component of this version, or this one is in quarantine.
pub async fn register(
    tx: &mut Tx,
    clock: &Clock,
    candidate: &Candidate,
    by: Option<UserId>,
) -> Result<Registered, ChangeError> {
    let (now, manifest) = (clock.now(), candidate.manifest());
    let kind = candidate.plugin.kind;
    usable(tx, &manifest.name, &manifest.version, candidate.digest()).await?;
    let mut plugin = match rows::named(tx, kind, &manifest.name).await? {
        Some(plugin) => plugin,
        None => {
            let plugin = Plugin {
                id: clock.id(),
                kind,
                name: manifest.name.clone(),
                active_version: None,
                created_at: now,
                updated_at: now,
                revision: 1,
            };
            rows::insert(tx, &plugin).await?;
            plugin
        }
    };
    let number = semver::Version::parse(&manifest.version);
    let number = number.map_err(|error| ChangeError::Conflict(format!("version {}: {error}", manifest.version)))?;
    let mut version = Version {
        plugin_id: plugin.id,
        version: manifest.version.clone(),
        line: plugin::line(&number),
        digest: candidate.digest().to_owned(),
        size: i64::try_from(candidate.wasm.len()).unwrap_or(i64::MAX),
        origin: candidate.origin,
        signer: candidate.signature.as_ref().map(|signature| signature.key.to_string()),
        signature: candidate.signature.as_ref().map(|signature| signature.digits()).or(candidate.seal.clone()),
        manifest: json!(manifest).to_string(),
        enabled: false,
        created_by: by,
        created_at: now,
    };
    let found = rows::version(tx, plugin.id, &version.version).await?;
    let (fresh, mut renewed, mut quarantined) = (found.is_none(), false, None);
    if let Some(found) = found {
        let same = found.digest == version.digest;
        // A seal takes only a seal's place: what a signature vouches for needs none.
        let kept = version.origin == Origin::Bundled && (found.origin != Origin::Bundled || found.signer.is_some());
        if same && (kept || version.signature.is_none() || version.signature == found.signature) {
            return Ok(Registered { plugin, version: found, fresh: false, renewed: false, quarantined });
        }
        if !same && (found.origin, version.origin) != (Origin::Bundled, Origin::Bundled) {
            return conflict(format!(
                "version {} of the plugin `{}` is installed already, with another component (SHA-256 {}): give yours another version",
                found.version, plugin.name, found.digest
            ));
        }
        if !same && let Some(found) = rows::quarantine(tx, &found.digest).await? {
            // Other bytes do not make it another version: only who put it there, or may, releases it.
            let now_too = Quarantine { digest: version.digest.clone(), ..found };
            rows::put_quarantine(tx, &now_too).await?;
            quarantined = Some(now_too);
        }
        renewed = same;
        version = Version {
            origin: found.origin,
            enabled: found.enabled,
            created_by: found.created_by,
            created_at: found.created_at,
            ..version
        };
    }
    rows::put_artifact(tx, &version.digest, &candidate.wasm, now).await?;
    rows::put_version(tx, &version).await?;
    rows::touch(tx, &mut plugin, now).await?;
    Ok(Registered { plugin, version, fresh, renewed, quarantined })
}

/// Refuses a component that is in quarantine.
async fn usable(c: &mut impl Connection, name: &str, version: &str, digest: &str) -> Result<(), ChangeError> {
    match rows::quarantine(c, digest).await? {
        None => Ok(()),
        Some(found) => conflict(registry::quarantined(name, version, &found.reason)),
    }
}

/// The version that new connections use.
pub(super) async fn active(c: &mut impl Connection, plugin: &Plugin) -> Result<Option<Version>, StoreError> {
    match &plugin.active_version {
        Some(active) => rows::version(c, plugin.id, active).await,
        None => Ok(None),
    }
}

/// What a version reaches beyond what it would take the place of: the active version of its line, or else the one that
/// new connections use.
///
/// # Errors
/// As the database says.
pub async fn changes(c: &mut impl Connection, plugin: &Plugin, version: &Version) -> Result<Changes, StoreError> {
    let before = match rows::line(c, plugin.id, &version.line).await? {
        Some(of_line) => rows::version(c, plugin.id, &of_line).await?,
        None => active(c, plugin).await?,
    };
    let said = before.as_ref().map(manifest).transpose()?;
    let changes = Changes::between(said.as_ref(), &manifest(version)?);
    Ok(match &before {
        Some(before) => changes.signed(before, version),
        None => changes,
    })
}

/// What a stored version says of itself.
///
/// # Errors
/// If the row is not what was written.
pub fn manifest(version: &Version) -> Result<ManifestView, StoreError> {
    serde_json::from_str(&version.manifest).map_err(|error| StoreError::Database(sqlx::Error::Decode(Box::new(error))))
}

/// Makes a version the one that new connections use and its line runs, and remembers what was before.
pub(super) async fn set(
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
    if super::bundled_by_digest().contains_key(&version.digest) {
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
