//! One stored version, made ready to be called on this host.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Library, refresh::POLL};
use crate::{
    domain::connection::Kind,
    plugins::{
        Changes, InstallError, ManifestView, Plugin, Plugins, check, loads::Key, registry, signature::Signature, vouch,
    },
    store::plugins as rows,
};

impl Plugins {
    /// Loads a version in the background; the registry is refreshed when that has ended, well or not.
    pub(super) fn load_beside(&self, key: Key, row: &rows::Version) {
        let (plugins, row) = (self.clone(), row.clone());
        tokio::spawn(async move {
            let Some(library) = &plugins.0.library else { return };
            let (kind, name, _) = &key;
            let loaded = match library.loads.places.acquire().await {
                Ok(_place) => plugins.load_row(library, *kind, name, &row).await.map_err(|error| error.why()),
                Err(closed) => Err(closed.to_string()),
            };
            let failure = loaded.as_ref().err().cloned().unwrap_or_default();
            if let Some(pause) =
                library.loads.ended(&key, loaded, (Instant::now(), u64::from_be_bytes(plugins.0.clock.bytes())))
            {
                let version = &row.version;
                tracing::error!(
                    kind = kind.as_str(),
                    name,
                    version,
                    failure,
                    ?pause,
                    "an installed plugin does not load on this host: what ran before goes on, if anything did; it is tried again"
                );
            }
            while let Err(error) = plugins.refresh().await {
                tracing::debug!(%error, "what was loaded is not taken over yet");
                tokio::time::sleep(POLL).await;
            }
        });
    }

    /// One version as stored, taken over if it is loaded already.
    pub(super) async fn load_row(
        &self,
        library: &Library,
        kind: Kind,
        name: &str,
        row: &rows::Version,
    ) -> Result<Arc<Plugin>, InstallError> {
        if let Some(plugin) = self.0.registry.load().by_digest(kind, name, &row.digest) {
            // What runs here is refused as soon as this host looks; what begins to, at once.
            return match rows::quarantine(&mut library.store.read().await?, &row.digest).await? {
                None => Ok(plugin),
                Some(found) => {
                    let why = registry::quarantined(name, &row.version, &found.reason);
                    Err(InstallError::Kept { name: name.to_owned(), why })
                }
            };
        }
        let origin = format!("{}/{name} {}", kind.as_str(), row.version);
        let kept = |why: &str| InstallError::Kept { name: origin.clone(), why: why.to_owned() };
        let mut conn = library.store.read().await?;
        if let Some(found) = rows::quarantine(&mut conn, &row.digest).await? {
            return Err(kept(&registry::quarantined(name, &row.version, &found.reason)));
        }
        let wasm = rows::artifact(&mut conn, &row.digest).await?;
        drop(conn);
        let wasm = wasm.ok_or_else(|| kept("its component is missing from the database: upload it again"))?;
        let wasm = Bytes::from(wasm);
        let (trust, bytes) = (library.trust.clone(), wasm.clone());
        let signature = Signature::stored(row.signer.as_deref(), row.signature.as_deref());
        let vouched = vouch::holds(&library.secrets, row);
        let (digest, checked) = tokio::task::spawn_blocking(move || {
            let checked = if vouched { Ok(()) } else { trust.check(&bytes, signature.as_ref()) };
            (check::digest(&bytes), checked)
        })
        .await
        .map_err(|error| kept(&error.to_string()))?;
        if digest != row.digest {
            return Err(kept("its component in the database is not what was installed: upload it again"));
        }
        let untrusted = |error| InstallError::Signature { name: origin.clone(), error };
        checked.map_err(untrusted)?;
        if !vouched {
            library.trust.permits(row.signer.as_deref(), kind, name).map_err(untrusted)?;
        }
        let plugin = check::load(&self.0.sandbox, &origin, Some(kind), wasm).await?;
        // What was accepted is what the manifest said then.
        let (said, says) = (serde_json::from_str::<ManifestView>(&row.manifest), plugin.manifest.view(kind));
        match said {
            Ok(said) if Changes::between(Some(&said), &says).grows => {
                Err(kept("it asks for more than when it was installed"))
            }
            _ if (says.name.as_str(), &says.version) != (name, &row.version) => {
                Err(kept("it calls itself otherwise than when it was installed"))
            }
            _ => Ok(Arc::new(plugin)),
        }
    }

    /// A stored version, loaded on this host, before it is activated.
    ///
    /// # Errors
    /// Why it does not load.
    pub async fn try_row(&self, plugin: &rows::Plugin, row: &rows::Version) -> Result<Arc<Plugin>, InstallError> {
        let none = || InstallError::Kept { name: plugin.name.clone(), why: "there is no database".into() };
        let library = self.0.library.as_ref().ok_or_else(none)?;
        self.load_row(library, plugin.kind, &plugin.name, row).await
    }
}
