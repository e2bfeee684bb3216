//! The command line, one command a file.

pub mod admin;
pub mod audit;
pub mod demo;
pub mod plugin;
pub mod policy;
pub mod serve;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, ConfigError, settings};

/// Kaizen Studio's control plane: agents drawn together, permitted in Cedar, deployed through sandboxed plugins.
#[derive(Debug, Parser)]
#[command(name = "kaizen", version, max_term_width = 120, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// Settings that every command takes; each is also a `KAIZEN_…` variable and a key of kaizen.toml.
#[derive(Debug, Args)]
pub struct Settings {
    /// Settings file, in place of ./kaizen.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "IP:PORT", help_heading = "Settings")]
    listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz [default: 127.0.0.1:9090]
    #[arg(long, global = true, value_name = "IP:PORT", help_heading = "Settings")]
    ops_listen: Option<String>,
    /// Folder for the SQLite file, generated keys and caches [default: ~/.local/share/kaizen]
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Settings")]
    data_dir: Option<String>,
    /// sqlite:PATH or postgres://USER@HOST/DATABASE [default: a file in the data folder]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    database_url: Option<String>,
    /// redis://HOST:PORT, for quick fan-out between several hosts
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    redis_url: Option<String>,
    /// Where browsers reach this server [default: http://LISTEN]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    public_url: Option<String>,
    /// What is logged, e.g. info,kaizen=debug [default: info]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Settings")]
    log: Option<String>,
}

impl Settings {
    /// The file, then the environment, then these flags.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_from(self.config.as_deref())
    }

    /// As [`Settings::load`], with another file than `--config` names: for a command that has a `--config` of its own.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load_from(&self, file: Option<&Path>) -> Result<Config, ConfigError> {
        let flags = [
            ("listen", &self.listen),
            ("ops_listen", &self.ops_listen),
            ("data_dir", &self.data_dir),
            ("database_url", &self.database_url),
            ("redis_url", &self.redis_url),
            ("public_url", &self.public_url),
            ("log", &self.log),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        let mut config = Config::load(file, std::env::vars(), flags)?;
        config.executable = executable();
        Ok(config)
    }
}

/// This program, also where its file was replaced meanwhile.
fn executable() -> Option<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Some(running.to_owned()) } else { std::env::current_exe().ok() }
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Serve),
    /// Play the story of the product against a server of its own
    Demo(demo::Demo),
    /// Run the demo's gateway
    #[command(hide = true)]
    DemoGateway(demo::gateway::DemoGateway),
    Admin(admin::AdminCommand),
    Policy(policy::Policy),
    /// Write, build and test plugins
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Verify or export the audit trail
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Bring the database up to this version, and stop
    Migrate,
    /// Print the OpenAPI document
    Openapi,
}

/// Runs the command line to its end.
///
/// # Errors
/// What to tell the person, in one line.
pub fn run() -> anyhow::Result<()> {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches)?;
    if matches!(cli.command, Command::Openapi) {
        return print(&serde_json::to_string_pretty(&crate::api::openapi::document()?)?);
    }
    if let Command::DemoGateway(gateway) = cli.command {
        return runtime()?.block_on(gateway.run());
    }
    if let Command::Policy(policy) = &cli.command {
        return policy.run();
    }
    if let Command::Plugin(plugin) = cli.command {
        return plugin.run(&cli.settings);
    }
    let mut config = cli.settings.load()?;
    if matches!(cli.command, Command::Demo(_)) && !config.is_set("log") {
        // The story is what there is to read.
        config.log = "warn".to_owned();
    }
    crate::telemetry::logs(&config)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(serve) => Box::pin(serve.run(config)).await,
            Command::Demo(demo) => Box::pin(demo.run(config)).await,
            Command::Admin(admin) => admin.run(&config).await,
            Command::Audit(audit) => audit.run(&config).await,
            Command::Migrate => migrate(&config).await,
            Command::Policy(_) | Command::Plugin(_) | Command::Openapi | Command::DemoGateway(_) => Ok(()),
        }
    });
    // Dropped, it would wait for blocking work without bound: a look-up of a name, or a plugin that is being compiled.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The command line, in which the help of what has no use for a server's settings does not list them.
fn command() -> clap::Command {
    fn without_settings(command: clap::Command) -> clap::Command {
        command.mut_args(|argument| if argument.is_global_set() { argument.hide(true) } else { argument })
    }
    let mut command = Cli::command().after_long_help(settings_help());
    // Only then do the commands have what all of them take.
    command.build();
    command.mut_subcommand("openapi", without_settings).mut_subcommand("plugin", |plugin| {
        let alone = ["new", "build", "inspect", "keygen", "sign"];
        alone.into_iter().fold(without_settings(plugin), |plugin, name| plugin.mut_subcommand(name, without_settings))
    })
}

/// All settings, for `kaizen --help`.
fn settings_help() -> String {
    let head = "Settings, as keys of kaizen.toml or as KAIZEN_… variables (KAIZEN_DATABASE_URL).\n\
                A flag goes before a variable, and a variable before the file:\n";
    let column = settings().map(|setting| setting.name.len()).max().unwrap_or_default();
    let lines = settings().flat_map(|setting| {
        let names = std::iter::once(setting.name).chain(std::iter::repeat(""));
        names.zip(wrapped(setting.help, 76 - column)).map(move |(name, line)| format!("  {name:<column$}  {line}\n"))
    });
    std::iter::once(head.to_owned()).chain(lines).collect()
}

/// Text in lines of at most `width` characters, unless a word is longer: clap wraps too, but not within a column.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    let store = crate::app::connect(config).await?;
    store.migrate().await?;
    print("the database is up to date")
}

/// Writes a line to standard output: what a command is asked for, and nothing else, goes there.
///
/// # Errors
/// If nobody reads it any more.
pub fn print(line: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
