//! Who a plugin is and what it asks for.

use std::marker::PhantomData;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;

use crate::bindings::shared::exports::kaizen::plugin::manifest as raw;

/// What all three kinds have in common.
pub trait Plugin: 'static {
    /// The configuration of a connection. Its JSON Schema is derived and checked by the server before any call. Use
    /// `#[serde(deny_unknown_fields)]`, so that a misspelt setting is refused.
    type Config: DeserializeOwned + JsonSchema;

    /// Who the plugin is and what it asks for.
    const MANIFEST: Manifest;
}

/// Who a plugin is and what it asks for. The configuration's schema is added from [`Plugin::Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Lower-case words joined by hyphens, unique among installed plugins of the kind.
    pub name: &'static str,
    /// Semantic version; `env!("CARGO_PKG_VERSION")` fits.
    pub version: &'static str,
    /// What people see, e.g. `Nexus gateway`.
    pub title: &'static str,
    /// One sentence: what it does.
    pub description: &'static str,
    /// The secrets a connection must supply.
    pub secrets: &'static [SecretSlot],
    /// What the plugin needs to reach. Ask for no more: operators read this list.
    pub capabilities: &'static [Capability],
}

/// A secret that a connection must supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretSlot {
    /// Lower-case words joined by hyphens.
    pub name: &'static str,
    /// What it is and where to find it.
    pub description: &'static str,
    /// The hosts to which requests may carry it, as in [`Capability::Http`]. Empty: none may.
    pub hosts: &'static [&'static str],
}

/// Something outside the sandbox. In its text `{config.NAME}` stands for the connection's own value of a top-level
/// setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// HTTP to this scheme, host and port, e.g. `https://*.okta.com` or `{config.url}`.
    Http(&'static str),
    /// TCP to this host and port, e.g. `{config.host}:6514`.
    Tcp(&'static str),
    /// The folder that the operator offers under this name; it is at `/NAME`.
    Directory(&'static str),
    /// The plugin must see this secret itself, e.g. to sign with it.
    RevealSecret(&'static str),
}

/// The JSON Schema (draft 2020-12) of a configuration.
pub fn schema<C: JsonSchema>() -> String {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<C>();
    schema.as_value().to_string()
}

/// Connects a [`Plugin`]'s manifest to the component's exports.
pub struct Adapter<P>(PhantomData<P>);

impl<P: Plugin> raw::Guest for Adapter<P> {
    fn describe() -> raw::Manifest {
        let manifest = P::MANIFEST;
        raw::Manifest {
            name: manifest.name.to_owned(),
            version: manifest.version.to_owned(),
            title: manifest.title.to_owned(),
            description: manifest.description.to_owned(),
            config_schema: schema::<P::Config>(),
            secrets: manifest.secrets.iter().map(raw::SecretSlot::from).collect(),
            capabilities: manifest.capabilities.iter().map(raw::Capability::from).collect(),
        }
    }
}

impl From<&SecretSlot> for raw::SecretSlot {
    fn from(slot: &SecretSlot) -> Self {
        Self {
            name: slot.name.to_owned(),
            description: slot.description.to_owned(),
            hosts: slot.hosts.iter().map(|&host| host.to_owned()).collect(),
        }
    }
}

impl From<&Capability> for raw::Capability {
    fn from(capability: &Capability) -> Self {
        match *capability {
            Capability::Http(pattern) => Self::Http(pattern.to_owned()),
            Capability::Tcp(pattern) => Self::Tcp(pattern.to_owned()),
            Capability::Directory(name) => Self::Directory(name.to_owned()),
            Capability::RevealSecret(name) => Self::RevealSecret(name.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How to reach it.
    #[derive(serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Config {
        /// The address.
        url: crate::Url,
        /// How many at once.
        #[serde(default)]
        #[schemars(range(min = 1, max = 9))]
        limit: u32,
    }

    #[test]
    fn the_schema_is_2020_12_with_documentation_limits_and_no_strangers() {
        let schema: serde_json::Value = serde_json::from_str(&schema::<Config>()).unwrap();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["description"], "How to reach it.");
        assert_eq!(schema["type"], "object");
        assert_eq!(schema["required"], serde_json::json!(["url"]));
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["url"]["format"], "uri");
        assert_eq!(schema["properties"]["url"]["description"], "The address.");
        assert_eq!(schema["properties"]["limit"]["maximum"], 9);
        assert_eq!(schema["properties"]["limit"]["default"], 0);
    }
}
