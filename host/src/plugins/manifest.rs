//! The manifest, checked and parsed: what a plugin says of itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema::{Cost, Mistake, Schema, Undone};
use crate::{
    domain::{connection::Kind, fault::Fault, plugin::SemanticVersion},
    sandbox::{
        grants::{Capability, Grants, SecretSlot, Template},
        guest,
        limits::Bounds,
    },
};

/// Why a manifest was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// What it gets wrong.
    #[error("manifest: {0}")]
    Wrong(String),
    /// The server has too much to do to look at it.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// The threads that apply schemas are busy with others: it says nothing of a configuration, and the same may succeed a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is busy checking other configurations: try again in a moment")]
pub struct Busy;

/// A checked manifest.
pub struct Manifest {
    /// Unique among plugins of its kind.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// For people.
    pub title: String,
    /// For people.
    pub description: String,
    /// JSON Schema of the configuration, draft 2020-12.
    schema: Schema,
    /// The secrets a connection supplies.
    pub slots: Vec<SecretSlot>,
    /// What it asks for.
    pub capabilities: Vec<Capability>,
    /// Bytes of a configuration at the most.
    config_bytes: usize,
    /// Bytes of a secret at the most.
    secret_bytes: usize,
}

/// A secret that no connection supplies: the access token of the sign-in under way.
pub const ACCESS_TOKEN: &str = "access-token";

/// Secrets, and places that one of them may be sent to.
const SLOTS: usize = 32;
/// Capabilities.
const CAPABILITIES: usize = 64;
/// Bytes of a secret's description, and of a place as written.
const TEXT: usize = 1000;

fn wrong<T>(message: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Wrong(message.into()))
}

/// Lower-case words joined by hyphens.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .split('-')
            .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

