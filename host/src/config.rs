//! Every setting, validated once: `kaizen.toml`, then `KAIZEN_…` environment variables, then flags.

mod fixed;
mod layers;
pub mod limits;
mod plugins;
pub mod proxies;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use url::Url;

pub use self::layers::ConfigError;
use self::layers::{Layers, fault, read_file};
use crate::{
    domain::id::OrganizationId,
    plugins::signature::TrustedKey,
    sandbox::{
        egress::{self, DenyRule, PrivateRule},
        limits::Bounds,
        pattern::Pattern,
    },
};

/// What a setting is called and what it is for; the single list that the file, the environment, the flags and the
/// documentation come from.
pub struct Setting {
    /// As in `kaizen.toml`; upper-cased behind `KAIZEN_` in the environment.
    pub name: &'static str,
    /// What it is for, and its default.
    pub help: &'static str,
}

/// All settings: these, and a bound each of [`limits`].
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain(limits::SETTINGS)
}

const SETTINGS: &[Setting] = &[
    Setting { name: "listen", help: "address of the API, IP:PORT (127.0.0.1:8080)" },
    Setting { name: "ops_listen", help: "address of /metrics, /healthz and /readyz (127.0.0.1:9090)" },
    Setting { name: "data_dir", help: "folder for the SQLite file, generated keys and caches ($XDG_DATA_HOME/kaizen)" },
    Setting { name: "database_url", help: "sqlite:PATH or postgres://… (sqlite:DATA_DIR/kaizen.db)" },
    Setting { name: "redis_url", help: "redis://…; needed for quick canvas fan-out between several hosts (none)" },
    Setting { name: "public_url", help: "where browsers reach this server (http://LISTEN)" },
    Setting {
        name: "egress_allow",
        help: "where plugins and sign-in may reach at all, comma-separated patterns, e.g. https://*.okta.com (*: \
               wherever a connection's own configuration points)",
    },
    Setting {
        name: "egress_allow_private",
        help: "private networks that plugins and sign-in may reach, comma-separated CIDR, each with a port if only that is \
               meant and a plugin's name before it if only that may: 10.0.0.0/8, [fd00::/8]:443, webhook@10.0.0.0/8:443 (none)",
    },
    Setting {
        name: "egress_deny",
        help: "where plugins and sign-in may not reach whatever else allows it, comma-separated networks, with or without a \
               port, and names: 203.0.113.0/24, 203.0.113.7:22, *.corp.example (none)",
    },
    Setting {
        name: "trusted_proxies",
        help: "networks of the proxies in front of this server, comma-separated CIDR: only they may say who the client is (none)",
    },
    Setting {
        name: "client_address",
        help: "how trusted proxies name the client: x-forwarded-for, forwarded (RFC 7239) or proxy-protocol (version 2) \
               (x-forwarded-for)",
    },
    Setting {
        name: "drain_seconds",
        help: "how long requests are still served after a stop was asked for, while /readyz says 503: longer than load \
               balancers take to notice, 0 to 600 (10; 0 where `listen` is a loopback address)",
    },
    Setting { name: "cors_origins", help: "origins of frontends on other hosts, comma-separated (none)" },
    Setting {
        name: "master_key",
        help: "32 bytes in hexadecimal that encrypt secrets at rest; the same on every host (DATA_DIR/master.key)",
    },
    Setting {
        name: "master_key_also",
        help: "further master keys that still open what is stored, comma-separated, for `kaizen admin rotate-key` (none)",
    },
    Setting {
        name: "audit_dir",
        help: "folder offered to plugins as `audit`, in which each connection has its own in that of its organization, e.g. of the audit sink `file` (none: not offered)",
    },
    Setting {
        name: "audit_dir_organizations",
        help: "organizations whose connections may use that folder, comma-separated ids (all)",
    },
    Setting { name: "plugins_dir", help: "folder of plugins (*.wasm, with *.wasm.sig) installed at each start (none)" },
    Setting {
        name: "plugins_trusted_keys",
        help: "comma-separated keys, ed25519:… as `kaizen plugin keygen` prints them: only plugins signed with one of them, \
               and those that come with the server, are installed and run (none: signatures are not asked for)",
    },
    Setting { name: "log", help: "what is logged, as in tracing's EnvFilter (info)" },
    Setting { name: "log_format", help: "text or json (text on a terminal, otherwise json)" },
];

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The API's listener.
    pub listen: SocketAddr,
    /// The listener of metrics and health.
    pub ops_listen: SocketAddr,
    /// For the SQLite file, generated keys and caches.
    pub data_dir: PathBuf,
    /// `sqlite:` or `postgres:`; may hold a password, so never log it.
    pub database_url: String,
    /// Redis for fan-out between hosts.
    pub redis_url: Option<String>,
    /// Where browsers reach this server; decides whether the cookie is `Secure`.
    pub public_url: Url,
    /// Where plugins and sign-in may reach at all; empty denies everything.
    pub egress_allow: Vec<Pattern>,
    /// Private networks that plugins may reach.
    pub egress_allow_private: Vec<PrivateRule>,
    /// Where plugins and sign-in may not reach, whatever else allows it.
    pub egress_deny: Vec<DenyRule>,
    /// The proxies in front of the server.
    pub proxies: proxies::Proxies,
    /// How long requests are still served after a stop was asked for.
    pub drain: Duration,
    /// Origins of frontends elsewhere.
    pub cors_origins: Vec<String>,
    /// As set; generated in the data folder if absent.
    pub master_key: Option<secrecy::SecretString>,
    /// Further keys that open what is stored.
    pub master_key_also: Vec<secrecy::SecretString>,
    /// The folder offered to plugins as `audit`, if there is one.
    pub audit_dir: Option<PathBuf>,
    /// Whose connections may use that folder; empty: everybody's.
    pub audit_dir_organizations: BTreeSet<OrganizationId>,
    /// Components to install at the start.
    pub plugins_dir: Option<PathBuf>,
    /// Whose plugins may be installed; empty: anybody's.
    pub plugins_trusted_keys: Vec<TrustedKey>,
    /// What each caller, tenant, plugin and far side may take.
    pub limits: limits::ServerLimits,
    /// What plugins may take.
    pub plugin_bounds: Bounds,
    /// tracing's `EnvFilter`.
    pub log: String,
    /// Lines of JSON in place of text; by the terminal if absent.
    pub log_json: Option<bool>,
    /// This program, where it can be started again to compile plugins; no setting.
    pub executable: Option<PathBuf>,
    /// The settings that were given by someone, by name.
    given: BTreeSet<&'static str>,
}

