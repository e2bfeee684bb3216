//! Problem details (RFC 9457): the closed set of errors that leave this server.
//!
//! Every room has its own error type; this is the one place where they become an answer. Internals are logged under
//! the request id and never returned.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{auth::OrganizationSummary, authz::DecisionBody};
pub use crate::domain::fault::Fault;
use crate::{identity::AuthError, request_id::request_id, store::StoreError};

/// The body of every error: `application/problem+json`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:kaizen:problem:invalid",
    "title": "The input is not valid",
    "status": 422,
    "detail": "/name: 1 to 200 characters",
    "code": "invalid",
    "request_id": "019d0e32-3d4e-7f5a-8b62-7c8d9e0f1a2b",
    "errors": [{ "pointer": "/name", "message": "1 to 200 characters" }],
}))]
pub struct ProblemBody {
    /// The type of the problem (RFC 9457): `urn:kaizen:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    pub kind: String,
    /// What the type of the problem is called; the same for every problem of the type.
    pub title: String,
    /// The HTTP status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened here and what to do, in sentences for people.
    pub detail: String,
    /// The type of the problem for programs; a code keeps its meaning.
    pub code: String,
    /// The id of the request, as in the header `X-Request-Id`; the server's log and the audit trail name the request by it.
    pub request_id: String,
    /// The faults of the input, each by its place; present where the code is `invalid`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// Why policies refused, and which of them; present where the code is `denied` and policies decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = DecisionBody)]
    pub denial: Option<serde_json::Value>,
    /// The organizations to choose from; present where several of them could sign the person in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub organizations: Vec<OrganizationSummary>,
}

