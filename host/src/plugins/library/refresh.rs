//! What is in use on this host, made anew from the tables when something changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, broadcast::error::RecvError},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Library;
use crate::{
    bus::Hint,
    plugins::{
        InstallError, Plugin, Plugins,
        registry::{Installed, Loaded, Registry},
    },
    store::plugins as rows,
};

/// How often the database is asked whether something changed, without a hint.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// How long whoever changed something waits until it runs on their host.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

impl Plugins {
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

    pub(super) async fn replace(&self, library: &Library, at_hand: &[Arc<Plugin>]) -> Result<(), InstallError> {
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
}