impl Manifest {
    /// Checks what `describe` returned.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub async fn check(said: &guest::Manifest, bounds: &Bounds) -> Result<Self, ManifestError> {
        if !is_name(&said.name) {
            return wrong(format!("name `{}`: lower-case words joined by hyphens", said.name));
        }
        if let Err(error) = semver::Version::parse(&said.version) {
            return wrong(format!("version `{}`: {error}; expected a semantic version, e.g. 1.0.0", said.version));
        }
        if said.title.trim().is_empty() || said.title.len() > 200 || said.description.len() > 4000 {
            return wrong("title: 1 to 200 bytes; description: at most 4,000");
        }
        let slots = slots(&said.secrets)?;
        let capabilities = capabilities(&said.capabilities, &slots)?;
        let schema = Schema::parse(said.config_schema.clone(), Cost::from(bounds)).await;
        let schema = schema.map_err(|undone| match undone {
            Undone::Busy => ManifestError::Busy(Busy),
            Undone::Schema(why) => ManifestError::Wrong(format!("config-schema: {why}")),
        })?;
        let manifest = Self {
            name: said.name.clone(),
            version: said.version.clone(),
            title: said.title.clone(),
            description: said.description.clone(),
            schema,
            slots,
            capabilities,
            config_bytes: bounds.config_bytes,
            secret_bytes: bounds.secret_bytes,
        };
        manifest.properties_exist()?;
        Ok(manifest)
    }

    /// A capability that names a property which no configuration can have would never be granted: a slip.
    fn properties_exist(&self) -> Result<(), ManifestError> {
        let of_capabilities = self.capabilities.iter().filter_map(|capability| match capability {
            Capability::Http(template) | Capability::Tcp(template) => Some(template),
            _ => None,
        });
        for template in of_capabilities.chain(self.slots.iter().flat_map(|slot| &slot.hosts)) {
            for property in template.properties() {
                if self
                    .schema
                    .value
                    .pointer(&format!("/properties/{}", property.replace('~', "~0").replace('/', "~1")))
                    .is_none()
                {
                    return wrong(format!("`{}` names a property that is not in config-schema", template.source()));
                }
            }
        }
        Ok(())
    }

    /// JSON Schema of the configuration, draft 2020-12.
    pub fn schema(&self) -> &Value {
        &self.schema.value
    }

    /// What a configuration gets wrong by the schema; where that takes too long, this is what it gets wrong.
    async fn mistakes(&self, config: &Value) -> Result<Vec<Mistake>, Busy> {
        self.schema.mistakes(config).await.or_else(|undone| match undone {
            Undone::Busy => Err(Busy),
            Undone::Schema(why) => {
                let message = format!("it cannot be checked against the plugin's schema: {why}");
                Ok(vec![Mistake { pointer: String::new(), masked: message.clone(), message }])
            }
        })
    }

    /// What a connection of this plugin gets wrong, each fault by its place in the body of the request.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn validate<'a>(
        &self,
        kind: Kind,
        config: &Value,
        secrets: impl Fn(&str) -> Option<&'a str>,
        names: &[&str],
    ) -> Result<Vec<Fault>, Busy> {
        let mut faults = Vec::new();
        if config.to_string().len() > self.config_bytes {
            return Ok(vec![Fault::new("/config", format!("at most {} KiB", self.config_bytes >> 10))]);
        }
        for mistake in self.mistakes(config).await? {
            faults.push(Fault::new(format!("/config{}", mistake.pointer), mistake.message));
        }
        for slot in &self.slots {
            let supplied = !(kind == Kind::IdentityProvider && slot.name == ACCESS_TOKEN);
            let pointer = format!("/secrets/{}", slot.name);
            match secrets(&slot.name) {
                Some(_) if !supplied => {
                    faults.push(Fault::new(pointer, "is not supplied: it is the access token of each sign-in"))
                }
                None if supplied => faults.push(Fault::new(pointer, format!("is needed: {}", slot.description))),
                Some(value) if value.is_empty() || value.len() > self.secret_bytes => {
                    faults.push(Fault::new(pointer, format!("1 to {} bytes", self.secret_bytes)));
                }
                Some(value) if !slot.hosts.is_empty() && http::HeaderValue::from_str(value).is_err() => {
                    faults.push(Fault::new(
                        pointer,
                        "goes into a header, so it must not hold line breaks or control characters",
                    ));
                }
                _ => {}
            }
        }
        for name in names {
            if !self.slots.iter().any(|slot| slot.name == *name) {
                let known: Vec<&str> =
                    self.slots.iter().map(|slot| slot.name.as_str()).filter(|name| *name != ACCESS_TOKEN).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let pointer = name.replace('~', "~0").replace('/', "~1");
                faults.push(Fault::new(
                    format!("/secrets/{pointer}"),
                    format!("is no secret of this plugin; it has: {known}"),
                ));
            }
        }
        Ok(faults)
    }

    /// What a stored connection would get wrong, were it to run this version; of its secrets, only the names are known. No
    /// value is in it: who reads this may be of another organization.
    ///
    /// # Errors
    /// [`Busy`].
    pub async fn misfits(&self, kind: Kind, config: &Value, secrets: &[String]) -> Result<Vec<Fault>, Busy> {
        let mistakes = self.mistakes(config).await?.into_iter();
        let mut faults: Vec<Fault> =
            mistakes.map(|mistake| Fault::new(format!("/config{}", mistake.pointer), mistake.masked)).collect();
        for slot in self.slots.iter().filter(|slot| !secrets.contains(&slot.name)) {
            if !(kind == Kind::IdentityProvider && slot.name == ACCESS_TOKEN) {
                faults.push(Fault::new(format!("/secrets/{}", slot.name), "is needed and not set"));
            }
        }
        let grants = Grants::resolve(&self.capabilities, &self.slots, config, &BTreeMap::new());
        for fault in grants.err().unwrap_or_default() {
            let pointer = format!("/config/{}", fault.property);
            if !faults.iter().any(|known| known.pointer == pointer) {
                faults.push(Fault::new(pointer, "no address can be made of it"));
            }
        }
        Ok(faults)
    }

    /// As the API shows it.
    pub fn view(&self, kind: Kind) -> ManifestView {
        let hosts = |slot: &SecretSlot| slot.hosts.iter().map(|host| host.source().to_owned()).collect();
        ManifestView {
            kind,
            name: self.name.clone(),
            version: self.version.clone(),
            title: self.title.clone(),
            description: self.description.clone(),
            config_schema: self.schema.value.clone(),
            secrets: self
                .slots
                .iter()
                .map(|slot| SecretView {
                    name: slot.name.clone(),
                    description: slot.description.clone(),
                    hosts: hosts(slot),
                })
                .collect(),
            capabilities: self.capabilities.iter().map(CapabilityView::of).collect(),
        }
    }
}

