//! The authorization code grant (RFC 6749, section 4.1) with PKCE (RFC 7636), which OpenID Connect and plain OAuth 2 share:
//! the address that a browser is sent to, and the exchange of the code that it comes back with.
//!
//! Everything goes out through the egress client: a tenant says where the provider is, so the same rules hold as for plugins.

use std::sync::Arc;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
use url::{Host, Url, form_urlencoded};

use crate::sandbox::egress::{self, EgressError, FetchLimits};

/// What the protocol itself sends, or what would replace it: no connection does.
const RESERVED: [&str; 13] = [
    "client_id",
    "client_secret",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "registration",
    "request",
    "request_uri",
    "response_mode",
    "response_type",
    "scope",
    "state",
];

/// Why the provider's side did not work out. For the log and for administrators; who signs in is told less.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A rule refuses the provider's address, or it does not answer.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// It answers, but not as the protocol wants it.
    #[error("{0}")]
    Provider(String),
    /// It does not know this application, or not as the connection says: an administrator must change one or the other.
    #[error("{0}")]
    Settings(String),
    /// It says of itself that it cannot sign people in now.
    #[error("{0}")]
    Unavailable(String),
    /// What several who ask at once, or one after the other, are told.
    #[error("{0}")]
    Shared(Arc<ProviderError>),
    /// The answer is not to be trusted.
    #[error("{0}")]
    Untrusted(String),
}

impl ProviderError {
    /// A stable name, for the log, metrics and the audit trail.
    pub fn code(&self) -> &'static str {
        match self {
            ProviderError::Egress(error) if error.denied() => "egress_denied",
            ProviderError::Egress(EgressError::Tls(..)) => "provider_certificate",
            ProviderError::Egress(_) => "provider_unreachable",
            ProviderError::Provider(_) => "provider_answer",
            ProviderError::Settings(_) => "provider_settings",
            ProviderError::Unavailable(_) => "provider_unavailable",
            ProviderError::Untrusted(_) => "provider_not_trusted",
            ProviderError::Shared(error) => error.code(),
        }
    }

    /// Whether it stays so until an administrator or the operator changes something.
    pub fn permanent(&self) -> bool {
        matches!(self.code(), "egress_denied" | "provider_certificate" | "provider_settings")
    }
}

/// Errors of RFC 6749, sections 4.1.2.1 and 5.2, that say that the provider cannot now.
pub const UNAVAILABLE: [&str; 2] = ["temporarily_unavailable", "server_error"];
/// Those of section 5.2 that say that the application is not registered as the connection has it.
const UNKNOWN_CLIENT: [&str; 5] =
    ["invalid_client", "invalid_request", "invalid_scope", "unauthorized_client", "unsupported_grant_type"];
/// Characters of a provider's own words that are kept.
pub const DESCRIPTION: usize = 300;

/// The callback names another issuer than the one that the browser was sent to: a mix-up (RFC 9207; RFC 9700, section 4.4).
pub fn another_issuer() -> ProviderError {
    ProviderError::Untrusted("the callback is another issuer's (RFC 9207)".into())
}

/// An endpoint's address: RFC 6749, sections 3.1 and 3.2, want TLS and no fragment. Plain `http` is for providers on this
/// machine.
///
/// # Errors
/// A sentence that names the endpoint and what is wrong with its address.
pub fn endpoint(what: &str, address: &str) -> Result<Url, String> {
    let refuse = |why: &str| Err(format!("the {what} `{}` {why}", brief(address)));
    let Ok(url) = Url::parse(address) else { return refuse("is not an address") };
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return refuse("must be https (http is for providers on this machine only)"),
    }
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return refuse("must have neither a fragment nor a user name");
    }
    Ok(url)
}

/// Whether these may go into an authorization request beside what the protocol sends.
///
/// # Errors
/// A sentence that names the one that may not.
pub fn check_parameters(parameters: &[(String, String)]) -> Result<(), String> {
    match parameters.iter().find(|(name, _)| RESERVED.contains(&name.to_ascii_lowercase().as_str())) {
        Some((name, _)) => Err(format!("`parameters`: `{}` is the server's to send; remove it", brief(name))),
        None => Ok(()),
    }
}

