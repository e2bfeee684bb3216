//! How versions come in: uploaded, with the server, or from `plugins_dir`. Each passes the same checks.
//!
//! What comes with the server or lies in `plugins_dir` was put there by the operator, and is activated by itself where
//! nothing is in its way. The organizations that have platform administrators find it in their audit trails.
//!
//! | arrives | activated if it fits every connection that would run it, and |
//! |---|---|
//! | bundled | nothing is active, or an older bundled version is |
//! | in `plugins_dir` | nothing is active, or an older version of its line is and it reaches no more |

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::json;

use super::{
    InstallError, ManifestView, Plugin, Plugins, bundled_by_digest, check,
    fit::{self, Examined},
    install::{self, ChangeError, Registered},
    library::Library,
    signature::{Signature, SignatureError},
    vouch,
};
use crate::{
    audit,
    bus::Hint,
    clock::Clock,
    domain::plugin::{self, Origin},
    store::{Store, StoreError, Tx, plugins as rows},
};

/// Bytes of a signature's text at the most.
pub const SIGNATURE: usize = 1024;

/// A component that passed every check and can be installed.
pub struct Candidate {
    pub(super) plugin: Arc<Plugin>,
    pub(super) wasm: Bytes,
    pub(super) origin: Origin,
    pub(super) signature: Option<Signature>,
    /// Of what is part of this server; see [`super::vouch`].
    pub(super) seal: Option<String>,
}

impl Candidate {
    /// What it says of itself.
    pub fn manifest(&self) -> ManifestView {
        self.plugin.manifest.view(self.plugin.kind)
    }

    /// SHA-256 of the component, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.plugin.digest
    }

    /// Looks at the connections that would run it.
    async fn look(&self, store: &Store, examined: &mut Examined) -> Result<(), ChangeError> {
        let manifest = &self.plugin.manifest;
        let line = semver::Version::parse(&manifest.version).as_ref().map(plugin::line).unwrap_or_default();
        examined.look(store, &self.plugin, (self.plugin.kind, &manifest.name), &line).await
    }
}

impl Plugins {
    /// Bytes that a component may have.
    pub fn max_bytes(&self) -> usize {
        self.0.library.as_ref().map_or(0, |library| library.max_bytes)
    }

