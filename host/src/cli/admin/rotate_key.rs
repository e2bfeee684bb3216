//! `kaizen admin rotate-key`: a new master key, and everything that is stored re-encrypted with it.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::{
    app, audit,
    clock::Clock,
    config::Config,
    plugins::reseal,
    secrets::{Rotation, Secrets},
};

/// Replace the master key, and re-encrypt every stored secret; prints {"values","resealed"}
///
/// The key is a file, master.key in the data folder (the setting master_key is not set):
///   Run this beside the server, with its settings. A new key is made, and the running server takes it over by itself.
///   The old key stays as master.key.retired until the next rotation. With PostgreSQL, say --only-host.
///
/// The key is a setting, on one host or several:
///   1. With several hosts: on each, set KAIZEN_MASTER_KEY_ALSO to the new key (e.g. of `openssl rand -hex 32`), and restart it.
///   2. On each host, set KAIZEN_MASTER_KEY to the new key and KAIZEN_MASTER_KEY_ALSO to the old one, and restart it.
///   3. Run this once, with the same settings.
///   4. On each host, remove KAIZEN_MASTER_KEY_ALSO, and restart it.
///
/// It can be killed at any moment and run again. Keep the old key for as long as you keep backups of the database from
/// before.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct RotateKey {
    /// No other host uses this database; needed with PostgreSQL where the key is a file, which other hosts would not see
    #[arg(long)]
    only_host: bool,
}

impl RotateKey {
    pub(super) async fn run(&self, config: &Config) -> anyhow::Result<serde_json::Value> {
        let clock = Clock::system();
        let in_settings = config.master_key.is_some();
        if in_settings && config.master_key_also.is_empty() {
            bail!(
                "KAIZEN_MASTER_KEY_ALSO is not set, so nothing would open what is stored: set KAIZEN_MASTER_KEY (`master_key`) to \
                 the new key and KAIZEN_MASTER_KEY_ALSO (`master_key_also`) to the one it replaces, on every host, restart them, \
                 and run this again with the same; `kaizen admin rotate-key --help` has all steps"
            );
        }
        if !in_settings && config.database_url.starts_with("postgres") && !self.only_host {
            bail!(
                "the master key is a file of this host, {}/master.key, and other hosts can use this PostgreSQL database: with a \
                 new file here they could no longer open what is stored. If no other host uses it, say --only-host. Otherwise \
                 bring the key into the settings of all hosts: KAIZEN_MASTER_KEY set to a new key (64 hexadecimal digits, e.g. of \
                 `openssl rand -hex 32`), KAIZEN_MASTER_KEY_ALSO to the one in the file; restart them, and run this again with the \
                 same settings",
                config.data_dir.display()
            );
        }
        let store = app::connect(config).await?;
        store.migrate().await?;
        let rotation = if in_settings { None } else { Some(Rotation::begin(&config.data_dir, &clock)?) };
        let keys = Secrets::load(config, &clock)?;
        let done = reseal(&store, &keys, &clock).await.context("not everything is re-encrypted")?;
        if let Some(rotation) = rotation {
            rotation.finish()?;
        }
        let done = json!({ "values": done.values, "resealed": done.resealed });
        let mut tx = store.begin().await?;
        audit::record_for_operators(&mut tx, &clock, "master_key.rotate", "installation", &done).await?;
        tx.commit().await?;
        Ok(done)
    }
}
