//! Which version a connection runs, now or from now on.

use std::sync::Arc;

use tokio::time::Instant;

use super::Library;
use crate::{
    domain::{connection::Kind, fault::Fault, plugin},
    plugins::{
        InstallError, Plugin, PluginError, Plugins, Refused, Wanted,
        registry::{self, Missing, Registry},
    },
    store::plugins as rows,
};

impl Plugins {
    /// The version that a connection runs. Where this host does not know of it, it looks at the database: the hint may
    /// still be on its way. One look serves all who waited for it.
    pub(in crate::plugins) async fn running(
        &self,
        kind: Kind,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Arc<Plugin>, PluginError> {
        let found = self.0.registry.load().find(kind, name, wanted);
        let library = match (&found, &self.0.library) {
            (Err(Missing::Unknown(_)), Some(library)) => library,
            (Err(Missing::Loading(_)), Some(library)) => return Ok(self.loaded(library, kind, name, wanted).await?),
            _ => return Ok(found?),
        };
        let away = |error: InstallError| {
            tracing::warn!(%error, "cannot look for a plugin");
            PluginError::Unavailable { message: "the database does not answer".into(), retry_after: None }
        };
        if wanted.pin.is_none() {
            // Anybody can ask for what does not exist; only a version that is named can be new without a change.
            self.look().await.map_err(away)?;
            return Ok(self.loaded(library, kind, name, wanted).await?);
        }
        let begun = Instant::now();
        let mut turn = library.turn.lock().await;
        if turn.is_none_or(|looked| looked <= begun) {
            *turn = Some(Instant::now());
            self.replace(library, &[]).await.map_err(away)?;
        }
        drop(turn);
        Ok(self.loaded(library, kind, name, wanted).await?)
    }

    /// The version that a connection runs, once its load has ended; a call waits for that as long as it may take itself.
    async fn loaded(&self, library: &Library, kind: Kind, name: &str, wanted: &Wanted) -> Result<Arc<Plugin>, Missing> {
        let find = || self.0.registry.load().find(kind, name, wanted);
        let ended = || match find() {
            Err(Missing::Loading(_)) => None,
            found => Some(found),
        };
        let patience = self.0.sandbox.bounds().call.wall;
        tokio::time::timeout(patience, library.loads.until(ended)).await.unwrap_or_else(|_| find())
    }

    /// Which version a connection is to run from now on: the one it names, or what is active and whatever will be
    /// compatible with that. It is ready to be called afterwards.
    ///
    /// # Errors
    /// A fault at `/plugin` or `/plugin_version`; [`Refused::Busy`].
    pub async fn settle(&self, kind: Kind, name: &str, pin: Option<&str>) -> Result<Wanted, Refused> {
        let Some(pin) = pin else {
            let refused = |error: PluginError| match error {
                PluginError::Postponed { message, .. } => Refused::Busy(message),
                error => Refused::Faults(vec![Fault::new("/plugin", error.to_string())]),
            };
            let plugin = self.running(kind, name, &Wanted::default()).await.map_err(refused)?;
            let line = semver::Version::parse(&plugin.manifest.version).as_ref().map(plugin::line).ok();
            return Ok(Wanted { pin: None, line });
        };
        let wanted = Wanted { pin: Some(pin.to_owned()), line: None };
        let refused = |error: InstallError| match error {
            InstallError::Store(error) => Refused::Store(error),
            InstallError::Busy(busy) => Refused::Busy(busy.to_string()),
            error => Refused::Faults(vec![Fault::new("/plugin_version", error.why())]),
        };
        let found = match &self.0.library {
            Some(library) => self.loaded(library, kind, name, &wanted).await,
            None => self.0.registry.load().find(kind, name, &wanted),
        };
        match found {
            Ok(_) => Ok(wanted),
            Err(Missing::Unknown(_)) => self.bring(kind, name, pin).await.map(|()| wanted).map_err(refused),
            Err(missing) => Err(missing.at("/plugin_version")),
        }
    }

    /// Makes ready a version that no connection named so far.
    async fn bring(&self, kind: Kind, name: &str, version: &str) -> Result<(), InstallError> {
        let kept = |why: String| InstallError::Kept { name: name.to_owned(), why };
        let none = || kept(format!("there is no version `{version}` of the plugin `{name}` for {}s", kind.noun()));
        let Some(library) = &self.0.library else { return Err(none()) };
        let mut conn = library.store.read().await?;
        let plugin = rows::named(&mut conn, kind, name).await?.ok_or_else(none)?;
        let row = rows::version(&mut conn, plugin.id, version).await?.ok_or_else(none)?;
        drop(conn);
        if !row.enabled {
            return Err(kept(format!("version {version} was not activated by a platform administrator")));
        }
        let ready = self.load_row(library, kind, name, &row).await?;
        let _turn = library.turn.lock().await;
        // It may have gone into quarantine while it was compiled, and this host may have looked since: it would not look
        // again. What comes later waits for the turn.
        let quarantined = rows::quarantine(&mut library.store.read().await?, &row.digest).await?;
        if let Some(found) = quarantined {
            return Err(kept(registry::quarantined(name, version, &found.reason)));
        }
        let mut registry = Registry::clone(&self.0.registry.load());
        registry.bring(ready);
        self.0.registry.store(Arc::new(registry));
        Ok(())
    }
}
