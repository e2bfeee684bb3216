//! OpenID Connect Core 1.0, the authorization code flow: discovery, the authorization request, the code exchange, the
//! checks of the ID token, and the provider's keys, which are fetched again when they change.
//!
//! Everything goes out through the egress client: a tenant says where the provider is, so the same rules hold as for plugins.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderValue, Request, StatusCode, header};
use moka::sync::Cache;
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalProviderMetadata, AsyncHttpClient, ClaimsVerificationError, ClientId,
    HttpRequest, HttpResponse, IssuerUrl, JsonWebKeySet, Nonce, ProviderMetadata,
    core::{
        CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreIdToken,
        CoreIdTokenClaims, CoreIdTokenVerifier, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm,
        CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType,
        CoreSubjectIdentifierType,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use url::Url;

use crate::sandbox::egress::{self, EgressError, FetchLimits};

/// Signatures that are taken: not those with a shared secret, and never none.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];
/// What the protocol itself sends: no connection replaces it.
const RESERVED: [&str; 12] = [
    "client_id",
    "client_secret",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "request",
    "request_uri",
    "response_mode",
    "response_type",
    "scope",
    "state",
];
/// Discovery documents and keys are kept for this long.
const KEPT: Duration = Duration::from_secs(600);
/// After keys were fetched again because of an unknown one, they are not for this long.
const COOL_DOWN: TimeDelta = TimeDelta::seconds(30);
/// How far the provider's clock may be off.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// Why the provider's side did not work out. For the log; people are told less.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// A rule refuses the provider's address, or it does not answer.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// It answers, but not as the protocol wants it.
    #[error("{0}")]
    Provider(String),
    /// The answer is not to be trusted.
    #[error("{0}")]
    Untrusted(String),
}

/// What discovery tells beyond the standard set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Additional {
    /// RFC 9207: then the callback names the issuer.
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for Additional {}

type Metadata = ProviderMetadata<
    Additional,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// A provider as discovered.
struct Provider {
    metadata: Metadata,
    keys: ArcSwap<JsonWebKeySet<CoreJsonWebKey>>,
    /// When they were fetched again last.
    refetched: tokio::sync::Mutex<DateTime<Utc>>,
}

/// Talks to providers. Cheap to clone.
#[derive(Clone)]
pub struct Providers {
    http: Http,
    known: Cache<String, Arc<Provider>>,
}

#[derive(Clone)]
struct Http(egress::Client);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = EgressError;
    type Future = futures::future::BoxFuture<'c, Result<HttpResponse, EgressError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let response = self.0.fetch(request.map(Bytes::from), FetchLimits::default()).await?;
            Ok(response.map(Into::into))
        })
    }
}

/// One sign-in at one provider.
pub struct Flow<'a> {
    /// Exactly as in the tokens.
    pub issuer: &'a str,
    /// Ours, at the provider.
    pub client_id: &'a str,
    /// Where the provider sends people back to.
    pub redirect_uri: &'a str,
    /// 43 characters or more, different for each sign-in (RFC 7636).
    pub verifier: &'a str,
    /// Different for each sign-in.
    pub nonce: &'a str,
}

/// What a provider vouches for.
pub struct Verified {
    /// The ID token's claims.
    pub claims: Value,
    /// The userinfo response, of the same subject.
    pub userinfo: Option<Value>,
    /// For the plugin, should it want to ask for more.
    pub access_token: SecretString,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    id_token: Option<String>,
}

impl Providers {
    /// Over this way out.
    pub fn new(egress: egress::Client) -> Self {
        Self { http: Http(egress), known: Cache::builder().max_capacity(1000).time_to_live(KEPT).build() }
    }

    async fn provider(&self, issuer: &str) -> Result<Arc<Provider>, OidcError> {
        if let Some(known) = self.known.get(issuer) {
            return Ok(known);
        }
        let url = IssuerUrl::new(issuer.to_owned()).map_err(|e| OidcError::Provider(format!("issuer: {e}")))?;
        let metadata = Metadata::discover_async(url, &self.http).await.map_err(discovery)?;
        let keys = ArcSwap::from_pointee(metadata.jwks().clone());
        let refetched = tokio::sync::Mutex::new(DateTime::<Utc>::MIN_UTC);
        let provider = Arc::new(Provider { metadata, keys, refetched });
        self.known.insert(issuer.to_owned(), provider.clone());
        Ok(provider)
    }