/// What a far side said, fit for a log line.
pub fn brief(text: &str) -> String {
    clean(text, 100)
}

/// What a far side said, at most so many characters of it: without controls, and without what is invisible or turns the
/// direction of the text around it.
pub fn clean(text: &str, most: usize) -> String {
    let shown =
        |c: &char| c.general_category_group() != GeneralCategoryGroup::Other && !matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().filter(shown).take(most).collect()
}

/// An error with its causes, each once: some say only that something did not work, and leave the reason to their source.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    clean(&text, 500)
}

/// One sign-in at one provider.
pub struct Flow<'a> {
    /// Ours, at the provider.
    pub client_id: &'a str,
    /// Where the provider sends people back to.
    pub redirect_uri: &'a str,
    /// Binds the callback to the browser that was sent off.
    pub state: &'a str,
    /// 43 characters or more, different for each sign-in (RFC 7636).
    pub verifier: &'a str,
}

/// How the client's secret is sent to the token endpoint (RFC 6749, section 2.3.1); the names are RFC 7591's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_basic`: what every provider must take.
    Basic,
    /// `client_secret_post`.
    Post,
}

/// What a code was exchanged for.
#[derive(Debug)]
pub struct Tokens {
    /// A bearer token.
    pub access_token: SecretString,
    /// OpenID Connect only. Not verified yet.
    pub id_token: Option<SecretString>,
}

impl Flow<'_> {
    /// Where to send somebody to sign in. `scope` is left out where it is empty; `parameters` passed [`check_parameters`].
    pub fn authorization(&self, endpoint: &Url, scope: &str, parameters: &[(String, String)]) -> Url {
        let mut url = endpoint.clone();
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier));
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", self.client_id)
            .append_pair("redirect_uri", self.redirect_uri)
            .extend_pairs((!scope.is_empty()).then_some(("scope", scope)))
            .append_pair("state", self.state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .extend_pairs(parameters);
        url
    }

    /// Exchanges the code of a callback. Without a secret it is a public client's, which has PKCE alone.
    ///
    /// # Errors
    /// As [`ProviderError`]; none of its texts holds the secret, the code or a token.
    pub async fn redeem(
        &self,
        egress: &egress::Client,
        endpoint: &str,
        (secret, auth): (Option<&SecretString>, ClientAuth),
        code: &str,
    ) -> Result<Tokens, ProviderError> {
        let request = self.redemption(endpoint, (secret, auth), code)?;
        let response = egress.fetch(request, FetchLimits::default()).await?;
        tokens(&response, &[secret.map(ExposeSecret::expose_secret).unwrap_or_default(), code, self.verifier])
    }

    /// The request that exchanges a code (RFC 6749, section 4.1.3).
    fn redemption(
        &self,
        endpoint: &str,
        (secret, auth): (Option<&SecretString>, ClientAuth),
        code: &str,
    ) -> Result<Request<Bytes>, ProviderError> {
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", self.redirect_uri)
            .append_pair("code_verifier", self.verifier);
        let mut request = Request::post(endpoint)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        match secret {
            Some(secret) if auth == ClientAuth::Basic => {
                let pair = format!("{}:{}", encode(self.client_id), encode(secret.expose_secret()));
                let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)))
                    .map_err(|e| ProviderError::Provider(e.to_string()))?;
                value.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, value);
            }
            Some(secret) => {
                form.append_pair("client_id", self.client_id).append_pair("client_secret", secret.expose_secret());
            }
            None => {
                form.append_pair("client_id", self.client_id);
            }
        }
        request.body(Bytes::from(form.finish())).map_err(|e| ProviderError::Provider(e.to_string()))
    }
}

