//! Signs people in with Okta: its organization's own authorization server, or a custom one.
//!
//! | setting | | |
//! |---|---|---|
//! | `org_url` | needed | The organization's address, `https://example.okta.com`, `https://example.oktapreview.com` or a custom domain; not the `-admin` one. |
//! | `authorization_server` | | A custom authorization server's id, such as `default` or `aus1a2b3c`. Without it the organization's own server is used. |
//! | `client_id` | needed | The client ID of the app integration (OIDC, Web application). |
//! | `scopes` | see below | What to ask for; `openid` is always asked for. |
//! | `groups_claim` | `groups` | The claim that holds a person's groups, or a JSON Pointer to it. |
//! | `trust_email` | `false` | Take addresses for verified although Okta doesn't say so. |
//! | `attributes` | `[]` | Claims that policies may use as `principal.attributes`. |
//! | `default_role`, `group_roles` | | The roles of people who sign in for the first time. |
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

use std::collections::BTreeMap;

use kaizen_plugin::identity::{self, Grant, Identity, Protocol, Role};
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
    /// The client ID of the app integration.
    #[schemars(length(min = 1, max = 512))]
    #[expect(dead_code, reason = "the server uses it")]
    client_id: String,
    /// What to ask for. Without it: `openid profile email`, and `groups` at the organization's own server.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128), regex(pattern = r"^[!#-\[\]-~]+$")))]
    scopes: Option<Vec<String>>,
    /// The claim that holds a person's groups, or a JSON Pointer to it.
    #[serde(default = "default_groups")]
    #[schemars(length(min = 1, max = 256))]
    groups_claim: String,
    /// Take mail addresses for verified even though Okta doesn't say so with `email_verified`. Set it only where people
    /// can't choose their address themselves.
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
    /// The role that each of Okta's groups gives people who sign in for the first time.
    #[serde(default)]
    #[expect(dead_code, reason = "the server uses it")]
    group_roles: BTreeMap<String, Role>,
    /// Extra parameters of the authorization request, such as `idp` or `prompt`.
    #[serde(default)]
    parameters: BTreeMap<String, String>,
}

fn default_groups() -> String {
    "groups".to_owned()
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
        let mut scopes =
            config.scopes.clone().unwrap_or_else(|| default.iter().map(|&scope| scope.to_owned()).collect());
        if !scopes.iter().any(|scope| scope == "openid") {
            scopes.insert(0, "openid".to_owned());
        }
        Ok(Protocol::Oidc { issuer, scopes, parameters: identity::parameters(&config.parameters)? })
    }

    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        let config = &call.config;
        let subject = grant.subject()?.to_owned();
        let (email, email_verified) = match grant.email("email") {
            Some((email, verified)) => (Some(email), verified || config.trust_email),
            None => (None, false),
        };
        Ok(Identity {
            subject,
            email,
            email_verified,
            name: grant.name("name"),
            groups: grant.groups(&config.groups_claim),
            attributes: grant.attributes(&config.attributes),
        })
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

    fn grant(claims: Value, userinfo: Value) -> Grant {
        Grant { claims: claims.as_object().unwrap().clone(), userinfo: userinfo.as_object().unwrap().clone() }
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
                "openid team",
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
            (json!({"parameters": {"state": "x"}}), "parameters: "),
        ] {
            let error = Okta::begin(&call(config)).unwrap_err();
            assert!(matches!(&error, Error::Config(why) if why.starts_with(named)), "{error}");
        }
    }

    #[test]
    fn claims_become_an_identity_wherever_they_are() {
        let claims = json!({"sub": "00u1", "name": "Ada L", "groups": ["Everyone", "Engineers"], "dept": "R&D"});
        let userinfo = json!({"sub": "00u1", "email": "a@example.com", "email_verified": true, "groups": ["other"]});
        let identity =
            Okta::identify(&call(json!({"attributes": ["dept"]})), &grant(claims.clone(), userinfo)).unwrap();
        assert_eq!(identity.subject, "00u1");
        assert_eq!((identity.email.as_deref(), identity.email_verified), (Some("a@example.com"), true));
        assert_eq!(identity.groups, ["Everyone", "Engineers"]);
        assert_eq!(json!(identity.attributes), json!({"dept": "R&D"}));

        // A thin ID token: the organization's own server leaves the rest to userinfo.
        let thin = grant(json!({"sub": "00u1"}), json!({"sub": "00u1", "groups": ["Ops"], "email": "a@example.com"}));
        let identity = Okta::identify(&call(json!({})), &thin).unwrap();
        assert_eq!((identity.groups, identity.email_verified), (vec!["Ops".to_owned()], false));

        let custom = call(json!({"groups_claim": "/teams/0/names", "trust_email": true}));
        let claims = json!({"sub": "00u1", "email": "a@example.com", "teams": [{"names": ["t"]}]});
        let identity = Okta::identify(&custom, &grant(claims, json!({}))).unwrap();
        assert_eq!((identity.groups, identity.email_verified), (vec!["t".to_owned()], true));
    }

    #[test]
    fn a_person_nobody_can_be_told_from_is_refused() {
        for (claims, userinfo) in [(json!({}), json!({})), (json!({"sub": "1"}), json!({"sub": "2"}))] {
            assert!(matches!(Okta::identify(&call(json!({})), &grant(claims, userinfo)), Err(Error::Rejected(_))));
        }
    }
}
