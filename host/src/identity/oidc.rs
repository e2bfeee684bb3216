//! OpenID Connect Core 1.0 on top of the authorization code grant of [`code`]: discovery, the checks of the ID token, and
//! the provider's keys, which are fetched again when they change.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
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
use url::Url;

use super::code::{self, ClientAuth, Flow, ProviderError, Tokens};
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
/// Discovery documents and keys are kept for this long.
const KEPT: Duration = Duration::from_secs(600);
/// After keys were fetched again because of an unknown one, they are not for this long.
const COOL_DOWN: TimeDelta = TimeDelta::seconds(30);
/// How far the provider's clock may be off.
const SKEW: TimeDelta = TimeDelta::minutes(5);

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

/// What a provider vouches for.
pub struct Verified {
    /// The ID token's claims.
    pub claims: Value,
    /// The userinfo response, of the same subject.
    pub userinfo: Option<Value>,
    /// For the plugin, should it want to ask for more.
    pub access_token: SecretString,
}

impl Providers {
    /// Over this way out.
    pub fn new(egress: egress::Client) -> Self {
        Self { http: Http(egress), known: Cache::builder().max_capacity(1000).time_to_live(KEPT).build() }
    }

    /// The way out to all of them.
    pub fn egress(&self) -> &egress::Client {
        &self.http.0
    }

    async fn provider(&self, issuer: &str) -> Result<Arc<Provider>, ProviderError> {
        if let Some(known) = self.known.get(issuer) {
            return Ok(known);
        }
        let url = IssuerUrl::new(issuer.to_owned()).map_err(|e| ProviderError::Provider(format!("issuer: {e}")))?;
        let metadata = Metadata::discover_async(url, &self.http).await.map_err(discovery)?;
        let keys = ArcSwap::from_pointee(metadata.jwks().clone());
        let refetched = tokio::sync::Mutex::new(DateTime::<Utc>::MIN_UTC);
        let provider = Arc::new(Provider { metadata, keys, refetched });
        self.known.insert(issuer.to_owned(), provider.clone());
        Ok(provider)
    }

    /// Where to send somebody to sign in at `issuer`, which is exactly as in the tokens. `nonce` is different for each sign-in.
    ///
    /// # Errors
    /// As [`ProviderError`].
    pub async fn authorization(
        &self,
        (issuer, nonce): (&str, &str),
        flow: &Flow<'_>,
        scopes: &[String],
        parameters: &[(String, String)],
    ) -> Result<Url, ProviderError> {
        let provider = self.provider(issuer).await?;
        let endpoint = provider.metadata.authorization_endpoint().url();
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(ProviderError::Provider(format!("authorization_endpoint is not a web address: {endpoint}")));
        }
        let mut scope = vec!["openid"];
        scope.extend(scopes.iter().map(String::as_str).filter(|scope| *scope != "openid"));
        let mut url = flow.authorization(endpoint, &scope.join(" "), parameters);
        url.query_pairs_mut().append_pair("nonce", nonce);
        Ok(url)
    }

    /// Exchanges the code of a callback, and checks everything that comes back. `iss` is the callback's (RFC 9207).
    ///
    /// # Errors
    /// As [`ProviderError`].
    pub async fn exchange(
        &self,
        (issuer, nonce): (&str, &str),
        flow: &Flow<'_>,
        secret: Option<&SecretString>,
        (code, iss): (&str, Option<&str>),
        now: DateTime<Utc>,
    ) -> Result<Verified, ProviderError> {
        let provider = self.provider(issuer).await?;
        let named = provider.metadata.additional_metadata().authorization_response_iss_parameter_supported;
        if iss.map_or(named, |iss| iss != issuer) {
            return Err(code::another_issuer());
        }
        let endpoint = provider.metadata.token_endpoint();
        let endpoint =
            endpoint.ok_or_else(|| ProviderError::Provider("discovery names no token_endpoint".into()))?.as_str();
        // Without a word about it, the provider takes HTTP Basic (OpenID Connect Discovery 1.0, section 3).
        let methods = provider.metadata.token_endpoint_auth_methods_supported();
        let post = methods.is_some_and(|methods| {
            !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let auth = if post { ClientAuth::Post } else { ClientAuth::Basic };
        let Tokens { access_token, id_token } = flow.redeem(self.egress(), endpoint, (secret, auth), code).await?;
        let raw = id_token.ok_or_else(|| ProviderError::Provider("the token endpoint sent no ID token".into()))?;
        let raw = raw.expose_secret();
        let token: CoreIdToken =
            raw.parse().map_err(|e| ProviderError::Untrusted(format!("the ID token is malformed: {e}")))?;
        let expected = Expected { client_id: flow.client_id, nonce, access_token: access_token.expose_secret(), now };
        match verify(&provider, &expected, &token) {
            Ok(()) => {}
            Err(ClaimsVerificationError::SignatureVerification(_)) if self.refetch(&provider, now).await? => {
                verify(&provider, &expected, &token).map_err(untrusted)?;
            }
            Err(error) => return Err(untrusted(error)),
        }
        let claims = payload(raw)?;
        let userinfo = self.userinfo(&provider, access_token.expose_secret(), &claims).await?;
        Ok(Verified { claims, userinfo, access_token })
    }

    /// Fetches the provider's keys again, unless that was done a moment ago. Tells whether they are newer now.
    async fn refetch(&self, provider: &Provider, now: DateTime<Utc>) -> Result<bool, ProviderError> {
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
    async fn userinfo(&self, provider: &Provider, token: &str, claims: &Value) -> Result<Option<Value>, ProviderError> {
        let Some(endpoint) = provider.metadata.userinfo_endpoint() else { return Ok(None) };
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| ProviderError::Provider(e.to_string()))?;
        bearer.set_sensitive(true);
        let request = Request::get(endpoint.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|e| ProviderError::Provider(e.to_string()))?;
        let response = self.http.0.fetch(request, FetchLimits::default()).await?;
        let userinfo = (response.status() == StatusCode::OK)
            .then(|| serde_json::from_slice::<Value>(response.body()).ok())
            .flatten();
        let Some(userinfo) = userinfo.filter(Value::is_object) else {
            tracing::warn!(status = %response.status(), "an identity provider's userinfo endpoint gave no JSON; going on without");
            return Ok(None);
        };
        if userinfo.get("sub").is_none_or(|sub| Some(sub) != claims.get("sub")) {
            return Err(ProviderError::Untrusted("userinfo is about another subject than the ID token".into()));
        }
        Ok(Some(userinfo))
    }
}

fn discovery(error: openidconnect::DiscoveryError<EgressError>) -> ProviderError {
    match error {
        openidconnect::DiscoveryError::Request(error) => ProviderError::Egress(error),
        other => ProviderError::Provider(format!("discovery failed: {other}")),
    }
}

fn untrusted(error: ClaimsVerificationError) -> ProviderError {
    ProviderError::Untrusted(format!("the ID token does not hold: {error}"))
}

/// What an ID token must be about.
struct Expected<'a> {
    client_id: &'a str,
    nonce: &'a str,
    access_token: &'a str,
    now: DateTime<Utc>,
}

