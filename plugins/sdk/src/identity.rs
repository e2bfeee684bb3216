//! Identity providers: who signs people in, and who they are.

mod claims;
mod config;

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde_json::{Map, Value};

use crate::bindings::identity_provider::exports::kaizen::identity_provider::provider as raw;
use crate::{Call, Error, Plugin, Result, call};

pub use claims::{MOST_GROUPS, text};
pub use config::{Claims, Client, Required, RequiredValue, Role};

/// Says which protocol the server is to run, and turns its verified result into an identity.
///
/// State, nonce, PKCE, the code exchange and all signature checks stay in the server. It takes the client id from the
/// configuration property `client_id` and the client secret from the secret named `client-secret`, a slot with
/// empty `hosts`, so that no request of the plugin can carry it. A manifest without that slot describes public clients.
/// For requests of its own the plugin declares a slot `access-token` and uses
/// [`Secret::ACCESS_TOKEN`](crate::Secret::ACCESS_TOKEN).
pub trait IdentityProvider: Plugin {
    /// Called when a connection is saved and when a sign-in starts.
    ///
    /// # Errors
    /// Mostly [`Error::Config`]: it is shown to the operator who saves the connection.
    fn begin(call: &Call<Self::Config>) -> Result<Protocol>;

    /// Called after the server has verified the sign-in.
    ///
    /// # Errors
    /// [`Error::Rejected`] to let this person not in.
    fn identify(call: &Call<Self::Config>, grant: &Grant) -> Result<Identity>;
}

/// The protocol the server is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// OpenID Connect: endpoints and keys come from the issuer's discovery document.
    Oidc {
        /// Exactly as in the tokens' `iss`.
        issuer: String,
        /// `openid` is added where it is missing.
        scopes: Vec<String>,
        /// Extra parameters of the authorization request, beside those that the protocol itself sends.
        parameters: Vec<(String, String)>,
    },
    /// Plain OAuth 2: nothing is verified about the person, the plugin asks with the access token.
    OAuth2 {
        /// Where people are sent.
        authorization_endpoint: String,
        /// Where the code is exchanged.
        token_endpoint: String,
        /// What to ask for.
        scopes: Vec<String>,
        /// Extra parameters of the authorization request.
        parameters: Vec<(String, String)>,
    },
}

/// What the server verified.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grant {
    /// The ID token's claims; empty for OAuth 2.
    pub claims: Map<String, Value>,
    /// The provider's userinfo response, where it has one. The server has compared its `sub`.
    pub userinfo: Map<String, Value>,
}

impl Grant {
    /// A claim of the ID token or, where it is absent there, of userinfo. A name that starts with `/` is a JSON Pointer
    /// (RFC 6901) into nested claims, e.g. `/realm_access/roles`.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        lookup(&self.claims, name).or_else(|| lookup(&self.userinfo, name))
    }
}

/// A claim by name or JSON Pointer; `null` counts as absent.
pub fn lookup<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let found = match name.strip_prefix('/') {
        None => claims.get(name),
        Some(rest) => {
            let (first, nested) = rest.split_once('/').unwrap_or((rest, ""));
            let value = claims.get(&first.replace("~1", "/").replace("~0", "~"));
            if nested.is_empty() { value } else { value.and_then(|value| value.pointer(&format!("/{nested}"))) }
        }
    };
    found.filter(|value| !value.is_null())
}

/// Who signed in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    /// Stable and never reassigned within this connection.
    pub subject: String,
    /// The mail address.
    pub email: Option<String>,
    /// Whether the provider says that it checked the address. Accounts are linked by address only if so.
    pub email_verified: bool,
    /// For people to read.
    pub name: Option<String>,
    /// As the provider names them; the connection maps them to roles.
    pub groups: Vec<String>,
    /// Visible to policies as `principal.attributes`. `null` takes one away that was there at an earlier sign-in.
    pub attributes: BTreeMap<String, Value>,
}

