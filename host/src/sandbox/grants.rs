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
use url::Url;

use super::pattern::{self, Pattern, PatternError, Scheme, Target};

/// A value of the configuration from which no address can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The top-level property.
    pub property: String,
    /// What to change.
    pub message: String,
}

/// A piece of a template: text, or the value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Property(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// `{config.url}`: scheme, host and port of that URL.
    Url(String),
    /// `https://{config.a}.example.com:{config.port}`.
    Parts { scheme: Scheme, host: Vec<Piece>, port: Option<Vec<Piece>> },
}

/// A pattern that may name configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    shape: Shape,
}

impl Template {
    /// Of an `http` capability or a secret's host: `https://…`, `http://…` or `{config.NAME}`.
    ///
    /// # Errors
    /// If it is neither.
    pub fn http(source: &str) -> Result<Self, PatternError> {
        if let [Piece::Property(name)] = pieces(source)?.as_slice() {
            return Ok(Self { source: source.to_owned(), shape: Shape::Url(name.clone()) });
        }
        let (scheme, rest) = match source.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => {
                return Err(PatternError::new(format!(
                    "`{source}`: expected https://HOST, http://HOST:PORT or {{config.NAME}}"
                )));
            }
        };
        Self::parts(source, scheme, rest)
    }

    /// Of a `tcp` capability: `HOST:PORT`.
    ///
    /// # Errors
    /// If it is not.
    pub fn tcp(source: &str) -> Result<Self, PatternError> {
        Self::parts(source, Scheme::Tcp, source)
    }

    fn parts(source: &str, scheme: Scheme, authority: &str) -> Result<Self, PatternError> {
        let (host, port) = pattern::split_port(authority.strip_suffix('/').unwrap_or(authority));
        let shape = Shape::Parts { scheme, host: pieces(host)?, port: port.map(pieces).transpose()? };
        let template = Self { source: source.to_owned(), shape };
        // With a plausible value for each property it must be a pattern: found at install, not at the first call.
        template.fill(&|_| Some(Value::from("1")))?;
        Ok(template)
    }

    /// As written in the manifest.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The properties it names.
    pub fn properties(&self) -> impl Iterator<Item = &str> {
        let (url, host, port): (_, &[Piece], &[Piece]) = match &self.shape {
            Shape::Url(name) => (Some(name.as_str()), &[], &[]),
            Shape::Parts { host, port, .. } => (None, host, port.as_deref().unwrap_or_default()),
        };
        url.into_iter().chain(host.iter().chain(port).filter_map(|piece| match piece {
            Piece::Property(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        }))
    }

    /// The pattern under a configuration; `None` where a property that it names is absent: then it grants nothing.
    ///
    /// # Errors
    /// Where a property's value is no address.
    pub fn resolve(&self, config: &Value) -> Result<Option<Pattern>, ConfigFault> {
        self.fill(&|name| config.get(name).cloned()).map_err(|error| ConfigFault {
            property: self.properties().next().unwrap_or_default().to_owned(),
            message: error.to_string(),
        })
    }

    fn fill(&self, value: &dyn Fn(&str) -> Option<Value>) -> Result<Option<Pattern>, PatternError> {
        match &self.shape {
            Shape::Url(name) => {
                let Some(text) = value(name).as_ref().and_then(text_of) else { return Ok(None) };
                let url = Url::parse(&text).map_err(|_| {
                    PatternError::new(format!("`{text}` is not an address; expected e.g. https://host.example.com"))
                })?;
                Ok(Some(Pattern::exactly(Target::of_url(&url)?)))
            }
            Shape::Parts { scheme, host, port } => {
                let Some(host) = join(host, value, host.len() == 1)? else { return Ok(None) };
                let port = match port {
                    None => None,
                    Some(pieces) => match join(pieces, value, false)? {
                        Some(port) => Some(port),
                        None => return Ok(None),
                    },
                };
                Pattern::from_parts(*scheme, &host, port.as_deref()).map(Some)
            }
        }
    }
}

/// A property's value as text; absent, null and empty are the same.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn join(pieces: &[Piece], value: &dyn Fn(&str) -> Option<Value>, whole: bool) -> Result<Option<String>, PatternError> {
    let mut joined = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => joined.push_str(text),
            Piece::Property(name) => {
                let Some(text) = value(name).as_ref().and_then(text_of) else { return Ok(None) };
                let labels = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
                if !(labels || whole && pattern::parse_host(&text).is_ok()) {
                    return Err(PatternError::new(format!(
                        "`{text}` is not a host name: letters, digits, dots and hyphens only"
                    )));
                }
                joined.push_str(&text);
            }
        }
    }
    Ok(Some(joined))
}

fn pieces(text: &str) -> Result<Vec<Piece>, PatternError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let name = after.split_once('}').and_then(|(inside, tail)| {
            rest = tail;
            inside.strip_prefix("config.")
        });
        match name {
            Some(name) if !name.is_empty() && !name.contains(['{', '.']) => {
                pieces.push(Piece::Property(name.to_owned()))
            }
            _ => {
                return Err(PatternError::new(format!("`{text}`: expected {{config.NAME}} with a top-level property")));
            }
        }
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

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
mod tests {
    use serde_json::json;

    use super::*;

    fn grants(capabilities: &[Capability], config: Value) -> Result<Grants, Vec<ConfigFault>> {
        Grants::resolve(capabilities, &[], &config, &BTreeMap::new())
    }