macro_rules! problems {
    ($($(#[doc = $doc:literal])* $name:ident $status:ident $code:literal $title:literal)*) => {
        /// The closed set of problem types.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemType { $($(#[doc = $doc])* $name,)* }

        impl ProblemType {
            /// All of them, for the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// HTTP status, code and title.
            pub fn parts(self) -> (StatusCode, &'static str, &'static str) {
                match self { $(Self::$name => (StatusCode::$status, $code, $title),)* }
            }

            /// What it means, for the documentation.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_start(),)* }
            }
        }
    };
}

problems! {
    /// The request cannot be read: its body is not JSON, or a header does not have the form it needs.
    Malformed BAD_REQUEST "malformed" "The request could not be read"
    /// Nobody is signed in, or not any more.
    Unauthenticated UNAUTHORIZED "unauthenticated" "Sign in first"
    /// The access token was good, and is not any more: refresh it.
    Expired UNAUTHORIZED "token_expired" "The access token has expired"
    /// Wrong e-mail address or password; which of them is not said.
    Credentials UNAUTHORIZED "invalid_credentials" "The credentials are not valid"
    /// A policy forbids it, or none permits it.
    Denied FORBIDDEN "denied" "Not allowed"
    /// A cookie-authenticated change from another origin.
    Origin FORBIDDEN "cross_origin" "Cross-origin request refused"
    /// There is no such thing, or it is another organization's.
    NotFound NOT_FOUND "not_found" "Not found"
    /// The route exists, for other methods.
    Method METHOD_NOT_ALLOWED "method_not_allowed" "Method not allowed"
    /// The body did not arrive in time.
    RequestTimeout REQUEST_TIMEOUT "request_timeout" "The request did not arrive in time"
    /// It is there already, or something still refers to it.
    Conflict CONFLICT "conflict" "In conflict with what is there"
    /// `If-Match` names another revision than the current one.
    Precondition PRECONDITION_FAILED "precondition_failed" "It has changed meanwhile"
    /// What cannot be undone was not confirmed.
    Unconfirmed PRECONDITION_REQUIRED "confirmation_required" "Confirm it first"
    /// The body is over the limit; the answer says how large it may be.
    TooLarge PAYLOAD_TOO_LARGE "too_large" "The body is too large"
    /// A body in another media type than `application/json`.
    MediaType UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "Unsupported media type"
    /// The input is well-formed and not valid: `errors` names each fault by its place.
    Invalid UNPROCESSABLE_ENTITY "invalid" "The input is not valid"
    /// An Idempotency-Key was used before with another request.
    KeyReused UNPROCESSABLE_ENTITY "idempotency_key_reused" "The idempotency key was used for another request"
    /// Too many requests from here or of this organization, or too many attempts to sign in.
    RateLimited TOO_MANY_REQUESTS "rate_limited" "Too many requests"
    /// A defect of the server's; its log names it by the request's id.
    Internal INTERNAL_SERVER_ERROR "internal" "Something went wrong here"
    /// A system elsewhere that the server asks through a plugin, or the plugin itself, failed.
    Upstream BAD_GATEWAY "upstream" "The far side failed"
    /// The database does not answer or takes no changes, or the server is overloaded: try again.
    Unavailable SERVICE_UNAVAILABLE "unavailable" "Not available right now"
    /// The request took too long: look whether the change was made before you send it again.
    Timeout GATEWAY_TIMEOUT "timeout" "The request took too long"
}

/// An error on its way out.
#[derive(Debug)]
pub struct Problem {
    /// Its type.
    pub kind: ProblemType,
    /// What happened here, and what to do.
    pub detail: String,
    /// Each fault of the input.
    pub errors: Vec<Fault>,
    /// Why a policy refused.
    pub denial: Option<serde_json::Value>,
    /// Which organizations there are to choose from.
    pub organizations: Vec<OrganizationSummary>,
    /// Further headers, e.g. `Retry-After`.
    pub headers: HeaderMap,
}

/// What handlers answer with.
pub type Result<T> = std::result::Result<T, Problem>;

impl Problem {
    /// A problem of this type with a detail.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            denial: None,
            organizations: Vec::new(),
            headers: HeaderMap::new(),
        }
    }

    /// There is no such thing, or it is another tenant's: the two are not told apart.
    pub fn not_found(what: &str) -> Self {
        Self::new(ProblemType::NotFound, format!("No such {what}."))
    }

    /// Refuses if there are faults.
    ///
    /// # Errors
    /// [`Problem::invalid`].
    pub fn check(faults: Vec<Fault>) -> Result<()> {
        if faults.is_empty() { Ok(()) } else { Err(Self::invalid(faults)) }
    }

    /// Input that does not hold up, each fault by its place.
    pub fn invalid(errors: Vec<Fault>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => format!("The body {}.", one.message),
            [one] => format!("{}: {}", one.pointer, one.message),
            many => format!("{} faults; see `errors`.", many.len()),
        };
        Self { errors, ..Self::new(ProblemType::Invalid, detail) }
    }

    /// In conflict with what is there.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::Conflict, detail)
    }

    /// A defect of the server's: logged in full, told in general.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(error = %format!("{error:#}"), "internal error");
        Self::new(ProblemType::Internal, "An internal error; the request id finds it in the server's log.")
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Duplicate(constraint) => {
                tracing::debug!(constraint, "duplicate");
                Self::conflict("There is already one with these values; choose another name or address.")
            }
            StoreError::Reference(constraint) => {
                tracing::debug!(constraint, "reference");
                Self::conflict("It refers to something that does not exist here, or something still refers to it.")
            }
            StoreError::Stale => Self::new(
                ProblemType::Precondition,
                "It has changed since you read it: read it again and send its new ETag in If-Match.",
            ),
            StoreError::Unavailable(error) => {
                tracing::warn!(%error, "database unavailable");
                Self::new(ProblemType::Unavailable, "The database does not answer; try again shortly.")
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            StoreError::Overloaded => Self::new(
                ProblemType::Unavailable,
                "Too many requests of your organization wait to be let in; try again shortly.",
            )
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("1")),
            // Named in the log once, where it began.
            StoreError::Unwritable(..) => {
                Self::new(ProblemType::Unavailable, "The database takes no changes at the moment; try again shortly.")
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("5"))
            }
            other => Self::internal(other),
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Store(error) => error.into(),
            AuthError::Unauthenticated => Self::new(
                ProblemType::Unauthenticated,
                "Sign in at POST /api/v1/auth/login and send `Authorization: Bearer …`, or the session cookie.",
            )
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            AuthError::Expired => Self::new(
                ProblemType::Expired,
                "The access token has expired: get another one at POST /api/v1/auth/refresh with the refresh token.",
            )
            .with_header(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(
                    r#"Bearer error="invalid_token", error_description="The access token has expired""#,
                ),
            ),
            AuthError::Origin => Self::new(
                ProblemType::Origin,
                "A change with the session cookie must come from this server's own origin or one listed in cors_origins.",
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title) = self.kind.parts();
        let body = ProblemBody {
            kind: format!("urn:kaizen:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            code: code.to_owned(),
            request_id: request_id(),
            errors: self.errors,
            denial: self.denial,
            organizations: self.organizations,
        };
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sqlx::migrate::MigrateError;

    use super::*;
    use crate::store::Unwritable;

    async fn answered(error: StoreError) -> (StatusCode, Option<HeaderValue>, String) {
        let response = Problem::from(error).into_response();
        let (status, retry_after) = (response.status(), response.headers().get(header::RETRY_AFTER).cloned());
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, retry_after, String::from_utf8(body.to_vec()).unwrap())
    }

    /// A defect is not told as a database that is away, nor the other way round, however many wait for it.
    #[tokio::test]
    async fn an_error_that_several_wait_for_is_answered_like_the_same_one_of_a_single_request() {
        type Expected = (fn() -> StoreError, u16, Option<&'static str>);
        let errors: [Expected; 10] = [
            (|| StoreError::Url("no address".to_owned()), 500, None),
            (|| StoreError::Duplicate("users_email".to_owned()), 409, None),
            (|| StoreError::Reference("agents_workspace".to_owned()), 409, None),
            (|| StoreError::Stale, 412, None),
            (|| StoreError::Unavailable(sqlx::Error::PoolTimedOut), 503, Some("1")),
            (|| StoreError::Overloaded, 503, Some("1")),
            (|| StoreError::Unwritable(Unwritable::DiskFull, sqlx::Error::PoolClosed), 503, Some("5")),
            (|| StoreError::Newer(7), 500, None),
            (|| StoreError::Migration(MigrateError::VersionMissing(7)), 500, None),
            (|| StoreError::Database(sqlx::Error::RowNotFound), 500, None),
        ];
        for (error, status, retry_after) in errors {
            let single = answered(error()).await;
            let expected = (status, retry_after.map(str::to_owned));
            let told = single.1.as_ref().map(|value| value.to_str().unwrap().to_owned());
            assert_eq!((single.0.as_u16(), told), expected, "{}", error());
            let (one, other) = (Arc::new(error()), error());
            let held = one.clone();
            assert_eq!(answered(StoreError::shared(one)).await, single, "{other}");
            assert_eq!(answered(StoreError::shared(held)).await, single, "{other}: the last of them");
        }
    }
}
