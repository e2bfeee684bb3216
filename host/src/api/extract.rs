//! What a route takes: the caller, an id, a body, a page, a precondition. Each refuses with a problem document.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, Method, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use utoipa::{
    IntoParams,
    openapi::{
        Required,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::{ObjectBuilder, Type},
    },
};

use super::input_faults;
pub use super::preconditions::{IfMatch, etag};
use super::problem::{Fault, Problem, ProblemType, Result};
use crate::{app::App, domain::principal::Principal};

/// The signed-in user, as the database has them at this request.
pub struct Caller(pub Principal);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        Self::of(app, parts).await
    }
}

impl Caller {
    /// Who sends this request.
    ///
    /// # Errors
    /// 401 for nobody, 403 for a page of another origin, and as the database says.
    pub async fn of(app: &App, parts: &Parts) -> Result<Self> {
        let principal = app.identity.authenticate(&app.store, &app.clock, &parts.method, &parts.headers).await?;
        tracing::Span::current()
            .record("organization", tracing::field::display(principal.organization_id))
            .record("user", tracing::field::display(principal.user_id));
        Ok(Self(principal))
    }
}

/// One id in the path. What is not a UUID names nothing: 404.
pub struct PathId<T>(pub T);

impl<T: From<uuid::Uuid> + Send> FromRequestParts<App> for PathId<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        match Path::<uuid::Uuid>::from_request_parts(parts, app).await {
            Ok(Path(id)) => Ok(Self(id.into())),
            Err(_) => Err(Problem::not_found("thing: the id in the path is not a UUID")),
        }
    }
}

/// Query parameters; those of them that the type does not have are another's. What no extractor of the route has is refused
/// before ([`super::query`]).
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self> {
        let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(query)).map(Self).map_err(|error| {
            let pointer = pointer(error.path());
            let fault = input_faults::fault(pointer, &error.into_inner().to_string());
            let name = fault.pointer.strip_prefix('/').unwrap_or("query").to_owned();
            Problem::invalid(vec![Fault { pointer: name, ..fault }])
        })
    }
}

/// A JSON body of at most `request_body_kib`, and what makes a repeat of it recognizable.
pub struct Input<T> {
    /// The body.
    pub body: T,
    /// The `Idempotency-Key` with a digest of the request, if one was sent.
    pub idempotency: Option<IdempotencyKey>,
}

/// `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) and SHA-256 of method, path and body.
#[derive(Clone)]
pub struct IdempotencyKey {
    /// As sent, 1 to 255 visible characters.
    pub key: String,
    /// Hexadecimal.
    pub request: String,
}

impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let about = "A name for this request, 1 to 255 visible ASCII characters without blanks and quotes. Sent again with the same body, the request is \
                     answered as it was the first time and does nothing; with another body it is refused.";
        // In quotes, or not (RFC 8941, section 3.3.3).
        vec![header_parameter("Idempotency-Key", about, "^(\"[!#-~]{1,255}\"|[!#-~]{1,255})$", "6f1c2e7a-create-agent")]
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let bytes = json(&parts.headers, body, app.config.limits.request_body_kib * 1024, app).await?;
        let idempotency = idempotency_key(&parts.headers, &parts.method, parts.uri.path(), &bytes)?;
        Ok(Self { body: parse(&bytes)?, idempotency })
    }
}

/// A JSON body that anybody may send: at most `signin_body_kib`.
pub struct SmallInput<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for SmallInput<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let bytes = json(&parts.headers, body, app.config.limits.signin_body_kib * 1024, app).await?;
        Ok(Self(parse(&bytes)?))
    }
}

/// The bytes of a JSON body of at most so many, that has to arrive in time.
async fn json(headers: &HeaderMap, body: Body, most: usize, app: &App) -> Result<Bytes> {
    json_only(headers)?;
    let seconds = app.config.limits.request_body_seconds;
    let bytes = tokio::time::timeout(Duration::from_secs(seconds), read(body, most)).await.map_err(|_| {
        Problem::new(ProblemType::RequestTimeout, format!("The body did not arrive within {seconds} seconds."))
    })??;
    if has_nul(&bytes) {
        let detail = "The body has the character U+0000 in it, which cannot be stored: remove `\\u0000`.";
        return Err(Problem::new(ProblemType::Malformed, detail));
    }
    Ok(bytes)
}

