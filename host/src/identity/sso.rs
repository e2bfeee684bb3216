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
    code::{self, Flow, ProviderError, brief},
    oauth2, oidc,
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
        connections::{self, Connection},
        sso::{self as pending, Pending},
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
    course: Course,
    client_id: String,
}

/// What a plugin says of the protocol, checked.
struct Course {
    way: Way,
    scopes: Vec<String>,
    parameters: Vec<(String, String)>,
}

/// The protocol and the provider.
enum Way {
    /// OpenID Connect, at this issuer; and how long ago people may have signed in there, where that is asked for.
    Oidc(String, Option<TimeDelta>),
    /// OAuth 2.
    Oauth2(oauth2::Endpoints),
}

impl Way {
    /// The provider, as links to its people are keyed by it.
    fn issuer(&self) -> &str {
        match self {
            Way::Oidc(issuer, _) => issuer,
            Way::Oauth2(endpoints) => endpoints.issuer(),
        }
    }
}

impl Course {
    fn of(protocol: Protocol, config: &Value) -> Result<Self, String> {
        let course = match protocol {
            Protocol::Oidc { issuer, scopes, parameters } => {
                oidc::check_issuer(&issuer)?;
                let max_age = max_age(&parameters)?;
                Self { way: Way::Oidc(issuer, max_age), scopes, parameters }
            }
            Protocol::Oauth2 { authorization_endpoint, token_endpoint, scopes, parameters } => {
                let endpoints = oauth2::Endpoints::new(&authorization_endpoint, &token_endpoint, config)?;
                Self { way: Way::Oauth2(endpoints), scopes, parameters }
            }
        };
        code::check_parameters(&course.parameters)?;
        Ok(course)
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
    Course::of(protocol, config).map(|course| course.way.issuer().to_owned())
}

fn client_id(config: &Value) -> Result<&str, String> {
    let id = config.get("client_id").and_then(Value::as_str).unwrap_or_default();
    if id.is_empty() { Err("the configuration has no `client_id`".into()) } else { Ok(id) }
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

impl Identity {
    /// Whether the provider is there, for an administrator who asks: one of OpenID Connect is asked for its discovery
    /// document and keys. OAuth 2 has no endpoint that tells.
    ///
    /// # Errors
    /// [`SsoError::Config`] or [`SsoError::Provider`].
    pub async fn check_sso(&self, protocol: Protocol, config: &Value) -> Result<(), SsoError> {
        match Course::of(protocol, config).map_err(SsoError::Config)?.way {
            Way::Oidc(issuer, _) => Ok(self.providers.check(&issuer).await?),
            Way::Oauth2(_) => Ok(()),
        }
    }

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
        let state_text = state.encode();
        let flow = plan.flow(desk, &state_text, &verifier);
        let Course { way, scopes, parameters } = &plan.course;
        let location = match way {
            Way::Oidc(issuer, _) => self.providers.authorization((issuer, &nonce), &flow, scopes, parameters).await?,
            Way::Oauth2(endpoints) => endpoints.authorization(&flow, scopes, parameters),
        };
        let now = desk.clock.now();
        let pending = Pending {
            organization_id: connection.organization_id,
            connection_id: connection.id,
            return_to: return_to.into(),
            expires_at: now + LIFETIME,
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
        let begun = pending::take(&mut tx, &state.hash(), &browser.hash()).await?;
        tx.commit().await?;
        let begun = begun.filter(|begun| begun.expires_at > desk.clock.now()).ok_or(SsoError::State)?;
        let code = match (callback.code, callback.error) {
            (Some(code), None) => code,
            (_, error) => return Err(SsoError::Refused(brief(error.unwrap_or("no code was sent")))),
        };
        let connection = desk.connection(begun.connection_id).await?;
        let plan = desk.plan(&connection).await?;
        let Derived { nonce, verifier } = derive(&browser, &state);
        let flow = plan.flow(desk, callback.state, &verifier);
        let secret = plan.binding.secrets.get("client-secret");
        let answer = (code, callback.iss);
        let (grant, access_token): (IdentityGrant, SecretString) = match &plan.course.way {
            Way::Oidc(issuer, max_age) => {
                let now = desk.clock.now();
                let about = (issuer.as_str(), nonce.as_str(), *max_age);
                let verified = self.providers.exchange(about, &flow, secret, answer, now).await?;
                let grant = IdentityGrant { claims: Some(verified.claims), userinfo: verified.userinfo };
                (grant, verified.access_token)
            }
            Way::Oauth2(endpoints) => {
                let tokens = endpoints.exchange(self.providers.egress(), &flow, secret, answer).await?;
                (IdentityGrant::default(), tokens.access_token)
            }
        };
        let identity = match desk.plugins.identify(&plan.binding, &desk.attempt(), grant, Some(access_token)).await {
            Err(PluginError::Rejected(why)) => {
                return refused(desk, &connection, Refusal::Provider(why), request_id).await;
            }
            identity => identity?,
        };
        let how = SignIn { method: Method::Sso, connection: Some(connection.id), user_agent, request_id };
        let issuer = plan.course.way.issuer();
        let mut again = true;
        let session = loop {
            let mut tx = desk.store.begin().await?;
            match provision::user(&mut tx, desk.clock, (&connection, issuer), &identity, request_id).await {
                Ok(user) => {
                    let session = self.begin(&mut tx, desk.clock, (connection.organization_id, user), &how).await?;
                    tx.commit().await?;
                    break session;
                }
                // Somebody who signs in for the first time in two tabs: the other one has made the user, or the link.
                Err(provision::Error::Store(StoreError::Duplicate(_))) if again => again = false,
                Err(provision::Error::Store(error)) => return Err(error.into()),
                Err(provision::Error::Refused(refusal)) => {
                    drop(tx);
                    return refused(desk, &connection, refusal, request_id).await;
                }
            }
        };
        Ok((self.hand_out(desk.store, desk.clock, session).await?, begun.return_to))
    }
}

/// Somebody whom the provider vouches for, and who may not sign in: recorded.
async fn refused<T>(
    desk: &Desk<'_>,
    connection: &Connection,
    refusal: Refusal,
    request_id: &str,
) -> Result<T, SsoError> {
    provision::record(desk.store, desk.clock, connection, &refusal, request_id).await?;
    Err(refusal.into())
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
        for (issuer, parameters, why) in [
            ("http://id.example.com", &[][..], "https"),
            ("https://id.example.com?x=1", &[], "no query"),
            ("https://id.example.com/#a", &[], "fragment"),
            ("https://u:p@id.example.com", &[], "user name"),
            ("id.example.com", &[], "not an address"),
            ("https://id.example.com", &[("state", "x")], "`state`"),
            ("https://id.example.com", &[("max_age", "an hour")], "`max_age`"),
        ] {
            let error = oidc(issuer, parameters).unwrap_err();
            assert!(error.contains(why), "{issuer}: {error}");
        }
        let protocol = Protocol::Oidc { issuer: "https://i".into(), scopes: Vec::new(), parameters: Vec::new() };
        assert!(feasible(protocol, &json!({})).unwrap_err().contains("client_id"));
    }
}
