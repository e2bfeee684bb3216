//! Signs people in with GitHub (OAuth 2): github.com, GitHub Enterprise Server or GitHub Enterprise Cloud with data
//! residency.
//!
//! | setting | | |
//! |---|---|---|
//! | `url` | `https://github.com` | Where people sign in; the address of a GitHub Enterprise Server, or `https://NAME.ghe.com`. |
//! | `api_url` | see below | The REST API. Needed only where it isn't `https://api.github.com` (for github.com) or `{url}/api/v3` (for a GitHub Enterprise Server): at `ghe.com` it is `https://api.NAME.ghe.com`. |
//! | `client_id` | needed | The client ID of the OAuth app or GitHub App. |
//! | `organizations` | `[]` | Where it names any, only their members come in. |
//! | `teams` | `false` | Take teams as groups too, as `ORGANIZATION/TEAM`. |
//! | `default_role`, `group_roles` | | The roles of people who sign in for the first time. |
//! | `parameters` | `{}` | Extra parameters of the authorization request, such as `allow_signup`. |
//! | `token_endpoint_auth_method` | `client_secret_basic` | `client_secret_post` where a proxy before a GitHub Enterprise takes `Authorization` for itself. |
//!
//! Secret `client-secret`: the app's.
//!
//! **In GitHub**: register an OAuth app with the server's `/auth/sso/callback` as its callback address. The scopes
//! `read:user user:email read:org` are asked for. An organization that restricts OAuth apps is invisible to them until an
//! owner approves the app; its members then look as if they weren't any. A GitHub App has permissions in place of scopes:
//! give it *Email addresses: read* and *Members: read*. A browser can ask for fewer scopes than it was sent to ask for;
//! then nobody is signed in, since organizations would be missing.
//!
//! **Who somebody is**: the subject is the account's numeric id: a login name can be changed and then be taken by somebody
//! else. The address is the primary one of `/user/emails`, if GitHub says that it is verified; the one that a profile shows
//! is never looked at. Groups are the login names of the organizations of `/user/orgs`. Policies see the login name as
//! `principal.attributes.login`.

mod api;

use std::collections::BTreeMap;

use kaizen_plugin::identity::{self, Client, Grant, Identity, Protocol};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, Capability, Error, IdentityProvider, Manifest, Plugin, Result, SecretSlot, Url};
use serde::Deserialize;

use api::Api;

/// github.com, or a GitHub Enterprise.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// Where people sign in: github.com, or the address of a GitHub Enterprise.
    #[serde(default = "default_url")]
    url: Url,
    /// The REST API, where it is neither `https://api.github.com` nor `{url}/api/v3`.
    #[serde(default)]
    api_url: Option<Url>,
    /// Only members of these organizations (their login names) come in; everybody, where none is named.
    #[serde(default)]
    #[schemars(length(max = 100), inner(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")))]
    organizations: Vec<String>,
    /// Whether to take teams as groups too, as `ORGANIZATION/TEAM`.
    #[serde(default)]
    teams: bool,
    /// How the server sends the client secret to the token endpoint; GitHub takes both.
    #[serde(default)]
    #[expect(dead_code, reason = "the server uses it")]
    token_endpoint_auth_method: Option<AuthMethod>,
    #[serde(flatten)]
    client: Client,
}

/// How the client secret is sent (RFC 7591, section 2).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(crate = "schemars")]
pub enum AuthMethod {
    /// As HTTP Basic.
    ClientSecretBasic,
    /// In the form.
    ClientSecretPost,
}

/// Where people sign in, where nothing else is set.
const GITHUB: &str = "https://github.com";
/// Its API.
const API: &str = "https://api.github.com";

#[expect(clippy::expect_used, reason = "a constant, which a test parses")]
fn default_url() -> Url {
    Url::parse(GITHUB).expect("a good address")
}

impl Config {
    /// The address people sign in at, without a slash at the end.
    fn site(&self) -> Result<String> {
        identity::origin("url", &self.url)
    }

    /// The REST API.
    fn api(&self) -> Result<Url> {
        let url = match &self.api_url {
            Some(url) => url.clone(),
            None if self.url.host() == "github.com" => Url::parse(API)?,
            None if self.url.host().ends_with(".ghe.com") => {
                return Err(Error::Config(format!(
                    "api_url: it is needed at ghe.com, https://api.{}",
                    self.url.host()
                )));
            }
            None => self.url.join(&["api", "v3"])?,
        };
        if !url.is_https() && !url.is_loopback() {
            return Err(Error::Config("api_url: it must be https (http is for this machine only)".to_owned()));
        }
        Ok(url)
    }
}

struct Github;

impl Plugin for Github {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "github",
        version: env!("CARGO_PKG_VERSION"),
        title: "GitHub",
        description: "Signs people in with GitHub or GitHub Enterprise; their organizations are their groups.",
        secrets: &[
            SecretSlot {
                name: "client-secret",
                description: "A client secret of the OAuth app; the server sends it to the token endpoint only.",
                hosts: &[],
            },
            SecretSlot {
                name: "access-token",
                description: "The access token of the sign-in under way, to ask who it is of.",
                hosts: &[API, "{config.api_url}", "{config.url}"],
            },
        ],
        capabilities: &[Capability::Http(API), Capability::Http("{config.api_url}"), Capability::Http("{config.url}")],
    };
}

impl IdentityProvider for Github {
    fn begin(call: &Call<Config>) -> Result<Protocol> {
        let site = call.config.site()?;
        call.config.api()?;
        Ok(Protocol::OAuth2 {
            authorization_endpoint: format!("{site}/login/oauth/authorize"),
            token_endpoint: format!("{site}/login/oauth/access_token"),
            scopes: ["read:user", "user:email", "read:org"].map(str::to_owned).to_vec(),
            parameters: call.config.client.parameters(),
        })
    }

    /// Nothing of the grant is looked at: OAuth 2 verifies nothing about a person, GitHub is asked with the token.
    fn identify(call: &Call<Config>, _grant: &Grant) -> Result<Identity> {
        let config = &call.config;
        let api = Api::new(config.api()?);
        let user = api.user()?;
        let organizations = api.organizations()?;
        let wanted = &config.organizations;
        let member = |wanted: &String| organizations.iter().any(|own| own.eq_ignore_ascii_case(wanted));
        if !wanted.is_empty() && !wanted.iter().any(member) {
            return Err(Error::Rejected(format!(
                "{} is, as far as GitHub shows this app, a member of none of: {}. An organization that restricts OAuth apps \
                 has to approve it",
                user.login,
                wanted.join(", ")
            )));
        }
        let email = api.verified_email()?;
        let mut groups = organizations;
        if config.teams {
            groups.extend(api.teams()?);
        }
        if groups.len() > identity::MOST_GROUPS {
            return Err(Error::Rejected(format!(
                "{} is in more than {} organizations and teams",
                user.login,
                identity::MOST_GROUPS
            )));
        }
        Ok(Identity {
            subject: user.id.to_string(),
            email_verified: email.is_some(),
            email,
            name: Some(user.name.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| user.login.clone())),
            groups,
            attributes: BTreeMap::from([("login".to_owned(), user.login.into())]),
        })
    }
}

kaizen_plugin::identity_provider!(Github);

#[cfg(test)]
mod tests;