fn json_only(headers: &HeaderMap) -> Result<()> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") || media.to_ascii_lowercase().ends_with("+json") {
        Ok(())
    } else {
        Err(Problem::new(ProblemType::MediaType, "Send the body as JSON with `Content-Type: application/json`."))
    }
}

/// So many times the bytes that a body may have are read, and those beyond are dropped: a client in the middle of sending would
/// otherwise find the connection closed, and never read why.
const DRAINED: usize = 8;

async fn read(mut body: Body, most: usize) -> Result<Bytes> {
    let (mut bytes, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let cut_short = |_| Problem::new(ProblemType::Malformed, "The body ended before all of it arrived.");
        let Ok(data) = frame.map_err(cut_short)?.into_data() else { continue };
        length += data.len();
        if length <= most {
            bytes.extend_from_slice(&data);
        } else if length > DRAINED * most {
            break;
        }
    }
    if length > most {
        return Err(Problem::new(ProblemType::TooLarge, format!("The body is over {} KiB.", most / 1024)));
    }
    Ok(bytes.freeze())
}

/// Whether the JSON text has an escaped U+0000: PostgreSQL can store it neither as text nor within JSONB.
fn has_nul(json: &[u8]) -> bool {
    let mut escaped = false;
    json.iter().enumerate().any(|(at, byte)| {
        let begins = escaped && *byte == b'u';
        escaped = !escaped && *byte == b'\\';
        begins && json.get(at + 1..at + 5).is_some_and(|digits| digits == b"0000")
    })
}

/// Parses a JSON object; a fault names its place by JSON pointer, or by line and column where it is not JSON at all.
pub(super) fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    // serde takes a list for a struct, member by member.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Problem::invalid(vec![Fault::new("", "has to be an object")]));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = pointer(error.path());
        let error = error.into_inner();
        if error.is_data() {
            Problem::invalid(vec![input_faults::fault(pointer, &error.to_string())])
        } else {
            Problem::new(ProblemType::Malformed, format!("The body is not JSON: {error}."))
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::new(ProblemType::Malformed, format!("The body goes on after the JSON: {error}.")))?;
    Ok(value)
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(String::new(), |pointer, segment| match segment {
        Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Enum { .. } | Segment::Unknown => pointer,
    })
}

/// The `Idempotency-Key` of a request with this body, if one was sent.
pub(super) fn idempotency_key(
    headers: &HeaderMap,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Result<Option<IdempotencyKey>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if !(1..=255).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
        return Err(Problem::new(
            ProblemType::Malformed,
            "Idempotency-Key: send 1 to 255 visible ASCII characters, without blanks and quotes.",
        ));
    }
    let mut sha = Sha256::new();
    for part in [method.as_str().as_bytes(), path.as_bytes(), body] {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    Ok(Some(IdempotencyKey { key: key.to_owned(), request: hex::encode(sha.finalize()) }))
}

/// A header that a request may have, for the OpenAPI document.
pub(super) fn header_parameter(name: &str, about: &str, pattern: &str, example: &str) -> Parameter {
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([example]);
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(about))
        .schema(Some(schema))
        .build()
}

/// A request that needs no body; what is sent as one is ignored.
pub struct Bodyless {
    /// The `Idempotency-Key` with a digest of the request, if one was sent.
    pub idempotency: Option<IdempotencyKey>,
}

impl FromRequestParts<App> for Bodyless {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self> {
        Ok(Self { idempotency: idempotency_key(&parts.headers, &parts.method, parts.uri.path(), &[])? })
    }
}

#[cfg(test)]
mod tests {
    use super::has_nul;

    #[test]
    fn only_an_escaped_nul_is_one() {
        assert!(has_nul(br#"{"name": "a\u0000b"}"#) && has_nul(br#"["\\\u0000"]"#));
        assert!(!has_nul(br#"{"name": "a\\u0000b"}"#) && !has_nul(br#"["\u0001", "u0000", "\n0000"]"#));
    }
}
