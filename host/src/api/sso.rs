//! `/auth/sso`: signing in elsewhere. Browsers come here, so what goes wrong is told in a small page.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{Html, IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    auth::{Visitor, replace_session, session_cookie},
    extract::Parameters,
    problem::{self, Problem},
};
use crate::{
    app::App,
    bus::Hint,
    domain::{email::Email, fault::Fault},
    identity::{
        IssueError,
        browser::{SSO_COOKIE, cookie, set_cookie},
        code::ProviderError,
        failures::Visit,
        sso::{Callback, Desk, Failed, SsoError},
        throttle::Anonymous,
    },
    plugins::PluginError,
    request_id::request_id,
    store::{StoreError, sso as stored},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(begin)).routes(routes!(finish)).routes(routes!(doors))
}

/// Where providers send people back to.
fn redirect_uri(app: &App) -> Result<String, Page> {
    let url = app.config.public_url.join("/auth/sso/callback");
    url.map(String::from).map_err(|error| Page::internal(&error))
}

/// Where to go in the end.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Return {
    /// A path here, or an address of one of `cors_origins`; the start page if absent.
    return_to: Option<String>,
}

/// Sign in at an identity provider
///
/// Sends the browser to the provider of an identity connection, and in the end to `return_to` with the session cookie.
#[utoipa::path(get, path = "/auth/sso/{connection_id}/login", tag = "Sign-in", security(()),
    params(("connection_id" = Uuid, Path), Return), responses((status = FOUND, description = "To the provider.")))]
async fn begin(
    State(app): State<App>,
    visitor: Visitor,
    Path(connection): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Page> {
    let Ok(connection) = connection.parse::<Uuid>() else { return Err(SsoError::NotFound.into()) };
    let Ok(Query(Return { return_to })) = Query::try_from_uri(&uri) else { return Err(SsoError::ReturnTo.into()) };
    app.identity.admit(Anonymous::Lookup, visitor.client).map_err(Page::limited)?;
    let redirect_uri = redirect_uri(&app)?;
    let held = cookie(&headers, SSO_COOKIE);
    let (desk, visit) = (desk(&app, &redirect_uri), visit(&visitor));
    let begun = app.identity.begin_sso(&desk, connection, return_to.as_deref(), held, &visit).await;
    let begun = begun.map_err(|failed| failed_page(&app, failed))?;
    let cookie = set_cookie(SSO_COOKIE, &begun.cookie, app.config.limits.sso_state_seconds);
    let location = found(begun.location.as_str())?;
    Ok((StatusCode::FOUND, [(header::LOCATION, location), (header::SET_COOKIE, cookie)]).into_response())
}

/// What a provider sends back.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Answer {
    /// As we sent it.
    #[serde(default)]
    state: String,
    /// To be exchanged.
    code: Option<String>,
    /// Why there is no code.
    error: Option<String>,
    /// The same in the provider's words; recorded in the audit trail, and not shown.
    error_description: Option<String>,
    /// RFC 9207.
    iss: Option<String>,
}

/// Come back from an identity provider
///
/// One redirect URI for all connections; `state` tells which.
#[utoipa::path(get, path = "/auth/sso/callback", tag = "Sign-in", security(()), params(Answer),
    responses((status = FOUND, description = "To `return_to`, signed in.")))]
async fn finish(State(app): State<App>, visitor: Visitor, uri: Uri, headers: HeaderMap) -> Result<Response, Page> {
    app.identity.admit(Anonymous::SsoCallback, visitor.client).map_err(Page::limited)?;
    let Ok(Query(answer)) = Query::<Answer>::try_from_uri(&uri) else { return Err(SsoError::State.into()) };
    let callback = Callback {
        state: &answer.state,
        code: answer.code.as_deref(),
        error: answer.error.as_deref(),
        description: answer.error_description.as_deref(),
        iss: answer.iss.as_deref(),
    };
    let redirect_uri = redirect_uri(&app)?;
    let held = cookie(&headers, SSO_COOKIE);
    let visit = visit(&visitor);
    let finished = app.identity.finish_sso(&desk(&app, &redirect_uri), &callback, held, &visit).await;
    let (signed_in, return_to) = finished.map_err(|failed| failed_page(&app, failed))?;
    replace_session(&app, &headers, &signed_in).await;
    app.bus.publish(Hint::Access { organization: signed_in.organization_id });
    app.bus.publish(Hint::Audit { organization: signed_in.organization_id });
    let mut response = (StatusCode::FOUND, [(header::LOCATION, found(&return_to)?)]).into_response();
    if let Some(cookie) = session_cookie(&signed_in) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

fn visit(visitor: &Visitor) -> Visit<'_> {
    Visit { client: visitor.client, user_agent: &visitor.user_agent }
}

/// The page of a sign-in that failed; who follows the audit trail hears of it.
fn failed_page(app: &App, failed: Failed) -> Page {
    if let Some(organization) = failed.recorded {
        app.bus.publish(Hint::Audit { organization });
    }
    failed.error.into()
}

fn desk<'a>(app: &'a App, redirect_uri: &'a str) -> Desk<'a> {
    Desk {
        store: &app.store,
        clock: &app.clock,
        plugins: &app.plugins,
        secrets: &app.secrets,
        allowances: &app.allowances,
        redirect_uri,
    }
}

fn found(location: &str) -> Result<HeaderValue, Page> {
    HeaderValue::from_str(location).map_err(|error| Page::internal(&error))
}

/// Who wants to know where to sign in.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Whose {
    /// Case does not matter.
    email: String,
}

/// A place to sign in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Door {
    /// The identity connection.
    id: Uuid,
    /// For people.
    name: String,
    /// The provider's kind.
    plugin: String,
    /// Where to send the browser; add `?return_to=`.
    login_url: String,
}

