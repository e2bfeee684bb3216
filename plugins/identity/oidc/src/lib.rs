//! Signs people in with any OpenID Connect provider (OpenID Connect Core 1.0).
//!
//! | setting | | |
//! |---|---|---|
//! | `issuer` | needed | The issuer, exactly as the provider writes it in its tokens. |
//! | `client_id` | needed | The client id that the provider gave this application. |
//! | `scopes` | `openid profile email` | What to ask for. `openid` is always asked for. |
//! | `groups_claim` | `groups` | The claim that holds a person's groups, or a JSON Pointer to it, such as `/realm_access/roles`. |
//! | `name_claim`, `email_claim` | `name`, `email` | The same for name and address. |
//! | `trust_email` | `false` | Take addresses for verified although the provider doesn't say so with `email_verified`. |
//! | `attributes` | `[]` | Claims that policies may use as `principal.attributes`. |
//! | `default_role`, `group_roles` | | The roles of people who sign in for the first time. |
//! | `parameters` | `{}` | Extra parameters of the authorization request, such as `prompt` or `audience`. |
//!
//! Secret `client-secret`: the one that the provider gave this application.
//!
//! The server runs the protocol; this plugin only says against whom, and which claims mean what. It makes no requests,
//! so it asks for no capability. `client_id` and the secret `client-secret` are the server's to use, see
//! [`IdentityProvider`].

mod claims;

use std::collections::BTreeMap;

use kaizen_plugin::identity::{self, Grant, Identity, Protocol, Role};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, Error, IdentityProvider, Manifest, Plugin, Result, SecretSlot, Url};
use serde::Deserialize;

/// An OpenID Connect provider and what its claims mean.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The issuer, exactly as the provider writes it in its tokens. Its discovery document is at
    /// `{issuer}/.well-known/openid-configuration`.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[!-~]+$"))]
    issuer: String,
    /// The client id that the provider gave this application.
    #[schemars(length(min = 1, max = 512))]
    #[expect(dead_code, reason = "the server uses it")]
    client_id: String,
    /// What to ask for. `openid` is always asked for.
    #[serde(default = "default_scopes")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[!#-\[\]-~]+$")))]
    scopes: Vec<String>,
    /// The claim that holds a person's groups, or a JSON Pointer to it, such as `/realm_access/roles`.
    #[serde(default = "default_groups")]
    #[schemars(length(min = 1, max = 256))]
    groups_claim: String,
    /// The claim that holds a person's name, or a JSON Pointer to it.
    #[serde(default = "default_name")]
    #[schemars(length(min = 1, max = 256))]
    name_claim: String,
    /// The claim that holds a person's mail address, or a JSON Pointer to it.
    #[serde(default = "default_email")]
    #[schemars(length(min = 1, max = 256))]
    email_claim: String,
    /// Take mail addresses for verified even though the provider doesn't say so with `email_verified`. Set it only
    /// where people can't choose their address themselves.
    #[serde(default)]
    trust_email: bool,
    /// Claims that policies may use as `principal.attributes`. A JSON Pointer is called by its last part.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    attributes: Vec<String>,
    /// The role of people who sign in for the first time and are in none of the groups of `group_roles`; without one they
    /// are refused until somebody adds them.
    #[serde(default)]
    #[expect(dead_code, reason = "the server uses it")]
    default_role: Option<Role>,
    /// The role that each of the provider's groups gives people who sign in for the first time.
    #[serde(default)]
    #[expect(dead_code, reason = "the server uses it")]
    group_roles: BTreeMap<String, Role>,
    /// Extra parameters of the authorization request, such as `prompt` or `audience`.
    #[serde(default)]
    parameters: BTreeMap<String, String>,
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email"].map(str::to_owned).to_vec()
}

fn default_groups() -> String {
    "groups".to_owned()
}

fn default_name() -> String {
    "name".to_owned()
}

fn default_email() -> String {
    "email".to_owned()
}

struct Oidc;

impl Plugin for Oidc {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "oidc",
        version: env!("CARGO_PKG_VERSION"),
        title: "OpenID Connect",
        description: "Signs people in with any OpenID Connect provider.",
        secrets: &[SecretSlot {
            name: "client-secret",
            description: "The client secret that the provider gave this application; the server sends it to the token endpoint only.",
            hosts: &[],
        }],
        capabilities: &[],
    };
}

impl IdentityProvider for Oidc {
    fn begin(call: &Call<Config>) -> Result<Protocol> {
        let config = &call.config;
        check_issuer(&config.issuer)?;
        let mut scopes = config.scopes.clone();
        if !scopes.iter().any(|scope| scope == "openid") {
            scopes.insert(0, "openid".to_owned());
        }
        let parameters = identity::parameters(&config.parameters)?;
        Ok(Protocol::Oidc { issuer: config.issuer.clone(), scopes, parameters })
    }

    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        claims::identity(&call.config, grant)
    }
}

/// OpenID Connect Discovery 1.0, section 2: `https`, neither query nor fragment. Plain `http` is for development on one
/// machine.
fn check_issuer(issuer: &str) -> Result<()> {
    let fail = |why: &str| Err(Error::Config(format!("issuer: {why}")));
    let url = Url::parse(issuer).map_err(|error| Error::Config(format!("issuer: {error}")))?;
    if issuer.contains(['?', '#']) {
        return fail("it has a query or fragment; give it as the provider's tokens have it in `iss`");
    }
    if !url.is_https() && !url.is_loopback() {
        return fail("it must be https (http is for providers on this machine only)");
    }
    if issuer.ends_with("/.well-known/openid-configuration") {
        return fail("give the issuer itself, without `/.well-known/openid-configuration`");
    }
    Ok(())
}

kaizen_plugin::identity_provider!(Oidc);

#[cfg(test)]
mod tests {
    use kaizen_plugin::testing;

    use super::*;

    fn begin(config: &str) -> Result<Protocol> {
        Oidc::begin(&testing::call::<Oidc>(config))
    }

    #[test]
    fn the_protocol_is_as_configured() {
        let config = r#"{"issuer":"https://id.example.com/realms/a/","client_id":"k","scopes":["groups"],"parameters":{"prompt":"login"}}"#;
        let expected = Protocol::Oidc {
            issuer: "https://id.example.com/realms/a/".to_owned(),
            scopes: vec!["openid".to_owned(), "groups".to_owned()],
            parameters: vec![("prompt".to_owned(), "login".to_owned())],
        };
        assert_eq!(begin(config), Ok(expected));
    }

    #[test]
    fn an_issuer_that_can_not_be_right_is_refused() {
        for issuer in [
            "http://id.example.com",
            "https://id.example.com?x=1",
            "https://id.example.com/#a",
            "https://u:p@id.example.com",
            "https://id.example.com/.well-known/openid-configuration",
            "id.example.com",
        ] {
            let error = begin(&format!(r#"{{"issuer":"{issuer}","client_id":"k"}}"#)).unwrap_err();
            assert!(matches!(&error, Error::Config(message) if message.starts_with("issuer: ")), "{issuer}: {error}");
        }
        assert!(begin(r#"{"issuer":"http://127.0.0.1:9000","client_id":"k"}"#).is_ok());
    }

    #[test]
    fn parameters_can_not_weaken_the_protocol() {
        for name in identity::RESERVED_PARAMETERS {
            assert!(
                begin(&format!(r#"{{"issuer":"https://i","client_id":"k","parameters":{{"{name}":"x"}}}}"#)).is_err(),
                "{name}"
            );
        }
    }
}
