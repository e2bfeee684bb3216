//! Versions in the database, and how they come to run on this host.
//!
//! The database is the truth: at the start, upon a hint, and once a second the generation is compared, and where it
//! differs a new registry is made from the tables. Versions that are loaded already are taken over; the others are loaded
//! in the background, each by itself ([`super::loads`]), and what ran in their place goes on running until they are ready.
//! So no call waits for a version that takes the place of another, and no plugin for one that takes long or does not load.
//! What is disabled or put into quarantine is out of use with the refresh itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Mutex, broadcast, broadcast::error::RecvError},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Changes, InstallError, ManifestView, Plugin, PluginError, Plugins, Refused, Wanted, audit_dir, bundled, check,
    health::Kept,
    install,
    loads::{Key, Loads},
    registry::{self, Installed, Loaded, Missing, Registry},
    signature::{Signature, Trust},
    vouch,
};
use crate::{
    bus::{Bus, Hint},
    clock::Clock,
    config::Config,
    domain::{connection::Kind, fault::Fault, plugin},
    sandbox::{Sandbox, cache::Cache, compiler::Compiler, egress},
    secrets::Secrets,
    store::{Store, plugins as rows},
};

/// How often the database is asked whether something changed, without a hint.
const POLL: Duration = Duration::from_secs(1);

/// How long whoever changed something waits until it runs on their host.
const PATIENCE: Duration = Duration::from_secs(2);

/// What plugins are made of.
pub struct Ingredients<'a> {
    /// Folders, limits, trusted keys.
    pub config: &'a Config,
    /// For the key of the compiled components, and for the seals of what came with the server.
    pub secrets: &'a Secrets,
    /// The way out.
    pub egress: egress::Client,
    /// Where versions are kept.
    pub store: &'a Store,
    /// Time.
    pub clock: &'a Clock,
    /// To tell other hosts, and to be told.
    pub bus: &'a Bus,
}

/// Where versions are kept, and by which rules they are taken in.
pub(super) struct Library {
    pub(super) store: Store,
    pub(super) bus: Bus,
    pub(super) trust: Trust,
    /// For the seals of what came with the server.
    pub(super) secrets: Secrets,
    pub(super) max_bytes: usize,
    /// How many errors are remembered.
    pub(super) kept: Kept,
    /// What is being loaded in the background.
    loads: Loads,
    /// One refresh at a time; when the last look for something that was missing began. It is held for as long as the tables
    /// are read, never while something loads.
    turn: Mutex<Option<Instant>>,
}

impl Plugins {
    /// Loads the bundled plugins, takes in those of `plugins_dir`, and makes ready what the database says is in use.
    ///
    /// # Errors
    /// If a bundled one does not load, or the database fails. A bad file in `plugins_dir` is only logged, and so is an
    /// installed version that does not load.
    pub async fn load(from: Ingredients<'_>) -> Result<Self, InstallError> {
        let config = from.config;
        let cache = Cache::new(config.data_dir.join("compiled"), &from.secrets.derive("kaizen.compiled-plugins.v1"));
        let cache = match &config.executable {
            Some(executable) => cache.compiled_by(Compiler::apart(executable.clone(), &config.plugin_bounds)),
            None => cache,
        };
        let folders = config.audit_dir.iter().map(|folder| ("audit".to_owned(), folder.clone())).collect();
        let (folder, data_dir) = (config.audit_dir.clone(), config.data_dir.clone());
        let looked = tokio::task::spawn_blocking(move || audit_dir::earlier_layout(folder.as_deref(), &data_dir));
        if let Ok(Some(told)) = looked.await {
            tracing::warn!("{told} (host/docs/operations.md has more)");
        }
        let library = Library {
            store: from.store.clone(),
            bus: from.bus.clone(),
            trust: Trust::new(config.plugins_trusted_keys.clone()),
            secrets: from.secrets.clone(),
            max_bytes: config.limits.plugins_max_bytes,
            kept: Kept {
                errors: config.limits.plugin_errors_kept,
                organizations: config.limits.plugin_errors_organizations,
            },
            loads: Loads::new(Duration::from_secs(config.limits.plugin_load_retry_seconds)),
            turn: Mutex::new(None),
        };
        let sandbox = Sandbox::within(config.plugin_bounds.clone(), cache, from.egress, from.clock.clone())
            .map_err(InstallError::Engine)?;
        let plugins = Self::assemble(
            sandbox,
            bundled().collect(),
            (folders, config.audit_dir_organizations.clone()),
            Some(library),
        )
        .await?;
        plugins.take_in_bundled().await?;
        if let Some(folder) = &config.plugins_dir {
            plugins.take_in_folder(folder).await?;
        }
        plugins.refresh().await?;
        if let Some(library) = &plugins.0.library {
            library.loads.tried().await;
        }
        plugins.tidy().await;
        Ok(plugins)
    }

