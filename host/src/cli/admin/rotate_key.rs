//! `kaizen admin rotate-key`: a new master key, and everything that is stored re-encrypted with it.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::{
    app,
    clock::Clock,
    config::Config,
    plugins::reseal,
    secrets::{Rotation, Secrets},
};

/// Replace the master key, and re-encrypt every stored secret; prints {"values","resealed"}
///
/// Without the setting `master_key`, the key is a file in the data folder: a new one is made, a running server on this
/// folder takes it over by itself, and the old one stays as `master.key.retired` until the next rotation.
///
/// With the setting `master_key`: first set it to the new key, and `master_key_also` to the old one, on every host, and
/// restart the hosts; then run this, with the same settings; then remove `master_key_also`. (So that no host meets a value whose
/// key it was not told, give all of them the new key in `master_key_also` in a round before.)
///
/// It can be killed at any moment and run again.
#[derive(Debug, Args)]
pub(super) struct RotateKey {
    /// The key is a file and the database is PostgreSQL: no other host uses this database
    #[arg(long)]
    only_host: bool,
}

impl RotateKey {
    pub(super) async fn run(&self, config: &Config) -> anyhow::Result<serde_json::Value> {
        let clock = Clock::system();
        let store = app::connect(config).await?;
        store.migrate().await?;
        let rotation = if config.master_key.is_some() {
            if config.master_key_also.is_empty() {
                bail!(
                    "nothing would open what is stored: set `master_key` (KAIZEN_MASTER_KEY) to the new key and \
                     `master_key_also` (KAIZEN_MASTER_KEY_ALSO) to the one it replaces, on every host, and restart them"
                );
            }
            None
        } else {
            if config.database_url.starts_with("postgres") && !self.only_host {
                bail!(
                    "several hosts can share this database, and a new key file here is seen by this host only: set \
                     KAIZEN_MASTER_KEY to a new key and KAIZEN_MASTER_KEY_ALSO to the one in {}/master.key on every host, restart \
                     them, and run this again with the same; or say --only-host",
                    config.data_dir.display()
                );
            }
            Some(Rotation::begin(&config.data_dir, &clock)?)
        };
        let keys = Secrets::load(config, &clock)?;
        let done = reseal(&store, &keys, &clock).await.context("not everything is re-encrypted")?;
        if let Some(rotation) = rotation {
            rotation.finish()?;
        }
        Ok(json!({ "values": done.values, "resealed": done.resealed }))
    }
}
