//! `/api/v1/auth`: signing in by password, exchanging refresh tokens, signing out; and the keys that others verify with.

mod body;

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use secrecy::ExposeSecret;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::body::OrganizationSummary;
use self::body::{HeldRole, KeySet, Login, Me, Refresh, TokenType, Tokens};
use super::{
    extract::{Caller, SmallInput},
    problem::{Problem, ProblemType, Result},
};
use crate::{
    app::App,
    bus::Hint,
    domain::client::Client,
    identity::{
        IssueError,
        browser::{SESSION_COOKIE, cookie, set_cookie},
        device::{self, DEVICE_COOKIE, Device},
        failures,
        login::{Attempt, LoginError},
        password::PasswordError,
        session::{self, Refreshed, SignedIn},
        throttle::Anonymous,
    },
    store::{organizations, users},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_in))
        .routes(routes!(refresh_tokens))
        .routes(routes!(sign_out))
        .routes(routes!(get_current_user))
        .routes(routes!(get_signing_keys))
}

/// Who knocks, before anybody has signed in.
pub struct Visitor {
    /// From where.
    pub client: Client,
    /// As the browser names itself.
    pub user_agent: String,
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> std::result::Result<Self, Infallible> {
        let client = parts.extensions.get::<Client>().copied().unwrap_or(Client::UNKNOWN);
        let user_agent =
            parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Self { client, user_agent: user_agent.to_owned() })
    }
}

impl Visitor {
    /// Refuses a client that asks too often.
    ///
    /// # Errors
    /// 429 with `Retry-After`.
    pub fn admit(&self, app: &App, what: Anonymous) -> Result<()> {
        app.identity.admit(what, self.client).map_err(limited)
    }
}

/// Who may try to sign in by password now: refused before the body is read, which costs memory.
struct Trying {
    visitor: Visitor,
    devices: Vec<Device>,
}

impl FromRequestParts<App> for Trying {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let Ok(visitor) = Visitor::from_request_parts(parts, app).await;
        let devices = app.identity.devices.read(cookie(&parts.headers, DEVICE_COOKIE));
        app.identity.admit_password(visitor.client, &devices).map_err(|wait| {
            failures::count(session::Method::Password, "rate_limited");
            limited(wait)
        })?;
        Ok(Self { visitor, devices })
    }
}

/// 429 with `Retry-After` in whole seconds.
pub fn limited(wait: Duration) -> Problem {
    let seconds = wait.as_secs() + 1;
    Problem::new(ProblemType::RateLimited, format!("Too many attempts; try again in {seconds} s."))
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => {
                Self::new(ProblemType::Unavailable, "Too many sign-ins right now; try again shortly.")
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("2"))
            }
            PasswordError::Failed(error) => Self::internal(error),
        }
    }
}

impl From<IssueError> for Problem {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Store(error) => error.into(),
            IssueError::Sign(error) => Self::internal(error),
        }
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Credentials(_) => {
                // The same for everybody: it tells nothing of the address.
                let detail = "The e-mail address or the password is not right. An address that many organizations know needs \
                              `organization_id`.";
                Self::new(ProblemType::Credentials, detail)
            }
            LoginError::Several(organizations) => {
                let detail = "Several organizations know you by this address and password: choose one of `organizations` and \
                              send its id as `organization_id`.";
                let organizations = organizations.into_iter().map(|(id, name)| OrganizationSummary { id, name });
                Self { organizations: organizations.collect(), ..Self::conflict(detail) }
            }
            LoginError::Limited(wait) => limited(wait),
            LoginError::Password(error) => error.into(),
            LoginError::Issue(error) => error.into(),
        }
    }
}

/// The answer to a sign-in, with the session's cookie where it began one.
fn answer(signed_in: &SignedIn) -> Response {
    let tokens = Tokens {
        access_token: signed_in.access_token.expose_secret().to_owned(),
        token_type: TokenType::Bearer,
        expires_in: signed_in.expires_in,
        refresh_token: signed_in.refresh_token.expose_secret().to_owned(),
    };
    let mut response = Json(tokens).into_response();
    if let Some(cookie) = session_cookie(signed_in) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// `Set-Cookie` for a session that has just begun.
pub fn session_cookie(signed_in: &SignedIn) -> Option<HeaderValue> {
    let cookie = signed_in.cookie.as_ref()?;
    Some(set_cookie(SESSION_COOKIE, cookie.expose_secret(), session::LIFETIME.num_seconds()))
}

/// Ends the session whose cookie the browser held until now: the new one takes its place.
pub async fn replace_session(app: &App, headers: &HeaderMap, signed_in: &SignedIn) {
    let held = cookie(headers, SESSION_COOKIE);
    match app.identity.replace((&app.store, &app.clock), held, signed_in).await {
        Ok(None) => {}
        Ok(Some(organization)) => {
            app.bus.publish(Hint::Access { organization });
            app.bus.publish(Hint::Audit { organization });
        }
        // It ends by itself, later.
        Err(error) => tracing::warn!(%error, "the session that a browser held before could not be ended"),
    }
}

/// Sign in by password
///
/// Begins a session: programs use the tokens, browsers the cookie that is set. A session that the browser held before ends. Where
/// several organizations know this address and password, nobody is signed in: 409 lists them in `organizations`. Wrong attempts
/// are limited for each client and each account (429). Of somebody with `sessions_per_user` (100) sessions it ends the one that was
/// used least recently.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "Sign-in", security(()), request_body = Login,
    responses((status = OK, description = "Signed in: the tokens of the session.", body = Tokens,
        headers(("Set-Cookie" = String, description = "The session's cookie, and one by which the browser is known again.")))),
    extensions(("x-problems" = json!(["invalid_credentials", "conflict"]))))]
