//! How versions come in: uploaded, with the server, or from `plugins_dir`. Each passes the same checks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    InstallError, ManifestView, Plugin, Plugins, bundled, check,
    install::{self, Registered},
    signature::{Signature, SignatureError},
};
use crate::{bus::Hint, domain::plugin::Origin, store::plugins as rows};

/// A component that passed every check and can be installed.
pub struct Candidate {
    pub(super) plugin: Arc<Plugin>,
    pub(super) wasm: Bytes,
    pub(super) origin: Origin,
    pub(super) signature: Option<Signature>,
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
}

impl Plugins {
    /// Bytes that a component may have.
    pub fn max_bytes(&self) -> usize {
        self.0.library.as_ref().map_or(0, |library| library.max_bytes)
    }

    /// Checks a component exactly as at the start. Nothing is kept of it.
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
        let kept = |why: String| InstallError::Kept { name: name.to_owned(), why };
        if wasm.len() > self.max_bytes() {
            let (has, may) = (wasm.len(), self.max_bytes());
            return Err(kept(format!("it has {has} bytes; at most {may} are allowed (plugins_max_bytes)")));
        }
        if let Some(library) = &self.0.library {
            let checked = library.trust.check(&wasm, signature.as_ref());
            checked.map_err(|error| InstallError::Signature { name: name.to_owned(), error })?;
        }
        let plugin = check::load(&self.0.sandbox, name, None, wasm.clone()).await?;
        // It is cached by now, so this costs nothing; a manifest that is drawn by lot shows itself.
        let again = check::load(&self.0.sandbox, name, None, wasm.clone()).await?;
        if plugin.manifest.view(plugin.kind) != again.manifest.view(again.kind) {
            return Err(kept("`describe` does not say the same each time".into()));
        }
        Ok(Candidate { plugin: Arc::new(plugin), wasm, origin, signature })
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
                    .any(|v| (v.plugin_id, &v.version, &v.digest) == (row.id, &plugin.manifest.version, &plugin.digest))
            })
        };
        let registry = self.0.registry.load_full();
        let new: Vec<Arc<Plugin>> = registry.active().filter(|plugin| !known(plugin)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let bytes: BTreeMap<String, &'static [u8]> =
            bundled().map(|(_, _, wasm)| (check::digest(wasm), wasm)).collect();
        let mut tx = library.store.begin().await?;
        rows::lock(&mut tx).await?;
        for plugin in new {
            let Some(wasm) = bytes.get(&plugin.digest) else { continue };
            let candidate =
                Candidate { plugin, wasm: Bytes::from_static(wasm), origin: Origin::Bundled, signature: None };
            install::bundled(&mut tx, &self.0.clock, &candidate).await?;
        }
        rows::sweep_artifacts(&mut tx).await?;
        tx.commit().await?;
        library.bus.publish(Hint::Plugins);
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
        let mut tx = library.store.begin().await?;
        rows::lock(&mut tx).await?;
        let registered = match install::register(&mut tx, &self.0.clock, &candidate, None).await {
            Ok(registered) => registered,
            Err(install::ChangeError::Store(error)) => return Err(error.into()),
            Err(error) => return Err(kept(error.to_string())),
        };
        if let Registered { fresh: false, renewed: false, .. } = registered {
            return Ok(None);
        }
        let said = install::from_folder(&mut tx, &self.0.clock, registered).await?;
        tx.commit().await?;
        library.bus.publish(Hint::Plugins);
        Ok(Some(said))
    }
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
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if usize::try_from(size).is_ok_and(|size| size > max) {
        return Err(format!("it has {size} bytes; at most {max} are allowed (plugins_max_bytes)"));
    }
    let wasm = std::fs::read(file).map_err(|error| error.to_string())?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".sig");
    let signature = match std::fs::read_to_string(&beside) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("its signature cannot be read: {error}")),
    };
    Ok((Bytes::from(wasm), signature))
}
