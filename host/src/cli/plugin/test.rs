//! `kaizen plugin test`: every export in what a provider meets in real life.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;

use super::load;
use crate::{
    config::Config,
    plugins::kit::{self, Case},
    sandbox::{egress::Policy, limits::Bounds},
};

/// Drive every export of a plugin with what a provider meets: good answers, 401, 429, 500, cut connections, and more
///
/// The far side is played by this command, whatever host the plugin talks to: nothing leaves the machine. The plugin runs in
/// the server's own sandbox, under the server's limits.
#[derive(Debug, Args)]
pub struct Test {
    /// The component, or the name of a bundled plugin
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// A connection's configuration, or {"config", "secrets", "claims", "userinfo", "answers", "not_found"}; made up where
    /// it is missing
    // The same id as the settings' flag: here it takes that one's place.
    #[arg(id = "config", long = "config", value_name = "FILE.json")]
    case: Option<PathBuf>,
    /// Also write JUnit XML
    #[arg(long, value_name = "FILE.xml")]
    junit: Option<PathBuf>,
    /// How long a call is waited for; more than the plugin itself waits for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=600))]
    patience: u64,
}

impl Test {
    /// Runs to its end.
    ///
    /// # Errors
    /// If something is clearly wrong, or the plugin does not load.
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        // Failing again and again is what the kit is about: nothing is suspended.
        let mut bounds = Bounds { trip_failures: u32::MAX, ..config.plugin_bounds.clone() };
        let patience = Duration::from_secs(self.patience);
        // An answer that never ends is given up well within that, even where a plugin asks for several.
        bounds.call.http_exchange = bounds.call.http_exchange.min(patience / 4);
        let policy = Policy::default();
        let loaded = load::load(&self.file, policy, bounds, &config.data_dir).await?;
        let given = match &self.case {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
                Case::parse(&text).map_err(|why| anyhow::anyhow!("--config {}: {why}", path.display()))?
            }
            None => Case::default(),
        };
        // A bundled plugin comes with what its far side answers.
        let bundled = if self.file.exists() {
            None
        } else {
            Case::bundled(loaded.artifact.0, loaded.artifact.1).map_err(anyhow::Error::msg)?
        };
        let case = given.or(bundled.unwrap_or_default());
        let report = kit::run(&loaded.sandbox, loaded.artifact, case, loaded.scratch.path(), patience).await?;
        super::super::print(&report.table())?;
        if let Some(path) = &self.junit {
            std::fs::write(path, report.junit()?).with_context(|| format!("--junit {}", path.display()))?;
        }
        let wrong = report.wrong();
        anyhow::ensure!(wrong == 0, "{wrong} of the plugin's answers are wrong, as marked above");
        Ok(())
    }
}
