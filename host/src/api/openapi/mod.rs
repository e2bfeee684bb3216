//! The OpenAPI document (3.1), and a page to read it that needs no outside host.
//!
//! Each route describes itself beside its handler; the handler's name is the operation's id. What follows from what a route
//! takes is added here once: the errors it can give ([`problems`]), and the headers of its answers ([`headers`]). The finished
//! document is committed as `host/openapi.json`; a test fails where that is not what the code says.

#![expect(clippy::indexing_slicing, reason = "the document is the program's own, and whole before anything is served")]

mod headers;
mod page;
mod problems;
mod schemas;

use serde_json::{Value, json};
use utoipa::{
    OpenApi,
    openapi::{
        Components, ContactBuilder, Info, License, OpenApi as Document, Server, Tag,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

pub use self::page::pages;
use super::problem::{ProblemBody, ProblemType};

#[derive(OpenApi)]
#[openapi(components(schemas(ProblemBody)))]
struct Base;

const DESCRIPTION: &str = "The control plane: agents, their canvases and versions, deployments to gateways, policies and the \
    audit trail.

**Lists** take `limit` and `cursor`: send `next_cursor` of a page as `cursor` for the next one. A query parameter that is not \
    named here, or is given twice, is refused.

**Concurrent changes.** What can be changed has an `ETag`. Send it in `If-Match` with a change: the change is refused with 412 \
    if somebody else changed it meanwhile.

**Repeats.** A `POST` that creates something takes an `Idempotency-Key`: sent again with the same key and body, it answers as it \
    did the first time, with `Idempotency-Replayed: true`, and creates nothing.

**Errors** are problem documents (RFC 9457); `code` is for programs.";

/// The groups of operations, in the order of the page.
const TAGS: [(&str, &str); 16] = [
    ("Sign-in", "Sign in and out, refresh tokens, and read who one is."),
    ("Organizations", "A tenant: everything else belongs to one."),
    ("Users", "The people of an organization, and whom they sign in as at identity providers."),
    ("Memberships", "Roles of users, in the organization or in one of its workspaces."),
    ("Workspaces", "Folders of agents."),
    ("Agents", "What is drawn, versioned and deployed."),
    ("Canvas", "The graph of an agent, which several people draw at once over a WebSocket."),
    ("Versions", "What an agent was at a moment; only versions are deployed."),
    ("Gateways", "Places that agents are deployed to, each through a plugin."),
    ("Deployments", "Versions of agents on gateways, and how they got there."),
    ("Jobs", "Work in the background, with its attempts."),
    ("Policies", "Cedar policies of the organization, and what they decide."),
    ("Identity connections", "Providers that sign people in, each through a plugin."),
    ("Audit", "The trail of what was done and refused, chained by hashes."),
    ("Audit sinks", "Places that audit events are sent to, each through a plugin."),
    ("Plugins", "The WebAssembly components that connections run; for platform administrators, but for reading."),
];

/// What the document begins with.
pub fn base() -> Document {
    let mut document = Base::openapi();
    document.info = Info::new("Kaizen Studio", env!("CARGO_PKG_VERSION"));
    document.info.description = Some(DESCRIPTION.to_owned());
    document.info.contact = Some(ContactBuilder::new().name(Some("Kaizen Studio")).build());
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    document.info.license = Some(license);
    let mut server = Server::new("/");
    server.description = Some("This server.".to_owned());
    document.servers = Some(vec![server]);
    document.tags = Some(
        TAGS.map(|(name, about)| {
            let mut tag = Tag::new(name);
            tag.description = Some(about.to_owned());
            tag
        })
        .to_vec(),
    );
    let components = document.components.get_or_insert_with(Components::new);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("`access_token` of `POST /api/v1/auth/login` or `/api/v1/auth/refresh`."))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let about = "Set by signing in. A change that is made with it has to come from this server's own pages or from one of `cors_origins`.";
    let cookie = ApiKey::Cookie(ApiKeyValue::with_description("__Host-kaizen", about));
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    document.security = Some(vec![
        SecurityRequirement::new("bearer", Vec::<String>::new()),
        SecurityRequirement::new("cookie", Vec::<String>::new()),
    ]);
    document
}

/// The document with what follows from what each operation takes.
///
/// # Errors
/// A schema that cannot be written as JSON: a defect.
pub fn finish(document: &Document) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(document)?;
    schemas::finish(&mut document);
    if let Some(codes) = document.pointer_mut("/components/schemas/Problem/properties/code") {
        codes["enum"] = ProblemType::ALL.iter().map(|kind| kind.parts().1).collect();
    }
    document["components"]["headers"] = headers::components();
    let revisioned = headers::revisioned(&document);
    document["components"]["parameters"] = headers::parameters();
    let mut shared = serde_json::Map::from_iter([("NotModified".to_owned(), headers::not_modified())]);
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            // `security(())` is written as one requirement of nothing; generators know only an empty list.
            if operation["security"] == json!([{}]) {
                operation["security"] = json!([]);
            }
            problems::add(method, path, operation, &mut shared);
            headers::add(method, operation, &revisioned);
        }
    }
    shared.sort_keys();
    document["components"]["responses"] = Value::Object(shared);
    Ok(document)
}

/// The finished document, for `kaizen openapi`.
///
/// # Errors
/// As [`finish`].
pub fn document() -> serde_json::Result<Value> {
    finish(&super::routes().into_openapi())
}

/// A reference to a component.
fn reference(section: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{section}/{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let document = serde_json::to_string_pretty(&document().unwrap()).unwrap() + "\n";
        if std::fs::read_to_string(path).unwrap_or_default() != document {
            std::fs::write(path, document).unwrap();
            panic!("{path} was out of date and has been written anew: commit it");
        }
    }

    #[test]
    fn operations_own_problems_are_ones_that_exist() {
        let document = serde_json::to_value(super::super::routes().into_openapi()).unwrap();
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
        for operation in operations {
            for code in operation["x-problems"].as_array().into_iter().flatten() {
                let code = code.as_str().unwrap().trim_start_matches('-');
                assert!(
                    ProblemType::ALL.iter().any(|kind| kind.parts().1 == code),
                    "{}: {code}",
                    operation["operationId"]
                );
            }
        }
    }

    #[test]
    fn every_example_of_a_schema_is_valid_against_it() {
        let document = document().unwrap();
        let mut checked = 0;
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let Some(example) = schema.get("example") else { continue };
            let mut whole = document.clone();
            whole["$ref"] = format!("#/components/schemas/{name}").into();
            let faults: Vec<String> = jsonschema::validator_for(&whole)
                .unwrap()
                .iter_errors(example)
                .map(|fault| format!("{}: {fault}", fault.instance_path()))
                .collect();
            assert!(faults.is_empty(), "{name}: {faults:#?}");
            checked += 1;
        }
        assert!(checked > 10, "{checked} examples");
    }
}