    /// Where to send somebody to sign in.
    ///
    /// # Errors
    /// As [`OidcError`].
    pub async fn authorization(
        &self,
        flow: &Flow<'_>,
        state: &str,
        scopes: &[String],
        parameters: &[(String, String)],
    ) -> Result<Url, OidcError> {
        let provider = self.provider(flow.issuer).await?;
        let mut url = provider.metadata.authorization_endpoint().url().clone();
        if !matches!(url.scheme(), "http" | "https") {
            return Err(OidcError::Provider(format!("authorization_endpoint is not a web address: {url}")));
        }
        let mut scope = vec!["openid"];
        scope.extend(scopes.iter().map(String::as_str).filter(|scope| *scope != "openid"));
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(flow.verifier));
        let extra = parameters.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", flow.client_id)
            .append_pair("redirect_uri", flow.redirect_uri)
            .append_pair("scope", &scope.join(" "))
            .append_pair("state", state)
            .append_pair("nonce", flow.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .extend_pairs(extra);
        Ok(url)
    }

    /// Exchanges the code of a callback, and checks everything that comes back. `iss` is the callback's (RFC 9207).
    ///
    /// # Errors
    /// As [`OidcError`].
    pub async fn exchange(
        &self,
        flow: &Flow<'_>,
        secret: Option<&SecretString>,
        (code, iss): (&str, Option<&str>),
        now: DateTime<Utc>,
    ) -> Result<Verified, OidcError> {
        let provider = self.provider(flow.issuer).await?;
        let named = provider.metadata.additional_metadata().authorization_response_iss_parameter_supported;
        if iss.map_or(named, |iss| iss != flow.issuer) {
            return Err(OidcError::Untrusted("the callback is another issuer's (RFC 9207)".into()));
        }
        let answer = self.redeem(&provider, flow, secret, code).await?;
        let raw = answer.id_token.ok_or_else(|| OidcError::Provider("the token endpoint sent no ID token".into()))?;
        let token: CoreIdToken =
            raw.parse().map_err(|e| OidcError::Untrusted(format!("the ID token is malformed: {e}")))?;
        match verify(&provider, flow, &token, &answer.access_token, now) {
            Ok(()) => {}
            Err(ClaimsVerificationError::SignatureVerification(_)) if self.refetch(&provider, now).await? => {
                verify(&provider, flow, &token, &answer.access_token, now).map_err(untrusted)?;
            }
            Err(error) => return Err(untrusted(error)),
        }
        let claims = payload(&raw)?;
        let userinfo = self.userinfo(&provider, &answer.access_token, &claims).await?;
        Ok(Verified { claims, userinfo, access_token: answer.access_token.into() })
    }

    async fn redeem(
        &self,
        provider: &Provider,
        flow: &Flow<'_>,
        secret: Option<&SecretString>,
        code: &str,
    ) -> Result<TokenAnswer, OidcError> {
        let request = redemption(provider, flow, secret, code)?;
        let response = self.http.0.fetch(request, FetchLimits::default()).await?;
        if response.status() != StatusCode::OK {
            let error = serde_json::from_slice::<Value>(response.body()).ok();
            let code = error.as_ref().and_then(|body| body.get("error")).and_then(Value::as_str).unwrap_or("no code");
            let status = response.status();
            return Err(OidcError::Provider(format!("the token endpoint refused the code: {status}, {}", brief(code))));
        }
        serde_json::from_slice(response.body())
            .map_err(|e| OidcError::Provider(format!("the token endpoint's answer is not as it should be: {e}")))
    }

    /// Fetches the provider's keys again, unless that was done a moment ago. Tells whether they are newer now.
    async fn refetch(&self, provider: &Provider, now: DateTime<Utc>) -> Result<bool, OidcError> {
        let mut refetched = provider.refetched.lock().await;
        if now - *refetched < COOL_DOWN {
            return Ok(false);
        }
        *refetched = now;
        let keys = JsonWebKeySet::fetch_async(provider.metadata.jwks_uri(), &self.http).await.map_err(discovery)?;
        provider.keys.store(Arc::new(keys));
        Ok(true)
    }

    /// The userinfo response, where there is one in plain JSON; of another subject it is refused (OpenID Connect Core 1.0,
    /// section 5.3.2).
    async fn userinfo(&self, provider: &Provider, token: &str, claims: &Value) -> Result<Option<Value>, OidcError> {
        let Some(endpoint) = provider.metadata.userinfo_endpoint() else { return Ok(None) };
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| OidcError::Provider(e.to_string()))?;
        bearer.set_sensitive(true);
        let request = Request::get(endpoint.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|e| OidcError::Provider(e.to_string()))?;
        let response = self.http.0.fetch(request, FetchLimits::default()).await?;
        let userinfo = (response.status() == StatusCode::OK)
            .then(|| serde_json::from_slice::<Value>(response.body()).ok())
            .flatten();
        let Some(userinfo) = userinfo.filter(Value::is_object) else {
            tracing::warn!(status = %response.status(), "an identity provider's userinfo endpoint gave no JSON; going on without");
            return Ok(None);
        };
        if userinfo.get("sub").is_none_or(|sub| Some(sub) != claims.get("sub")) {
            return Err(OidcError::Untrusted("userinfo is about another subject than the ID token".into()));
        }
        Ok(Some(userinfo))
    }
}

