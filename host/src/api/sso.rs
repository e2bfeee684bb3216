//! `/auth/sso`: signing in elsewhere. Browsers come here, so what goes wrong is told in a small page.

mod page;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::page::Page;
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
        browser::{SSO_COOKIE, cookie, set_cookie},
        failures::Visit,
        sso::{Callback, Desk, Failed, SsoError},
        throttle::Anonymous,
    },
    store::sso as stored,
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(begin_sso))
        .routes(routes!(finish_sso))
        .routes(routes!(list_sign_in_connections))
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
    /// Where the browser goes once it is signed in: a path of this server, or an address of one of `cors_origins`. The start page
    /// if absent.
    #[param(max_length = 2048, example = "/agents")]
    return_to: Option<String>,
}

/// Begin to sign in at an identity provider
///
/// For browsers: sends them to the provider of an identity connection, and in the end to `return_to` with the session's cookie. It
/// has to be finished in the same browser, within minutes. What goes wrong is told in a page. Parameters that are not named here
/// are ignored.
#[utoipa::path(get, path = "/auth/sso/{connection_id}/login", tag = "Sign-in", security(()),
    params(("connection_id" = Uuid, Path, description = "The identity connection to sign in by."), Return),
    responses(
        (status = FOUND, description = "On to the provider.", headers(
            ("Location" = String, description = "The provider's authorization endpoint, with the request."),
            ("Set-Cookie" = String, description = "Binds the sign-in to this browser.")
        )),
        (status = BAD_REQUEST, description = "A page: `return_to` leads to a site that is not listed.", body = String,
            content_type = "text/html"),
        (status = NOT_FOUND, description = "A page: there is no such identity connection, or it is not in use.", body = String,
            content_type = "text/html"),
        (status = TOO_MANY_REQUESTS, description = "A page: too many sign-ins were begun from here.", body = String,
            content_type = "text/html", headers(("Retry-After" = u64, description = "Seconds after which to try again."))),
        (status = INTERNAL_SERVER_ERROR, description = "A page: a defect of the server's.", body = String,
            content_type = "text/html"),
        (status = BAD_GATEWAY, description = "A page: the provider does not answer as it should, or the connection does not work as \
            it is set up.", body = String, content_type = "text/html"),
        (status = SERVICE_UNAVAILABLE, description = "A page: the provider cannot sign people in now, or the database does not \
            answer.", body = String, content_type = "text/html",
            headers(("Retry-After" = u64, description = "Seconds after which to try again."))),
        (status = GATEWAY_TIMEOUT, description = "A page: the provider took too long.", body = String, content_type = "text/html")
    ),
    extensions(("x-problems" = json!(["-invalid"]))))]
async fn begin_sso(
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
    /// The `state` that this server sent to the provider; it tells which sign-in is finished.
    #[serde(default)]
    #[param(required, pattern = "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$")]
    state: String,
    /// The authorization code that the provider gives out, to be exchanged for tokens.
    code: Option<String>,
    /// The provider's error code (RFC 6749, section 4.1.2.1), where it does not sign the person in.
    #[param(example = "access_denied")]
    error: Option<String>,
    /// The provider's error in its own words; recorded in the audit trail, and not shown.
    error_description: Option<String>,
    /// The issuer identifier of the provider (RFC 9207); another one than the connection's is refused.
    #[param(example = "https://login.example.com")]
    iss: Option<String>,
}

/// Finish signing in at an identity provider
///
/// The redirect URI of all identity connections: providers send browsers here. It works once for each sign-in that was begun, in the
/// browser that began it; a session that the browser held before ends. What goes wrong is told in a page. Parameters that are not
/// named here are ignored.
#[utoipa::path(get, path = "/auth/sso/callback", tag = "Sign-in", security(()), params(Answer),
    responses(
        (status = FOUND, description = "Signed in, and on to `return_to`.", headers(
            ("Location" = String, description = "Where the sign-in was to lead."),
            ("Set-Cookie" = String, description = "The session's cookie.")
        )),
        (status = BAD_REQUEST, description = "A page: no such sign-in is under way in this browser.", body = String,
            content_type = "text/html"),
        (status = FORBIDDEN, description = "A page: the provider did not sign the person in, its answer could not be verified, or the \
            person may not sign in here.", body = String, content_type = "text/html"),
        (status = NOT_FOUND, description = "A page: the identity connection is not in use any more.", body = String,
            content_type = "text/html"),
        (status = CONFLICT, description = "A page: the identity connection was changed since the sign-in began.", body = String,
            content_type = "text/html"),
        (status = TOO_MANY_REQUESTS, description = "A page: too many sign-ins were finished from here.", body = String,
            content_type = "text/html", headers(("Retry-After" = u64, description = "Seconds after which to try again."))),
        (status = INTERNAL_SERVER_ERROR, description = "A page: a defect of the server's.", body = String,
            content_type = "text/html"),
        (status = BAD_GATEWAY, description = "A page: the provider does not answer as it should, or the connection does not work as \
            it is set up.", body = String, content_type = "text/html"),
        (status = SERVICE_UNAVAILABLE, description = "A page: the provider cannot sign people in now, or the database does not \
            answer.", body = String, content_type = "text/html",
            headers(("Retry-After" = u64, description = "Seconds after which to try again."))),
        (status = GATEWAY_TIMEOUT, description = "A page: the provider took too long.", body = String, content_type = "text/html")
    ),
    extensions(("x-problems" = json!(["-invalid"]))))]
