//! Signing in elsewhere. The host runs the protocol; a plugin says against whom, and turns what was verified into an
//! identity, which is then matched with a user of the connection's organization.
//!
//! A sign-in is bound to the browser that began it: nonce and PKCE verifier are derived from a cookie that only this
//! browser has, together with `state`; the database keeps digests of both.

mod course;

use secrecy::SecretString;
use serde_json::Value;
use url::Url;
use uuid::Uuid;

pub use self::course::feasible;
use self::course::{Course, Way, client_id};
use super::{
    Identity, IssueError,
    code::{Flow, ProviderError},
    failures::{self, By, Visit},
    oidc::Providers,
    provision::{self, Provisioned, Refusal, Vouched},
    secret::Opaque,
    session::{Method, SignIn, SignedIn},
};
use crate::{
    clock::Clock,
    domain::{connection::Kind, id::OrganizationId},
    plugins::{Attempt, Binding, IdentityGrant, PluginError, Plugins, Protocol, bind},
    sandbox::egress::Asking,
    secrets::Secrets,
    store::{
        Store, StoreError, Tx,
        connections::{self, Connection},
        quota::Allowances,
        sso::{self as pending, Pending},
    },
};

/// Why a sign-in elsewhere did not work out.
#[derive(Debug, thiserror::Error)]
pub enum SsoError {
    /// There is no such connection, or it is not in use.
    #[error("no such identity connection")]
    NotFound,
    /// The connection was changed since the sign-in began: what the provider says is said of another configuration.
    #[error("the identity connection was changed during this sign-in")]
    Changed,
    /// It would lead away.
    #[error("return_to leads elsewhere")]
    ReturnTo,
    /// Nobody began it in this browser, or it was too long ago, or it is done.
    #[error("no such sign-in is under way")]
    State,
    /// The provider says no, in its own words, which are cleaned.
    #[error("the provider refused: {error}{}", description.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// Its error code (RFC 6749, section 4.1.2.1).
        error: String,
        /// Its `error_description`: for administrators, never shown on a page.
        description: Option<String>,
    },
    /// The provider and its plugin took too long.
    #[error("the provider took too long")]
    Timeout,
    /// The provider's side.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The connection cannot work as it is configured.
    #[error("{0}")]
    Config(String),
    /// The provider vouches for them, and they may not sign in here.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// The tokens.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl From<StoreError> for SsoError {
    fn from(error: StoreError) -> Self {
        SsoError::Issue(error.into())
    }
}

/// What runs a sign-in.
pub struct Desk<'a> {
    /// The database.
    pub store: &'a Store,
    /// Time and randomness.
    pub clock: &'a Clock,
    /// The providers' plugins.
    pub plugins: &'a Plugins,
    /// For the connection's secrets.
    pub secrets: &'a Secrets,
    /// What newcomers may add to.
    pub allowances: &'a Allowances,
    /// Where providers send people back to.
    pub redirect_uri: &'a str,
}

/// A sign-in that has begun.
pub struct Begun {
    /// Where to send the browser.
    pub location: Url,
    /// What its cookie is to hold.
    pub cookie: String,
}

/// What a provider's callback brings.
pub struct Callback<'a> {
    /// As we sent it.
    pub state: &'a str,
    /// To be exchanged.
    pub code: Option<&'a str>,
    /// Where there is no code, why.
    pub error: Option<&'a str>,
    /// The same in the provider's words.
    pub description: Option<&'a str>,
    /// RFC 9207.
    pub iss: Option<&'a str>,
}

/// How the protocol is run for one connection.
struct Plan {
    binding: Binding,
    course: Course,
    client_id: String,
}

