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
use crate::sandbox::context::misleads;

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

/// A text of a plugin's as one line of a terminal: nothing in it ends the line, moves the cursor or turns the order around.
fn line(text: &str) -> String {
    text.chars().map(|c| if misleads(c) { ' ' } else { c }).collect()
}

/// The same for a text of several lines.
fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Bytes as people read them.
fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_plugins_text_cannot_rewrite_the_screen() {
        let hostile = "\u{1b}[2J\u{1b}[1;1Hnothing\u{202e}ytpme\r\u{9b}1A";
        let shown = super::line(&format!("{hostile}\nThe server takes it."));
        assert!(!shown.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\r', '\n']) && shown.contains("nothing"), "{shown}");
        assert_eq!(super::lines("a\n\tb\u{1b}c"), "a\n b c");
    }
}
