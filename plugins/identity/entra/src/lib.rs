//! Signs people in with Microsoft Entra ID (formerly Azure Active Directory), one tenant for each connection.
//!
//! | setting | | |
//! |---|---|---|
//! | `tenant_id` | needed | The directory (tenant) ID, a GUID. Tokens of any other tenant are refused by their `tid`; `common` and `organizations` do not exist here. |
//! | `client_id` | needed | The application (client) ID of the app registration. |
//! | `authority` | `https://login.microsoftonline.com` | The sign-in address of the cloud: `https://login.microsoftonline.us` for US Government, `https://login.partner.microsoftonline.cn` for China. |
//! | `graph_url` | `https://graph.microsoft.com` | Microsoft Graph of the same cloud: `https://graph.microsoft.us`, `https://dod-graph.microsoft.us`, `https://microsoftgraph.chinacloudapi.cn`. |
//! | `groups` | `true` | Whether to take groups. They are object ids, as Entra has them. |
//! | `trust_email` | `false` | Take addresses for verified that Entra does not say so of, see below. |
//! | `attributes` | `[]` | Claims that policies may use as `principal.attributes`, e.g. `department`, `roles`. |
//! | `default_role`, `group_roles` | | The roles of people who sign in for the first time. |
//! | `required_claims` | `{}` | Claims that everybody who signs in must have, such as `{"hd": "example.com"}`: each with its value, or a list of which it has one. The server checks them. |
//! | `parameters` | `{}` | Extra parameters of the authorization request, such as `prompt` or `domain_hint`. |
//!
//! Secret `client-secret`: the app registration's.
//!
//! **In Entra**: register an application for "accounts in this organizational directory only", with the server's
//! `/auth/sso/callback` as a redirect URI of type Web; under *Token configuration* add the groups claim. Nothing else has
//! to be consented to: the delegated permission `User.Read`, which every app registration has, lets people read their own
//! groups.
//!
//! **Who somebody is**: the subject is `oid`, which stays the same when the application is registered anew (`sub` does
//! not) and is never given to another person.
//!
//! **Groups**: with more than about 200 groups Entra leaves them out of the token and says so (`_claim_names` or
//! `hasgroups`, "overage"). They are then read from `{graph_url}/v1.0/me/transitiveMemberOf`, page by page, with the
//! sign-in's own access token. Where that fails nobody is signed in: a person without their groups would get
//! other roles than theirs.
//!
//! **Mail addresses**: `email` in Entra's tokens can be set by the tenant's administrators, and for guests by others, so it
//! counts as verified only with the optional claim `xms_edov`, or with `trust_email`. A connection is pinned to one tenant,
//! so `trust_email` means: I trust the administrators of this tenant with every account here that has the same address.

mod groups;

use kaizen_plugin::identity::{self, Client, Grant, Identity, Protocol};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::{Call, Capability, Error, IdentityProvider, Manifest, Plugin, Result, SecretSlot, Url};
use serde::Deserialize;
use serde_json::Value;

/// One tenant of Microsoft Entra ID.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The directory (tenant) ID, a GUID. People of other tenants are refused.
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"))]
    tenant_id: String,
    /// The sign-in address of the cloud, where it is not the worldwide one, e.g. `https://login.microsoftonline.us`.
    #[serde(default = "default_authority")]
    authority: Url,
    /// Microsoft Graph of the same cloud, where it is not the worldwide one, e.g. `https://graph.microsoft.us`.
    #[serde(default = "default_graph_url")]
    graph_url: Url,
    /// Whether to take the groups that people are in. They are object ids.
    #[serde(default = "yes")]
    groups: bool,
    /// Take mail addresses for verified even though Entra doesn't say so (`xms_edov`). Then the administrators of the tenant
    /// are trusted with every account here that has the same address.
    #[serde(default)]
    trust_email: bool,
    /// Claims that policies may use as `principal.attributes`. A JSON Pointer is called by its last part.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    attributes: Vec<String>,
    #[serde(flatten)]
    client: Client,
}

/// Entra's worldwide cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// The tenant of personal Microsoft accounts, which anybody can open.
const PERSONAL: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
/// Graph of the worldwide cloud.
const GRAPH: &str = "https://graph.microsoft.com";

