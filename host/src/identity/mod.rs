//! Sign-in, sessions and tokens.
//!
//! Who is asking is asked of the database with every request, in one query: a removed role, user or session is felt at
//! once. What a token or a cookie proves is only which session to look for.

pub mod browser;
mod callers;
mod claims;
pub mod code;
pub mod device;
pub mod failures;
mod key;
pub mod login;
mod oauth2;
pub mod oidc;
pub mod organization;
pub mod password;
pub mod provision;
mod respell;
pub mod secret;
pub mod session;
pub mod sso;
#[cfg(test)]
mod tests;
pub mod throttle;
mod token;
pub mod turns;

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use http::{HeaderMap, Method, header};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::{
    browser::Origins,
    callers::Callers,
    device::{Device, Devices},
    failures::Recorded,
    key::SigningKey,
    oidc::Providers,
    password::Passwords,
    secret::Opaque,
    session::{COARSE, live_at},
    throttle::{Anonymous, Throttle},
    token::Tokens,
};
use crate::{
    clock::Clock,
    config::Config,
    domain::{
        client::Client,
        id::{OrganizationId, UserId},
        principal::Principal,
    },
    sandbox::egress,
    secrets::Secrets,
    store::{
        Connection, Store, StoreError,
        sessions::{self, Named, Seen},
        signing_keys::PublicJwk,
    },
};

/// Sign-in, sessions and tokens. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Parts>);

/// The parts, once each.
pub struct Parts {
    tokens: Tokens,
    callers: Callers,
    /// Hashing and comparing.
    pub passwords: Passwords,
    /// Limits on attempts.
    throttle: Throttle,
    /// Browsers that signed in before.
    pub devices: Devices,
    /// Whose pages may use the cookie.
    pub origins: Origins,
    /// Where people sign in elsewhere.
    providers: Providers,
    /// Which failed sign-ins go into the audit trail.
    recorded: Recorded,
    /// How long a provider and its plugin may take to begin or to finish a sign-in.
    sign_in_time: Duration,
    /// How long somebody may take at a provider.
    sso_state_time: TimeDelta,
    /// Organizations in which a password is tried where a sign-in names none.
    sign_in_organizations: i64,
    /// Sessions of one user.
    sessions_per_user: i64,
    /// Sessions being written down as seen.
    touching: Arc<Semaphore>,
}

impl std::ops::Deref for Identity {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Why nobody is signed in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No credentials, or none that hold.
    #[error("not signed in")]
    Unauthenticated,
    /// An access token of ours that has expired.
    #[error("the access token has expired")]
    Expired,
    /// A cookie from another origin.
    #[error("cross-origin")]
    Origin,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why tokens could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Signing failed: a defect.
    #[error("signing an access token failed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IssueError {
    /// A stable name, for the log, metrics and the audit trail.
    pub fn code(&self) -> &'static str {
        match self {
            IssueError::Store(StoreError::Unavailable(_)) => "database_unavailable",
            IssueError::Store(StoreError::Unwritable(..)) => "database_unwritable",
            _ => "internal",
        }
    }
}

impl Identity {
    /// Loads or makes this host's signing key, and tells the other hosts.
    ///
    /// # Errors
    /// If the key cannot be read, made or published.
    pub async fn new(
        config: &Config,
        clock: &Clock,
        store: &Store,
        secrets: &Secrets,
        egress: &egress::Client,
    ) -> anyhow::Result<Self> {
        let key = SigningKey::load(&config.data_dir, clock)?;
        let issuer = config.public_url.as_str().trim_end_matches('/').to_owned();
        let tokens = Tokens::new(key, issuer);
        tokens.publish(store, clock).await?;
        respell::addresses(store, clock).await?;
        Ok(Self(Arc::new(Parts {
            tokens,
            callers: Callers::new(store, clock, &config.limits),
            passwords: Passwords::new(clock, &config.limits)?,
            throttle: Throttle::new(clock, &config.limits),
            devices: Devices::new(secrets),
            origins: Origins::new(config),
            providers: Providers::new(egress.clone(), &config.limits),
            recorded: Recorded::new(config.limits.sign_in_failures_recorded),
            // Within the time that the whole request has, so that a browser gets a page.
            sign_in_time: Duration::from_secs(
                config.limits.sign_in_seconds.min(config.limits.request_seconds.saturating_sub(2).max(1)),
            ),
            sso_state_time: TimeDelta::seconds(config.limits.sso_state_seconds),
            sign_in_organizations: config.limits.sign_in_organizations,
            sessions_per_user: config.limits.sessions_per_user,
            touching: Arc::new(Semaphore::new(4)),
        })))
    }

