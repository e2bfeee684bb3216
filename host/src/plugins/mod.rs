//! Plugins and their typed calls: identity providers, deployment targets, audit sinks.
//!
//! A plugin is a component of some version. The bundled ones are part of the binary; others are uploaded, or lie in
//! `plugins_dir`. All of them are in the database, by digest ([`library`]), so that every host runs the same; each is
//! compiled once and kept compiled in the data folder. What runs on this host is in its [`registry`], which is replaced
//! as a whole when something changes ([`install`]).

mod arrivals;
mod audit_dir;
mod call;
mod calls;
pub mod changes;
pub mod check;
mod destinations;
pub mod fit;
pub mod health;
pub mod install;
pub mod kit;
mod library;
mod loads;
mod manifest;
mod registry;
mod reseal;
mod results;
mod schema;
pub mod signature;
mod suspension;
mod types;
mod vouch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Instant,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

pub use arrivals::{Candidate, SIGNATURE};
pub use audit_dir::RoomError;
pub use changes::Changes;
pub use library::Ingredients;
pub use manifest::{
    ACCESS_TOKEN, Busy, CapabilityKind, CapabilityView, Manifest, ManifestError, ManifestView, SecretView,
};
pub use registry::Wanted;
pub use reseal::{ResealError, Resealed, reseal};
pub use suspension::{Standing, Status, Suspended};
pub use types::{
    Attempt, Binding, CheckError, Failure, IdentityGrant, PluginError, Progress, Protocol, ProviderIdentity, Refused,
    Registration, Release, TargetState,
};

use self::{health::Health, library::Library, registry::Registry, suspension::Shares};
use crate::{
    clock::Clock,
    domain::{connection::Kind, fault::Fault, id::OrganizationId},
    sandbox::{
        self, Sandbox,
        bindings::{
            audit_sink::AuditSinkPre, deployment_target::DeploymentTargetPre, identity_provider::IdentityProviderPre,
        },
        cache::Cache,
        egress,
        grants::Grants,
        state::State,
    },
    secrets::{Secrets, SecretsError},
    store::{self, StoreError},
};

mod bundled {
    //! What `build.rs` made of `plugins/`: kind, folder name, component.
    include!(concat!(env!("OUT_DIR"), "/bundled.rs"));
}

/// Sandboxed providers. Cheap to clone.
#[derive(Clone)]
pub struct Plugins(Arc<Inner>);

struct Inner {
    sandbox: Sandbox,
    /// What is in use; taken whole by each call.
    registry: ArcSwap<Registry>,
    /// Folders offered to plugins, by name; each connection gets one of its own inside, in that of its organization.
    folders: BTreeMap<String, PathBuf>,
    /// Whose connections are offered them; empty: everybody's.
    folder_owners: BTreeSet<OrganizationId>,
    health: Health,
    /// Each connection's share of each plugin.
    shares: Shares,
    clock: Clock,
    /// Where versions are kept; without it, only what was given at the start is there.
    library: Option<Library>,
}

/// One version of a plugin, ready to be called.
pub struct Plugin {
    kind: Kind,
    /// SHA-256 of the component, hexadecimal.
    digest: String,
    manifest: Manifest,
    exports: Exports,
}

