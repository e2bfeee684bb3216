//! Access tokens: JWTs signed with RS256 (RFC 7519, RFC 9068), valid for 15 minutes, verified by every host.
//!
//! A token says who somebody was; whether they still may anything the session in the database says, at each request.
//! Checking a signature is a pure function, so what was verified once is remembered by the token's digest, and only the
//! times are looked at again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AuthError, key::SigningKey};
use crate::{
    clock::Clock,
    domain::id::{OrganizationId, SessionId, UserId},
    store::{
        Store, StoreError,
        signing_keys::{self, PublicJwk},
    },
};

/// `aud` of every access token.
const AUDIENCE: &str = "kaizen";
/// `typ` of every access token (RFC 9068, section 2.1): an ID token, or any other JWT, is not one.
const TYPE: &str = "at+jwt";
/// How long an access token is good for.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(15);
/// How far the clocks of two hosts may be apart.
const SKEW: TimeDelta = TimeDelta::seconds(30);
/// A token of ours is under 1 KiB.
const MAX_BYTES: usize = 4096;
/// Verified tokens that are remembered.
const REMEMBERED: u64 = 20_000;
/// How long they are, so that a withdrawn key stops counting.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// A published key is good for this long after its host last said so.
const PUBLISHED: TimeDelta = TimeDelta::hours(48);
/// Its host says so again when less than this is left.
const REPUBLISH: TimeDelta = TimeDelta::hours(24);
/// The keys are read again after this long.
const STALE: TimeDelta = TimeDelta::minutes(5);
/// And for an unknown key at most this often, whoever sends tokens that name one.
const COOL_DOWN: TimeDelta = TimeDelta::seconds(5);

/// How the last look for signing keys ended, and when.
enum Asked {
    Answered(DateTime<Utc>),
    Failed(DateTime<Utc>),
}

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// `public_url`.
    pub iss: String,
    /// [`AUDIENCE`].
    pub aud: String,
    /// Who.
    pub sub: UserId,
    /// In which organization.
    pub org: OrganizationId,
    /// By which session.
    pub sid: SessionId,
    /// This token.
    pub jti: String,
    /// Seconds since 1970.
    pub iat: i64,
    /// Not before.
    pub nbf: i64,
    /// Not at or after.
    pub exp: i64,
}

/// The keys of all hosts, as last read.
struct Keys {
    by_kid: HashMap<String, (DecodingKey, DateTime<Utc>)>,
    jwks: Vec<PublicJwk>,
    read_at: DateTime<Utc>,
}

/// Issues and verifies access tokens.
pub struct Tokens {
    key: SigningKey,
    issuer: String,
    keys: ArcSwap<Keys>,
    /// When the table was last asked, and how that ended; held while asking, so that one asks for all.
    asked: tokio::sync::Mutex<Asked>,
    published_until: parking_lot::Mutex<DateTime<Utc>>,
    verified: Cache<[u8; 32], Arc<Claims>>,
    validation: Validation,
}

impl Tokens {
    /// With this host's key, for tokens of this issuer.
    pub fn new(key: SigningKey, issuer: String) -> Self {
        // Times and audience are checked by `check`, with our own clock and for remembered tokens too.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let never = DateTime::<Utc>::MIN_UTC;
        Self {
            key,
            issuer,
            keys: ArcSwap::from_pointee(Keys { by_kid: HashMap::new(), jwks: Vec::new(), read_at: never }),
            asked: tokio::sync::Mutex::new(Asked::Answered(never)),
            published_until: parking_lot::Mutex::new(never),
            verified: Cache::builder().max_capacity(REMEMBERED).time_to_live(REMEMBERED_FOR).build(),
            validation,
        }
    }

    /// Tells the other hosts this host's public key, unless they know it for long enough.
    ///
    /// # Errors
    /// As the database says.
    pub async fn publish(&self, store: &Store, clock: &Clock) -> Result<(), StoreError> {
        let now = clock.now();
        if *self.published_until.lock() - now > REPUBLISH {
            return Ok(());
        }
        let mut tx = store.begin().await?;
        signing_keys::publish(&mut tx, &self.key.jwk, now, now + PUBLISHED).await?;
        tx.commit().await?;
        *self.published_until.lock() = now + PUBLISHED;
        Ok(())
    }