/// The token endpoint's answer (RFC 6749, sections 5.1 and 5.2). Some providers send it form-encoded, and some send an
/// error as 200 OK; GitHub does both. What it says of an error is kept, but for a text that has one of the `hidden` in it.
fn tokens(response: &Response<Bytes>, hidden: &[&str]) -> Result<Tokens, ProviderError> {
    let status = response.status();
    let fields = fields(response);
    let text = |name: &str| fields.as_ref().and_then(|fields| fields.get(name)).and_then(Value::as_str);
    if status != StatusCode::OK || text("error").is_some() {
        let said = |name: &str| {
            let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let secret =
                |text: &str| hidden.iter().any(|h| !h.is_empty() && (text.contains(h) || text.contains(&encoded(h))));
            text(name).map(|text| if secret(text) { "(it sent back what is secret)" } else { text })
        };
        let error = said("error").unwrap_or("no code");
        let mut why = format!("the token endpoint refused the code: {status}, {}", brief(error));
        if let Some(description) = said("error_description").filter(|text| !text.trim().is_empty()) {
            why = format!("{why}: {}", clean(description, DESCRIPTION));
        }
        return Err(if UNAVAILABLE.contains(&error) {
            ProviderError::Unavailable(why)
        } else if UNKNOWN_CLIENT.contains(&error) {
            ProviderError::Settings(why)
        } else {
            ProviderError::Provider(why)
        });
    }
    let wrong = |what: &str| Err(ProviderError::Provider(format!("the token endpoint's answer {what}")));
    if fields.is_none() {
        return wrong("is not a JSON object");
    }
    if text("token_type").is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return wrong("holds a token that is not a bearer token");
    }
    // RFC 6749, appendix A.12. It goes into a header later on.
    match text("access_token") {
        Some(token) if !token.is_empty() && token.bytes().all(|b| (b' '..=b'~').contains(&b)) => {
            Ok(Tokens { access_token: token.into(), id_token: text("id_token").map(Into::into) })
        }
        Some(_) => wrong("holds an `access_token` of other characters than RFC 6749 allows"),
        None => wrong("holds no `access_token`"),
    }
}