/// The interface of its kind, looked up once.
#[derive(Clone)]
enum Exports {
    IdentityProvider(IdentityProviderPre<State>),
    DeploymentTarget(DeploymentTargetPre<State>),
    AuditSink(AuditSinkPre<State>),
}

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The component itself.
    #[error("plugin {name}: {error}")]
    Load {
        /// Where it came from.
        name: String,
        /// What is wrong.
        error: sandbox::LoadError,
    },
    /// What it says of itself.
    #[error("plugin {name}: {error}")]
    Manifest {
        /// Where it came from.
        name: String,
        /// What is wrong.
        error: ManifestError,
    },
    /// Who vouches for it.
    #[error("plugin {name}: {error}")]
    Signature {
        /// Where it came from.
        name: String,
        /// What is wrong.
        error: signature::SignatureError,
    },
    /// What is kept of it.
    #[error("plugin {name}: {why}")]
    Kept {
        /// Which version of which plugin.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The server has too much to do to look at it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// Two of one name.
    #[error("plugin {0}: there is one of this kind and name already")]
    Twice(String),
    /// The machine.
    #[error("the sandbox cannot start: {0}")]
    Engine(wasmtime::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl InstallError {
    /// What is wrong, without where it came from.
    pub fn why(&self) -> String {
        match self {
            InstallError::Load { error, .. } => error.to_string(),
            InstallError::Manifest { error, .. } => error.to_string(),
            InstallError::Signature { error, .. } => error.to_string(),
            InstallError::Kept { why, .. } => why.clone(),
            other => other.to_string(),
        }
    }
}

/// A plugin before it is loaded: kind, where it came from, bytes.
pub type Artifact = (Kind, &'static str, &'static [u8]);

/// The plugins that are part of the binary.
pub fn bundled() -> impl Iterator<Item = Artifact> {
    bundled::BUNDLED.iter().filter_map(|(kind, name, wasm)| Some((Kind::from_wit(kind)?, *name, *wasm)))
}

/// The same by SHA-256, hexadecimal. The first to ask waits until they are hashed.
fn bundled_by_digest() -> &'static BTreeMap<String, &'static [u8]> {
    static BUNDLED: LazyLock<BTreeMap<String, &'static [u8]>> =
        LazyLock::new(|| bundled().map(|(_, _, wasm)| (check::digest(wasm), wasm)).collect());
    &BUNDLED
}

impl Plugins {
    /// Loads these plugins and no others, in parallel: without a database, where nothing can be installed.
    ///
    /// # Errors
    /// If one does not load.
    pub async fn install(
        artifacts: Vec<Artifact>,
        cache: Cache,
        egress: egress::Client,
        folders: BTreeMap<String, PathBuf>,
    ) -> Result<Self, InstallError> {
        let sandbox = Sandbox::new(cache, egress).map_err(InstallError::Engine)?;
        Self::within(sandbox, artifacts, folders).await
    }

    /// The same in a sandbox that is there already.
    ///
    /// # Errors
    /// If one does not load.
    pub async fn within(
        sandbox: Sandbox,
        artifacts: Vec<Artifact>,
        folders: BTreeMap<String, PathBuf>,
    ) -> Result<Self, InstallError> {
        Self::assemble(sandbox, artifacts, (folders, BTreeSet::new()), None).await
    }

    async fn assemble(
        sandbox: Sandbox,
        artifacts: Vec<Artifact>,
        (folders, folder_owners): (BTreeMap<String, PathBuf>, BTreeSet<OrganizationId>),
        library: Option<Library>,
    ) -> Result<Self, InstallError> {
        let started = Instant::now();
        let loading: Vec<_> = artifacts
            .into_iter()
            .map(|(kind, name, wasm)| {
                let (sandbox, origin) = (sandbox.clone(), format!("{}/{name}", kind.as_str()));
                let task = {
                    let origin = origin.clone();
                    async move { check::load(&sandbox, &origin, Some(kind), Bytes::from_static(wasm)).await }
                };
                (origin, tokio::spawn(task))
            })
            .collect();
        let mut registry = Registry::default();
        let mut count = 0;
        for (origin, loaded) in loading {
            let plugin = loaded.await.map_err(|error| InstallError::Load {
                name: origin.clone(),
                error: sandbox::LoadError::Component(error.to_string()),
            })??;
            if !registry.add(Arc::new(plugin)) {
                return Err(InstallError::Twice(origin));
            }
            count += 1;
        }
        tracing::debug!(plugins = count, milliseconds = started.elapsed().as_millis(), "plugins loaded");
        let (registry, clock) = (ArcSwap::from_pointee(registry), sandbox.clock().clone());
        let shares = Shares::new(clock.clone(), sandbox.bounds().clone());
        let health = library.as_ref().map(|library| Health::new(library.kept)).unwrap_or_default();
        Ok(Self(Arc::new(Inner { sandbox, registry, folders, folder_owners, health, shares, clock, library })))
    }

    /// What new connections can use, by kind and name.
    pub fn manifests(&self) -> Vec<ManifestView> {
        self.0.registry.load().active().map(|plugin| plugin.manifest.view(plugin.kind)).collect()
    }

    /// Why a version does not load on this host, if it does not.
    pub fn failure(&self, kind: Kind, name: &str, version: &str) -> Option<String> {
        self.0.registry.load().failure(kind, name, version)
    }

    /// Which version a connection runs on this host.
    pub fn version_of(&self, kind: Kind, name: &str, wanted: &Wanted) -> Option<String> {
        let found = self.0.registry.load().find(kind, name, wanted);
        found.ok().map(|plugin| plugin.manifest.version.clone())
    }

    /// The active version of a plugin.
    #[cfg(test)]
    fn find(&self, kind: Kind, name: &str) -> Result<Arc<Plugin>, String> {
        self.0.registry.load().find(kind, name, &Wanted::default()).map_err(|missing| missing.to_string())
    }

    /// As [`Plugins::validate_as`], for the active version.
    ///
    /// # Errors
    /// As there.
    pub async fn validate(
        &self,
        kind: Kind,
        plugin: &str,
        config: &Value,
        secrets: &BTreeMap<String, SecretString>,
    ) -> Result<String, Refused> {
        self.validate_as(kind, plugin, &Wanted::default(), config, secrets).await
    }

    /// Whether a connection can work, before it is stored: plugin, configuration and secrets. Returns the version that
    /// takes them.
    ///
    /// # Errors
    /// Each fault, at `/plugin`, `/config/…` or `/secrets/…`; [`Refused::Busy`].
    pub async fn validate_as(
        &self,
        kind: Kind,
        plugin: &str,
        wanted: &Wanted,
        config: &Value,
        secrets: &BTreeMap<String, SecretString>,
    ) -> Result<String, Refused> {
        let found = self.0.registry.load().find(kind, plugin, wanted);
        let plugin = found.map_err(|missing| missing.at("/plugin"))?;
        let names: Vec<&str> = secrets.keys().map(String::as_str).collect();
        let value = |name: &str| secrets.get(name).map(|value| value.expose_secret());
        let faults = plugin.manifest.validate(kind, config, value, &names).await;
        let mut faults = faults.map_err(|busy| Refused::Busy(busy.to_string()))?;
        let grants = Grants::resolve(&plugin.manifest.capabilities, &plugin.manifest.slots, config, &BTreeMap::new());
        for fault in grants.err().unwrap_or_default() {
            let pointer = format!("/config/{}", fault.property);
            if !faults.iter().any(|known| known.pointer == pointer) {
                faults.push(Fault::new(pointer, fault.message));
            }
        }
        if faults.is_empty() { Ok(plugin.manifest.version.clone()) } else { Err(Refused::Faults(faults)) }
    }
}

/// Where a connection's secrets are stored: what they are encrypted for.
fn place(organization: OrganizationId, connection: uuid::Uuid) -> Vec<u8> {
    format!("connections/{organization}/{connection}/secrets").into_bytes()
}

/// Encrypts the secrets of one connection, for its row.
///
/// # Errors
/// If they are too long, which validation does not let through.
pub fn seal(
    keys: &Secrets,
    clock: &Clock,
    organization: OrganizationId,
    connection: uuid::Uuid,
    secrets: &BTreeMap<String, SecretString>,
) -> Result<Vec<u8>, SecretsError> {
    let plain: HashMap<&str, &str> =
        secrets.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(&plain).map_err(|_| SecretsError::Seal)?);
    keys.seal(clock, &place(organization, connection), &plain)
}

/// Decrypts the secrets of one connection.
///
/// # Errors
/// If the master key is another one, or the row was tampered with.
pub fn unseal(
    keys: &Secrets,
    connection: &store::connections::Connection,
) -> Result<BTreeMap<String, SecretString>, SecretsError> {
    let plain = keys.open(&place(connection.organization_id, connection.id), &connection.secrets)?;
    let secrets: BTreeMap<String, String> = serde_json::from_slice(&plain).map_err(|_| SecretsError::Open)?;
    Ok(secrets.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect())
}

/// Makes a stored connection ready to be called.
///
/// # Errors
/// As [`unseal`].
pub fn bind(keys: &Secrets, connection: &store::connections::Connection) -> Result<Binding, SecretsError> {
    Ok(Binding {
        organization_id: connection.organization_id,
        connection_id: connection.id,
        plugin: connection.plugin.clone(),
        wanted: wanted(connection),
        config: connection.config.0.clone(),
        secrets: unseal(keys, connection)?,
    })
}

/// Which version a stored connection runs.
pub fn wanted(connection: &store::connections::Connection) -> Wanted {
    Wanted { pin: connection.plugin_version.clone(), line: connection.plugin_line.clone() }
}

#[cfg(test)]
mod tests;
