//! `/api/v1/auth`: signing in by password, exchanging refresh tokens, signing out; and the keys that others verify with.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Caller, SmallInput},
    problem::{Problem, ProblemType, Result},
};
use crate::{
    app::App,
    bus::Hint,
    domain::{
        client::Client,
        email::Email,
        id::{OrganizationId, PolicyVersionId, WorkspaceId},
        role::Role,
        user::User,
    },
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
    store::{organizations, signing_keys::PublicJwk, users},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(me))
        .routes(routes!(jwks))
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
                let organizations = organizations.into_iter().map(|(id, name)| Choice { id, name }).collect();
                Self { organizations, ..Self::conflict(detail) }
            }
            LoginError::Limited(wait) => limited(wait),
            LoginError::Password(error) => error.into(),
            LoginError::Issue(error) => error.into(),
        }
    }
}

/// An organization to choose.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Choice {
    /// Send it as `organization_id`.
    pub id: OrganizationId,
    /// For people.
    pub name: String,
}

/// Who signs in.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Case does not matter.
    email: Email,
    #[schema(value_type = String, format = Password)]
    password: SecretString,
    /// Where, for those whom several organizations know. Without it the password is tried in a few of them.
    organization_id: Option<OrganizationId>,
}

/// A refresh token to exchange.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// As it was handed out last.
    #[schema(value_type = String, format = Password)]
    refresh_token: SecretString,
}

/// What a sign-in hands out (RFC 6749, section 5.1).
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Tokens {
    /// A JWT for `Authorization: Bearer`.
    access_token: String,
    /// `Bearer`.
    token_type: &'static str,
    /// Of the access token, in seconds.
    expires_in: i64,
    /// Good for one exchange at `/api/v1/auth/refresh`.
    refresh_token: String,
}

/// The answer to a sign-in, with the session's cookie where it began one.
fn answer(signed_in: &SignedIn) -> Response {
    let tokens = Tokens {
        access_token: signed_in.access_token.expose_secret().to_owned(),
        token_type: "Bearer",
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
/// Answers tokens and sets the session cookie. Where several organizations know this address and password, 409 lists them. Of somebody
/// with `sessions_per_user` (100) sessions it ends the one that was used least recently.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "Sign-in", security(()),
    request_body = Login, responses((status = OK, body = Tokens)))]
async fn login(
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
/// ten seconds: then the answer is the same again.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "Sign-in", security(()),
    request_body = Refresh, responses((status = OK, body = Tokens)))]
async fn refresh(State(app): State<App>, SmallInput(input): SmallInput<Refresh>) -> Result<Response> {
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
/// Ends the session: its access token, refresh token and cookie are of no use from then on.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "Sign-in", responses((status = NO_CONTENT)))]
async fn logout(State(app): State<App>, Caller(caller): Caller) -> Result<Response> {
    if let Some(session) = caller.session_id {
        let of = (caller.organization_id, caller.user_id, session);
        app.identity.sign_out(&app.store, &app.clock, of).await?;
        app.bus.publish(Hint::Access { organization: caller.organization_id });
        app.bus.publish(Hint::Audit { organization: caller.organization_id });
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, set_cookie(SESSION_COOKIE, "", 0))]).into_response())
}

/// A role one holds.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct HeldRole {
    /// The role.
    role: Role,
    /// Where; everywhere in the organization if null.
    workspace_id: Option<WorkspaceId>,
}

/// Who one is.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Me {
    user: User,
    organization: Choice,
    roles: Vec<HeldRole>,
    /// The tenant policies in force; null: the platform's only.
    policy_version_id: Option<PolicyVersionId>,
}

/// Read who one is
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "Sign-in", responses((status = OK, body = Me)))]
async fn me(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Me>> {
    let mut conn = app.store.read().await?;
    let gone = || Problem::from(crate::identity::AuthError::Unauthenticated);
    let user = users::get(&mut conn, caller.organization_id, caller.user_id).await?.ok_or_else(gone)?;
    let organization = organizations::get(&mut conn, caller.organization_id).await?.ok_or_else(gone)?;
    let roles = caller.grants.iter().map(|grant| HeldRole { role: grant.role, workspace_id: grant.workspace });
    Ok(Json(Me {
        user,
        organization: Choice { id: organization.id, name: organization.name },
        roles: roles.collect(),
        policy_version_id: caller.policy_version,
    }))
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct KeySet {
    keys: Vec<PublicJwk>,
}

/// Keys that access tokens are signed with
///
/// Of all hosts. Tokens are of type `at+jwt`, signed with RS256, for the audience `kaizen`.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Sign-in", security(()),
    responses((status = OK, body = KeySet)))]
async fn jwks(State(app): State<App>) -> Result<Response> {
    let keys = app.identity.jwks(&app.store, &app.clock).await?;
    Ok(([(header::CACHE_CONTROL, "public, max-age=300")], Json(KeySet { keys })).into_response())
}
