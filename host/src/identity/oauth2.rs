//! Plain OAuth 2 providers, such as GitHub: the authorization code grant of [`code`] at endpoints that a plugin names. There
//! is no ID token, so the host verifies nothing about the person; the plugin asks the provider with the access token.

use secrecy::SecretString;
use serde_json::Value;
use url::Url;

use super::code::{self, ClientAuth, Flow, ProviderError, Tokens};
use crate::sandbox::egress;

/// Where a provider is, and how it is talked to.
#[derive(Debug)]
pub struct Endpoints {
    authorization: Url,
    token: Url,
    auth: ClientAuth,
    /// As the provider names itself in `iss`, where the connection knows it.
    issuer: Option<String>,
    /// What the links to its people are keyed by.
    provider: String,
}

impl Endpoints {
    /// Checks what a plugin says. Of the connection's configuration two properties count, where its plugin has them:
    /// `issuer`, and `token_endpoint_auth_method` with RFC 7591's `client_secret_basic` (as without) or `client_secret_post`.
    ///
    /// # Errors
    /// A sentence that names the endpoint or the property.
    pub fn new(authorization: &str, token: &str, config: &Value) -> Result<Self, String> {
        let property = |name: &str| config.get(name).and_then(Value::as_str);
        let auth = match property("token_endpoint_auth_method") {
            None | Some("client_secret_basic") => ClientAuth::Basic,
            Some("client_secret_post") => ClientAuth::Post,
            Some(_) => {
                return Err("`token_endpoint_auth_method` must be `client_secret_basic` or `client_secret_post`".into());
            }
        };
        let token = code::endpoint("token endpoint", token)?;
        let issuer = property("issuer").map(str::to_owned);
        // A provider that has no name is told from others by where it says who somebody is.
        let mut place = token.clone();
        place.set_query(None);
        Ok(Self {
            authorization: code::endpoint("authorization endpoint", authorization)?,
            token,
            auth,
            provider: issuer.clone().unwrap_or_else(|| place.into()),
            issuer,
        })
    }

    /// What the links to the provider's people are keyed by: its issuer where the connection knows it, or its token endpoint.
    pub fn issuer(&self) -> &str {
        &self.provider
    }

    /// Where to send somebody to sign in.
    pub fn authorization(&self, flow: &Flow<'_>, scopes: &[String], parameters: &[(String, String)]) -> Url {
        flow.authorization(&self.authorization, &scopes.join(" "), parameters)
    }

    /// Exchanges the code of a callback.
    ///
    /// # Errors
    /// As [`ProviderError`].
    pub async fn exchange(
        &self,
        egress: &egress::Client,
        flow: &Flow<'_>,
        secret: Option<&SecretString>,
        (code, iss): (&str, Option<&str>),
    ) -> Result<Tokens, ProviderError> {
        if iss.is_some_and(|iss| !self.is(iss)) {
            return Err(code::another_issuer());
        }
        flow.redeem(egress, self.token.as_str(), (secret, self.auth), code).await
    }

    /// Whether `iss` of a callback (RFC 9207) is this provider. Without an issuer to compare with, it must at least be of the
    /// origin that the browser was sent to: what another provider's callback brings is never sent to this one's token endpoint.
    fn is(&self, iss: &str) -> bool {
        match &self.issuer {
            Some(issuer) => issuer == iss,
            None => Url::parse(iss).is_ok_and(|iss| iss.origin() == self.authorization.origin()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AUTHORIZE: &str = "https://github.com/login/oauth/authorize";
    const TOKEN: &str = "https://github.com/login/oauth/access_token";

    #[test]
    fn endpoints_are_checked() {
        for good in [TOKEN, "http://127.0.0.1:9/token?a=b", "http://[::1]:9/", "http://localhost/token"] {
            Endpoints::new(AUTHORIZE, good, &json!({})).unwrap();
        }
        for (bad, why) in [
            ("http://github.com/token", "https"),
            ("ftp://127.0.0.1/token", "https"),
            ("javascript:alert(1)", "https"),
            ("/token", "not an address"),
            ("https://github.com/token#a", "fragment"),
            ("https://user@github.com/token", "user name"),
        ] {
            let error = Endpoints::new(AUTHORIZE, bad, &json!({})).unwrap_err();
            assert!(error.contains(why) && error.contains("token endpoint"), "{error}");
            let error = Endpoints::new(bad, TOKEN, &json!({})).unwrap_err();
            assert!(error.contains(why) && error.contains("authorization endpoint"), "{error}");
        }
    }

    #[test]
    fn the_way_the_secret_is_sent_is_configured() {
        let auth = |value: &str| {
            Endpoints::new(AUTHORIZE, TOKEN, &json!({ "token_endpoint_auth_method": value })).map(|made| made.auth)
        };
        assert_eq!(Endpoints::new(AUTHORIZE, TOKEN, &json!({})).unwrap().auth, ClientAuth::Basic);
        assert_eq!(auth("client_secret_basic"), Ok(ClientAuth::Basic));
        assert_eq!(auth("client_secret_post"), Ok(ClientAuth::Post));
        assert!(auth("none").is_err());
    }

    #[test]
    fn another_providers_callback_is_told_apart() {
        let github = Endpoints::new(AUTHORIZE, TOKEN, &json!({})).unwrap();
        for (iss, good) in [
            ("https://github.com/login/oauth", true),
            ("https://github.com:443", true),
            ("http://github.com/login/oauth", false),
            ("https://github.com.evil.example", false),
            ("https://evil.example/https://github.com", false),
            ("github.com", false),
            ("", false),
        ] {
            assert_eq!(github.is(iss), good, "{iss}");
        }
        let named = Endpoints::new(AUTHORIZE, TOKEN, &json!({ "issuer": "https://github.com/a" })).unwrap();
        assert!(named.is("https://github.com/a") && !named.is("https://github.com/b"));
        assert_eq!((github.issuer(), named.issuer()), (TOKEN, "https://github.com/a"));
    }
}
