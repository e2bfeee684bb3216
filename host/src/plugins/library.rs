//! Versions in the database, and how they come to run on this host.
//!
//! The database is the truth: at the start, upon a hint, and once a second the generation is compared, and where it
//! differs a new registry is made from the tables. Versions that are loaded already are taken over; the others are loaded
//! in the background, each by itself ([`super::loads`]), and what ran in their place goes on running until they are ready.
//! So no call waits for a version that takes the place of another, and no plugin for one that takes long or does not load.
//! What is disabled or put into quarantine is out of use with the refresh itself.

mod load;
mod refresh;
mod settle;

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::{InstallError, Plugins, audit_dir, bundled, health::Kept, install, loads::Loads, signature::Trust};
use crate::{
    bus::Bus,
    clock::Clock,
    config::Config,
    sandbox::{Sandbox, cache::Cache, compiler::Compiler, egress},
    secrets::Secrets,
    store::{Store, plugins as rows},
};

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
        audit_dir::look_for_earlier_layout(config.audit_dir.clone(), config.data_dir.clone());
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
