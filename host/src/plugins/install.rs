//! Changes of what is installed, each within a transaction of the caller's: register, activate, roll back, disable,
//! quarantine, remove. Nothing of it shows before the commit; afterwards [`super::Plugins::changed`] makes it run here and tells the
//! other hosts.
//!
//! A version that arrives is only kept. A platform administrator activates it: then new connections use it, and so do
//! those that follow its line (what it is compatible with, see [`crate::domain::plugin::line`]). Where it reaches more
//! than what these run so far, or does not fit one of them ([`super::fit`]), that must be accepted.

mod activation;
mod withdrawal;

use serde_json::json;

pub(super) use self::activation::set;
pub use self::{
    activation::{Accepted, Activated, RolledBack, activate, rollback},
    withdrawal::{disable, quarantine, release, remove},
};
use super::{Busy, Candidate, Changes, ManifestView, fit::Misfits, registry};
use crate::{
    clock::Clock,
    domain::{
        id::UserId,
        plugin::{self, Origin},
    },
    store::{
        Connection, StoreError, Tx,
        plugins::{self as rows, Plugin, Quarantine, Version},
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
