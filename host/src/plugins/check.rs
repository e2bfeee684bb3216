//! From bytes to a plugin that can be called: every check that a component passes, at the door and at each start.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use wasmtime::component::Component;

use super::{Exports, InstallError, Manifest, ManifestError, Plugin};
use crate::{
    domain::{connection::Kind, plugin},
    sandbox::{
        LoadError, Sandbox,
        bindings::{
            audit_sink::AuditSinkPre, deployment_target::DeploymentTargetPre, identity_provider::IdentityProviderPre,
        },
    },
};

/// The interface that makes a component a plugin of a kind.
const INTERFACES: [(Kind, &str); 3] = [
    (Kind::IdentityProvider, "kaizen:identity-provider/provider"),
    (Kind::DeploymentTarget, "kaizen:deployment-target/target"),
    (Kind::AuditSink, "kaizen:audit-sink/sink"),
];
/// The version of those interfaces that this server speaks.
const SPOKEN: &str = "0.1.0";
/// What a core module begins with, where a component has another version.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Components that are compiled at once, or found compiled. Nothing can stop a compilation that takes long.
static COMPILING: Semaphore = Semaphore::const_new(4);

/// SHA-256, hexadecimal: what an artifact is stored under.
pub fn digest(wasm: &[u8]) -> String {
    hex::encode(Sha256::digest(wasm))
}

/// Compiles a component, lets it describe itself and links it. `kind` is what it must be, if that is known.
///
/// # Errors
/// What is wrong with it.
pub(super) async fn load(
    sandbox: &Sandbox,
    name: &str,
    kind: Option<Kind>,
    wasm: Bytes,
) -> Result<Plugin, InstallError> {
    let failed = |error| InstallError::Load { name: name.to_owned(), error };
    if wasm.starts_with(CORE_MODULE) {
        let why = "it is a core module, not a component: build it for wasm32-wasip2, or wrap it with `wasm-tools component new`";
        return Err(failed(LoadError::Component(why.into())));
    }
    let turn = COMPILING.acquire().await.map_err(|error| failed(LoadError::Component(error.to_string())))?;
    let compiling = {
        let sandbox = sandbox.clone();
        tokio::task::spawn_blocking(move || {
            // Whoever waits for it may give up; it goes on, and others must not come on top of it.
            let _turn = turn;
            sandbox.compile(&wasm).map(|component| (digest(&wasm), component))
        })
    };
    let (digest, component) = match compiling.await {
        Ok(compiled) => compiled.map_err(failed)?,
        Err(error) => return Err(failed(LoadError::Component(error.to_string()))),
    };
    let found = kind_of(&component).map_err(|why| failed(LoadError::World(why)))?;
    if let Some(kind) = kind.filter(|kind| *kind != found) {
        let why = format!("it is a plugin for {}s, not for {}s", found.noun(), kind.noun());
        return Err(failed(LoadError::World(why)));
    }
    let guest = sandbox.load(name, &component).await.map_err(failed)?;
    let manifest = Manifest::check(&guest.manifest, sandbox.bounds()).await;
    let manifest = manifest.map_err(|error| match error {
        ManifestError::Busy(busy) => InstallError::Busy(busy),
        error => InstallError::Manifest { name: name.to_owned(), error },
    })?;
    let pre = guest.pre.clone();
    let exports = match found {
        Kind::IdentityProvider => IdentityProviderPre::new(pre).map(Exports::IdentityProvider),
        Kind::DeploymentTarget => DeploymentTargetPre::new(pre).map(Exports::DeploymentTarget),
        Kind::AuditSink => AuditSinkPre::new(pre).map(Exports::AuditSink),
    };
    let exports = exports.map_err(|error| failed(LoadError::World(error.root_cause().to_string())))?;
    Ok(Plugin { kind: found, digest, manifest, exports })
}

/// Of which kind a component is, by what it exports.
fn kind_of(component: &Component) -> Result<Kind, String> {
    let exports = component.component_type();
    let exports: Vec<&str> = exports.exports(component.engine()).map(|(name, _)| name).collect();
    kind_by(&exports)
}

fn kind_by(exports: &[&str]) -> Result<Kind, String> {
    let mut found = Vec::new();
    for export in exports {
        let (name, version) = export.split_once('@').unwrap_or((export, ""));
        if let Some((kind, _)) = INTERFACES.iter().find(|(_, interface)| *interface == name) {
            let line = |version: &str| semver::Version::parse(version).ok().as_ref().map(plugin::line);
            if line(version) != line(SPOKEN) {
                return Err(format!(
                    "it exports `{export}`, and this server speaks version {SPOKEN} of that interface"
                ));
            }
            found.push(*kind);
        }
    }
    match found.as_slice() {
        [kind] => Ok(*kind),
        [] => {
            let known = INTERFACES.map(|(_, interface)| format!("`{interface}@{SPOKEN}`")).join(", ");
            let shown: Vec<String> = exports.iter().take(10).map(|name| format!("`{name}`")).collect();
            let shown = if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") };
            Err(format!("it exports none of {known}; it exports {shown}"))
        }
        _ => Err("it exports the interfaces of more than one kind: make a plugin of each".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_what_is_exported_in_a_version_that_is_spoken() {
        assert_eq!(kind_by(&["kaizen:plugin/manifest@0.1.0", "kaizen:audit-sink/sink@0.1.0"]), Ok(Kind::AuditSink));
        assert_eq!(kind_by(&["kaizen:deployment-target/target@0.1.7"]), Ok(Kind::DeploymentTarget));
        let why = |exports: &[&str]| kind_by(exports).unwrap_err();
        assert!(why(&["kaizen:audit-sink/sink@0.2.0"]).contains("speaks version 0.1.0"));
        assert!(why(&["kaizen:audit-sink/sink"]).contains("speaks version 0.1.0"), "an interface without a version");
        assert!(why(&["wasi:cli/run@0.2.0"]).contains("it exports `wasi:cli/run@0.2.0`"));
        assert!(why(&[]).contains("it exports nothing"));
        assert!(
            why(&["kaizen:audit-sink/sink@0.1.0", "kaizen:identity-provider/provider@0.1.0"]).contains("more than one")
        );
    }
}
