//! Entity tags and preconditions (RFC 9110, sections 8.8.3 and 13.1). A tag is the number of a revision, so a change is compared
//! exactly even where a proxy that compresses has made the tag weak (`W/"3"`).
//!
//! The crate `headers` takes what is no tag for one that does not match, which would tell people of a change that nobody made.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use utoipa::{
    IntoParams,
    openapi::path::{Parameter, ParameterIn},
};

use super::{
    extract::header_parameter,
    problem::{Problem, ProblemType, Result},
};
use crate::app::App;

/// The revisions that `If-Match` names; absent or `*`: any.
pub struct IfMatch(Option<Vec<String>>);

impl FromRequestParts<App> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self> {
        match tags(&parts.headers, &header::IF_MATCH) {
            Some(Tags::Any) | None => Ok(Self(None)),
            Some(Tags::Of(tags)) => Ok(Self(Some(tags))),
            Some(Tags::Malformed) => {
                let detail =
                    "If-Match: send the `ETag` as it was received, in its quotes, or several with commas between them.";
                Err(Problem::new(ProblemType::Malformed, detail))
            }
        }
    }
}

impl IntoParams for IfMatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let about = "The `ETag` of the revision to change. Refused with 412 if it has changed meanwhile; absent or `*`: any revision.";
        vec![header_parameter("If-Match", about, r#"^(\*|(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*)$"#, "\"3\"")]
    }
}

impl IfMatch {
    /// Refuses unless the current revision is one of those named.
    ///
    /// # Errors
    /// 412.
    pub fn check(&self, revision: i64) -> Result<()> {
        match &self.0 {
            Some(named) if !named.contains(&revision.to_string()) => Err(crate::store::StoreError::Stale.into()),
            _ => Ok(()),
        }
    }
}

/// The `ETag` header of a revision.
pub fn etag(revision: i64) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"0\""));
    (header::ETAG, value)
}

/// The revisions that `If-None-Match` names, for reads that would cost much to answer in full; all others are compared once they
/// are answered ([`unless_unchanged`]).
pub struct IfNoneMatch(Option<Tags>);

impl FromRequestParts<App> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> std::result::Result<Self, Infallible> {
        Ok(Self(tags(&parts.headers, &header::IF_NONE_MATCH)))
    }
}

impl IfNoneMatch {
    /// Whether the client has this revision.
    pub fn is_unchanged(&self, revision: i64) -> bool {
        self.0.as_ref().is_some_and(|tags| tags.name(&revision.to_string()))
    }
}

/// What a read names in `If-None-Match`.
pub fn may_be_unchanged(method: &Method, headers: &HeaderMap) -> Option<Tags> {
    let reads = *method == Method::GET || *method == Method::HEAD;
    tags(headers, &header::IF_NONE_MATCH).filter(|_| reads)
}

/// 304 without a body where the client has the answer's revision already, compared as section 13.1.2 says.
pub fn unless_unchanged(asked: &Tags, answer: Response) -> Response {
    let tag = answer
        .headers()
        .get(header::ETAG)
        .and_then(|value| opaque(value.to_str().ok()?).map(|(tag, _)| tag.to_owned()));
    let Some(tag) = tag.filter(|_| answer.status() == StatusCode::OK) else { return answer };
    if !asked.name(&tag) {
        return answer;
    }
    let mut headers = answer.into_parts().0.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::CONTENT_TYPE);
    (StatusCode::NOT_MODIFIED, headers).into_response()
}

/// What a header of entity tags names: what lies between the quotes, whether weak or not.
#[derive(Debug, PartialEq)]
pub enum Tags {
    /// `*`
    Any,
    /// These.
    Of(Vec<String>),
    /// It cannot be read.
    Malformed,
}

impl Tags {
    /// Whether this one is among them.
    fn name(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Of(tags) => tags.iter().any(|named| named == tag),
            Self::Malformed => false,
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    let mut found = Vec::new();
    for value in headers.get_all(name) {
        let Ok(mut rest) = value.to_str().map(str::trim) else { return Some(Tags::Malformed) };
        if rest == "*" {
            return Some(Tags::Any);
        }
        while !rest.is_empty() {
            let Some((tag, after)) = opaque(rest) else { return Some(Tags::Malformed) };
            found.push(tag.to_owned());
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(more) => more.trim_start(),
                None if after.is_empty() => after,
                None => return Some(Tags::Malformed),
            };
        }
    }
    match headers.contains_key(name) {
        false => None,
        true if found.is_empty() => Some(Tags::Malformed),
        true => Some(Tags::Of(found)),
    }
}

/// The first tag's opaque part, and what comes after the tag.
fn opaque(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?.split_once('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn tags_are_read_weak_or_not_and_several_at_once() {
        let of = |values: &[&str]| tags(&headers(header::IF_MATCH, values), &header::IF_MATCH);
        let these = |tags: &[&str]| Some(Tags::Of(tags.iter().map(|tag| (*tag).to_owned()).collect()));
        assert_eq!(of(&[]), None);
        assert_eq!((of(&["*"]), of(&[" * "])), (Some(Tags::Any), Some(Tags::Any)));
        for (values, tags) in [
            (&["\"7\""][..], &["7"][..]),
            (&["W/\"7\""], &["7"]),
            (&["\"6\", W/\"7\",\"a,b\""], &["6", "7", "a,b"]),
            (&["\"6\"", "\"7\""], &["6", "7"]),
        ] {
            assert_eq!(of(values), these(tags), "{values:?}");
        }
        for malformed in ["", "7", "\"7", "7\"", "w/\"7\"", "\"6\" \"7\"", "\"6\",7"] {
            assert_eq!(of(&[malformed]), Some(Tags::Malformed), "{malformed}");
        }
    }

    #[test]
    fn only_what_is_as_the_client_has_it_is_left_out() {
        let status = |asked: &[&str], answer: Response| {
            let asked = headers(header::IF_NONE_MATCH, asked);
            let headers = may_be_unchanged(&Method::GET, &asked);
            headers.map_or(StatusCode::OK, |asked| unless_unchanged(&asked, answer).status())
        };
        let answer = || ([etag(12)], "a body").into_response();
        for unchanged in [&["\"12\""][..], &["W/\"12\""], &["\"11\", \"12\""], &["*"], &["\"11\"", "\"12\""]] {
            assert_eq!(status(unchanged, answer()), StatusCode::NOT_MODIFIED, "{unchanged:?}");
        }
        for changed in [&[][..], &["\"11\""], &["12"], &["\"11\",12"]] {
            assert_eq!(status(changed, answer()), StatusCode::OK, "{changed:?}");
        }
        assert_eq!(status(&["*"], "no tag".into_response()), StatusCode::OK);
        assert!(may_be_unchanged(&Method::PATCH, &headers(header::IF_NONE_MATCH, &["*"])).is_none());
    }
}
