//! Signing in elsewhere. The host runs the protocol; a plugin says against whom, and turns what was verified into an
//! identity, which is then matched with a user of the connection's organization.
//!
//! A sign-in is bound to the browser that began it: nonce and PKCE verifier are derived from a cookie that only this
//! browser has, together with `state`; the database keeps digests of both.

use chrono::TimeDelta;
use secrecy::SecretString;
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::{
    Identity, IssueError,
    oidc::{Flow, OidcError},
    provision::{self, Refusal},
    secret::Opaque,
    session::{Method, SignIn, SignedIn},
};
use crate::{
    clock::Clock,
    domain::connection::Kind,
    plugins::{Attempt, Binding, IdentityGrant, PluginError, Plugins, Protocol, bind},
    secrets::Secrets,
    store::{
        Store, StoreError,
        accounts::{self, Pending},
        connections::{self, Connection},
    },
};

/// How long a sign-in at a provider may take.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(10);

/// Why a sign-in elsewhere did not work out.
#[derive(Debug, thiserror::Error)]
pub enum SsoError {
    /// There is no such connection, or it is not in use.
    #[error("no such identity connection")]
    NotFound,
    /// It would lead away.
    #[error("return_to leads elsewhere")]
    ReturnTo,
    /// Nobody began it in this browser, or it was too long ago, or it is done.
    #[error("no such sign-in is under way")]
    State,
    /// The provider says no; its error code.
    #[error("the provider refused: {0}")]
    Refused(String),
    /// The provider's side.
    #[error(transparent)]
    Oidc(#[from] OidcError),
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
    /// RFC 9207.
    pub iss: Option<&'a str>,
}

/// How the protocol is run for one connection.
struct Plan {
    binding: Binding,
    issuer: String,
    scopes: Vec<String>,
    parameters: Vec<(String, String)>,
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
        let (issuer, scopes, parameters) = match protocol {
            Protocol::Oidc { issuer, scopes, parameters } => (issuer, scopes, parameters),
            Protocol::Oauth2 { .. } => {
                return Err(SsoError::Config(
                    "this server signs people in by OpenID Connect only, not yet by OAuth 2".into(),
                ));
            }
        };
        let client_id = binding.config.get("client_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if client_id.is_empty() {
            return Err(SsoError::Config("the connection's configuration has no `client_id`".into()));
        }
        Ok(Plan { binding, issuer, scopes, parameters, client_id })
    }

    fn attempt(&self) -> Attempt {
        Attempt { idempotency_key: self.clock.id::<Uuid>().to_string(), attempt: 1 }
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

impl Identity {
    /// Begins to sign somebody in by an identity connection. `cookie` is what the browser holds from another sign-in that
    /// it began a moment ago, so that two tabs do not disturb each other.
    ///
    /// # Errors
    /// As [`SsoError`].
    pub async fn begin_sso(
        &self,
        desk: &Desk<'_>,
        connection: Uuid,
        return_to: Option<&str>,
        cookie: Option<&str>,
    ) -> Result<Begun, SsoError> {
        let connection = desk.connection(connection).await?;
        let return_to = self.origins.return_to(return_to).ok_or(SsoError::ReturnTo)?;
        let plan = desk.plan(&connection).await?;
        let browser = cookie.and_then(|text| Opaque::parse("", text)).unwrap_or_else(|| Opaque::random(desk.clock));
        let state = Opaque::random(desk.clock);
        let Derived { nonce, verifier } = derive(&browser, &state);
        let flow = Flow {
            issuer: &plan.issuer,
            client_id: &plan.client_id,
            redirect_uri: desk.redirect_uri,
            verifier: &verifier,
            nonce: &nonce,
        };
        let location = self.providers.authorization(&flow, &state.encode(), &plan.scopes, &plan.parameters).await?;
        let now = desk.clock.now();
        let pending = Pending {
            organization_id: connection.organization_id,
            connection_id: connection.id,
            return_to: return_to.into(),
            expires_at: now + LIFETIME,
        };
        let mut tx = desk.store.begin().await?;
        accounts::sweep(&mut tx, now).await?;
        accounts::begin(&mut tx, &state.hash(), &browser.hash(), &pending).await?;
        tx.commit().await?;
        Ok(Begun { location, cookie: browser.encode() })
    }

    /// Finishes a sign-in: exchanges the code, checks the answer, asks the plugin who it is, finds or makes the user, and
    /// begins a session. Returns where to send the browser.
    ///
    /// # Errors
    /// As [`SsoError`].
    pub async fn finish_sso(
        &self,
        desk: &Desk<'_>,
        callback: &Callback<'_>,
        cookie: Option<&str>,
        (user_agent, request_id): (&str, &str),
    ) -> Result<(SignedIn, String), SsoError> {
        let state = Opaque::parse("", callback.state).ok_or(SsoError::State)?;
        let browser = cookie.and_then(|text| Opaque::parse("", text)).ok_or(SsoError::State)?;
        let mut tx = desk.store.begin().await?;
        let pending = accounts::take(&mut tx, &state.hash(), &browser.hash()).await?;
        tx.commit().await?;
        let pending = pending.filter(|pending| pending.expires_at > desk.clock.now()).ok_or(SsoError::State)?;
        let code = match (callback.code, callback.error) {
            (Some(code), None) => code,
            (_, error) => return Err(SsoError::Refused(super::oidc::brief(error.unwrap_or("no code was sent")))),
        };
        let connection = desk.connection(pending.connection_id).await?;
        let plan = desk.plan(&connection).await?;
        let Derived { nonce, verifier } = derive(&browser, &state);
        let flow = Flow {
            issuer: &plan.issuer,
            client_id: &plan.client_id,
            redirect_uri: desk.redirect_uri,
            verifier: &verifier,
            nonce: &nonce,
        };
        let secret = plan.binding.secrets.get("client-secret");
        let verified = self.providers.exchange(&flow, secret, (code, callback.iss), desk.clock.now()).await?;
        let grant = IdentityGrant { claims: Some(verified.claims), userinfo: verified.userinfo };
        let access_token: SecretString = verified.access_token;
        let identity = desk.plugins.identify(&plan.binding, &desk.attempt(), grant, Some(access_token)).await?;

        let how = SignIn { method: Method::Sso, connection: Some(connection.id), user_agent, request_id };
        let mut tx = desk.store.begin().await?;
        let begun = match provision::user(&mut tx, desk.clock, &connection, &identity, request_id).await {
            Ok(user) => self.begin(&mut tx, desk.clock, (connection.organization_id, user), &how).await?,
            Err(provision::Error::Store(error)) => return Err(error.into()),
            Err(provision::Error::Refused(refusal)) => {
                drop(tx);
                provision::record(desk.store, desk.clock, &connection, &refusal, request_id).await?;
                return Err(refusal.into());
            }
        };
        tx.commit().await?;
        Ok((self.hand_out(desk.store, desk.clock, begun).await?, pending.return_to))
    }
}
