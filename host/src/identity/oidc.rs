//! OpenID Connect Core 1.0 on top of the authorization code grant of [`code`]: discovery, the checks of the ID token, and
//! the provider's keys, which are fetched again when they change.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderValue, Request, Response, StatusCode, header};
use moka::sync::Cache;
use openidconnect::{
    AccessToken, AccessTokenHash, AdditionalProviderMetadata, AsyncHttpClient, ClaimsVerificationError, ClientId,
    HttpRequest, HttpResponse, IssuerUrl, JsonWebKeySet, JsonWebKeySetUrl, Nonce, ProviderMetadata,
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
use crate::{
    clock::Clock,
    config::limits::ServerLimits,
    sandbox::egress::{self, Asking, EgressError, FetchLimits},
};

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
/// After keys were fetched again because of an unknown one, they are not for this long.
const COOL_DOWN: TimeDelta = TimeDelta::seconds(30);
/// How far the provider's clock may be off.
const SKEW: TimeDelta = TimeDelta::minutes(5);
/// How far ahead of ours the time may be at which an ID token was issued. How long ago that was does not matter: the nonce is
/// of this sign-in alone, and Microsoft Entra ID dates its tokens five minutes back.
const ISSUED_AHEAD: TimeDelta = TimeDelta::seconds(60);
/// Bits of an RSA key at least (RFC 7518, section 3.3).
const RSA_BITS: usize = 2048;

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

type Keys = JsonWebKeySet<CoreJsonWebKey>;

/// A provider as discovered.
struct Provider {
    issuer: IssuerUrl,
    authorization: Url,
    token: Url,
    /// How its token endpoint takes the client's secret.
    auth: ClientAuth,
    userinfo: Option<Url>,
    jwks: JsonWebKeySetUrl,
    /// Whether its callbacks always name it (RFC 9207).
    names_itself: bool,
    keys: ArcSwap<Keys>,
    /// When they were fetched again last.
    refetched: tokio::sync::Mutex<DateTime<Utc>>,
}

impl Provider {
    /// Its endpoints are held to what [`code::endpoint`] wants: they are sent the code, the client's secret and tokens.
    fn new(metadata: &Metadata) -> Result<Self, String> {
        let token = metadata.token_endpoint().ok_or("discovery names no token_endpoint")?;
        code::endpoint("jwks_uri", metadata.jwks_uri().as_str())?;
        // Without a word about it, the provider takes HTTP Basic (OpenID Connect Discovery 1.0, section 3).
        let post = metadata.token_endpoint_auth_methods_supported().is_some_and(|methods| {
            !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let userinfo = metadata.userinfo_endpoint().map(|url| code::endpoint("userinfo_endpoint", url.as_str()));
        Ok(Self {
            issuer: metadata.issuer().clone(),
            authorization: code::endpoint("authorization_endpoint", metadata.authorization_endpoint().as_str())?,
            token: code::endpoint("token_endpoint", token.as_str())?,
            auth: if post { ClientAuth::Post } else { ClientAuth::Basic },
            userinfo: userinfo.transpose()?,
            jwks: metadata.jwks_uri().clone(),
            names_itself: metadata.additional_metadata().authorization_response_iss_parameter_supported,
            keys: ArcSwap::from_pointee(usable(metadata.jwks())),
            refetched: tokio::sync::Mutex::new(DateTime::<Utc>::MIN_UTC),
        })
    }
}

/// The keys that are long enough.
fn usable(keys: &Keys) -> Keys {
    let long_enough = |key: &&CoreJsonWebKey| {
        let jwk = serde_json::to_value(key).unwrap_or_default();
        let member = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
        let modulus = URL_SAFE_NO_PAD.decode(member("n").trim_end_matches('=')).unwrap_or_default();
        let mut digits = modulus.iter().skip_while(|byte| **byte == 0);
        let leading = digits.clone().next().map_or(0, |byte| byte.leading_zeros());
        let bits = (digits.by_ref().count() * 8).saturating_sub(usize::try_from(leading).unwrap_or(0));
        if member("kty") == "RSA" && bits < RSA_BITS {
            tracing::warn!(bits, "an RSA key of an identity provider is shorter than {RSA_BITS} bits and is not used");
            return false;
        }
        true
    };
    JsonWebKeySet::new(keys.keys().iter().filter(long_enough).cloned().collect())
}

/// An issuer's address as OpenID Connect Discovery 1.0, section 2, wants it: TLS, neither query nor fragment.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_issuer(issuer: &str) -> Result<(), String> {
    if code::endpoint("issuer", issuer)?.query().is_some() {
        return Err(format!("the issuer `{}` must have no query", code::brief(issuer)));
    }
    Ok(())
}

/// Talks to providers. Cheap to clone.
#[derive(Clone)]
pub struct Providers {
    http: Http,
    known: moka::future::Cache<String, Arc<Provider>>,
    /// Issuers whose discovery failed a moment ago, and why: they are not asked again for a while, however many want to sign
    /// in there.
    failed: Cache<String, Arc<ProviderError>>,
}

#[derive(Clone)]
struct Http {
    egress: egress::Client,
    /// Bytes of a document at the most: keys stay in memory.
    document_bytes: u64,
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = EgressError;
    type Future = futures::future::BoxFuture<'c, Result<HttpResponse, EgressError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let limits = FetchLimits { response_bytes: self.document_bytes, ..FetchLimits::default() };
            let response = self.egress.fetch(request.map(Bytes::from), limits).await?;
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
    pub fn new(egress: egress::Client, limits: &ServerLimits) -> Self {
        let most = limits.identity_providers_kept;
        let kept = Duration::from_secs(limits.discovery_seconds);
        let cool_down = Duration::from_secs(limits.discovery_cool_down_seconds);
        Self {
            http: Http { egress, document_bytes: limits.discovery_kib << 10 },
            known: moka::future::Cache::builder().max_capacity(most).time_to_live(kept).build(),
            failed: Cache::builder().max_capacity(most).time_to_live(cool_down).build(),
        }
    }

    /// The same for somebody: what is known is shared, and names are looked up within his share.
    #[must_use]
    pub fn asked_by(&self, asking: Asking) -> Self {
        let http = Http { egress: self.http.egress.asked_by(asking), ..self.http.clone() };
        Self { http, ..self.clone() }
    }

    /// The way out to all of them.
    pub fn egress(&self) -> &egress::Client {
        &self.http.egress
    }

    /// The provider as discovered: once for all who ask at the same time.
    async fn provider(&self, issuer: &str) -> Result<Arc<Provider>, ProviderError> {
        if let Some(error) = self.failed.get(issuer) {
            return Err(ProviderError::Shared(error));
        }
        self.known.try_get_with_by_ref(issuer, self.discover(issuer)).await.map_err(|error| {
            self.failed.insert(issuer.to_owned(), error.clone());
            ProviderError::Shared(error)
        })
    }

    /// Asks the issuer for its discovery document and keys.
    async fn discover(&self, issuer: &str) -> Result<Arc<Provider>, ProviderError> {
        let url = IssuerUrl::new(issuer.to_owned()).map_err(|e| ProviderError::Settings(format!("issuer: {e}")))?;
        let metadata = Metadata::discover_async(url, &self.http).await.map_err(discovery)?;
        Ok(Arc::new(Provider::new(&metadata).map_err(ProviderError::Settings)?))
    }

    /// Whether the issuer is there and says of itself what a sign-in needs. What it says is used from now on.
    ///
    /// # Errors
    /// As [`ProviderError`], in words for an administrator.
    pub async fn check(&self, issuer: &str) -> Result<(), ProviderError> {
        let provider = self.discover(issuer).await?;
        self.known.insert(issuer.to_owned(), provider).await;
        self.failed.invalidate(issuer);
        Ok(())
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
        let mut scope = vec!["openid"];
        scope.extend(scopes.iter().map(String::as_str).filter(|scope| *scope != "openid"));
        let mut url = flow.authorization(&provider.authorization, &scope.join(" "), parameters);
        url.query_pairs_mut().append_pair("nonce", nonce);
        Ok(url)
    }

    /// Exchanges the code of a callback, and checks everything that comes back. `iss` is the callback's (RFC 9207);
    /// `max_age` is how long ago the person may have signed in at the provider, where that was asked for.
    ///
    /// # Errors
    /// As [`ProviderError`].
    pub async fn exchange(
        &self,
        (issuer, nonce, max_age): (&str, &str, Option<TimeDelta>),
        flow: &Flow<'_>,
        secret: Option<&SecretString>,
        (given, iss): (&str, Option<&str>),
        clock: &Clock,
    ) -> Result<Verified, ProviderError> {
        let provider = self.provider(issuer).await?;
        if iss.map_or(provider.names_itself, |iss| iss != issuer) {
            return Err(code::another_issuer());
        }
        let redeemed = flow.redeem(self.egress(), provider.token.as_str(), (secret, provider.auth), given).await?;
        let Tokens { access_token, id_token } = redeemed;
        let no_token = "the token endpoint sent no ID token: is `openid` granted to this client?";
        let raw = id_token.ok_or_else(|| ProviderError::Settings(no_token.into()))?;
        // The time at which the token is here: the exchange may have taken a while.
        let now = clock.now();
        let expected = Expected {
            issuer: &provider.issuer,
            client_id: flow.client_id,
            nonce,
            max_age,
            access_token: access_token.expose_secret(),
            now,
        };
        let keys = provider.keys.load_full();
        let claims = match verify(&keys, &expected, raw.expose_secret()) {
            Err(ClaimsVerificationError::SignatureVerification(_)) if self.refetch(&provider, &keys, now).await? => {
                verify(&provider.keys.load(), &expected, raw.expose_secret())
            }
            verified => verified,
        };
        let claims = claims.map_err(|error| {
            ProviderError::Untrusted(format!("the ID token does not hold: {}", code::chain(&error)))
        })?;
        let userinfo = self.userinfo(&provider, access_token.expose_secret(), &claims).await?;
        Ok(Verified { claims, userinfo, access_token })
    }

    /// Fetches the provider's keys again, unless that was done a moment ago. Tells whether they are newer than `used`.
    async fn refetch(&self, provider: &Provider, used: &Arc<Keys>, now: DateTime<Utc>) -> Result<bool, ProviderError> {
        let mut refetched = provider.refetched.lock().await;
        // Another sign-in fetched them while this one waited for the lock.
        if !Arc::ptr_eq(&provider.keys.load(), used) {
            return Ok(true);
        }
        if now - *refetched < COOL_DOWN {
            return Ok(false);
        }
        *refetched = now;
        let keys = JsonWebKeySet::fetch_async(&provider.jwks, &self.http).await.map_err(discovery)?;
        provider.keys.store(Arc::new(usable(&keys)));
        Ok(true)
    }

    /// The userinfo response, where the provider gives one in plain JSON; of another subject it is refused (OpenID Connect
    /// Core 1.0, section 5.3.2). One that refuses this token is done without, and so is a signed one. One that is out of
    /// order signs nobody in: without the groups that it holds, somebody would get other roles.
    async fn userinfo(&self, provider: &Provider, token: &str, claims: &Value) -> Result<Option<Value>, ProviderError> {
        let Some(endpoint) = &provider.userinfo else { return Ok(None) };
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| ProviderError::Provider(e.to_string()))?;
        bearer.set_sensitive(true);
        let request = Request::get(endpoint.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|e| ProviderError::Provider(e.to_string()))?;
        let response = self.http.egress.fetch(request, FetchLimits::default()).await?;
        let userinfo = userinfo_of(&response)?;
        if userinfo.as_ref().is_some_and(|userinfo| userinfo.get("sub") != claims.get("sub")) {
            return Err(ProviderError::Untrusted("userinfo is about another subject than the ID token".into()));
        }
        Ok(userinfo)
    }
}

fn userinfo_of(response: &Response<Bytes>) -> Result<Option<Value>, ProviderError> {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let signed = kind.trim_start().to_ascii_lowercase().starts_with("application/jwt");
    let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if (status.is_client_error() && !passing) || (status == StatusCode::OK && signed) {
        tracing::warn!(%status, "an identity provider's userinfo endpoint gave no JSON; going on without");
        return Ok(None);
    }
    if status != StatusCode::OK {
        return Err(ProviderError::Provider(format!("the userinfo endpoint answered {status}")));
    }
    match serde_json::from_slice(response.body()) {
        Ok(userinfo @ Value::Object(_)) => Ok(Some(userinfo)),
        _ => Err(ProviderError::Provider("the userinfo endpoint's answer is not a JSON object".into())),
    }
}

fn discovery(error: openidconnect::DiscoveryError<EgressError>) -> ProviderError {
    use openidconnect::DiscoveryError::{Parse, Request, Response};
    match error {
        Request(error) => ProviderError::Egress(error),
        Parse(error) => {
            let why = code::clean(&error.to_string(), 500);
            ProviderError::Settings(format!("discovery failed: the document is not as it should be: {why}"))
        }
        Response(status, _, why) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            ProviderError::Provider(format!("discovery failed: {}", code::clean(&format!("{status}, {why}"), 500)))
        }
        // Some of it is the far side's own words.
        other => ProviderError::Settings(format!("discovery failed: {}", code::clean(&other.to_string(), 500))),
    }
}

