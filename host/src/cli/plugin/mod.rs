//! `kaizen plugin`: write, build and test plugins, without a server. One subcommand a file.

mod build;
mod check;
mod compile;
mod inspect;
mod load;
mod new;
pub mod sign;
mod test;

use clap::Subcommand;

use super::Settings;

/// What to do with a plugin.
#[expect(missing_docs, reason = "each command's struct says what it does, for --help")]
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    New(new::New),
    Build(build::Build),
    Check(check::Check),
    #[command(hide = true)]
    Compile(compile::Compile),
    Inspect(inspect::Inspect),
    Test(test::Test),
    Keygen(sign::Keygen),
    Sign(sign::Sign),
}

impl PluginCommand {
    /// Runs to its end.
    ///
    /// # Errors
    /// What to tell the person, in one line.
    pub fn run(self, settings: &Settings) -> anyhow::Result<()> {
        match self {
            PluginCommand::New(new) => new.run(),
            PluginCommand::Build(build) => build.run(),
            PluginCommand::Compile(compile) => compile.run(),
            PluginCommand::Inspect(inspect) => inspect.run(),
            PluginCommand::Keygen(keygen) => keygen.run(),
            PluginCommand::Sign(sign) => sign.run(),
            PluginCommand::Check(check) => {
                let config = quiet(settings.load()?)?;
                super::runtime()?.block_on(check.run(&config))
            }
            PluginCommand::Test(test) => {
                // Its `--config` is a connection's.
                let config = quiet(settings.load_from(None)?)?;
                super::runtime()?.block_on(test.run(&config))
            }
        }
    }
}

/// The settings, with a log of nothing but faults unless another was asked for: the result is what there is to read.
fn quiet(mut config: crate::config::Config) -> anyhow::Result<crate::config::Config> {
    if !config.is_set("log") {
        config.log = "off".to_owned();
    }
    crate::telemetry::logs(&config)?;
    Ok(config)
}

/// Bytes as people read them.
fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}