#[expect(clippy::expect_used, reason = "a constant, which a test parses")]
fn default_authority() -> Url {
    Url::parse(AUTHORITY).expect("a good address")
}

#[expect(clippy::expect_used, reason = "a constant, which a test parses")]
fn default_graph_url() -> Url {
    Url::parse(GRAPH).expect("a good address")
}

fn yes() -> bool {
    true
}

struct Entra;

impl Plugin for Entra {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "entra",
        version: env!("CARGO_PKG_VERSION"),
        title: "Microsoft Entra ID",
        description: "Signs people of one Microsoft Entra ID tenant in, with their groups.",
        secrets: &[
            SecretSlot {
                name: "client-secret",
                description: "A client secret of the app registration (its value, not its id); the server sends it to the token endpoint only.",
                hosts: &[],
            },
            SecretSlot {
                name: "access-token",
                description: "The access token of the sign-in under way, to read the person's groups.",
                hosts: &[GRAPH, "{config.graph_url}"],
            },
        ],
        capabilities: &[Capability::Http(GRAPH), Capability::Http("{config.graph_url}")],
    };
}

impl IdentityProvider for Entra {
    fn begin(call: &Call<Config>) -> Result<Protocol> {
        let config = &call.config;
        if config.tenant_id.eq_ignore_ascii_case(PERSONAL) {
            let why = "tenant_id: this is the one of personal Microsoft accounts, which anybody can open; give your directory's";
            return Err(Error::Config(why.to_owned()));
        }
        let authority = identity::origin("authority", &config.authority)?;
        let graph = identity::origin("graph_url", &config.graph_url)?;
        let scopes = ["openid", "profile", "email"].into_iter().map(str::to_owned);
        Ok(Protocol::Oidc {
            // The issuer in tokens has the tenant's GUID in lower case.
            issuer: format!("{authority}/{}/v2.0", config.tenant_id.to_ascii_lowercase()),
            // So that the access token is one for Graph, where groups (and userinfo) are read.
            scopes: scopes.chain([format!("{graph}/User.Read")]).collect(),
            parameters: config.client.parameters(),
        })
    }

    fn identify(call: &Call<Config>, grant: &Grant) -> Result<Identity> {
        let config = &call.config;
        // The server has compared the issuer, which has the tenant in it. `tid` is what Microsoft says to rely on.
        let tenant = grant.claims.get("tid").and_then(Value::as_str).unwrap_or_default();
        if !tenant.eq_ignore_ascii_case(&config.tenant_id) {
            return Err(Error::Rejected(format!(
                "the person is of another tenant (`tid`) than {}: sign in with an account of that tenant",
                config.tenant_id
            )));
        }
        grant.subject()?;
        let Some(subject) = identity::text(grant.claims.get("oid")) else {
            return Err(Error::Rejected("the ID token has no `oid`: is the scope `profile` granted?".to_owned()));
        };
        let (email, email_verified) = email(config, grant);
        Ok(Identity {
            subject,
            email,
            email_verified,
            name: grant.name("name"),
            groups: if config.groups { groups::of(config, grant)? } else { Vec::new() },
            attributes: grant.attributes(&config.attributes),
        })
    }
}

/// The address, and whether the domain's owner vouches for it (`xms_edov`: true, 1 or a text of these).
fn email(config: &Config, grant: &Grant) -> (Option<String>, bool) {
    let Some(email) = identity::text(grant.claims.get("email")) else {
        // Entra's own sign-in name is an address where the tenant uses mail addresses for it.
        let upn = identity::text(grant.claims.get("preferred_username")).filter(|name| name.contains('@'));
        let verified = config.trust_email && upn.is_some();
        return (upn, verified);
    };
    let owner_verified = match grant.claims.get("xms_edov") {
        Some(Value::Bool(said)) => *said,
        Some(Value::Number(said)) => said.as_u64() == Some(1),
        Some(Value::String(said)) => matches!(said.as_str(), "1" | "true"),
        _ => false,
    };
    (Some(email), owner_verified || config.trust_email)
}

kaizen_plugin::identity_provider!(Entra);

#[cfg(test)]
mod tests;
