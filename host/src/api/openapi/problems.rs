//! The errors of an operation. Most follow from what it takes: an id can name nothing, a body can be malformed. Its own are named
//! beside its handler: `extensions(("x-problems" = json!(["conflict"])))`, and `"-denied"` takes one away that would follow.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::reference;
use crate::api::problem::ProblemType;

/// What names an operation's own problems.
const OWN: &str = "x-problems";

/// Adds the answers of one operation that are problem documents; those that several operations share, to `shared`.
pub(super) fn add(method: &str, path: &str, operation: &mut Value, shared: &mut Map<String, Value>) {
    let mut by_status: BTreeMap<u16, Vec<ProblemType>> = BTreeMap::new();
    for kind in of(method, path, operation) {
        by_status.entry(kind.parts().0.as_u16()).or_default().push(kind);
    }
    if let Some(operation) = operation.as_object_mut() {
        operation.remove(OWN);
    }
    for (status, kinds) in by_status {
        let response = response(&kinds);
        match operation["responses"].get_mut(status.to_string()) {
            // A page for browsers, with a problem document beside it.
            Some(own) => {
                own["content"]["application/problem+json"] = response["content"]["application/problem+json"].clone()
            }
            None => {
                let name: String = kinds.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join("Or");
                operation["responses"][status.to_string()] = reference("responses", &name);
                shared.insert(name, response);
            }
        }
    }
}

/// Every problem that the operation can answer with, in the order of [`ProblemType::ALL`].
fn of(method: &str, path: &str, operation: &Value) -> Vec<ProblemType> {
    use ProblemType as P;
    // The host's own refusals; and that a query parameter is unknown.
    let mut kinds = vec![P::Invalid, P::RateLimited, P::Internal, P::Unavailable, P::Timeout];
    let open = operation["security"].as_array().is_some_and(Vec::is_empty);
    if !open {
        kinds.extend([P::Unauthenticated, P::Expired, P::Denied]);
        if method != "get" {
            kinds.push(P::Origin);
        }
    }
    if path.contains('{') {
        kinds.push(P::NotFound);
    }
    if operation.get("requestBody").is_some() {
        kinds.extend([P::Malformed, P::RequestTimeout, P::TooLarge, P::MediaType]);
    }
    let takes = |header: &str| {
        operation["parameters"]
            .as_array()
            .is_some_and(|all| all.iter().any(|p| p["name"] == header && p["in"] == "header"))
    };
    if takes("If-Match") {
        kinds.extend([P::Malformed, P::Precondition]);
    }
    if takes("Idempotency-Key") {
        kinds.extend([P::Malformed, P::KeyReused]);
    }
    let own: Vec<&str> = operation[OWN].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let named = |kind: &ProblemType, sign: &str| own.iter().any(|code| code.strip_prefix(sign) == Some(kind.parts().1));
    P::ALL.iter().copied().filter(|kind| (kinds.contains(kind) || named(kind, "")) && !named(kind, "-")).collect()
}

/// The answer with one of these problems.
fn response(kinds: &[ProblemType]) -> Value {
    let about: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}", kind.parts().1, kind.about())).collect();
    let mut headers = json!({ "X-Request-Id": reference("headers", "X-Request-Id") });
    let mut header = |name: &str| headers[name] = reference("headers", name);
    match kinds.first().map(|kind| kind.parts().0.as_u16()) {
        Some(401) => header("WWW-Authenticate"),
        Some(409 | 429 | 502 | 503) => header("Retry-After"),
        _ => {}
    }
    json!({
        "description": about.join("\n\n"),
        "headers": headers,
        "content": { "application/problem+json": { "schema": reference("schemas", "Problem") } },
    })
}
