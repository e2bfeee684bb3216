//! Plugins and their typed calls: identity providers, deployment targets, audit sinks.
//!
//! The bundled ones are part of the binary. Each is compiled once, kept compiled in the data folder, and describes itself
//! at every start.

mod call;
mod calls;
mod destinations;
pub mod kit;
mod manifest;
mod types;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use wasmtime::component::Component;

pub use manifest::{ACCESS_TOKEN, CapabilityView, Manifest, ManifestError, ManifestView, SecretView};
pub use types::{
    Attempt, Binding, IdentityGrant, PluginError, Progress, Protocol, ProviderIdentity, Registration, Release,
    TargetState,
};

use crate::{
    clock::Clock,
    config::Config,
    domain::{connection::Kind, fault::Fault, id::OrganizationId},
    sandbox::{
        self, Guest, Sandbox,
        bindings::{
            audit_sink::AuditSinkPre, deployment_target::DeploymentTargetPre, identity_provider::IdentityProviderPre,
        },
        cache::Cache,
        egress,
        grants::Grants,
        state::State,
    },
    secrets::{Secrets, SecretsError},
    store,
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
    installed: BTreeMap<(Kind, String), Plugin>,
    /// Folders offered to plugins, by name; each connection gets one of its own inside.
    folders: BTreeMap<String, PathBuf>,
}

struct Plugin {
    manifest: Manifest,
    guest: Guest,
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
    /// Two of one name.
    #[error("plugin {0}: there is one of this kind and name already")]
    Twice(String),
    /// The machine.
    #[error("the sandbox cannot start: {0}")]
    Engine(wasmtime::Error),
}

/// A plugin before it is loaded: kind, where it came from, bytes.
pub type Artifact = (Kind, &'static str, &'static [u8]);

/// The plugins that are part of the binary.
pub fn bundled() -> impl Iterator<Item = Artifact> {
    bundled::BUNDLED.iter().filter_map(|(kind, name, wasm)| Some((Kind::from_wit(kind)?, *name, *wasm)))
}

impl Plugins {
    /// Loads the bundled plugins.
    ///
    /// # Errors
    /// If one does not load.
    pub async fn load(config: &Config, secrets: &Secrets, egress: egress::Client) -> Result<Self, InstallError> {
        let cache = Cache::new(config.data_dir.join("compiled"), &secrets.derive("kaizen.compiled-plugins.v1"));
        let folders = BTreeMap::from([("audit".to_owned(), config.audit_dir.clone())]);
        Self::install(bundled().collect(), cache, egress, folders).await
    }

    /// Loads these plugins, in parallel.
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

    /// Loads these plugins into a sandbox that is there already.
    ///
    /// # Errors
    /// If one does not load.
    pub async fn within(
        sandbox: Sandbox,
        artifacts: Vec<Artifact>,
        folders: BTreeMap<String, PathBuf>,
    ) -> Result<Self, InstallError> {
        let started = Instant::now();
        let compiling: Vec<_> = artifacts
            .into_iter()
            .map(|(kind, name, wasm)| {
                let sandbox = sandbox.clone();
                (kind, name, tokio::task::spawn_blocking(move || sandbox.compile(wasm)))
            })
            .collect();
        let mut installed = BTreeMap::new();
        for (kind, name, compiled) in compiling {
            let failed = |error| InstallError::Load { name: format!("{}/{name}", kind.as_str()), error };
            let component = match compiled.await {
                Ok(component) => component.map_err(failed)?,
                Err(error) => return Err(failed(sandbox::LoadError::Component(error.to_string()))),
            };
            let plugin = Self::one(&sandbox, kind, name, &component).await?;
            if installed.insert((kind, plugin.manifest.name.clone()), plugin).is_some() {
                return Err(InstallError::Twice(format!("{}/{name}", kind.as_str())));
            }
        }
        tracing::debug!(plugins = installed.len(), milliseconds = started.elapsed().as_millis(), "plugins loaded");
        Ok(Self(Arc::new(Inner { sandbox, installed, folders })))
    }

    async fn one(sandbox: &Sandbox, kind: Kind, name: &str, component: &Component) -> Result<Plugin, InstallError> {
        let origin = || format!("{}/{name}", kind.as_str());
        let failed = |error| InstallError::Load { name: origin(), error };
        let guest = sandbox.load(name, component).await.map_err(failed)?;
        let manifest =
            Manifest::check(&guest.manifest).map_err(|error| InstallError::Manifest { name: origin(), error })?;
        let pre = guest.pre.clone();
        let exports = match kind {
            Kind::IdentityProvider => IdentityProviderPre::new(pre).map(Exports::IdentityProvider),
            Kind::DeploymentTarget => DeploymentTargetPre::new(pre).map(Exports::DeploymentTarget),
            Kind::AuditSink => AuditSinkPre::new(pre).map(Exports::AuditSink),
        };
        let exports = exports.map_err(|error| failed(sandbox::LoadError::World(error.root_cause().to_string())))?;
        Ok(Plugin { manifest, guest, exports })
    }

    /// All of them, by kind and name.
    pub fn manifests(&self) -> Vec<ManifestView> {
        self.0.installed.iter().map(|((kind, _), plugin)| plugin.manifest.view(*kind)).collect()
    }

    fn find(&self, kind: Kind, name: &str) -> Result<&Plugin, String> {
        self.0.installed.get(&(kind, name.to_owned())).ok_or_else(|| {
            let of_kind = self.0.installed.keys().filter(|(k, _)| *k == kind).map(|(_, name)| name.as_str());
            let known = of_kind.collect::<Vec<_>>().join(", ");
            format!("there is no plugin `{name}` for {}s here; installed: {known}", kind.noun())
        })
    }

    /// Whether a connection can work, before it is stored: plugin, configuration and secrets.
    ///
    /// # Errors
    /// Each fault, by JSON pointer into the body of a request: `/plugin`, `/config/…`, `/secrets/…`.
    pub fn validate(
        &self,
        kind: Kind,
        plugin: &str,
        config: &Value,
        secrets: &BTreeMap<String, SecretString>,
    ) -> Result<(), Vec<Fault>> {
        let plugin = self.find(kind, plugin).map_err(|message| vec![Fault::new("/plugin", message)])?;
        let names: Vec<&str> = secrets.keys().map(String::as_str).collect();
        let value = |name: &str| secrets.get(name).map(|value| value.expose_secret());
        let mut faults = plugin.manifest.validate(kind, config, value, &names);
        let grants = Grants::resolve(&plugin.manifest.capabilities, &plugin.manifest.slots, config, &BTreeMap::new());
        for fault in grants.err().unwrap_or_default() {
            let pointer = format!("/config/{}", fault.property);
            if !faults.iter().any(|known| known.pointer == pointer) {
                faults.push(Fault::new(pointer, fault.message));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// The folders that a connection may be given, each its own and nobody else's.
    fn folders(&self, binding: &Binding) -> BTreeMap<String, PathBuf> {
        let own = binding.connection_id.to_string();
        self.0.folders.iter().map(|(name, path)| (name.clone(), path.join(&own))).collect()
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
        connection_id: connection.id,
        plugin: connection.plugin.clone(),
        config: connection.config.0.clone(),
        secrets: unseal(keys, connection)?,
    })
}

#[cfg(test)]
mod tests;