impl Desk<'_> {
    async fn connection(&self, id: Uuid) -> Result<Connection, SsoError> {
        let found = connections::of_any_organization(&mut self.store.read().await?, Kind::IdentityProvider, id).await?;
        found.filter(|connection| connection.active).ok_or(SsoError::NotFound)
    }

    async fn plan(&self, connection: &Connection) -> Result<Plan, SsoError> {
        let binding = bind(self.secrets, connection).map_err(|error| SsoError::Config(error.to_string()))?;
        let protocol = self.plugins.begin(&binding, &self.attempt()).await?;
        let course = Course::of(protocol, &binding.config).map_err(SsoError::Config)?;
        let client_id = client_id(&binding.config).map_err(SsoError::Config)?.to_owned();
        Ok(Plan { binding, course, client_id })
    }

    fn attempt(&self) -> Attempt {
        Attempt { idempotency_key: self.clock.id::<Uuid>().to_string(), attempt: 1 }
    }
}

impl Plan {
    fn flow<'a>(&'a self, desk: &Desk<'a>, state: &'a str, verifier: &'a str) -> Flow<'a> {
        Flow { client_id: &self.client_id, redirect_uri: desk.redirect_uri, state, verifier }
    }
}

/// What is sent to the provider, derived from what only this browser has.
struct Derived {
    nonce: String,
    verifier: String,
}

fn derive(browser: &Opaque, state: &Opaque) -> Derived {
    let with = |what: &str| browser.derive(&[what.as_bytes(), &state.hash()].concat()).encode();
    Derived { nonce: with("nonce"), verifier: with("verifier") }
}

/// Refuses unless a connection is as it was when the sign-in began; then it stays so until the transaction ends.
async fn unchanged(tx: &mut Tx, connection: &Connection) -> Result<(), SsoError> {
    match connections::lock(tx, connection.organization_id, connection.id).await? {
        Some((true, revision)) if revision == connection.revision => Ok(()),
        Some((true, _)) => Err(SsoError::Changed),
        Some((false, _)) | None => Err(SsoError::NotFound),
    }
}

impl Identity {
    /// Whether the provider is there, for an administrator who asks: one of OpenID Connect is asked for its discovery
    /// document and keys. OAuth 2 has no endpoint that tells.
    ///
    /// # Errors
    /// [`SsoError::Config`] or [`SsoError::Provider`].
    pub async fn check_sso(
        &self,
        organization: OrganizationId,
        protocol: Protocol,
        config: &Value,
    ) -> Result<(), SsoError> {
        let issuer = feasible(protocol.clone(), config).map_err(SsoError::Config)?;
        match protocol {
            Protocol::Oidc { .. } => {
                let asking = Asking { organization: Some(organization.into()), signs_in: false };
                Ok(self.providers.asked_by(asking).check(&issuer).await?)
            }
            Protocol::Oauth2 { .. } => Ok(()),
        }
    }

    /// Providers as those are asked who sign in by a connection.
    fn providers_of(&self, connection: &Connection) -> Providers {
        self.providers.asked_by(Asking { organization: Some(connection.organization_id.into()), signs_in: true })
    }

    /// Begins to sign somebody in by an identity connection. `cookie` is what the browser holds from another sign-in that
    /// it began a moment ago, so that two tabs do not disturb each other.
    ///
    /// # Errors
    /// As [`SsoError`], with the organization whose audit trail tells of it.
    pub async fn begin_sso(
        &self,
        desk: &Desk<'_>,
        connection: Uuid,
        return_to: Option<&str>,
        cookie: Option<&str>,
        visit: &Visit<'_>,
    ) -> Result<Begun, Failed> {
        let mut by = None;
        let begun = self.begun_sso(desk, connection, return_to, cookie, &mut by).await;
        self.told(desk, begun, by, visit).await
    }

    /// Logs, counts and records what became of a sign-in.
    async fn told<T>(
        &self,
        desk: &Desk<'_>,
        result: Result<T, SsoError>,
        by: Option<By>,
        visit: &Visit<'_>,
    ) -> Result<T, Failed> {
        match result {
            Ok(done) => Ok(done),
            Err(error) => {
                let recorded = self.sso_failed((desk.store, desk.clock), by, &error, visit).await;
                Err(Failed { error, recorded })
            }
        }
    }

