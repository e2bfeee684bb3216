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
//! | `required_claims` | `{}` | Claims that everybody who signs in must have, such as `{"hd": "example.com"}`: each with its value, or a list of which it has one. The server checks them. |
//! | `parameters` | `{}` | Extra parameters of the authorization request, such as `prompt` or `audience`. |
//!
//! Secret `client-secret`: the one that the provider gave this application.
//!
//! The server runs the protocol; this plugin only says against whom, and which claims mean what. It makes no requests,
//! so it asks for no capability. `client_id` and the secret `client-secret` are the server's to use, see
//! [`IdentityProvider`].

use kaizen_plugin::identity::{Claims, Client, Grant, Identity, Protocol};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, Error, IdentityProvider, Manifest, Plugin, Result, SecretSlot};
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
    /// What to ask for. `openid` is always asked for.
    #[serde(default = "default_scopes")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[!#-\[\]-~]+$")))]
    scopes: Vec<String>,
    #[serde(flatten)]
    client: Client,
    #[serde(flatten)]
    claims: Claims,
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email"].map(str::to_owned).to_vec()
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
        let Config { issuer, scopes, client, .. } = &call.config;
        if issuer.ends_with("/.well-known/openid-configuration") {
            let why = "issuer: give the issuer itself, without `/.well-known/openid-configuration`";
            return Err(Error::Config(why.to_owned()));
        }
        Ok(Protocol::Oidc { issuer: issuer.clone(), scopes: scopes.clone(), parameters: client.parameters() })
    }

    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        call.config.claims.identity(grant)
    }
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
            scopes: vec!["groups".to_owned()],
            parameters: vec![("prompt".to_owned(), "login".to_owned())],
        };
        assert_eq!(begin(config), Ok(expected));
    }

    #[test]
    fn the_address_of_the_discovery_document_is_not_the_issuer() {
        let config = r#"{"issuer":"https://id.example.com/.well-known/openid-configuration","client_id":"k"}"#;
        assert!(matches!(begin(config), Err(Error::Config(why)) if why.starts_with("issuer: ")));
    }
}