/// Places to sign in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Doors {
    items: Vec<Door>,
}

/// List where an address can sign in
///
/// The active identity connections of the organizations that know this address.
#[utoipa::path(get, path = "/api/v1/auth/connections", tag = "Sign-in", security(()), params(Whose),
    responses((status = OK, body = Doors)))]
async fn doors(
    State(app): State<App>,
    visitor: Visitor,
    Parameters(Whose { email }): Parameters<Whose>,
) -> problem::Result<Json<Doors>> {
    visitor.admit(&app, Anonymous::Lookup)?;
    let fault =
        |error: crate::domain::email::NotAnEmail| Problem::invalid(vec![Fault::new("email", error.to_string())]);
    let email = Email::parse(&email).map_err(fault)?;
    let found = stored::doors(&mut app.store.read().await?, &email, app.config.limits.sign_in_connections).await?;
    let items = found.into_iter().map(|door| {
        let login_url = format!("/auth/sso/{}/login", door.id);
        Door { id: door.id, name: door.name, plugin: door.plugin, login_url }
    });
    Ok(Json(Doors { items: items.collect() }))
}

/// A page that says what went wrong, to a person in a browser.
#[derive(Debug)]
struct Page {
    status: StatusCode,
    title: &'static str,
    text: String,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Page {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self { status, title, text: text.into(), retry_after: None }
    }

    fn limited(wait: Duration) -> Self {
        let page = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many sign-ins", "Wait a minute, then try again.");
        Self { retry_after: Some(wait.as_secs() + 1), ..page }
    }

    fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %format!("{error:#}"), "internal error");
        let text = "Something went wrong here. The operator finds the reason in the server's log, by the number below.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Sign-in failed", text)
    }
}

impl From<SsoError> for Page {
    fn from(error: SsoError) -> Self {
        let again = "Your identity provider does not answer as it should. Try again in a moment.";
        let settings = "The connection to your identity provider does not work as it is set up. Tell your administrator the number below.";
        let failed = |status, text: &str| Self::new(status, "Sign-in failed", text);
        match &error {
            SsoError::NotFound => {
                let text =
                    "This address does not lead to an identity provider, or the connection to it is switched off.";
                Self::new(StatusCode::NOT_FOUND, "No such sign-in", text)
            }
            SsoError::Changed => {
                let text =
                    "The connection to your identity provider was changed since you began to sign in. Start again.";
                Self::new(StatusCode::CONFLICT, "Not signed in", text)
            }
            SsoError::ReturnTo => {
                let text = "The link you followed wants to lead to another site after signing in. That is not allowed.";
                Self::new(StatusCode::BAD_REQUEST, "This link is not safe", text)
            }
            SsoError::State => {
                let text = "It took too long, was begun in another browser, or is done already. Start again.";
                Self::new(StatusCode::BAD_REQUEST, "This sign-in is not under way", text)
            }
            SsoError::Refused { error, .. } => {
                let text = format!(
                    "Your identity provider did not sign you in: {error}. Your administrator finds what it said in the audit trail, \
                     by the number below."
                );
                Self::new(StatusCode::FORBIDDEN, "Not signed in", text)
            }
            SsoError::Provider(ProviderError::Untrusted(_)) => {
                let text = "The answer of your identity provider could not be verified. Start again; if it stays so, tell your \
                            administrator the number below.";
                Self::new(StatusCode::FORBIDDEN, "Not signed in", text)
            }
            SsoError::Provider(error) if error.permanent() => failed(StatusCode::BAD_GATEWAY, settings),
            SsoError::Provider(error) if error.code() == "provider_unavailable" => failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "Your identity provider cannot sign people in now. Try again in a while.",
            ),
            SsoError::Provider(_)
            | SsoError::Plugin(PluginError::Unavailable { .. } | PluginError::Postponed { .. }) => {
                failed(StatusCode::BAD_GATEWAY, again)
            }
            SsoError::Plugin(_) | SsoError::Config(_) => failed(StatusCode::BAD_GATEWAY, settings),
            SsoError::Timeout => failed(
                StatusCode::GATEWAY_TIMEOUT,
                "Your identity provider took too long to answer. You are not signed in; try again in a moment.",
            ),
            SsoError::Refusal(refusal) => Self::new(StatusCode::FORBIDDEN, "Not signed in", refusal.to_string()),
            SsoError::Issue(IssueError::Store(StoreError::Unavailable(_))) => {
                let text = "The server's database does not answer. You are not signed in; try again in a moment.";
                Self { retry_after: Some(1), ..failed(StatusCode::SERVICE_UNAVAILABLE, text) }
            }
            SsoError::Issue(IssueError::Store(StoreError::Unwritable(..))) => {
                let text = "The server's database takes no changes at the moment, and signing in is one. Try again in a moment.";
                Self { retry_after: Some(5), ..failed(StatusCode::SERVICE_UNAVAILABLE, text) }
            }
            SsoError::Issue(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let (title, text, id) = (escape(self.title), escape(&self.text), escape(&request_id()));
        let html = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem}}\
             small{{color:#666}}</style><h1>{title}</h1><p>{text}</p><p><small>{id}</small></p></html>"
        );
        let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        let mut response = (self.status, [(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_provider_says_cannot_become_markup() {
        let error = "<script>alert(1)</script>\"'&".to_owned();
        let page = Page::from(SsoError::Refused { error, description: Some("<script>alert(2)</script>".into()) });
        let response = page.into_response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'"));
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let html = String::from_utf8(body.to_vec()).unwrap();
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{html}");
        assert!(!html.contains("<script") && !html.contains("alert(2)"));
    }
}