impl Config {
    /// Reads `kaizen.toml` (the one given, or in the working folder if there), then the environment, then flags.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        let path = file.unwrap_or(Path::new("kaizen.toml"));
        match std::fs::read_to_string(path) {
            Ok(text) => read_file(&mut layers, path, &text)?,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(path.display().to_string(), error.to_string())),
        }
        for (key, value) in environment {
            if let Some(name) = key.strip_prefix("KAIZEN_") {
                layers.set(&name.to_ascii_lowercase(), value, key)?;
            }
        }
        for (name, value) in flags {
            let source = format!("--{}", name.replace('_', "-"));
            layers.set(&name, value, source)?;
        }
        Self::validate(&layers)
    }

    fn validate(layers: &Layers) -> Result<Self, ConfigError> {
        // No name server is asked where to listen.
        let address = |text: &str| match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}").parse::<SocketAddr>(),
            None => text.parse(),
        };
        let address = |text: &str| {
            address(text)
                .map_err(|_| "expected an IP address and a port, e.g. 127.0.0.1:8080 or 0.0.0.0:8080".to_owned())
        };
        let listen = layers.parse("listen", SocketAddr::from(([127, 0, 0, 1], 8080)), address)?;
        let ops_listen = layers.parse("ops_listen", SocketAddr::from(([127, 0, 0, 1], 9090)), address)?;
        let data_dir = layers.parse("data_dir", None, |text| Ok(Some(PathBuf::from(text))))?;
        let data_dir = data_dir.or_else(default_data_dir).ok_or_else(|| {
            fault(
                "data_dir",
                "neither XDG_DATA_HOME nor HOME is set: set KAIZEN_DATA_DIR to a folder for keys and data",
            )
        })?;
        let default_url = format!("sqlite:{}", data_dir.join("kaizen.db").display());
        let database_url = layers.parse("database_url", default_url, |text| {
            if ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| text.starts_with(scheme)) {
                Ok(text.to_owned())
            } else {
                Err("expected sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE".to_owned())
            }
        })?;
        let redis_url = layers.parse("redis_url", None, |text| match text {
            "" => Ok(None),
            t if t.starts_with("redis://") || t.starts_with("rediss://") || t.starts_with("redis+unix:") => {
                Ok(Some(t.to_owned()))
            }
            _ => Err("expected redis://HOST:PORT".to_owned()),
        })?;
        let default_public = Url::parse(&format!("http://{listen}")).map_err(|e| fault("public_url", e.to_string()))?;
        let public_url = layers.parse("public_url", default_public, |text| match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
            _ => Err("expected an http or https address, e.g. https://studio.example.com".to_owned()),
        })?;
        let egress_allow_private = layers
            .parse("egress_allow_private", Vec::new(), |text| list(text).map(str::parse::<PrivateRule>).collect())?;
        let egress_deny =
            layers.parse("egress_deny", Vec::new(), |text| list(text).map(str::parse::<DenyRule>).collect())?;
        let proxies = proxies::Proxies::parse(layers)?;
        let drain = proxies::drain(layers, listen.ip())?;
        let egress_allow = layers.parse("egress_allow", vec![Pattern::everything()], |text| {
            list(text).map(|item| item.parse::<Pattern>().map_err(|error| error.to_string())).collect()
        })?;
        let cors_origins = layers.parse("cors_origins", Vec::new(), |text| {
            list(text)
                .map(|item| match Url::parse(item) {
                    Ok(url) if url.origin().is_tuple() && url.origin().ascii_serialization() == item => {
                        Ok(item.to_owned())
                    }
                    _ => Err(format!(
                        "`{item}` is not an origin, e.g. https://app.example.com, without a path or a slash at its end"
                    )),
                })
                .collect()
        })?;
        let key = |text: &str| match hex::decode(text) {
            Ok(bytes) if bytes.len() == 32 => Ok(secrecy::SecretString::from(text.to_owned())),
            _ => Err("expected 64 hexadecimal digits, e.g. from `openssl rand -hex 32`".to_owned()),
        };
        let master_key = layers.parse("master_key", None, |text| key(text).map(Some))?;
        let master_key_also = layers.parse("master_key_also", Vec::new(), |text| list(text).map(key).collect())?;
        let folder = |text: &str| Ok(Some(PathBuf::from(text)).filter(|_| !text.is_empty()));
        let audit_dir = layers.parse("audit_dir", None, folder)?;
        let audit_dir_organizations = layers.parse("audit_dir_organizations", BTreeSet::new(), |text| {
            let id = |item: &str| item.parse::<uuid::Uuid>().map(OrganizationId::from);
            list(text).map(|item| id(item).map_err(|_| format!("`{item}` is not the id of an organization"))).collect()
        })?;
        let plugins_dir = layers.parse("plugins_dir", None, folder)?;
        let plugins_trusted_keys = layers.parse("plugins_trusted_keys", Vec::new(), |text| {
            list(text).map(|item| item.parse::<TrustedKey>().map_err(|error| error.to_string())).collect()
        })?;
        let mut limits = limits::ServerLimits::parse(layers)?;
        limits.settle_database_times(layers)?;
        let plugin_bounds = plugins::bounds(layers, &limits)?;
        let log = layers.parse("log", "info,sqlx::postgres::notice=warn".to_owned(), |text| {
            tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
        })?;
        let log_json = layers.parse("log_format", None, |text| match text {
            "json" => Ok(Some(true)),
            "text" => Ok(Some(false)),
            _ => Err("expected text or json".to_owned()),
        })?;
        Ok(Self {
            listen,
            ops_listen,
            data_dir,
            database_url,
            redis_url,
            public_url,
            egress_allow,
            egress_allow_private,
            egress_deny,
            proxies,
            drain,
            cors_origins,
            master_key,
            master_key_also,
            audit_dir,
            audit_dir_organizations,
            plugins_dir,
            plugins_trusted_keys,
            limits,
            plugin_bounds,
            log,
            log_json,
            executable: None,
            given: layers.given(),
        })
    }

    /// What may be reached from here.
    pub fn egress(&self) -> egress::Policy {
        egress::Policy {
            allow: self.egress_allow.clone(),
            allow_private: self.egress_allow_private.clone(),
            deny: self.egress_deny.clone(),
        }
    }

    /// Whether someone gave this setting, rather than leave it at its default.
    pub fn is_set(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// Whether browsers reach this server over TLS: then they are told never to come without it.
    pub fn secure(&self) -> bool {
        self.public_url.scheme() == "https"
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn default_data_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share"))).map(|base| base.join("kaizen"))
}

#[cfg(test)]
mod tests;