    /// Checks a component exactly as at the start. Nothing is kept of one that is refused.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn inspect(
        &self,
        name: &str,
        origin: Origin,
        wasm: Bytes,
        signature: Option<Signature>,
    ) -> Result<Candidate, InstallError> {
        let inspected = self.examine(name, origin, wasm, signature).await;
        if inspected.is_err() {
            self.tidy().await;
        }
        inspected
    }

    async fn examine(
        &self,
        name: &str,
        origin: Origin,
        wasm: Bytes,
        signature: Option<Signature>,
    ) -> Result<Candidate, InstallError> {
        let kept = |why: String| InstallError::Kept { name: name.to_owned(), why };
        if wasm.len() > self.max_bytes() {
            let (has, may) = (wasm.len(), self.max_bytes());
            return Err(kept(format!("it has {has} bytes; at most {may} are allowed (plugins_max_bytes)")));
        }
        let trust = self.0.library.as_ref().map(|library| library.trust.clone()).unwrap_or_default();
        let untrusted = |error| InstallError::Signature { name: name.to_owned(), error };
        let (known, bytes, given) = (trust.clone(), wasm.clone(), signature.clone());
        let checked = tokio::task::spawn_blocking(move || known.check(&bytes, given.as_ref())).await;
        checked.map_err(|error| kept(error.to_string()))?.map_err(untrusted)?;
        let plugin = check::load(&self.0.sandbox, name, None, wasm.clone()).await?;
        // It is cached by now, so this costs nothing; a manifest that is drawn by lot shows itself.
        let again = check::load(&self.0.sandbox, name, None, wasm.clone()).await?;
        if plugin.manifest.view(plugin.kind) != again.manifest.view(again.kind) {
            return Err(kept("`describe` does not say the same each time".into()));
        }
        let signer = signature.as_ref().map(|signature| signature.key.to_string());
        trust.permits(signer.as_deref(), plugin.kind, &plugin.manifest.name).map_err(untrusted)?;
        Ok(Candidate { plugin: Arc::new(plugin), wasm, origin, signature, seal: None })
    }

    /// Keeps the bundled plugins with the other versions, so that what comes with a release can be gone back to after the
    /// next one, and so that all hosts run the same.
    pub(super) async fn take_in_bundled(&self) -> Result<(), InstallError> {
        let Some(library) = &self.0.library else { return Ok(()) };
        let mut conn = library.store.read().await?;
        let (plugins, versions) = (rows::all(&mut conn).await?, rows::all_versions(&mut conn).await?);
        drop(conn);
        let known = |plugin: &Plugin| {
            let row = plugins.iter().find(|p| (p.kind, &p.name) == (plugin.kind, &plugin.manifest.name));
            row.is_some_and(|row| {
                versions
                    .iter()
                    .filter(|v| v.origin != Origin::Bundled || v.signer.is_some() || vouch::holds(&library.secrets, v))
                    .any(|v| (v.plugin_id, &v.version, &v.digest) == (row.id, &plugin.manifest.version, &plugin.digest))
            })
        };
        let bytes = tokio::task::spawn_blocking(bundled_by_digest).await;
        let bytes = bytes.map_err(|error| InstallError::Kept { name: "bundled".into(), why: error.to_string() })?;
        let registry = self.0.registry.load_full();
        let new: Vec<Arc<Plugin>> = registry.active().filter(|plugin| !known(plugin)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut candidates = Vec::new();
        for plugin in new {
            let Some(wasm) = bytes.get(&plugin.digest) else { continue };
            let seal = vouch::seal(&library.secrets, &self.0.clock, &plugin.digest);
            let seal = seal
                .map_err(|error| InstallError::Kept { name: plugin.manifest.name.clone(), why: error.to_string() })?;
            let (wasm, origin) = (Bytes::from_static(wasm), Origin::Bundled);
            candidates.push(Candidate { plugin, wasm, origin, signature: None, seal: Some(seal) });
        }
        match self.put_all_bundled(library, &candidates).await {
            Err(error @ (ChangeError::Moved | ChangeError::Busy(_))) => {
                // What tenants do to their connections keeps no host from starting.
                tracing::error!(%error, "the plugins that came with this server were not taken in: what was in use stays so; the next start tries again");
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// Looks at the connections that would run these, and takes them in.
    async fn put_all_bundled(&self, library: &Library, candidates: &[Candidate]) -> Result<(), ChangeError> {
        let mut examined = Examined::default();
        loop {
            for candidate in candidates {
                candidate.look(&library.store, &mut examined).await?;
            }
            match self.put_bundled(library, candidates, &examined).await {
                Err(ChangeError::Moved) => examined.again(),
                done => return done,
            }
        }
    }

    /// Takes these in, in one transaction.
    async fn put_bundled(
        &self,
        library: &Library,
        candidates: &[Candidate],
        examined: &Examined,
    ) -> Result<(), ChangeError> {
        let mut tx = library.store.begin().await?;
        rows::lock(&mut tx).await?;
        let mut taken = Vec::new();
        for candidate in candidates {
            taken.extend(bundled_one(&mut tx, &self.0.clock, candidate, examined).await?);
        }
        rows::sweep_artifacts(&mut tx).await?;
        Ok(self.tell(library, tx, &taken).await?)
    }

    /// Commits it, with what the organizations of platform administrators are told.
    async fn tell(&self, library: &Library, mut tx: Tx, taken: &[Taken]) -> Result<(), StoreError> {
        let mut told = Vec::new();
        for Taken { version, name, activated } in taken {
            let details = json!({ "changes": {
                "name": name, "version": version.version, "digest": version.digest, "size": version.size,
                "signer": version.signer, "origin": version.origin, "activated": activated,
            }});
            let target = format!("plugin/{}", version.plugin_id);
            told = audit::record_for_operators(&mut tx, &self.0.clock, "plugin.create", &target, &details).await?;
        }
        tx.commit().await?;
        library.bus.publish(Hint::Plugins);
        for organization in told {
            library.bus.publish(Hint::Audit { organization });
        }
        Ok(())
    }

    /// Takes in each `*.wasm` of a folder, with `*.wasm.sig` beside it. What is wrong with one is logged.
    pub(super) async fn take_in_folder(&self, folder: &Path) -> Result<(), InstallError> {
        let files = match files(folder) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(folder = %folder.display(), %error, "plugins_dir cannot be read: no plugin was installed from it");
                return Ok(());
            }
        };
        for file in files {
            match self.take_in_file(&file).await {
                Err(InstallError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(file = %file.display(), reason = error.why(), "plugin of plugins_dir refused");
                }
                Ok(Some(said)) => tracing::info!(file = %file.display(), "plugin of plugins_dir {said}"),
                Ok(None) => {}
            }
        }
        Ok(())
    }

    /// What was done, in words, if it was new.
    async fn take_in_file(&self, file: &Path) -> Result<Option<String>, InstallError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = |why: String| InstallError::Kept { name: name.clone(), why };
        let Some(library) = &self.0.library else { return Ok(None) };
        let (wasm, signature) = read(file, self.max_bytes()).map_err(&kept)?;
        let signature = signature.map(|text| text.parse()).transpose();
        let signature =
            signature.map_err(|error: SignatureError| InstallError::Signature { name: name.clone(), error })?;
        let candidate = self.inspect(&name, Origin::Folder, wasm, signature).await?;
        let mut examined = Examined::default();
        loop {
            candidate.look(&library.store, &mut examined).await?;
            match self.put_file(library, &candidate, &examined).await {
                Ok(said) => return Ok(said),
                Err(ChangeError::Moved) => examined.again(),
                Err(ChangeError::Store(error)) => return Err(error.into()),
                Err(error) => return Err(kept(error.to_string())),
            }
        }
    }

    /// Takes one in; what was done, in words, if it was new.
    async fn put_file(
        &self,
        library: &Library,
        candidate: &Candidate,
        examined: &Examined,
    ) -> Result<Option<String>, ChangeError> {
        let mut tx = library.store.begin().await?;
        rows::lock(&mut tx).await?;
        let registered = install::register(&mut tx, &self.0.clock, candidate, None).await?;
        if let Registered { fresh: false, renewed: false, .. } = registered {
            return Ok(None);
        }
        let (taken, said) = from_folder(&mut tx, &self.0.clock, (candidate, examined), registered).await?;
        self.tell(library, tx, &[taken]).await?;
        Ok(Some(said))
    }
}

