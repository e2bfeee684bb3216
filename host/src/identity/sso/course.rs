//! How the protocol is run with one connection: what its plugin says of it, checked by the host.

use chrono::TimeDelta;
use serde_json::Value;

use crate::{
    identity::{
        claims::{self, RequiredClaims},
        code, oauth2, oidc,
    },
    plugins::Protocol,
};

/// Bytes of an issuer, or of an OAuth 2 provider's token endpoint: links are keyed by it, and a key has its bound in PostgreSQL.
const ISSUER_BYTES: usize = 2048;

/// What a plugin says of the protocol, checked.
pub(super) struct Course {
    pub(super) way: Way,
    pub(super) scopes: Vec<String>,
    pub(super) parameters: Vec<(String, String)>,
    /// What people's claims must be.
    pub(super) required: RequiredClaims,
}

/// The protocol and the provider.
pub(super) enum Way {
    /// OpenID Connect, at this issuer; and how long ago people may have signed in there, where that is asked for.
    Oidc(String, Option<TimeDelta>),
    /// OAuth 2.
    Oauth2(oauth2::Endpoints),
}

impl Way {
    /// The provider, as links to its people are keyed by it.
    pub(super) fn issuer(&self) -> &str {
        match self {
            Way::Oidc(issuer, _) => issuer,
            Way::Oauth2(endpoints) => endpoints.issuer(),
        }
    }
}

impl Course {
    pub(super) fn of(protocol: Protocol, config: &Value) -> Result<Self, String> {
        let course = match protocol {
            Protocol::Oidc { issuer, scopes, parameters } => {
                oidc::check_issuer(&issuer)?;
                let max_age = max_age(&parameters)?;
                let required = RequiredClaims::new(config, &parameters)?;
                Self { way: Way::Oidc(issuer, max_age), scopes, parameters, required }
            }
            Protocol::Oauth2 { authorization_endpoint, token_endpoint, scopes, parameters } => {
                let endpoints = oauth2::Endpoints::new(&authorization_endpoint, &token_endpoint, config)?;
                if !RequiredClaims::new(config, &[])?.is_empty() {
                    return Err(
                        "`required_claims` is for OpenID Connect: an OAuth 2 provider vouches for no claims".into()
                    );
                }
                Self { way: Way::Oauth2(endpoints), scopes, parameters, required: RequiredClaims::default() }
            }
        };
        code::check_parameters(&course.parameters)?;
        // Links without an issuer are of an earlier version, and count as any issuer's.
        if !(1..=ISSUER_BYTES).contains(&course.way.issuer().len()) {
            return Err(format!("the provider's address must have 1 to {ISSUER_BYTES} bytes"));
        }
        Ok(course)
    }

    /// Why newcomers would be strangers; see [`claims::open_to_everybody`].
    pub(super) fn open_to_everybody(&self, config: &Value) -> Option<String> {
        claims::open_to_everybody(self.way.issuer(), config, &self.required)
    }
}

/// `max_age` of an authorization request (OpenID Connect Core 1.0, section 3.1.2.1): seconds.
fn max_age(parameters: &[(String, String)]) -> Result<Option<TimeDelta>, String> {
    let Some((_, value)) = parameters.iter().find(|(name, _)| name == "max_age") else { return Ok(None) };
    let seconds = value.parse::<u32>().map_err(|_| "`parameters`: `max_age` must be a number of seconds".to_owned())?;
    Ok(Some(TimeDelta::seconds(seconds.into())))
}

/// Whether a sign-in could be begun with what a plugin says for this configuration. Returns the provider's issuer, as links
/// to its people are keyed by it.
///
/// # Errors
/// A sentence that names what is wrong.
pub fn feasible(protocol: Protocol, config: &Value) -> Result<String, String> {
    client_id(config)?;
    let course = Course::of(protocol, config)?;
    match course.open_to_everybody(config) {
        Some(why) => Err(why),
        None => Ok(course.way.issuer().to_owned()),
    }
}

pub(super) fn client_id(config: &Value) -> Result<&str, String> {
    let id = config.get("client_id").and_then(Value::as_str).unwrap_or_default();
    if id.is_empty() { Err("the configuration has no `client_id`".into()) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_plugin_says_of_the_protocol_is_checked_by_the_host() {
        let oidc = |issuer: &str, parameters: &[(&str, &str)]| {
            let parameters = parameters.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            let protocol = Protocol::Oidc { issuer: issuer.to_owned(), scopes: Vec::new(), parameters };
            feasible(protocol, &json!({ "client_id": "k" }))
        };
        let issuer = "https://id.example.com/a/";
        assert_eq!(oidc(issuer, &[("prompt", "login"), ("max_age", "3600")]).as_deref(), Ok(issuer));
        assert!(oidc("http://127.0.0.1:9000", &[]).is_ok());
        let long = format!("https://id.example.com/{}", "a".repeat(2048));
        for (issuer, parameters, why) in [
            ("http://id.example.com", &[][..], "https"),
            ("https://id.example.com?x=1", &[], "no query"),
            ("https://id.example.com/#a", &[], "fragment"),
            ("https://u:p@id.example.com", &[], "user name"),
            ("id.example.com", &[], "not an address"),
            (long.as_str(), &[], "1 to 2048 bytes"),
            ("https://id.example.com", &[("state", "x")], "`state`"),
            ("https://id.example.com", &[("max_age", "an hour")], "`max_age`"),
        ] {
            let error = oidc(issuer, parameters).unwrap_err();
            assert!(error.contains(why), "{issuer}: {error}");
        }
        let shared = json!({ "client_id": "k", "default_role": "viewer" });
        let google = |config: &Value| {
            let issuer = "https://accounts.google.com".to_owned();
            feasible(Protocol::Oidc { issuer, scopes: Vec::new(), parameters: Vec::new() }, config)
        };
        assert!(google(&shared).unwrap_err().contains("required_claims"));
        let mut fenced = shared;
        fenced["required_claims"] = json!({ "hd": "example.com" });
        assert!(google(&fenced).is_ok());
        let protocol = Protocol::Oidc { issuer: "https://i".into(), scopes: Vec::new(), parameters: Vec::new() };
        assert!(feasible(protocol, &json!({})).unwrap_err().contains("client_id"));
    }
}