    /// A new access token for a session.
    ///
    /// # Errors
    /// If signing fails: a defect.
    pub fn issue(
        &self,
        clock: &Clock,
        (org, sub, sid): (OrganizationId, UserId, SessionId),
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let now = clock.now().timestamp();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: AUDIENCE.to_owned(),
            sub,
            org,
            sid,
            jti: hex::encode(clock.bytes::<16>()),
            iat: now,
            nbf: now,
            exp: now + LIFETIME.num_seconds(),
        };
        let mut header = Header::new(Algorithm::RS256);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(self.key.jwk.kid.clone());
        jsonwebtoken::encode(&header, &claims, &self.key.encoding)
    }

    /// What a token says, if it was signed by one of our hosts, is meant for us, and is good now.
    ///
    /// # Errors
    /// [`AuthError::Expired`] where nothing else is wrong with it, and otherwise [`AuthError::Unauthenticated`]; as the database says.
    pub async fn verify(&self, store: &Store, clock: &Clock, token: &str) -> Result<Arc<Claims>, AuthError> {
        if token.len() > MAX_BYTES {
            return Err(AuthError::Unauthenticated);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let now = clock.now();
        let claims = match self.verified.get(&digest) {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.signed(store, now, token).await?);
                self.verified.insert(digest, claims.clone());
                claims
            }
        };
        self.check(&claims, now)?;
        Ok(claims)
    }

    fn check(&self, claims: &Claims, now: DateTime<Utc>) -> Result<(), AuthError> {
        let now = now.timestamp();
        // Not the issuer: it is this installation's whatever it says, since only this installation's own keys verify, and it
        // differs where hosts, or one host before and after a change, know themselves by different public URLs.
        let good = claims.aud == AUDIENCE
            && claims.nbf <= now.saturating_add(SKEW.num_seconds())
            // None of ours lives longer, whatever it says.
            && claims.exp.saturating_sub(claims.iat) <= LIFETIME.num_seconds();
        match (good, now < claims.exp) {
            (true, true) => Ok(()),
            (true, false) => Err(AuthError::Expired),
            (false, _) => Err(AuthError::Unauthenticated),
        }
    }

    async fn signed(&self, store: &Store, now: DateTime<Utc>, token: &str) -> Result<Claims, AuthError> {
        let refused = |_| AuthError::Unauthenticated;
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        let typed = header.typ.as_deref().is_some_and(|typ| {
            let typ = typ.to_ascii_lowercase();
            typ.strip_prefix("application/").unwrap_or(&typ) == TYPE
        });
        let Some(kid) = header.kid.filter(|_| header.alg == Algorithm::RS256 && typed && header.crit.is_none()) else {
            return Err(AuthError::Unauthenticated);
        };
        let keys = self.keys(store, now, |keys| keys.by_kid.contains_key(&kid)).await?;
        match keys.by_kid.get(&kid) {
            Some((key, expires_at)) if *expires_at > now => {
                Ok(jsonwebtoken::decode::<Claims>(token, key, &self.validation).map_err(refused)?.claims)
            }
            _ => Err(AuthError::Unauthenticated),
        }
    }

    /// The keys; read anew where they are old, or do not satisfy and were not read a moment ago.
    async fn keys(
        &self,
        store: &Store,
        now: DateTime<Utc>,
        enough: impl Fn(&Keys) -> bool,
    ) -> Result<Arc<Keys>, StoreError> {
        let fresh = |keys: &Keys| now - keys.read_at < STALE && enough(keys);
        let keys = self.keys.load_full();
        if fresh(&keys) {
            return Ok(keys);
        }
        let mut asked = self.asked.lock().await;
        let keys = self.keys.load_full();
        if fresh(&keys) {
            return Ok(keys);
        }
        match *asked {
            Asked::Answered(at) if now - at < COOL_DOWN => return Ok(keys),
            // Who waited while another was refused is refused with it, and need not wait for the same.
            Asked::Failed(at) if now < at => return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
            _ => {}
        }
        let begun = Instant::now();
        let live = async { signing_keys::live(&mut store.read().await?, now).await }.await;
        let waited = TimeDelta::from_std(begun.elapsed()).unwrap_or_default();
        *asked = if live.is_ok() { Asked::Answered(now) } else { Asked::Failed(now + waited) };
        let live = live?;
        let mut read = Keys { by_kid: HashMap::with_capacity(live.len()), jwks: Vec::new(), read_at: now };
        for (jwk, expires_at) in live {
            match DecodingKey::from_rsa_components(&jwk.n, &jwk.e) {
                Ok(key) if jwk.kty == "RSA" && jwk.alg == "RS256" => {
                    read.by_kid.insert(jwk.kid.clone(), (key, expires_at));
                    read.jwks.push(jwk);
                }
                _ => tracing::warn!(kid = jwk.kid, "a signing key in the database is not usable and is left out"),
            }
        }
        let read = Arc::new(read);
        self.keys.store(read.clone());
        Ok(read)
    }

    /// The public keys of all hosts: `/.well-known/jwks.json`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn jwks(&self, store: &Store, clock: &Clock) -> Result<Vec<PublicJwk>, StoreError> {
        let now = clock.now();
        let keys = self.keys(store, now, |keys| now - keys.read_at < TimeDelta::minutes(1)).await?;
        Ok(keys.jwks.clone())
    }
}