    /// Removes what is kept compiled of components that are not installed, or that another build compiled: of what was
    /// uninstalled or refused. One that is just arriving is compiled again when it is activated.
    pub async fn tidy(&self) {
        let Some(library) = &self.0.library else { return };
        let tidied = async {
            let installed = rows::all_versions(&mut library.store.read().await?).await?;
            let digests: BTreeSet<String> = installed.into_iter().map(|version| version.digest).collect();
            let sandbox = self.0.sandbox.clone();
            tokio::task::spawn_blocking(move || sandbox.keep_compiled(&digests)).await??;
            anyhow::Ok(())
        };
        if let Err(error) = tidied.await {
            tracing::warn!(%error, "the folder of compiled plugins was not tidied");
        }
    }

    /// Follows what other hosts change, until `stopping`.
    pub fn start(&self, stopping: &CancellationToken, tasks: &TaskTracker) {
        let Some(library) = &self.0.library else { return };
        let (plugins, stopping, hints) = (self.clone(), stopping.clone(), library.bus.subscribe());
        tasks.spawn(async move { stopping.run_until_cancelled(plugins.follow(hints)).await });
    }

    async fn follow(self, mut hints: broadcast::Receiver<Hint>) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                hint = hints.recv() => match hint {
                    Ok(Hint::Plugins | Hint::Resync) | Err(RecvError::Lagged(_)) => {}
                    Ok(_) => continue,
                    Err(RecvError::Closed) => return,
                },
            }
            match self.look().await {
                Ok(()) => away = false,
                Err(error) if away => tracing::debug!(%error, "plugins not looked after"),
                Err(error) => {
                    tracing::warn!(%error, "cannot see whether plugins changed; looking again every second");
                    away = true;
                }
            }
        }
    }

    /// Refreshes if something changed.
    ///
    /// # Errors
    /// As the database says; then everything stays as it was.
    pub async fn look(&self) -> Result<(), InstallError> {
        let Some(library) = &self.0.library else { return Ok(()) };
        let generation = rows::generation(&mut library.store.read().await?).await?;
        let same = generation == self.0.registry.load().generation;
        if same && !library.loads.due(Instant::now()) { Ok(()) } else { self.refresh().await }
    }

    /// After a change was committed: the other hosts are told, and this one runs it, with what is `at_hand` already. Nothing
    /// may fail any more, so whoever made the change is not kept waiting either: after [`PATIENCE`] this goes on by itself.
    /// Where the database is away just now, this host finds out a little later.
    pub async fn changed(&self, at_hand: Vec<Arc<Plugin>>) {
        let Some(library) = &self.0.library else { return };
        library.bus.publish(Hint::Plugins);
        let plugins = self.clone();
        let refreshing = tokio::spawn(async move {
            if let Err(error) = plugins.refresh_with(&at_hand).await {
                tracing::warn!(%error, "a change of plugins does not run here yet; looking again every second");
            }
        });
        if tokio::time::timeout(PATIENCE, refreshing).await.is_err() {
            tracing::info!("a change of plugins is committed and does not run here yet");
        }
    }

    /// Puts what the database says is in use in the place of what was, as soon as it is ready.
    ///
    /// # Errors
    /// As the database says; then everything stays as it was.
    pub async fn refresh(&self) -> Result<(), InstallError> {
        self.refresh_with(&[]).await
    }

    async fn refresh_with(&self, at_hand: &[Arc<Plugin>]) -> Result<(), InstallError> {
        let Some(library) = &self.0.library else { return Ok(()) };
        let _turn = library.turn.lock().await;
        self.replace(library, at_hand).await
    }

    async fn replace(&self, library: &Library, at_hand: &[Arc<Plugin>]) -> Result<(), InstallError> {
        let mut conn = library.store.read().await?;
        // First: what changes while the rest is read is seen by the next look.
        let generation = rows::generation(&mut conn).await?;
        let (plugins, versions) = (rows::all(&mut conn).await?, rows::all_versions(&mut conn).await?);
        let (lines, pins) = (rows::lines(&mut conn).await?, rows::pins(&mut conn).await?);
        let quarantined = rows::quarantines(&mut conn).await?;
        drop(conn);
        let quarantined: BTreeMap<&str, &str> =
            quarantined.iter().map(|one| (one.digest.as_str(), one.reason.as_str())).collect();
        let old = self.0.registry.load_full();
        let mut registry = Registry::of(generation);
        let mut missing = BTreeSet::new();
        for plugin in &plugins {
            let (kind, name) = (plugin.kind, plugin.name.as_str());
            let own = lines.iter().filter(|line| line.plugin_id == plugin.id);
            let lines: BTreeMap<String, String> = own.map(|l| (l.line.clone(), l.version.clone())).collect();
            let pinned = pins.iter().filter(|pin| (pin.kind, pin.plugin.as_str()) == (kind, name));
            let mut needed: BTreeSet<&str> = lines.values().map(String::as_str).collect();
            needed.extend(plugin.active_version.as_deref());
            needed.extend(pinned.map(|pin| pin.plugin_version.as_str()));
            let enabled: Vec<&rows::Version> =
                versions.iter().filter(|row| row.plugin_id == plugin.id && row.enabled).collect();
            let mut loaded = BTreeMap::new();
            for row in enabled.iter().filter(|row| needed.contains(row.version.as_str())) {
                let at_hand =
                    at_hand.iter().find(|p| (p.kind, p.manifest.name.as_str(), &p.digest) == (kind, name, &row.digest));
                let state = if let Some(reason) = quarantined.get(row.digest.as_str()) {
                    Loaded::Quarantined((*reason).to_owned())
                } else if let Some(ready) = old.by_digest(kind, name, &row.digest).or(at_hand.cloned()) {
                    Loaded::Ready(ready)
                } else {
                    let key = (kind, name.to_owned(), row.digest.clone());
                    let (state, begin) = library.loads.state(&key, Instant::now());
                    if begin {
                        self.load_beside(key.clone(), row);
                    }
                    if !matches!(state, Loaded::Ready(_)) {
                        missing.insert(key);
                    }
                    state
                };
                loaded.insert(row.version.clone(), state);
            }
            // What ran goes on running until what is to run in its place is ready, unless it was taken out of use.
            let before = old.get(kind, name);
            let may = |version: &str, plugin: &Plugin| {
                let row = enabled.iter().find(|row| row.version == version);
                row.is_some_and(|row| row.digest == plugin.digest) && !quarantined.contains_key(plugin.digest.as_str())
            };
            let active = before.and_then(Installed::of_active);
            let active = Installed::successor(&mut loaded, plugin.active_version.as_ref(), active, may);
            let lines = lines.into_iter().filter_map(|(line, target)| {
                let before = before.and_then(|before| before.of_line(&line));
                let version = Installed::successor(&mut loaded, Some(&target), before, may)?;
                Some((line, version))
            });
            let lines = lines.collect();
            registry.put(kind, name, Installed { active, lines, loaded });
        }
        self.0.health.keep(&registry.keys());
        self.0.shares.keep(|kind, name| registry.get(kind, name).is_some());
        self.0.registry.store(Arc::new(registry));
        library.loads.keep(&missing);
        library.loads.refreshed();
        Ok(())
    }

    /// Loads a version in the background; the registry is refreshed when that has ended, well or not.
    fn load_beside(&self, key: Key, row: &rows::Version) {
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
    async fn load_row(
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

    /// The version that a connection runs. Where this host does not know of it, it looks at the database: the hint may
    /// still be on its way. One look serves all who waited for it.
    pub(super) async fn running(&self, kind: Kind, name: &str, wanted: &Wanted) -> Result<Arc<Plugin>, PluginError> {
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

impl From<install::ChangeError> for InstallError {
    fn from(error: install::ChangeError) -> Self {
        match error {
            install::ChangeError::Store(error) => InstallError::Store(error),
            install::ChangeError::Busy(busy) => InstallError::Busy(busy),
            other => InstallError::Kept { name: "plugin".into(), why: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests;