/// The request that exchanges a code (RFC 6749, section 4.1.3).
fn redemption(
    provider: &Provider,
    flow: &Flow<'_>,
    secret: Option<&SecretString>,
    code: &str,
) -> Result<Request<Bytes>, OidcError> {
    let endpoint = provider.metadata.token_endpoint();
    let endpoint = endpoint.ok_or_else(|| OidcError::Provider("discovery names no token_endpoint".into()))?;
    let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "authorization_code")
        .append_pair("code", code)
        .append_pair("redirect_uri", flow.redirect_uri)
        .append_pair("code_verifier", flow.verifier);
    let mut request = Request::post(endpoint.as_str())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::ACCEPT, "application/json");
    // Without a word about it, the provider takes HTTP Basic (OpenID Connect Discovery 1.0, section 3).
    let methods = provider.metadata.token_endpoint_auth_methods_supported();
    let basic = methods.is_none_or(|m| {
        m.contains(&CoreClientAuthMethod::ClientSecretBasic) || !m.contains(&CoreClientAuthMethod::ClientSecretPost)
    });
    match secret {
        Some(secret) if basic => {
            let pair = format!("{}:{}", encode(flow.client_id), encode(secret.expose_secret()));
            let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)))
                .map_err(|e| OidcError::Provider(e.to_string()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        Some(secret) => {
            form.append_pair("client_id", flow.client_id).append_pair("client_secret", secret.expose_secret());
        }
        None => {
            form.append_pair("client_id", flow.client_id);
        }
    }
    request.body(Bytes::from(form.finish())).map_err(|e| OidcError::Provider(e.to_string()))
}

fn discovery(error: openidconnect::DiscoveryError<EgressError>) -> OidcError {
    match error {
        openidconnect::DiscoveryError::Request(error) => OidcError::Egress(error),
        other => OidcError::Provider(format!("discovery failed: {other}")),
    }
}

fn untrusted(error: ClaimsVerificationError) -> OidcError {
    OidcError::Untrusted(format!("the ID token does not hold: {error}"))
}

fn verify(
    provider: &Provider,
    flow: &Flow<'_>,
    token: &CoreIdToken,
    access_token: &str,
    now: DateTime<Utc>,
) -> Result<(), ClaimsVerificationError> {
    let fresh = move |issued: DateTime<Utc>| {
        if (now - issued).abs() <= SKEW { Ok(()) } else { Err(format!("issued at {issued}, and now is {now}")) }
    };
    // For public clients: then signatures with a shared secret are refused, whatever the provider says of itself.
    let verifier = CoreIdTokenVerifier::new_public_client(
        ClientId::new(flow.client_id.to_owned()),
        provider.metadata.issuer().clone(),
        (**provider.keys.load()).clone(),
    )
    .set_allowed_algs(ALGORITHMS)
    .set_time_fn(move || now)
    .set_issue_time_verifier_fn(fresh);
    let nonce = Nonce::new(flow.nonce.to_owned());
    let claims: &CoreIdTokenClaims = token.claims(&verifier, &nonce)?;
    if claims.authorized_party().is_some_and(|azp| azp.as_str() != flow.client_id) {
        return Err(ClaimsVerificationError::InvalidAudience("azp names another client".into()));
    }
    if let Some(expected) = claims.access_token_hash() {
        let signature = ClaimsVerificationError::SignatureVerification;
        let algorithm = token.signing_alg().map_err(signature)?;
        let key = token.signing_key(&verifier).map_err(signature)?;
        let found = AccessTokenHash::from_token(&AccessToken::new(access_token.to_owned()), algorithm, key)
            .map_err(|e| ClaimsVerificationError::Other(e.to_string()))?;
        if found != *expected {
            return Err(ClaimsVerificationError::Other("at_hash does not match the access token".into()));
        }
    }
    Ok(())
}

/// The claims of a token whose signature was verified, as they were sent.
fn payload(raw: &str) -> Result<Value, OidcError> {
    let malformed = || OidcError::Untrusted("the ID token is malformed".into());
    let part = raw.split('.').nth(1).ok_or_else(malformed)?;
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).map_err(|_| malformed())?;
    serde_json::from_slice(&bytes).map_err(|_| malformed())
}

/// What a far side said, fit for a log line.
pub fn brief(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