    async fn begun_sso(
        &self,
        desk: &Desk<'_>,
        connection: Uuid,
        return_to: Option<&str>,
        cookie: Option<&str>,
        by: &mut Option<By>,
    ) -> Result<Begun, SsoError> {
        let connection = desk.connection(connection).await?;
        let return_to = self.origins.return_to(return_to).ok_or(SsoError::ReturnTo)?;
        *by = Some(By { organization: connection.organization_id, connection: connection.id });
        let browser = cookie.and_then(|text| Opaque::parse("", text)).unwrap_or_else(|| Opaque::random(desk.clock));
        let state = Opaque::random(desk.clock);
        let Derived { nonce, verifier } = derive(&browser, &state);
        let state_text = state.encode();
        let providers = self.providers_of(&connection);
        let asked = async {
            let plan = desk.plan(&connection).await?;
            let flow = plan.flow(desk, &state_text, &verifier);
            let Course { way, scopes, parameters, .. } = &plan.course;
            Ok::<_, SsoError>(match way {
                Way::Oidc(issuer, _) => providers.authorization((issuer, &nonce), &flow, scopes, parameters).await?,
                Way::Oauth2(endpoints) => endpoints.authorization(&flow, scopes, parameters),
            })
        };
        let location =
            tokio::time::timeout(self.sign_in_time, Box::pin(asked)).await.map_err(|_| SsoError::Timeout)??;
        let now = desk.clock.now();
        let pending = Pending {
            organization_id: connection.organization_id,
            connection_id: connection.id,
            connection_revision: connection.revision,
            return_to: return_to.into(),
            expires_at: now + self.sso_state_time,
        };
        let mut tx = desk.store.begin().await?;
        pending::sweep(&mut tx, now).await?;
        pending::begin(&mut tx, &state.hash(), &browser.hash(), &pending).await?;
        tx.commit().await?;
        Ok(Begun { location, cookie: browser.encode() })
    }

    /// Finishes a sign-in: exchanges the code, checks the answer, asks the plugin who it is, finds or makes the user, and
    /// begins a session. Returns where to send the browser.
    ///
    /// # Errors
    /// As [`SsoError`], with the organization whose audit trail tells of it.
    pub async fn finish_sso(
        &self,
        desk: &Desk<'_>,
        callback: &Callback<'_>,
        cookie: Option<&str>,
        visit: &Visit<'_>,
    ) -> Result<(SignedIn, String), Failed> {
        let mut by = None;
        let finished = self.finished_sso(desk, callback, cookie, visit, &mut by).await;
        let finished = self.told(desk, finished, by, visit).await?;
        failures::count(Method::Sso, "success");
        Ok(finished)
    }