async fn finish_sso(State(app): State<App>, visitor: Visitor, uri: Uri, headers: HeaderMap) -> Result<Response, Page> {
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
    /// The e-mail address of the person who wants to sign in. Case does not matter.
    #[param(value_type = Email, example = "ada@example.com")]
    email: String,
}

/// An identity connection as somebody sees it who is not signed in yet.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019d0e2f-8a9b-7c0d-8e1f-2a3b4c5d6e7f",
    "name": "Aurora Labs staff",
    "plugin": "oidc",
    "login_url": "/auth/sso/019d0e2f-8a9b-7c0d-8e1f-2a3b4c5d6e7f/login",
}))]
pub struct SignInConnection {
    /// The id of the identity connection.
    id: Uuid,
    /// The connection's display name.
    name: String,
    /// The name of the plugin that the connection runs, such as `oidc`.
    plugin: String,
    /// Where to send the browser to sign in, a path of this server. Add `?return_to=` to say where it goes then.
    #[schema(format = "uri-reference")]
    login_url: String,
}

/// The identity connections by which a person can sign in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SignInConnections {
    /// The connections, those first whose organization saw the person use the address.
    items: Vec<SignInConnection>,
}

/// List the identity connections that an e-mail address can sign in by
///
/// The active connections of the organizations in which an active user has the address, up to a bound of the server's; an empty list
/// where there is none. For the page on which people sign in: nobody is signed in yet.
#[utoipa::path(get, path = "/api/v1/auth/connections", tag = "Sign-in", security(()), params(Whose),
    responses((status = OK, description = "The connections, none where nobody knows the address.", body = SignInConnections)))]
async fn list_sign_in_connections(
    State(app): State<App>,
    visitor: Visitor,
    Parameters(Whose { email }): Parameters<Whose>,
) -> problem::Result<Json<SignInConnections>> {
    visitor.admit(&app, Anonymous::Lookup)?;
    let fault =
        |error: crate::domain::email::NotAnEmail| Problem::invalid(vec![Fault::new("email", error.to_string())]);
    let email = Email::parse(&email).map_err(fault)?;
    let found =
        stored::sign_in_connections(&mut app.store.read().await?, &email, app.config.limits.sign_in_connections)
            .await?;
    let items = found.into_iter().map(|connection| {
        let login_url = format!("/auth/sso/{}/login", connection.id);
        SignInConnection { id: connection.id, name: connection.name, plugin: connection.plugin, login_url }
    });
    Ok(Json(SignInConnections { items: items.collect() }))
}

#[cfg(test)]
mod tests {
    use utoipa::{IntoParams, openapi::path::Parameter};

    use super::*;
    use crate::{
        clock::Clock,
        identity::{browser::RETURN_TO_BYTES, secret::Opaque},
    };

    fn schema(parameters: &[Parameter], name: &str) -> serde_json::Value {
        let parameter = parameters.iter().find(|parameter| parameter.name == name).unwrap();
        serde_json::to_value(&parameter.schema).unwrap()
    }

    #[test]
    fn the_document_says_how_long_a_way_back_is() {
        let return_to = schema(&Return::into_params(|| None), "return_to");
        assert_eq!(return_to["maxLength"], RETURN_TO_BYTES);
    }

    #[test]
    fn the_document_describes_the_state_as_it_is_sent() {
        let state = jsonschema::validator_for(&schema(&Answer::into_params(|| None), "state")).unwrap();
        let sent = Opaque::random(&Clock::system()).encode();
        assert!(state.is_valid(&sent.as_str().into()), "{sent}");
        for bad in ["", &sent[1..], &format!("{sent}A"), &format!("{}B", &sent[1..])] {
            assert!(Opaque::parse("", bad).is_none() && !state.is_valid(&bad.into()), "{bad}");
        }
    }
}