/// What an ID token must be about.
struct Expected<'a> {
    issuer: &'a IssuerUrl,
    client_id: &'a str,
    nonce: &'a str,
    /// OpenID Connect Core 1.0, section 3.1.2.1: a browser can drop it from the request, so `auth_time` is compared.
    max_age: Option<TimeDelta>,
    access_token: &'a str,
    now: DateTime<Utc>,
}

/// The claims of an ID token, as they were sent, if it holds (OpenID Connect Core 1.0, sections 3.1.3.7 and 3.1.3.8).
fn verify(keys: &Keys, expected: &Expected<'_>, raw: &str) -> Result<Value, ClaimsVerificationError> {
    let token: CoreIdToken = raw.parse().map_err(other)?;
    let (now, max_age) = (expected.now, expected.max_age);
    let issued = move |at: DateTime<Utc>| {
        if at - now <= ISSUED_AHEAD { Ok(()) } else { Err(format!("issued at {at}, and now is {now}")) }
    };
    let recent = move |signed_in: Option<DateTime<Utc>>| match (max_age, signed_in) {
        (None, _) => Ok(()),
        (Some(max_age), Some(at)) if now - at <= max_age + SKEW => Ok(()),
        (Some(_), Some(at)) => Err(format!("signed in at {at}, which is longer ago than `max_age`")),
        (Some(_), None) => Err("there is no `auth_time`, which `max_age` asks for".to_owned()),
    };
    // For public clients: then signatures with a shared secret are refused, whatever the provider says of itself.
    let verifier = CoreIdTokenVerifier::new_public_client(
        ClientId::new(expected.client_id.to_owned()),
        expected.issuer.clone(),
        keys.clone(),
    )
    .set_allowed_algs(ALGORITHMS)
    // Only `exp` is compared with it.
    .set_time_fn(move || now - SKEW)
    .set_issue_time_verifier_fn(issued)
    .set_auth_time_verifier_fn(recent);
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
            .map_err(other)?;
        if found != *hash {
            return Err(other("at_hash does not match the access token"));
        }
    }
    let payload = raw.split('.').nth(1).unwrap_or_default().trim_end_matches('=');
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).map_err(other)?).map_err(other)?;
    // RFC 7519, section 4.1.5.
    if claims.get("nbf").and_then(Value::as_i64).is_some_and(|nbf| nbf > (now + SKEW).timestamp()) {
        return Err(other("it is not valid yet (`nbf`)"));
    }
    Ok(claims)
}

fn other(why: impl std::fmt::Display) -> ClaimsVerificationError {
    ClaimsVerificationError::Other(why.to_string())
}

#[cfg(test)]
mod tests;