/// The issuer's address without a slash at the end, from the address of a provider and what follows it.
///
/// # Errors
/// [`Error::Config`], naming the setting, unless it is `https` (plain `http` is for providers on this machine) without
/// path or query.
pub fn origin(setting: &str, url: &crate::Url) -> Result<String> {
    if !url.is_https() && !url.is_loopback() {
        return Err(Error::Config(format!("{setting}: it must be https (http is for providers on this machine only)")));
    }
    if url.path_and_query() != "/" {
        return Err(Error::Config(format!("{setting}: give the address alone, {}, without a path", url.origin())));
    }
    Ok(url.origin())
}

/// Connects an [`IdentityProvider`] to the world's exports.
pub struct Adapter<P>(PhantomData<P>);

impl<P: IdentityProvider> raw::Guest for Adapter<P> {
    fn begin(call: raw::Call) -> Result<raw::Protocol, raw::Error> {
        call::run::<P, _>(call, |call| {
            Ok(match P::begin(call)? {
                Protocol::Oidc { issuer, scopes, parameters } => {
                    raw::Protocol::Oidc(raw::Oidc { issuer, scopes, parameters })
                }
                Protocol::OAuth2 { authorization_endpoint, token_endpoint, scopes, parameters } => {
                    raw::Protocol::Oauth2(raw::Oauth2 { authorization_endpoint, token_endpoint, scopes, parameters })
                }
            })
        })
    }

    fn identify(call: raw::Call, grant: raw::Grant) -> Result<raw::Identity, raw::Error> {
        call::run::<P, _>(call, |call| {
            let grant = Grant { claims: object(grant.claims)?, userinfo: object(grant.userinfo)? };
            let identity = P::identify(call, &grant)?;
            Ok(raw::Identity {
                subject: identity.subject,
                email: identity.email,
                email_verified: identity.email_verified,
                name: identity.name,
                groups: identity.groups,
                attributes: identity.attributes.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
            })
        })
    }
}

fn object(json: Option<String>) -> Result<Map<String, Value>> {
    json.map_or_else(
        || Ok(Map::new()),
        |json| serde_json::from_str(&json).map_err(|error| Error::Rejected(format!("the provider's claims: {error}"))),
    )
}

/// Exports an [`IdentityProvider`] as the component's identity provider: `kaizen_plugin::identity_provider!(MyPlugin);`
#[macro_export]
macro_rules! identity_provider {
    ($plugin:ty) => {
        // On the machine itself there is nothing to export; this keeps the plugin from counting as unused.
        const _: ::core::marker::PhantomData<$plugin> = ::core::marker::PhantomData;
        #[cfg(target_os = "wasi")]
        const _: () = {
            type Manifest = $crate::manifest::Adapter<$plugin>;
            type Exported = $crate::identity::Adapter<$plugin>;
    $crate::bindings::shared::export!(Manifest with_types_in $crate::bindings::shared);
    $crate::bindings::identity_provider::export!(Exported with_types_in $crate::bindings::identity_provider);
        };
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_by_name_and_by_pointer() {
        let claims = json!({
            "groups": ["a"], "https://example.com/roles": ["b"], "realm": {"access": {"roles": ["c"]}}, "a/b": 1, "none": null
        });
        let grant = Grant {
            claims: claims.as_object().unwrap().clone(),
            userinfo: json!({"none": "here", "phone": "1"}).as_object().unwrap().clone(),
        };
        assert_eq!(grant.claim("groups"), Some(&json!(["a"])));
        assert_eq!(grant.claim("https://example.com/roles"), Some(&json!(["b"])));
        assert_eq!(grant.claim("/realm/access/roles"), Some(&json!(["c"])));
        assert_eq!(grant.claim("/groups"), Some(&json!(["a"])));
        assert_eq!(grant.claim("/a~1b"), Some(&json!(1)));
        assert_eq!(grant.claim("none"), Some(&json!("here")));
        assert_eq!(grant.claim("phone"), Some(&json!("1")));
        assert_eq!(grant.claim("realm.access"), None);
        assert_eq!(grant.claim("/realm/nothing/roles"), None);
    }
}