async fn sign_in(
    State(app): State<App>,
    trying: Trying,
    headers: HeaderMap,
    SmallInput(input): SmallInput<Login>,
) -> Result<Response> {
    let Trying { visitor, devices } = trying;
    let attempt = Attempt {
        email: &input.email,
        password: &input.password,
        organization: input.organization_id,
        client: visitor.client,
        devices: &devices,
        user_agent: &visitor.user_agent,
    };
    let signed_in = app.identity.login(&app.store, &app.clock, attempt).await.inspect_err(|error| {
        if let LoginError::Credentials(told) = error {
            told.iter().for_each(|&organization| app.bus.publish(Hint::Audit { organization }));
        }
    })?;
    replace_session(&app, &headers, &signed_in).await;
    if signed_in.ended_others {
        app.bus.publish(Hint::Access { organization: signed_in.organization_id });
    }
    app.bus.publish(Hint::Audit { organization: signed_in.organization_id });
    let mut response = answer(&signed_in);
    let device = app.identity.devices.remember(&app.clock, &devices, signed_in.user_id);
    let device = set_cookie(DEVICE_COOKIE, &device, device::LIFETIME.num_seconds());
    response.headers_mut().append(header::SET_COOKIE, device);
    Ok(response)
}

/// Exchange a refresh token
///
/// Answers new tokens; the one sent is used up. One that was used before ends the session, unless it was within the last
/// ten seconds: then the answer has the same refresh token again. The cookie of the session stays as it is.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "Sign-in", security(()), request_body = Refresh,
    responses((status = OK, description = "New tokens of the session.", body = Tokens)),
    extensions(("x-problems" = json!(["invalid_credentials"]))))]
async fn refresh_tokens(State(app): State<App>, SmallInput(input): SmallInput<Refresh>) -> Result<Response> {
    let refused = || Problem::new(ProblemType::Credentials, "The refresh token is not valid any more: sign in again.");
    match app.identity.refresh(&app.store, &app.clock, &input.refresh_token).await? {
        Refreshed::Tokens(signed_in) => Ok(answer(&signed_in)),
        Refreshed::Refused => Err(refused()),
        Refreshed::Limited(wait) => Err(limited(wait)),
        Refreshed::Reused { organization_id } => {
            app.bus.publish(Hint::Access { organization: organization_id });
            app.bus.publish(Hint::Audit { organization: organization_id });
            Err(refused())
        }
    }
}

/// Sign out
///
/// Ends the session: its access tokens, refresh token and cookie are of no use from then on. Other sessions of the user go on.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "Sign-in",
    responses((status = NO_CONTENT, description = "Signed out.",
        headers(("Set-Cookie" = String, description = "Removes the session's cookie.")))),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn sign_out(State(app): State<App>, Caller(caller): Caller) -> Result<Response> {
    if let Some(session) = caller.session_id {
        let of = (caller.organization_id, caller.user_id, session);
        app.identity.sign_out(&app.store, &app.clock, of).await?;
        app.bus.publish(Hint::Access { organization: caller.organization_id });
        app.bus.publish(Hint::Audit { organization: caller.organization_id });
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, set_cookie(SESSION_COOKIE, "", 0))]).into_response())
}

/// Read the signed-in user
///
/// With their organization, the roles that they hold at this moment, and the policies that decide what they may do.
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "Sign-in",
    responses((status = OK, description = "The user who sends the request.", body = Me)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn get_current_user(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Me>> {
    let mut conn = app.store.read().await?;
    let gone = || Problem::from(crate::identity::AuthError::Unauthenticated);
    let user = users::get(&mut conn, caller.organization_id, caller.user_id).await?.ok_or_else(gone)?;
    let organization = organizations::get(&mut conn, caller.organization_id).await?.ok_or_else(gone)?;
    let roles = caller.grants.iter().map(|grant| HeldRole { role: grant.role, workspace_id: grant.workspace });
    Ok(Json(Me {
        user,
        organization: OrganizationSummary { id: organization.id, name: organization.name },
        roles: roles.collect(),
        policy_version_id: caller.policy_version,
    }))
}

/// Read the keys that verify access tokens
///
/// The public keys of all hosts. Access tokens are JWTs of type `at+jwt` (RFC 9068), signed with RS256, for the audience `kaizen`.
/// A key stays in the set as long as tokens that were signed with it are good.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Sign-in", security(()),
    responses((status = OK, description = "The keys; they may be kept for five minutes.", body = KeySet,
        headers(("Cache-Control" = String, description = "How long the keys may be kept.")))))]
async fn get_signing_keys(State(app): State<App>) -> Result<Response> {
    let keys = app.identity.jwks(&app.store, &app.clock).await?;
    Ok(([(header::CACHE_CONTROL, "public, max-age=300")], Json(KeySet { keys })).into_response())
}
