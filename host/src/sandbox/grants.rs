//! What one call may do: what the plugin asks for ∩ what the operator allows, filled in from the connection's configuration.
//!
//! | the manifest asks | the configuration has | the operator | granted |
//! |---|---|---|---|
//! | nothing | anything | allows everything | nothing: an empty list denies |
//! | `http("https://*.okta.com")` | – | `egress_allow = *` | HTTPS to names below `okta.com`, port 443 |
//! | `http("{config.url}")` | `url = "https://a.example:8443/path"` | `egress_allow = *` | HTTPS to `a.example`, port 8443, any path |
//! | `http("{config.url}")` | no `url` | `egress_allow = *` | nothing |
//! | `http("{config.url}")` | `url = "https://a.example"` | `egress_allow = https://*.corp.example` | nothing; the denial names `egress_allow` |
//! | `http("{config.url}")` | `url = "http://10.1.2.3"` | `egress_allow_private` empty | nothing; the denial names `egress_allow_private` |
//! | `http("https://{config.domain}")` | `domain = "*.com"`, `"a/b"`, `"x@y"`, `"a:1"` | anything | the configuration is refused: wildcards come from manifests only |
//! | `tcp("{config.host}:6514")` | `host = "logs.example"` | `egress_allow = *` | TCP to the addresses `logs.example` has when the call starts, port 6514 |
//! | `directory("audit")` | – | offers `audit` | a folder `/audit` that belongs to this connection alone |
//! | `directory("home")` | – | does not offer it | nothing |
//! | `reveal-secret("key")` | – | – | `key` may be read by the plugin itself; every other secret may not |
//!
//! The operator's two lists are checked where the connection is made, in [`super::egress`], so that they hold for the
//! server's own requests too; this module decides the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::Value;

use super::pattern::{Pattern, Scheme, Target};
pub use super::template::{ConfigFault, Template};

/// What a plugin asks for, from its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// HTTP to these places.
    Http(Template),
    /// TCP to these places.
    Tcp(Template),
    /// A folder, by the operator's name for it.
    Directory(String),
    /// To read this secret itself.
    RevealSecret(String),
}

/// A secret that a connection supplies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSlot {
    /// As in `{{secret:NAME}}`.
    pub name: String,
    /// What it is, for whoever fills it in.
    pub description: String,
    /// Where requests may carry it; empty: nowhere.
    pub hosts: Vec<Template>,
}

/// One granted place and what it was granted for.
#[derive(Debug, Clone)]
struct Granted {
    pattern: Pattern,
    asked: String,
}

/// What one call may do.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    http: Vec<Granted>,
    tcp: Vec<Granted>,
    directories: Vec<(String, PathBuf)>,
    reveal: BTreeSet<String>,
    secrets: BTreeMap<String, Vec<Pattern>>,
    /// Capabilities that were asked for and not granted, and why.
    withheld: Vec<String>,
}

impl Grants {
    /// Fills in what a plugin asks for from a configuration. `directories` are those that the operator offers, each
    /// already narrowed to the connection.
    ///
    /// # Errors
    /// Every value of the configuration from which no address can be made.
    pub fn resolve(
        capabilities: &[Capability],
        slots: &[SecretSlot],
        config: &Value,
        directories: &BTreeMap<String, PathBuf>,
    ) -> Result<Self, Vec<ConfigFault>> {
        let mut grants = Self::default();
        let mut faults = Vec::new();
        for capability in capabilities {
            let (template, places) = match capability {
                Capability::Http(template) => (template, &mut grants.http),
                Capability::Tcp(template) => (template, &mut grants.tcp),
                Capability::Directory(name) => {
                    match directories.get(name) {
                        Some(path) => grants.directories.push((name.clone(), path.clone())),
                        None => grants
                            .withheld
                            .push(format!("the folder `{name}` is not offered by this server's operator")),
                    }
                    continue;
                }
                Capability::RevealSecret(name) => {
                    grants.reveal.insert(name.clone());
                    continue;
                }
            };
            match template.resolve(config) {
                Ok(Some(pattern)) => places.push(Granted { pattern, asked: template.source().to_owned() }),
                Ok(None) => grants.withheld.push(format!("`{}` is not set in the configuration", template.source())),
                Err(fault) => faults.push(fault),
            }
        }
        for slot in slots {
            let mut hosts = Vec::new();
            for template in &slot.hosts {
                match template.resolve(config) {
                    Ok(pattern) => hosts.extend(pattern),
                    Err(fault) => faults.push(fault),
                }
            }
            grants.secrets.insert(slot.name.clone(), hosts);
        }
        faults.dedup();
        if faults.is_empty() { Ok(grants) } else { Err(faults) }
    }

    /// Whether a request may go there.
    ///
    /// # Errors
    /// Says what was granted in place of it, and what would allow it.
    pub fn http(&self, target: &Target) -> Result<(), String> {
        if self.http.iter().any(|granted| granted.pattern.covers(target)) {
            return Ok(());
        }
        if self.http.is_empty() {
            let why = if self.withheld.is_empty() {
                "its manifest asks for no `http` capability".into()
            } else {
                self.withheld.join("; ")
            };
            return Err(format!("{target} is not granted to the plugin: {why}"));
        }
        let granted: Vec<String> =
            self.http.iter().map(|granted| format!("{} (from `{}`)", granted.pattern, granted.asked)).collect();
        Err(format!(
            "{target} is not granted to the plugin, which may reach {} only: the configuration, or a capability in the plugin's \
             manifest, would have to name it",
            granted.join(", ")
        ))
    }

    /// The places that `tcp` capabilities name, each one host and port; wildcards are not offered for TCP.
    pub fn tcp(&self) -> impl Iterator<Item = Target> {
        self.tcp.iter().filter_map(|granted| {
            let (host, port) = (granted.pattern.host()?.clone(), granted.pattern.port()?);
            Some(Target { scheme: Scheme::Tcp, host, port })
        })
    }

    /// Folders, by the name under which the plugin sees them.
    pub fn directories(&self) -> &[(String, PathBuf)] {
        &self.directories
    }

    /// Whether the plugin may read this secret itself.
    pub fn reveals(&self, secret: &str) -> bool {
        self.reveal.contains(secret)
    }

    /// Where requests may carry this secret; `None` where the manifest has no such slot.
    pub fn secret_hosts(&self, secret: &str) -> Option<&[Pattern]> {
        self.secrets.get(secret).map(Vec::as_slice)
    }

    /// What was asked for and not granted, and why; explains a failure.
    pub fn withheld(&self) -> &[String] {
        &self.withheld
    }
}

#[cfg(test)]
mod tests;
