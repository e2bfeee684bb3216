//! What every request passes through: a request id of the server's own, a span, a time limit, metrics, and headers that keep browsers careful.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{Instrument, field};
use utoipa::openapi::OpenApi as Document;
use uuid::Uuid;

use super::{
    extract::Caller,
    preconditions::{may_be_unchanged, unless_unchanged},
    problem::{Problem, ProblemType},
    query::{QueryParameters, Refused},
    requests::Requests,
};
use crate::{app::App, config::Config, domain::client::Client, request_id::RequestIds};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the middleware needs.
pub struct Outermost {
    app: App,
    requests: Arc<Requests>,
    parameters: QueryParameters,
}

impl Outermost {
    /// Of the routes that this document describes, with no request under way.
    pub fn new(app: &App, document: &Document) -> Arc<Self> {
        let requests = Requests::new(&app.config.limits);
        Arc::new(Self { app: app.clone(), requests, parameters: QueryParameters::new(document) })
    }
}

/// The one middleware of ours.
pub async fn outermost(State(outermost): State<Arc<Outermost>>, request: Request, next: Next) -> Response {
    let Outermost { app, requests, parameters } = &*outermost;
    let begun = Instant::now();
    let app_is_secure = app.config.secure();
    let id = app.clock.id::<Uuid>().to_string();
    let client_id = client_request_id(&request);
    let (method, version) = (request.method().clone(), request.version());
    let may_be_unchanged = may_be_unchanged(&method, request.headers());
    // The pattern, not the path: ids would make a time series each.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let uploads = method == Method::POST && route == super::plugin_upload::PATH;
    let limits = &app.config.limits;
    // What streams after an answer has begun has limits of its own; a plugin has to arrive and to be compiled.
    let time_limit = Duration::from_secs(if uploads { limits.plugin_upload_seconds } else { limits.request_seconds });
    let client = request.extensions().get::<Client>().copied().unwrap_or(Client::UNKNOWN);
    let span = tracing::info_span!(
        "api.request", request_id = %id, client_request_id = client_id, %method, route, client = %client.address,
        organization = field::Empty, user = field::Empty
    );
    let answer = async {
        let place = match host_is_named(&request).and_then(|()| requests.admit(client.network())) {
            Ok(place) => place,
            Err(problem) => return problem.into_response(),
        };
        // PostgreSQL has no text with U+0000 in it, so nothing is called so.
        if request.uri().path().contains("%00") {
            return Problem::not_found("path").into_response();
        }
        let routed = async {
            match parameters.check(route, &method, request.uri().query()) {
                Ok(()) => next.run(request).await,
                // Rare, and large: not in the future of every request.
                Err(refused) => Box::pin(refuse(app, refused, request)).await.into_response(),
            }
        };
        let answer = match tokio::time::timeout(time_limit, AssertUnwindSafe(routed).catch_unwind()).await {
            Ok(Ok(response)) => response,
            Ok(Err(panic)) => Problem::internal(format!("panic: {}", message(&*panic))).into_response(),
            Err(_) => {
                let detail = format!(
                    "No answer within {} seconds. What was not committed by then was rolled back: look whether the change was \
                     made before you send it again.",
                    time_limit.as_secs()
                );
                Problem::new(ProblemType::Timeout, detail).into_response()
            }
        };
        let answer = match &may_be_unchanged {
            Some(asked) => unless_unchanged(asked, answer),
            None => answer,
        };
        place.until_sent(version, answer)
    };
    let scoped = RequestIds { id: id.clone(), client_id }.scope(answer);
    let mut response = scoped.instrument(span.clone()).await;
    let status = response.status();
    let took = begun.elapsed();
    let labels = [
        ("method", metrics::SharedString::from(known(&method))),
        ("route", metrics::SharedString::from(route.to_owned())),
        ("status", metrics::SharedString::from(status.as_str().to_owned())),
    ];
    metrics::counter!("kaizen_http_requests_total", &labels).increment(1);
    metrics::histogram!("kaizen_http_request_seconds", "route" => route.to_owned()).record(took.as_secs_f64());
    span.in_scope(|| {
        tracing::debug!(
            status = status.as_u16(),
            took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "answered"
        )
    });
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    if app_is_secure {
        // RFC 6797: for a year, a browser that was here once comes by TLS only.
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The answer to a query that a route does not know; to who may not use the route at all, that.
async fn refuse(app: &App, refused: Refused, request: Request) -> Problem {
    let (parts, _body) = request.into_parts();
    let caller = if refused.public { Ok(()) } else { Caller::of(app, &parts).await.map(drop) };
    caller.err().unwrap_or_else(|| Problem::invalid(vec![refused.fault]))
}

/// RFC 9112, section 3.2: a request of HTTP/1.1 names its host once.
fn host_is_named(request: &Request) -> super::problem::Result<()> {
    if request.version() != Version::HTTP_11 || request.headers().get_all(header::HOST).iter().count() == 1 {
        return Ok(());
    }
    Err(Problem::new(ProblemType::Malformed, "Send the header `Host`, once: HTTP/1.1 asks for it."))
}

/// The caller's own id where it is harmless, kept beside the server's: a caller could give many requests one id, or that of somebody
/// else's request.
fn client_request_id(request: &Request) -> Option<String> {
    let given = request.headers().get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    let good = |id: &&str| {
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    given.filter(good).map(str::to_owned)
}

/// Methods as labels: a client may invent any number of them.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

/// Cross-origin requests only from the origins that are listed; none if none is.
pub fn cors(config: &Config) -> CorsLayer {
    let origins: Vec<HeaderValue> = config.cors_origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()).collect();
    if origins.is_empty() {
        return CorsLayer::new();
    }
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            X_REQUEST_ID,
        ])
        .expose_headers([
            header::ETAG,
            header::RETRY_AFTER,
            X_REQUEST_ID,
            HeaderName::from_static("idempotency-replayed"),
        ])
        .max_age(Duration::from_secs(600))
}