/// What was taken in.
struct Taken {
    /// Kind and name of its plugin.
    name: String,
    version: rows::Version,
    activated: bool,
}

/// Takes in what is part of the server; nothing if it was here before, or if something else has its place.
async fn bundled_one(
    tx: &mut Tx,
    clock: &Clock,
    candidate: &Candidate,
    examined: &Examined,
) -> Result<Option<Taken>, ChangeError> {
    let registered = match install::register(tx, clock, candidate, None).await {
        Ok(registered) => registered,
        Err(ChangeError::Conflict(why)) => {
            tracing::warn!(why, "a bundled plugin is not used");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let Registered { mut plugin, mut version, fresh, quarantined, .. } = registered;
    if let Some(quarantine) = quarantined {
        let (name, version, reason) =
            (format!("{}/{}", plugin.kind.as_str(), plugin.name), &version, quarantine.reason);
        tracing::warn!(
            plugin = name,
            version = version.version,
            digest = version.digest,
            reason,
            "a bundled plugin came with other bytes of a version in quarantine: they are in quarantine too"
        );
        let details = json!({ "changes": {
            "name": name, "version": version.version, "digest": version.digest, "reason": reason, "origin": version.origin,
        }});
        let target = format!("plugin/{}", plugin.id);
        audit::record_for_operators(tx, clock, "plugin.quarantine", &target, &details).await?;
    }
    if !fresh {
        // It was here before; only its seal or its bytes are new.
        return Ok(None);
    }
    let active = install::active(tx, &plugin).await?;
    if active.is_none() {
        // Connections of before there were versions were made for what came with the server.
        rows::adopt(tx, &plugin, &version.line).await?;
    }
    let older = |active: &rows::Version| {
        active.origin == Origin::Bundled && plugin::is_newer(&version.version, &active.version)
    };
    let goes = active.as_ref().is_none_or(older);
    let looked_at = (&*candidate.plugin, examined);
    let misfits = if goes { fit::misfits(tx, looked_at, &plugin, &version).await? } else { None };
    if let Some(misfits) = &misfits {
        let (name, version) = (&plugin.name, &version.version);
        tracing::warn!(plugin = name, version, "a bundled plugin is not activated: {}", misfits.summary());
    }
    let activated = goes && misfits.is_none();
    if activated {
        install::set(tx, clock, &mut plugin, &mut version).await?;
    } else {
        version.enabled = true;
        rows::put_version(tx, &version).await?;
    }
    Ok(Some(Taken { name: format!("{}/{}", plugin.kind.as_str(), plugin.name), version, activated }))
}

/// Activates what lay in `plugins_dir`, if nothing is in its way. Returns also what was done, in words.
async fn from_folder(
    tx: &mut Tx,
    clock: &Clock,
    (candidate, examined): (&Candidate, &Examined),
    registered: Registered,
) -> Result<(Taken, String), ChangeError> {
    let Registered { mut plugin, mut version, fresh, .. } = registered;
    let name = format!("{}/{}", plugin.kind.as_str(), plugin.name);
    let what = format!("{name} {}", version.version);
    if !fresh {
        let said = format!("{what} was installed already; its signature is new");
        return Ok((Taken { name, version, activated: false }, said));
    }
    let changes = install::changes(tx, &plugin, &version).await?;
    let later = install::active(tx, &plugin).await?.is_none_or(|active| {
        active.line == version.line && plugin::is_newer(&version.version, &active.version) && !changes.grows
    });
    let looked_at = (&*candidate.plugin, examined);
    let misfits = if later { fit::misfits(tx, looked_at, &plugin, &version).await? } else { None };
    if later && misfits.is_none() {
        install::set(tx, clock, &mut plugin, &mut version).await?;
        let said = format!("{what} installed and activated");
        return Ok((Taken { name, version, activated: true }, said));
    }
    let why = match misfits {
        Some(misfits) => format!(" ({})", misfits.summary()),
        None if changes.grows => format!(" (it reaches more: {})", changes.growth().join("; ")),
        None => String::new(),
    };
    let said =
        format!("{what} installed and not activated{why}: POST /api/v1/plugins/{}/activate does that", plugin.id);
    Ok((Taken { name, version, activated: false }, said))
}

/// The components of a folder, by name.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A component and the text of its signature, neither larger than it may be.
fn read(file: &Path, max: usize) -> Result<(Bytes, Option<String>), String> {
    let too_large = || format!("it has more than {max} bytes (plugins_max_bytes)");
    let wasm = read_at_most(file, max).map_err(|error| error.to_string())?.ok_or_else(too_large)?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".sig");
    let signature = match read_at_most(Path::new(&beside), SIGNATURE) {
        Ok(Some(bytes)) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(None) => return Err(format!("its signature has more than {SIGNATURE} bytes")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("its signature cannot be read: {error}")),
    };
    Ok((Bytes::from(wasm), signature))
}

/// A file, if it is no longer than that. A pipe or a device would keep the server from starting.
fn read_at_most(file: &Path, max: usize) -> std::io::Result<Option<Vec<u8>>> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(limit).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then_some(bytes))
}