fn slots(said: &[guest::SecretSlot]) -> Result<Vec<SecretSlot>, ManifestError> {
    if said.len() > SLOTS {
        return wrong(format!("secrets: {} of them; at most {SLOTS} are allowed", said.len()));
    }
    let mut names = BTreeSet::new();
    let mut slots = Vec::new();
    for slot in said {
        if slot.hosts.len() > SLOTS || slot.description.len() > TEXT || slot.hosts.iter().any(|host| host.len() > TEXT)
        {
            let what = format!("at most {SLOTS} hosts, and {TEXT} bytes for each and for the description");
            return wrong(format!("secret `{}`: {what}", slot.name.chars().take(64).collect::<String>()));
        }
        if !is_name(&slot.name) || !names.insert(&slot.name) {
            return wrong(format!("secret `{}`: lower-case words joined by hyphens, each once", slot.name));
        }
        let hosts = slot.hosts.iter().map(|host| Template::http(host)).collect::<Result<_, _>>();
        let hosts = hosts.map_err(|error| ManifestError::Wrong(format!("secret `{}`: {error}", slot.name)))?;
        slots.push(SecretSlot { name: slot.name.clone(), description: slot.description.clone(), hosts });
    }
    Ok(slots)
}

fn capabilities(said: &[guest::Capability], slots: &[SecretSlot]) -> Result<Vec<Capability>, ManifestError> {
    if said.len() > CAPABILITIES {
        return wrong(format!("capabilities: {} of them; at most {CAPABILITIES} are allowed", said.len()));
    }
    said.iter()
        .map(|capability| match capability {
            guest::Capability::Http(source) | guest::Capability::Tcp(source) if source.len() > TEXT => {
                wrong(format!("a capability has {} bytes; at most {TEXT} are allowed", source.len()))
            }
            guest::Capability::Http(source) => Template::http(source)
                .map(Capability::Http)
                .map_err(|error| ManifestError::Wrong(format!("http: {error}"))),
            guest::Capability::Tcp(source) => Template::tcp(source)
                .map(Capability::Tcp)
                .map_err(|error| ManifestError::Wrong(format!("tcp: {error}"))),
            guest::Capability::Directory(name) if is_name(name) => Ok(Capability::Directory(name.clone())),
            guest::Capability::Directory(name) => {
                wrong(format!("directory `{name}`: lower-case words joined by hyphens"))
            }
            guest::Capability::RevealSecret(name) if slots.iter().any(|slot| slot.name == *name) => {
                Ok(Capability::RevealSecret(name.clone()))
            }
            guest::Capability::RevealSecret(name) => wrong(format!("reveal-secret `{name}`: there is no such secret")),
        })
        .collect()
}

/// What a version of a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = PluginManifest)]
pub struct ManifestView {
    /// What the plugin and its connections are for.
    pub kind: Kind,
    /// The plugin's name, unique among those of its kind: what a connection gives as `plugin`.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$")]
    pub name: String,
    /// The version that the manifest is of.
    #[schema(value_type = SemanticVersion)]
    pub version: String,
    /// The display name.
    #[schema(min_length = 1, max_length = 200)]
    pub title: String,
    /// What the plugin does, in a sentence or two; may be empty.
    #[schema(max_length = 4000)]
    pub description: String,
    /// JSON Schema, draft 2020-12, of a connection's `config`.
    #[schema(value_type = BTreeMap<String, Value>)]
    pub config_schema: Value,
    /// What a connection supplies in `secrets`. An identity provider may also name `access-token` here, which no connection
    /// supplies: it is the access token of the sign-in under way.
    #[schema(max_items = 32)]
    pub secrets: Vec<SecretView>,
    /// What the plugin may reach beyond its own memory; it gets nothing that is not listed.
    #[schema(max_items = 64)]
    pub capabilities: Vec<CapabilityView>,
}

/// A secret that a plugin asks for; never a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = PluginSecret)]
pub struct SecretView {
    /// The secret's name, by which a connection supplies it.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$")]
    pub name: String,
    /// What to put there; may be empty.
    #[schema(max_length = 1000)]
    pub description: String,
    /// Where the plugin's requests may carry it: addresses, in which `*` and `{config.property}` are placeholders. Empty where
    /// it may be sent nowhere.
    #[schema(max_items = 32, max_length = 1000)]
    pub hosts: Vec<String>,
}