fn verify(provider: &Provider, expected: &Expected<'_>, token: &CoreIdToken) -> Result<(), ClaimsVerificationError> {
    let now = expected.now;
    let fresh = move |issued: DateTime<Utc>| {
        if (now - issued).abs() <= SKEW { Ok(()) } else { Err(format!("issued at {issued}, and now is {now}")) }
    };
    // For public clients: then signatures with a shared secret are refused, whatever the provider says of itself.
    let verifier = CoreIdTokenVerifier::new_public_client(
        ClientId::new(expected.client_id.to_owned()),
        provider.metadata.issuer().clone(),
        (**provider.keys.load()).clone(),
    )
    .set_allowed_algs(ALGORITHMS)
    .set_time_fn(move || now)
    .set_issue_time_verifier_fn(fresh);
    let nonce = Nonce::new(expected.nonce.to_owned());
    let claims: &CoreIdTokenClaims = token.claims(&verifier, &nonce)?;
    if claims.authorized_party().is_some_and(|azp| azp.as_str() != expected.client_id) {
        return Err(ClaimsVerificationError::InvalidAudience("azp names another client".into()));
    }
    if let Some(hash) = claims.access_token_hash() {
        let signature = ClaimsVerificationError::SignatureVerification;
        let algorithm = token.signing_alg().map_err(signature)?;
        let key = token.signing_key(&verifier).map_err(signature)?;
        let found = AccessTokenHash::from_token(&AccessToken::new(expected.access_token.to_owned()), algorithm, key)
            .map_err(|e| ClaimsVerificationError::Other(e.to_string()))?;
        if found != *hash {
            return Err(ClaimsVerificationError::Other("at_hash does not match the access token".into()));
        }
    }
    Ok(())
}

/// The claims of a token whose signature was verified, as they were sent.
fn payload(raw: &str) -> Result<Value, ProviderError> {
    let malformed = || ProviderError::Untrusted("the ID token is malformed".into());
    let part = raw.split('.').nth(1).ok_or_else(malformed)?;
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).map_err(|_| malformed())?;
    serde_json::from_slice(&bytes).map_err(|_| malformed())
}