    async fn finished_sso(
        &self,
        desk: &Desk<'_>,
        callback: &Callback<'_>,
        cookie: Option<&str>,
        visit: &Visit<'_>,
        by: &mut Option<By>,
    ) -> Result<(SignedIn, String), SsoError> {
        let state = Opaque::parse("", callback.state).ok_or(SsoError::State)?;
        let browser = cookie.and_then(|text| Opaque::parse("", text)).ok_or(SsoError::State)?;
        let (state_hash, browser_hash) = (state.hash(), browser.hash());
        if !pending::exists(&mut desk.store.read().await?, &state_hash, &browser_hash, desk.clock.now()).await? {
            return Err(SsoError::State);
        }
        let mut tx = desk.store.begin().await?;
        let begun = pending::take(&mut tx, &state_hash, &browser_hash).await?;
        tx.commit().await?;
        let begun = begun.filter(|begun| begun.expires_at > desk.clock.now()).ok_or(SsoError::State)?;
        *by = Some(By { organization: begun.organization_id, connection: begun.connection_id });
        let code = match (callback.code, callback.error) {
            (Some(code), None) => code,
            (_, error) => return Err(failures::refused(error.unwrap_or("no code was sent"), callback.description)),
        };
        let connection = desk.connection(begun.connection_id).await?;
        // RFC 9700, section 4.4: the code is for whom the browser was sent to, and so is the PKCE verifier.
        if connection.revision != begun.connection_revision {
            return Err(SsoError::Changed);
        }
        // What follows in the database is not cut off in the middle: who is told that it failed is not signed in.
        let answered = self.answered(desk, &connection, (callback, code), (&browser, &state));
        let answered =
            tokio::time::timeout(self.sign_in_time, Box::pin(answered)).await.map_err(|_| SsoError::Timeout)??;
        let mut again = true;
        let session = loop {
            let mut tx = desk.store.begin().await?;
            unchanged(&mut tx, &connection).await?;
            match provision::user(&mut tx, desk.clock, (&connection, &answered), desk.allowances).await {
                Ok(Provisioned { user, left_out }) => {
                    let how = SignIn {
                        method: Method::Sso,
                        connection: Some(connection.id),
                        left_out: &left_out,
                        visit: *visit,
                    };
                    let session = self.begin(&mut tx, desk.clock, (connection.organization_id, user), &how).await?;
                    tx.commit().await?;
                    if !left_out.is_empty() {
                        tracing::info!(
                            organization_id = %connection.organization_id, connection_id = %connection.id, user_id = %user,
                            attributes = ?left_out, "attributes that a provider sent are not accepted and were left out"
                        );
                    }
                    break session;
                }
                // Somebody who signs in for the first time in two tabs: the other one has made the user, or the link.
                Err(provision::Error::Store(StoreError::Duplicate(_))) if again => again = false,
                Err(provision::Error::Store(error)) => return Err(error.into()),
                Err(provision::Error::Refused(refusal)) => return Err(refusal.into()),
            }
        };
        Ok((self.hand_out(desk.store, desk.clock, session).await?, begun.return_to))
    }

    /// Asks the provider and the plugin who it is.
    async fn answered(
        &self,
        desk: &Desk<'_>,
        connection: &Connection,
        (callback, code): (&Callback<'_>, &str),
        (browser, state): (&Opaque, &Opaque),
    ) -> Result<Vouched, SsoError> {
        let plan = desk.plan(connection).await?;
        let Derived { nonce, verifier } = derive(browser, state);
        let flow = plan.flow(desk, callback.state, &verifier);
        let secret = plan.binding.secrets.get("client-secret");
        let answer = (code, callback.iss);
        let providers = self.providers_of(connection);
        let (grant, access_token): (IdentityGrant, SecretString) = match &plan.course.way {
            Way::Oidc(issuer, max_age) => {
                let about = (issuer.as_str(), nonce.as_str(), *max_age);
                let verified = providers.exchange(about, &flow, secret, answer, desk.clock).await?;
                if let Some(claim) = plan.course.required.missing(&verified.claims, verified.userinfo.as_ref()) {
                    return Err(Refusal::Claim(claim.to_owned()).into());
                }
                let grant = IdentityGrant { claims: Some(verified.claims), userinfo: verified.userinfo };
                (grant, verified.access_token)
            }
            Way::Oauth2(endpoints) => {
                let tokens = endpoints.exchange(providers.egress(), &flow, secret, answer).await?;
                (IdentityGrant::default(), tokens.access_token)
            }
        };
        let identity = match desk.plugins.identify(&plan.binding, &desk.attempt(), grant, Some(access_token)).await {
            Err(PluginError::Rejected(why)) => return Err(Refusal::Provider(why).into()),
            identity => identity?,
        };
        // A connection of an earlier version may still be configured so.
        let default_role = plan.course.open_to_everybody(&plan.binding.config).is_none();
        Ok(Vouched { issuer: plan.course.way.issuer().to_owned(), identity, default_role })
    }
}

/// A sign-in that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: SsoError,
    /// The organization whose audit trail tells of it.
    pub recorded: Option<OrganizationId>,
}