fn fields(response: &Response<Bytes>) -> Option<Map<String, Value>> {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let pairs = form_urlencoded::parse(response.body());
        return Some(pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect());
    }
    serde_json::from_slice(response.body()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: Flow<'static> = Flow {
        client_id: "id with space",
        redirect_uri: "https://studio.example.com/auth/sso/callback",
        state: "the-state",
        verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    };

    fn answer(status: u16, kind: &str, body: &str) -> Result<Tokens, ProviderError> {
        let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
        tokens(&response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap(), &["s&cret", ""])
    }

    #[test]
    fn a_browser_is_sent_off_with_state_and_challenge() {
        let endpoint = Url::parse("https://id.example.com/authorize?tenant=a").unwrap();
        let parameters = [("prompt".to_owned(), "login".to_owned())];
        let url = FLOW.authorization(&endpoint, "read:user user:email", &parameters);
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let expected = [
            ("tenant", "a"),
            ("response_type", "code"),
            ("client_id", "id with space"),
            ("redirect_uri", "https://studio.example.com/auth/sso/callback"),
            ("scope", "read:user user:email"),
            ("state", "the-state"),
            // RFC 7636, appendix B.
            ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"),
            ("code_challenge_method", "S256"),
            ("prompt", "login"),
        ];
        assert_eq!(query, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(!FLOW.authorization(&endpoint, "", &[]).as_str().contains("scope"));
    }

    #[test]
    fn parameters_can_not_replace_the_protocols_own() {
        let check = |name: &str| check_parameters(&[("prompt".into(), "login".into()), (name.into(), "x".into())]);
        for name in RESERVED {
            assert!(check(name).unwrap_err().contains(name));
        }
        assert!(check("Redirect_URI").is_err());
        assert_eq!(check("max_age"), Ok(()));
    }

    #[test]
    fn the_secret_goes_where_the_provider_takes_it() {
        let secret = SecretString::from("s&cret:");
        let redeem = |secret, auth| FLOW.redemption("https://id.example.com/token", (secret, auth), "c").unwrap();
        let basic = redeem(Some(&secret), ClientAuth::Basic);
        let header = basic.headers().get(header::AUTHORIZATION).unwrap();
        assert!(header.is_sensitive());
        assert_eq!(header.to_str().unwrap(), format!("Basic {}", STANDARD.encode("id+with+space:s%26cret%3A")));
        let body = |request: Request<Bytes>| String::from_utf8(request.into_body().to_vec()).unwrap();
        let basic = body(basic);
        assert!(basic.contains("code_verifier=dBjf") && !basic.contains("client_"), "{basic}");
        let post = redeem(Some(&secret), ClientAuth::Post);
        assert!(post.headers().get(header::AUTHORIZATION).is_none());
        assert!(body(post).ends_with("&client_id=id+with+space&client_secret=s%26cret%3A"));
        assert!(body(redeem(None, ClientAuth::Basic)).ends_with("&client_id=id+with+space"));
    }

    #[test]
    fn answers_are_read_as_json_and_as_a_form() {
        for (kind, body) in [
            ("application/json; charset=utf-8", r#"{"access_token":"gho_1","token_type":"bearer","scope":""}"#),
            ("application/x-www-form-urlencoded; charset=utf-8", "access_token=gho_1&scope=&token_type=bearer"),
        ] {
            assert_eq!(answer(200, kind, body).unwrap().access_token.expose_secret(), "gho_1");
        }
    }

    #[test]
    fn answers_that_do_not_hold_say_why_without_what_is_secret() {
        for (status, kind, body, why) in [
            (200, "application/json", r#"{"error":"bad_verification_code"}"#, "200 OK, bad_verification_code"),
            (200, "application/x-www-form-urlencoded", "error=bad_verification_code", "200 OK, bad_verification_code"),
            (400, "application/json", r#"{"error":"invalid_grant"}"#, "400 Bad Request, invalid_grant"),
            (401, "application/json", r#"{"error":"invalid_client\nx"}"#, "401 Unauthorized, invalid_clientx"),
            (
                400,
                "application/json",
                r#"{"error":"invalid_grant","error_description":"AADSTS1 \u202eold\n"}"#,
                "AADSTS1 old",
            ),
            (
                400,
                "application/json",
                r#"{"error":"invalid_grant","error_description":"not s&cret"}"#,
                "invalid_grant: (it sent",
            ),
            (
                400,
                "application/json",
                r#"{"error":"invalid_grant","error_description":"not s%26cret"}"#,
                "invalid_grant: (it sent",
            ),
            (401, "application/json", r#"{"error":"s&cret"}"#, "401 Unauthorized, (it sent back"),
            (500, "text/html", "<h1>gho_1", "500 Internal Server Error, no code"),
            (302, "application/json", r#"{"access_token":"gho_1"}"#, "302 Found, no code"),
            (200, "text/html", "gho_1", "not a JSON object"),
            (200, "application/json", r#""gho_1""#, "not a JSON object"),
            (200, "application/json", r#"{"access_token":5}"#, "no `access_token`"),
            (200, "application/json", r#"{"access_token":""}"#, "other characters"),
            (200, "application/json", r#"{"access_token":"gho_1\r\nx: y"}"#, "other characters"),
            (200, "application/json", r#"{"access_token":"gho_1","token_type":"mac"}"#, "not a bearer token"),
        ] {
            let error = answer(status, kind, body).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("gho_1") && !error.contains("s&cret"), "{body}: {error}");
        }
    }

    #[test]
    fn what_a_provider_refuses_is_told_from_what_it_cannot_now() {
        let code =
            |error: &str| answer(400, "application/json", &format!(r#"{{"error":"{error}"}}"#)).unwrap_err().code();
        for (error, expected) in [
            ("temporarily_unavailable", "provider_unavailable"),
            ("server_error", "provider_unavailable"),
            ("invalid_client", "provider_settings"),
            ("unauthorized_client", "provider_settings"),
            ("invalid_grant", "provider_answer"),
        ] {
            assert_eq!(code(error), expected, "{error}");
        }
    }
}
