//! Headers of requests and answers, described once. Most follow from what an operation takes; a handler names others of its answers
//! without a description: `headers(("ETag"))`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::reference;

/// Every header that answers have, for `components.headers`.
pub(super) fn components() -> Value {
    let header = |about: &str, schema: Value| json!({ "description": about, "schema": schema });
    json!({
        "ETag": header("The revision (RFC 9110, section 8.8.3). Send it in `If-Match` to change exactly this revision.",
            json!({ "type": "string", "examples": ["\"3\""] })),
        "Idempotency-Replayed": header("`true` where this is the answer to an earlier request with the same `Idempotency-Key`.",
            json!({ "type": "string", "enum": ["true"] })),
        "Retry-After": header("Seconds after which to try again, where that may help (RFC 9110, section 10.2.3).",
            json!({ "type": "integer", "format": "int64", "minimum": 0 })),
        "WWW-Authenticate": header("How to sign in (RFC 6750, section 3).", json!({ "type": "string" })),
        "X-Request-Id": header("The request's id, with which the server's log and the audit trail name it.",
            json!({ "type": "string", "format": "uuid" })),
    })
}

/// The schemas of what has a revision: what a `PATCH` answers with.
pub(super) fn revisioned(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().into_iter().flat_map(|paths| paths.values());
    let changed = paths.filter_map(|item| body(&item["patch"]["responses"]["200"])).map(str::to_owned);
    // Canvases are changed over the socket.
    changed.chain(["#/components/schemas/Canvas".to_owned()]).collect()
}

/// The schema that an answer refers to.
fn body(response: &Value) -> Option<&str> {
    response["content"]["application/json"]["schema"]["$ref"].as_str()
}

/// Adds the headers of the operation's good answers; to a read of what has a revision, that it can be left out.
pub(super) fn add(method: &str, operation: &mut Value, revisioned: &BTreeSet<String>) {
    let replayed =
        operation["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["name"] == "Idempotency-Key"));
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if response.get("$ref").is_some() {
            continue;
        }
        // Those that are only named beside the handler, as they do not follow.
        let own = response["headers"].as_object().into_iter().flatten();
        let named = own.filter(|(_, header)| header.get("description").is_none()).map(|(name, _)| name.clone());
        let mut names: BTreeSet<String> = named.collect();
        names.insert("X-Request-Id".to_owned());
        if status.starts_with('2') {
            if body(response).is_some_and(|schema| revisioned.contains(schema)) {
                names.insert("ETag".to_owned());
            }
            if replayed {
                names.insert("Idempotency-Replayed".to_owned());
            }
        }
        for name in names {
            response["headers"][&name] = reference("headers", &name);
        }
    }
    if method == "get" && !operation["responses"]["200"]["headers"]["ETag"].is_null() {
        let parameters = operation["parameters"].as_array_mut();
        parameters.into_iter().for_each(|all| all.push(reference("parameters", "If-None-Match")));
        operation["responses"]["304"] = reference("responses", "NotModified");
    }
}

/// The parameter with which a read is left out, for `components.parameters`.
pub(super) fn parameters() -> Value {
    json!({ "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of what the client has: answered with 304 and no body where it has not changed since.",
        "required": false,
        "schema": { "type": "string", "examples": ["\"3\""] },
    } })
}

/// The answer where a read is left out.
pub(super) fn not_modified() -> Value {
    json!({
        "description": "It has not changed since the client read it.",
        "headers": { "X-Request-Id": reference("headers", "X-Request-Id"), "ETag": reference("headers", "ETag") },
    })
}