    /// Who is asking, as of now: by bearer token, or by the cookie. One query.
    ///
    /// # Errors
    /// As [`AuthError`].
    pub async fn authenticate(
        &self,
        store: &Store,
        clock: &Clock,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Principal, AuthError> {
        let seen = match headers.get(header::AUTHORIZATION) {
            Some(value) => {
                let (scheme, token) = value.to_str().unwrap_or_default().split_once(' ').unwrap_or_default();
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return Err(AuthError::Unauthenticated);
                }
                self.by_token(store, clock, token.trim()).await?
            }
            None => {
                let cookie = browser::cookie(headers, browser::SESSION_COOKIE).ok_or(AuthError::Unauthenticated)?;
                if !self.origins.admit(method, headers) {
                    return Err(AuthError::Origin);
                }
                let secret = Opaque::parse("", cookie).ok_or(AuthError::Unauthenticated)?;
                sessions::by_cookie(&mut store.read().await?, &secret.hash(), live_at(clock.now())).await?
            }
        };
        let Seen { principal, last_seen_at } = seen.ok_or(AuthError::Unauthenticated)?;
        if clock.now() - last_seen_at > COARSE {
            self.touch(store, clock, &principal);
        }
        Ok(principal)
    }

    /// Who a bearer token belongs to, as of now: for sockets that send it as a message.
    ///
    /// # Errors
    /// As [`AuthError`].
    async fn by_token(&self, store: &Store, clock: &Clock, token: &str) -> Result<Option<Seen>, AuthError> {
        let claims = self.tokens.verify(store, clock, token).await?;
        let session = Named { organization: claims.org, user: claims.sub, session: claims.sid };
        Ok(self.callers.find(session).await?)
    }

    /// Writes down that a session is in use, beside the request and never many at once: the next request tries again.
    fn touch(&self, store: &Store, clock: &Clock, principal: &Principal) {
        let Some(session) = principal.session_id else { return };
        let Ok(permit) = self.touching.clone().try_acquire_owned() else { return };
        let (store, organization, now) = (store.clone(), principal.organization_id, clock.now());
        tokio::spawn(async move {
            let _permit = permit;
            let written = async {
                let mut tx = store.begin().await?;
                sessions::touch(&mut tx, organization, session, now).await?;
                tx.commit().await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "a session could not be written down as seen");
            }
        });
    }

    /// An active user as a principal, without a session.
    ///
    /// # Errors
    /// As the database says.
    pub async fn principal(
        &self,
        c: &mut impl Connection,
        organization: OrganizationId,
        user: UserId,
    ) -> Result<Option<Principal>, StoreError> {
        sessions::principal(c, organization, user).await
    }

    /// The same principal as of now: what an open socket asks when access may have changed. Nothing where their session
    /// has ended, or they may not sign in any more.
    ///
    /// # Errors
    /// As the database says.
    pub async fn again(
        &self,
        c: &mut impl Connection,
        clock: &Clock,
        principal: &Principal,
    ) -> Result<Option<Principal>, StoreError> {
        let (organization, user) = (principal.organization_id, principal.user_id);
        match principal.session_id {
            None => sessions::principal(c, organization, user).await,
            Some(session) => {
                let session = Named { organization, user, session };
                let seen = sessions::by_ids(c, &[session], live_at(clock.now())).await?;
                Ok(seen.into_values().next().map(|seen| seen.principal))
            }
        }
    }

    /// As [`Identity::again`], for several at once; those who may not sign in any more are missing.
    ///
    /// # Errors
    /// As the database says.
    pub async fn all_again(
        &self,
        c: &mut impl Connection,
        clock: &Clock,
        principals: &[Principal],
    ) -> Result<Vec<Principal>, StoreError> {
        let mut found = Vec::with_capacity(principals.len());
        let mut named = Vec::new();
        for principal in principals {
            let (organization, user) = (principal.organization_id, principal.user_id);
            match principal.session_id {
                None => found.extend(sessions::principal(c, organization, user).await?),
                Some(session) => named.push(Named { organization, user, session }),
            }
        }
        let seen = sessions::by_ids(c, &named, live_at(clock.now())).await?;
        found.extend(seen.into_values().map(|seen| seen.principal));
        Ok(found)
    }

    /// The public keys of all hosts: `/.well-known/jwks.json`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn jwks(&self, store: &Store, clock: &Clock) -> Result<Vec<PublicJwk>, StoreError> {
        self.tokens.jwks(store, clock).await
    }

    /// Whether a client may make one more request that needs no sign-in and costs something.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&self, what: Anonymous, client: Client) -> Result<(), Duration> {
        self.throttle.admit(what, client)
    }

    /// Whether one more attempt to sign in by password may be made from here, with a browser that has these cookies: to be
    /// asked before its body is read.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit_password(&self, client: Client, devices: &[Device]) -> Result<(), Duration> {
        self.throttle.admit_password(client, devices)
    }

    /// Forgets sessions that ended, or were ended, a week ago, and tokens and keys that ended then. To be called now and then, by any
    /// host.
    ///
    /// # Errors
    /// As the database says.
    pub async fn sweep(&self, store: &Store, clock: &Clock, stopping: &CancellationToken) -> Result<(), StoreError> {
        let before = clock.now() - TimeDelta::days(7);
        store.sweep(stopping, |tx, most| Box::pin(sessions::sweep(tx, before, most))).await.map(drop)
    }
}
