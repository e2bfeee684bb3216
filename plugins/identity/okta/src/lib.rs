//! Signs people in with Okta: its organization's own authorization server, or a custom one.
//!
//! | setting | | |
//! |---|---|---|
//! | `org_url` | needed | The organization's address, `https://example.okta.com`, `https://example.oktapreview.com` or a custom domain; not the `-admin` one. |
//! | `authorization_server` | | A custom authorization server's id, such as `default` or `aus1a2b3c`. Without it the organization's own server is used. |
//! | `client_id` | needed | The client ID of the app integration (OIDC, Web application). |
//! | `scopes` | see below | What to ask for; `openid` is always asked for. |
//! | `groups_claim` | `groups` | The claim that holds a person's groups, or a JSON Pointer to it. |
//! | `name_claim`, `email_claim` | `name`, `email` | The same for name and address. |
//! | `trust_email` | `false` | Take addresses for verified although Okta doesn't say so. |
//! | `attributes` | `[]` | Claims that policies may use as `principal.attributes`. |
//! | `default_role`, `group_roles` | | The roles of people who sign in for the first time. |
//! | `required_claims` | `{}` | Claims that everybody who signs in must have, such as `{"hd": "example.com"}`: each with its value, or a list of which it has one. The server checks them. |
//! | `parameters` | `{}` | Extra parameters of the authorization request, such as `idp` (to pass through to another provider) or `prompt`. |
//!
//! Secret `client-secret`: the app integration's.
//!
//! **Groups**: the organization's own server gives them for the scope `groups`, which is asked for there, once the app
//! integration has a groups claim filter (*Sign On*, *OpenID Connect ID Token*). A custom server has no such scope unless
//! one is added; there, add a claim named `groups` of the type *Groups* to the ID token, for any scope. A scope that a
//! server does not know makes Okta refuse every sign-in (`invalid_scope`), so `groups` is asked for at the organization's
//! own server only.
//!
//! This plugin makes no requests: the server runs the protocol, and asks the userinfo endpoint for what the ID token leaves
//! out.

use kaizen_plugin::identity::{self, Claims, Client, Grant, Identity, Protocol};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, Error, IdentityProvider, Manifest, Plugin, Result, SecretSlot, Url};
use serde::Deserialize;

/// An Okta organization.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The organization's address, e.g. `https://example.okta.com` or its custom domain.
    org_url: Url,
    /// The id of a custom authorization server, such as `default`; without one the organization's own server is used.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,64}$"))]
    authorization_server: Option<String>,
    /// What to ask for. Without it: `openid profile email`, and `groups` at the organization's own server.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[!#-\[\]-~]+$")))]
    scopes: Option<Vec<String>>,
    #[serde(flatten)]
    client: Client,
    #[serde(flatten)]
    claims: Claims,
}

struct Okta;

impl Plugin for Okta {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "okta",
        version: env!("CARGO_PKG_VERSION"),
        title: "Okta",
        description: "Signs people of an Okta organization in, with their groups.",
        secrets: &[SecretSlot {
            name: "client-secret",
            description: "The client secret of the app integration; the server sends it to the token endpoint only.",
            hosts: &[],
        }],
        capabilities: &[],
    };
}

/// Domains of Okta's own, whose organizations have an administration site beside the one people sign in at.
const OKTA_DOMAINS: [&str; 4] = [".okta.com", ".oktapreview.com", ".okta-emea.com", ".okta-gov.com"];

impl IdentityProvider for Okta {
    fn begin(call: &Call<Config>) -> Result<Protocol> {
        let config = &call.config;
        let org = identity::origin("org_url", &config.org_url)?;
        let administration =
            OKTA_DOMAINS.iter().find_map(|domain| config.org_url.host().strip_suffix(domain)?.strip_suffix("-admin"));
        if let Some(name) = administration {
            return Err(Error::Config(format!(
                "org_url: this is the administration site; give the address without `-admin`, https://{name}.…"
            )));
        }
        let (issuer, default) = match &config.authorization_server {
            None => (org, &["openid", "profile", "email", "groups"][..]),
            Some(server) => (format!("{org}/oauth2/{server}"), &["openid", "profile", "email"][..]),
        };
        let scopes = config.scopes.clone().unwrap_or_else(|| default.iter().map(|&scope| scope.to_owned()).collect());
        Ok(Protocol::Oidc { issuer, scopes, parameters: config.client.parameters() })
    }

    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        call.config.claims.identity(grant)
    }
}

kaizen_plugin::identity_provider!(Okta);

#[cfg(test)]
mod tests {
    use kaizen_plugin::testing;
    use serde_json::{Value, json};

    use super::*;

    fn call(more: Value) -> Call<Config> {
        let mut config = json!({"org_url": "https://example.okta.com", "client_id": "0oa1"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        testing::call::<Okta>(&config.to_string())
    }

    #[test]
    fn each_authorization_server_has_its_own_issuer_and_scopes() {
        for (config, issuer, scopes) in [
            (json!({}), "https://example.okta.com", "openid profile email groups"),
            (
                json!({"org_url": "https://login.example.com/"}),
                "https://login.example.com",
                "openid profile email groups",
            ),
            (
                json!({"authorization_server": "default"}),
                "https://example.okta.com/oauth2/default",
                "openid profile email",
            ),
            (
                json!({"org_url": "https://example.oktapreview.com", "authorization_server": "aus1a2B", "scopes": ["team"]}),
                "https://example.oktapreview.com/oauth2/aus1a2B",
                "team",
            ),
        ] {
            let Ok(Protocol::Oidc { issuer: found, scopes: asked, .. }) = Okta::begin(&call(config)) else { panic!() };
            assert_eq!((found.as_str(), asked.join(" ").as_str()), (issuer, scopes));
        }
    }

    #[test]
    fn settings_that_can_not_be_right_are_named() {
        for (config, named) in [
            (json!({"org_url": "https://example-admin.okta.com"}), "org_url: "),
            (json!({"org_url": "http://example.okta.com"}), "org_url: "),
            (json!({"org_url": "https://example.okta.com/oauth2/default"}), "org_url: "),
        ] {
            let error = Okta::begin(&call(config)).unwrap_err();
            assert!(matches!(&error, Error::Config(why) if why.starts_with(named)), "{error}");
        }
    }
}