    fn http(source: &str) -> Capability {
        Capability::Http(Template::http(source).unwrap())
    }

    fn target(url: &str) -> Target {
        Target::of_url(&Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn the_table_holds() {
        for (asked, config, allowed, denied) in [
            (vec![], json!({"url": "https://a.example"}), vec![], vec!["https://a.example/"]),
            (
                vec!["https://*.okta.com"],
                json!({}),
                vec!["https://x.okta.com/"],
                vec!["https://okta.com/", "https://x.okta.com.evil/"],
            ),
            (
                vec!["{config.url}"],
                json!({"url": "https://a.example:8443/path?q"}),
                vec!["https://a.example:8443/other"],
                vec!["https://a.example/", "http://a.example:8443/", "https://b.example:8443/"],
            ),
            (vec!["{config.url}"], json!({}), vec![], vec!["https://a.example/"]),
            (vec!["{config.url}"], json!({"url": null}), vec![], vec!["https://a.example/"]),
            (
                vec!["https://{config.domain}"],
                json!({"domain": "login.a.example"}),
                vec!["https://login.a.example/x"],
                vec!["https://a.example/"],
            ),
            (
                vec!["https://{config.tenant}.api.example"],
                json!({"tenant": "acme"}),
                vec!["https://acme.api.example/"],
                vec!["https://evil.api.example/"],
            ),
            (
                vec!["http://{config.host}:{config.port}"],
                json!({"host": "10.0.0.1", "port": 99}),
                vec!["http://10.0.0.1:99/"],
                vec!["http://10.0.0.1/"],
            ),
            (
                vec!["http://{config.host}:99"],
                json!({"host": "[::1]"}),
                vec!["http://[::1]:99/"],
                vec!["http://[::2]:99/"],
            ),
        ] {
            let capabilities: Vec<_> = asked.iter().map(|source| http(source)).collect();
            let grants = grants(&capabilities, config.clone()).unwrap();
            for url in allowed {
                assert_eq!(grants.http(&target(url)), Ok(()), "{asked:?} with {config} allows {url}");
            }
            for url in denied {
                assert!(grants.http(&target(url)).is_err(), "{asked:?} with {config} denies {url}");
            }
        }
    }

    #[test]
    fn configuration_cannot_widen_a_capability() {
        for value in ["*", "*.com", "a/b", "x@y", "a:1", "a b", "", "a#b", "evil.com/.api", "a%2eb", "{config.y}"] {
            let config = json!({"x": value});
            for source in ["https://{config.x}", "https://{config.x}.api.example", "https://a.example:{config.x}"] {
                let result = grants(&[http(source)], config.clone());
                let open = result.is_ok_and(|grants| !grants.http.is_empty());
                assert!(!open, "{source} with {value:?} must grant nothing");
            }
        }
        for value in [
            "ftp://a",
            "a.example",
            "https://u:p@a.example",
            "https://*",
            "https://*.com",
            "file:///etc",
            "javascript:1",
        ] {
            let result = grants(&[http("{config.x}")], json!({"x": value}));
            let everything = result.is_ok_and(|grants| grants.http(&target("https://b.com/")).is_ok());
            assert!(!everything, "{value:?}");
        }
        let faults = grants(&[http("{config.x}")], json!({"x": "a.example"})).unwrap_err();
        assert_eq!(faults[0].property, "x");
    }

    #[test]
    fn what_is_no_template_is_refused_at_install() {
        for source in [
            "",
            "a.example",
            "{config}",
            "{config.a.b}",
            "{secret.x}",
            "https://{config.x",
            "https://a b",
            "ftp://a",
            "https://a/path",
        ] {
            assert!(Template::http(source).is_err(), "{source:?}");
        }
        for source in ["a.example", "{config.host}", "a:0", "https://a:1"] {
            assert!(Template::tcp(source).is_err(), "{source:?}");
        }
        assert!(Template::tcp("{config.host}:6514").is_ok());
    }

    #[test]
    fn a_denial_teaches() {
        let denial = grants(&[http("{config.url}")], json!({"url": "https://a.example"}))
            .unwrap()
            .http(&target("https://b.example/"))
            .unwrap_err();
        for part in ["https://b.example", "https://a.example", "{config.url}"] {
            assert!(denial.contains(part), "{denial}");
        }
        let denial =
            grants(&[http("{config.url}")], json!({})).unwrap().http(&target("https://b.example/")).unwrap_err();
        assert!(denial.contains("`{config.url}` is not set"), "{denial}");
    }

    #[test]
    fn folders_and_secrets_are_granted_by_name_only() {
        let offered = BTreeMap::from([("audit".to_owned(), PathBuf::from("/x"))]);
        let asked = [
            Capability::Directory("audit".into()),
            Capability::Directory("home".into()),
            Capability::RevealSecret("key".into()),
        ];
        let slots = [SecretSlot {
            name: "token".into(),
            description: String::new(),
            hosts: vec![Template::http("{config.url}").unwrap()],
        }];
        let grants = Grants::resolve(&asked, &slots, &json!({"url": "https://a.example"}), &offered).unwrap();
        assert_eq!(grants.directories(), [("audit".to_owned(), PathBuf::from("/x"))]);
        assert!(grants.withheld()[0].contains("home"));
        assert!(grants.reveals("key") && !grants.reveals("token"));
        assert!(grants.secret_hosts("token").unwrap()[0].covers(&target("https://a.example/")));
        assert!(grants.secret_hosts("key").is_none());
    }
}
