//! Query parameters are refused that a route does not know: a filter that is misspelt would list everything.
//!
//! What a route knows is what the OpenAPI document says of it, so that no route can be without.

use std::collections::HashMap;

use axum::http::Method;
use url::form_urlencoded;
use utoipa::openapi::{
    OpenApi as Document, RefOr,
    path::{Operation, ParameterIn},
    security::SecurityRequirement,
};

use crate::domain::{fault::Fault, nearest::nearest};

/// Routes that look after their query themselves.
const EXEMPT: &[&str] = &[
    // RFC 6749, section 4.1.2: parameters of an answer that are not recognized are ignored.
    "/auth/sso/callback",
    // OpenID Connect Core 1.0, section 4: a provider that sends people here adds `iss` and others, and what is not understood is
    // ignored.
    "/auth/sso/{connection_id}/login",
    // Refuses by its close code, since browsers cannot read why an upgrade failed.
    "/ws/canvas/{session_id}",
];

/// Characters of an unknown name that are told again.
const TOLD: usize = 64;

/// The query parameters of each route, by its pattern.
#[derive(Debug)]
pub struct QueryParameters(HashMap<String, Vec<Known>>);

/// Those of one operation.
#[derive(Debug)]
struct Known {
    method: Method,
    names: Vec<String>,
    /// Whether it is there for people who are not signed in.
    public: bool,
}

/// Why a request's query is refused.
#[derive(Debug)]
pub struct Refused {
    /// What to change.
    pub fault: Fault,
    /// Whether it may be told to people who are not signed in.
    pub public: bool,
}

impl QueryParameters {
    /// As documented.
    pub fn new(document: &Document) -> Self {
        let routes = document.paths.paths.iter().filter(|(path, _)| !EXEMPT.contains(&path.as_str()));
        let known = routes.map(|(path, item)| {
            let operations = [
                (Method::GET, &item.get),
                (Method::HEAD, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            let known =
                operations.into_iter().filter_map(|(method, operation)| Some(known(method, operation.as_ref()?)));
            (path.clone(), known.collect())
        });
        Self(known.collect())
    }

    /// Refuses a query with a parameter that the route does not know, or with one that is there twice.
    pub fn check(&self, route: &str, method: &Method, query: Option<&str>) -> Result<(), Refused> {
        let Some(query) = query else { return Ok(()) };
        let known = self.0.get(route).and_then(|operations| operations.iter().find(|known| known.method == *method));
        match known.and_then(|known| Some((fault(query, &known.names)?, known.public))) {
            Some((fault, public)) => Err(Refused { fault, public }),
            None => Ok(()),
        }
    }
}

fn known(method: Method, operation: &Operation) -> Known {
    let parameters = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
        RefOr::T(parameter) => Some(parameter),
        RefOr::Ref(_) => None,
    });
    let names = parameters.filter(|parameter| parameter.parameter_in == ParameterIn::Query);
    let names = names.map(|parameter| parameter.name.clone()).collect();
    let public = operation.security.as_deref() == Some([SecurityRequirement::default()].as_slice());
    Known { method, names, public }
}

/// The first fault: a query may be as long as a head.
fn fault(query: &str, known: &[String]) -> Option<Fault> {
    let mut seen: Vec<&str> = Vec::with_capacity(known.len());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some(known) = known.iter().find(|known| **known == name) else { return Some(unknown(&name, known)) };
        if seen.contains(&known.as_str()) {
            return Some(Fault::new(known, "this query parameter is given more than once: give it once"));
        }
        if value.contains('\0') {
            let what = "has the character U+0000 in it, which nothing stored has: remove `%00`";
            return Some(Fault::new(known, what));
        }
        seen.push(known);
    }
    None
}

fn unknown(name: &str, known: &[String]) -> Fault {
    let hint = match nearest(name, known.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if known.is_empty() => "this route takes none".to_owned(),
        None => format!("this route takes `{}`", known.join("`, `")),
    };
    Fault::new(name.chars().take(TOLD).collect::<String>(), format!("unknown query parameter; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_route_does_not_know_is_refused_with_what_was_meant() {
        let parameters = QueryParameters::new(&super::super::routes().into_openapi());
        let refused = |method: Method, route: &str, query: &str| {
            let fault = parameters.check(route, &method, Some(query)).err()?.fault;
            Some(format!("{}: {}", fault.pointer, fault.message))
        };
        let agents = "/api/v1/agents";
        assert_eq!(refused(Method::GET, agents, ""), None);
        assert_eq!(refused(Method::GET, agents, "limit=x&cursor=&workspace_id=%20"), None, "values are read later");
        for (query, detail) in [
            ("limit=5&limt=5", "limt: unknown query parameter; did you mean `limit`?"),
            ("workspace=1", "workspace: unknown query parameter; did you mean `workspace_id`?"),
            ("=1", ": unknown query parameter; this route takes `limit`, `cursor`, `workspace_id`"),
            ("l%69mit=1&limit=2", "limit: this query parameter is given more than once: give it once"),
        ] {
            assert_eq!(refused(Method::GET, agents, query).as_deref(), Some(detail), "{query}");
        }
        assert!(refused(Method::GET, agents, "cursor=a%00").is_some_and(|detail| detail.contains("U+0000")));
        assert!(refused(Method::POST, agents, "limit=5").is_some_and(|detail| detail.ends_with("takes none")));
        assert!(refused(Method::HEAD, agents, "limt=5").is_some());
        assert_eq!(refused(Method::OPTIONS, agents, "limt=5"), None, "405");
        let long = refused(Method::GET, agents, &"x".repeat(60_000)).unwrap_or_default();
        assert!((64..300).contains(&long.len()), "{long}");
    }

    #[test]
    fn only_routes_for_people_who_are_not_signed_in_tell_them() {
        let parameters = QueryParameters::new(&super::super::routes().into_openapi());
        let public = |route: &str, method| parameters.check(route, &method, Some("nonsense=1")).unwrap_err().public;
        assert!(public("/api/v1/auth/login", Method::POST) && public("/.well-known/jwks.json", Method::GET));
        assert!(!public("/api/v1/auth/me", Method::GET) && !public("/api/v1/agents", Method::POST));
        for route in EXEMPT {
            assert!(super::super::routes().into_openapi().paths.paths.contains_key(*route), "{route}");
        }
    }
}