/// Something beyond its own memory that a plugin asks to reach.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = PluginCapability)]
pub struct CapabilityView {
    /// What kind of thing it asks for.
    #[serde(rename = "type")]
    pub kind: CapabilityKind,
    /// The addresses (`http`, `tcp`), in which `*` and `{config.property}` are placeholders, the folder's name (`directory`) or
    /// the secret's name (`reveal_secret`).
    #[schema(max_length = 1000)]
    pub value: String,
}

/// What a plugin may ask for: to send HTTP requests (`http`), to open TCP connections (`tcp`), a folder of each connection's own
/// (`directory`), or to read a secret itself (`reveal_secret`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PluginCapabilityType)]
pub enum CapabilityKind {
    /// A folder.
    Directory,
    /// HTTP requests.
    Http,
    /// The text of a secret.
    RevealSecret,
    /// TCP connections.
    Tcp,
}

impl CapabilityKind {
    /// As in the API and in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            CapabilityKind::Directory => "directory",
            CapabilityKind::Http => "http",
            CapabilityKind::RevealSecret => "reveal_secret",
            CapabilityKind::Tcp => "tcp",
        }
    }
}

impl CapabilityView {
    fn of(capability: &Capability) -> Self {
        let (kind, value) = match capability {
            Capability::Http(template) => (CapabilityKind::Http, template.source()),
            Capability::Tcp(template) => (CapabilityKind::Tcp, template.source()),
            Capability::Directory(name) => (CapabilityKind::Directory, name.as_str()),
            Capability::RevealSecret(name) => (CapabilityKind::RevealSecret, name.as_str()),
        };
        Self { kind, value: value.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said() -> guest::Manifest {
        guest::Manifest {
            name: "web-hook".into(),
            version: "1.2.3".into(),
            title: "Web hook".into(),
            description: String::new(),
            config_schema: json!({"type": "object", "additionalProperties": false, "required": ["url"],
                "properties": {"url": {"type": "string", "format": "uri"}}})
            .to_string(),
            secrets: vec![guest::SecretSlot {
                name: "token".into(),
                description: "The token".into(),
                hosts: vec!["{config.url}".into()],
            }],
            capabilities: vec![guest::Capability::Http("{config.url}".into())],
        }
    }

    #[tokio::test]
    async fn the_schemas_take_what_the_server_takes() {
        let schema = |schema| serde_json::to_value::<utoipa::openapi::RefOr<utoipa::openapi::Schema>>(schema).unwrap();
        let manifest = schema(<ManifestView as utoipa::PartialSchema>::schema());
        let secret = schema(<SecretView as utoipa::PartialSchema>::schema());
        let capability = schema(<CapabilityView as utoipa::PartialSchema>::schema());
        assert_eq!(manifest["properties"]["secrets"]["maxItems"], SLOTS);
        assert_eq!(manifest["properties"]["capabilities"]["maxItems"], CAPABILITIES);
        assert_eq!(secret["properties"]["hosts"]["maxItems"], SLOTS);
        for text in [
            &secret["properties"]["description"],
            &secret["properties"]["hosts"]["items"],
            &capability["properties"]["value"],
        ] {
            assert_eq!(text["maxLength"], TEXT);
        }
        assert_eq!(manifest["properties"]["name"]["pattern"], secret["properties"]["name"]["pattern"]);
        let name = jsonschema::draft202012::new(&manifest["properties"]["name"]).unwrap();
        let long = "x".repeat(65);
        for text in ["a", "web-hook-2", "", "-", "a-", "-a", "a--b", "A", "a_b", "é", &long[..64], &long] {
            assert_eq!(name.is_valid(&text.into()), is_name(text), "{text:?}");
        }
        let stored = serde_json::to_value([CapabilityKind::Directory, CapabilityKind::RevealSecret]).unwrap();
        assert_eq!(stored, json!([CapabilityKind::Directory.as_str(), CapabilityKind::RevealSecret.as_str()]));
    }

    #[tokio::test]
    async fn a_good_manifest_passes_and_each_slip_is_named() {
        let good = Manifest::check(&said(), &Bounds::default()).await.unwrap();
        assert_eq!(good.view(Kind::AuditSink).capabilities[0].kind, CapabilityKind::Http);
        type Spoil = fn(&mut guest::Manifest);
        let slips: &[(&str, Spoil)] = &[
            ("name", |m| m.name = "Web".into()),
            ("name", |m| m.name = "web--hook".into()),
            ("version", |m| m.version = "1".into()),
            ("title", |m| m.title.clear()),
            ("config-schema", |m| m.config_schema = "{".into()),
            ("config-schema", |m| m.config_schema = "[]".into()),
            ("config-schema", |m| m.config_schema = json!({"type": "wrong"}).to_string()),
            ("draft", |m| m.config_schema = json!({"$schema": "http://json-schema.org/draft-07/schema#"}).to_string()),
            ("config-schema", |m| m.config_schema = json!({"$ref": "https://evil.example/schema"}).to_string()),
            ("secret", |m| m.secrets[0].name = "T".into()),
            ("secret", |m| m.secrets.push(m.secrets[0].clone())),
            ("secret", |m| m.secrets[0].hosts = vec!["nonsense".into()]),
            ("http", |m| m.capabilities = vec![guest::Capability::Http("ftp://a".into())]),
            ("{config.other}", |m| m.capabilities = vec![guest::Capability::Http("{config.other}".into())]),
            ("tcp", |m| m.capabilities = vec![guest::Capability::Tcp("a".into())]),
            ("directory", |m| m.capabilities = vec![guest::Capability::Directory("../etc".into())]),
            ("at most 32 are", |m| m.secrets = vec![m.secrets[0].clone(); 33]),
            ("at most 32 hosts", |m| m.secrets[0].hosts = vec!["https://a.example".into(); 33]),
            ("1000 bytes", |m| m.secrets[0].description = "x".repeat(1001)),
            ("at most 64 are", |m| m.capabilities = vec![guest::Capability::Http("https://a.example".into()); 65]),
            ("at most 1000 are", |m| m.capabilities = vec![guest::Capability::Http("https://a".repeat(1000))]),
            ("reveal-secret", |m| m.capabilities = vec![guest::Capability::RevealSecret("other".into())]),
        ];
        for (named, spoil) in slips {
            let mut manifest = said();
            spoil(&mut manifest);
            let error = Manifest::check(&manifest, &Bounds::default())
                .await
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.contains(named), "expected `{named}` in: {error:?}");
        }
    }

    #[tokio::test]
    async fn faults_of_a_connection_are_named_by_pointer() {
        let manifest = Manifest::check(&said(), &Bounds::default()).await.unwrap();
        let pointers = async |config: Value, token: Option<&str>, names: &[&str]| -> Vec<String> {
            let token = token.map(str::to_owned);
            let token = |name: &str| token.as_deref().filter(|_| name == "token");
            let faults = manifest.validate(Kind::AuditSink, &config, token, names).await.unwrap();
            faults.into_iter().map(|fault| fault.pointer).collect()
        };
        let good = json!({"url": "https://a.example"});
        assert!(pointers(good.clone(), Some("t"), &["token"]).await.is_empty());
        assert_eq!(pointers(good.clone(), None, &[]).await, ["/secrets/token"]);
        assert_eq!(pointers(good.clone(), Some(""), &["token"]).await, ["/secrets/token"]);
        assert_eq!(pointers(good.clone(), Some("a\nb"), &["token"]).await, ["/secrets/token"]);
        assert_eq!(pointers(good, Some("t"), &["token", "a/b"]).await, ["/secrets/a~1b"]);
        assert_eq!(pointers(json!({"url": 1}), Some("t"), &["token"]).await, ["/config/url"]);
        assert_eq!(pointers(json!({}), Some("t"), &["token"]).await, ["/config"]);
    }

    #[tokio::test]
    async fn a_configuration_and_a_secret_are_as_long_as_is_set() {
        let bounds = Bounds { config_bytes: 30, secret_bytes: 4, ..Bounds::default() };
        let manifest = Manifest::check(&said(), &bounds).await.unwrap();
        for (url, token, expected) in [
            ("https://a.example", "four", &[][..]),
            ("https://a.example", "fives", &["/secrets/token"]),
            ("https://a.example/far", "four", &["/config"]),
        ] {
            let faults = manifest.validate(Kind::AuditSink, &json!({ "url": url }), |_| Some(token), &["token"]).await;
            let pointers: Vec<String> = faults.unwrap().into_iter().map(|fault| fault.pointer).collect();
            assert_eq!(pointers, expected, "{url} {token}");
        }
    }
}
