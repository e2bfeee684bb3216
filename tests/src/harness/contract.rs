//! The OpenAPI document (`host/openapi.json`) as a contract: every answer that a test reads is one that it describes, and every
//! body that the server took is one that it allows. Objects are taken for closed: a property that is not described is a fault too.

use std::{
    collections::HashMap,
    io::Write,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
};

use jsonschema::Validator;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Map, Value, json};

/// A file to which each operation, status and problem's code that was seen is appended: what the document describes and no test
/// ever sees is found with it.
const OBSERVED: &str = "KZTEST_OBSERVED";

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/openapi.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Contract::new(serde_json::from_str(&text).expect("JSON"))
});

struct Contract {
    document: Value,
    /// Of the components, with closed objects.
    components: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Contract {
    fn new(document: Value) -> Self {
        let mut components = json!({ "schemas": document["components"]["schemas"] });
        let mut within = Vec::new();
        parts(&components, &mut within);
        for (name, schema) in components["schemas"].as_object_mut().expect("schemas") {
            close(schema, within.contains(name));
        }
        Self { document, components, validators: Mutex::default() }
    }

    /// The pattern of a path, and the operations there.
    fn item(&self, path: &str) -> Option<(&str, &Map<String, Value>)> {
        let paths = self.document["paths"].as_object().expect("paths");
        let matches = |pattern: &str| {
            pattern.split('/').count() == path.split('/').count()
                && pattern
                    .split('/')
                    .zip(path.split('/'))
                    .all(|(is, has)| is == has || (is.starts_with('{') && !has.is_empty()))
        };
        // A fixed path comes before one with an id in its place.
        let found = paths
            .iter()
            .filter(|(pattern, _)| matches(pattern))
            .min_by_key(|(pattern, _)| pattern.matches('{').count());
        found.map(|(pattern, item)| (pattern.as_str(), item.as_object().expect("operations")))
    }

    /// What a `$ref` leads to.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}")),
            None => value,
        }
    }

    /// Fails unless the value is valid; `name` stands for the schema.
    fn validate(&self, name: &str, schema: &Value, value: &Value) {
        let validator = self
            .validators
            .lock()
            .expect("a lock")
            .entry(name.to_owned())
            .or_insert_with(|| {
                let mut schema = schema.clone();
                schema["components"] = self.components.clone();
                let validator = jsonschema::options()
                    .with_draft(jsonschema::Draft::Draft202012)
                    .should_validate_formats(true)
                    .build(&schema);
                Arc::new(validator.unwrap_or_else(|error| panic!("the schema of {name}: {error}")))
            })
            .clone();
        let faults: Vec<_> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(faults.is_empty(), "{name} is not as the OpenAPI document says: {faults:#?}\n{value:#}");
    }
}

/// Names of schemas that others are composed of, which cannot be closed themselves.
fn parts(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for part in members.get("allOf").and_then(Value::as_array).into_iter().flatten() {
                names.extend(part["$ref"].as_str().and_then(|to| to.rsplit('/').next()).map(str::to_owned));
            }
            members.values().for_each(|member| parts(member, names));
        }
        Value::Array(items) => items.iter().for_each(|item| parts(item, names)),
        _ => {}
    }
}

fn close(schema: &mut Value, part: bool) {
    let Some(members) = schema.as_object_mut() else { return };
    let composed = members.contains_key("allOf");
    let open = members.contains_key("additionalProperties") || !members.contains_key("properties");
    for (name, member) in members.iter_mut() {
        match name.as_str() {
            "properties" => {
                member.as_object_mut().expect("properties").values_mut().for_each(|member| close(member, false))
            }
            "items" | "additionalProperties" => close(member, false),
            "oneOf" | "anyOf" => {
                member.as_array_mut().expect("a list").iter_mut().for_each(|member| close(member, false))
            }
            "allOf" => member.as_array_mut().expect("a list").iter_mut().for_each(|member| close(member, true)),
            _ => {}
        }
    }
    if composed && !part {
        members.insert("unevaluatedProperties".to_owned(), json!(false));
    } else if !open && !part {
        members.insert("additionalProperties".to_owned(), json!(false));
    }
}

/// An answer to `method path`; nothing is asked of paths that the document does not have.
#[track_caller]
pub fn answer(method: &str, path: &str, status: u16, headers: &HeaderMap, text: &str, body: &Value) {
    let contract = &*CONTRACT;
    let Some((pattern, item)) = contract.item(path) else { return };
    let Some(operation) = item.get(&method.to_ascii_lowercase()) else {
        assert!(
            status == 405 || method == "OPTIONS" || method == "HEAD",
            "{method} {pattern} is not described: {status} {text}"
        );
        return;
    };
    let name = format!("{} {status}", operation["operationId"].as_str().expect("an id"));
    observed(&name, body);
    let response = contract.resolve(&operation["responses"][status.to_string()]);
    assert!(response.is_object(), "{name} is not described ({method} {path}): {text}");
    for (header, documented) in
        [("etag", "ETag"), ("idempotency-replayed", "Idempotency-Replayed"), ("retry-after", "Retry-After")]
    {
        let described = response["headers"].get(documented).is_some();
        assert!(!headers.contains_key(header) || described, "{name}: the header {documented} is not described");
        let always = match documented {
            "ETag" => true,
            "Retry-After" => matches!(status, 429 | 503),
            _ => false,
        };
        assert!(
            !described || !always || headers.contains_key(header),
            "{name}: no {documented}, which is described: {text}"
        );
    }
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if text.is_empty() && media.is_empty() {
        assert!(response.get("content").is_none(), "{name}: no body, and one is described");
        return;
    }
    let content = response["content"].get(media).unwrap_or_else(|| panic!("{name}: {media} is not described: {text}"));
    if media == "application/problem+json" {
        let code = format!("`{}`:", body["code"].as_str().expect("a code"));
        let about = response["description"].as_str().expect("a description");
        assert!(about.contains(&code), "{name}: the code {code} is not described, only {about}\n{text}");
    }
    if ["application/json", "application/problem+json"].contains(&media) {
        contract.validate(&format!("{name} {media}"), &content["schema"], body);
    }
}

/// A body that the server took with `method path`.
#[track_caller]
pub fn taken(method: &str, path: &str, body: &Value) {
    let contract = &*CONTRACT;
    let Some(operation) = contract.item(path).and_then(|(_, item)| item.get(&method.to_ascii_lowercase())) else {
        return;
    };
    let content = &operation["requestBody"]["content"]["application/json"];
    if content.is_object() {
        contract.validate(&format!("{} request", operation["operationId"]), &content["schema"], body);
    }
}

fn observed(name: &str, body: &Value) {
    let Some(path) = std::env::var_os(OBSERVED) else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("a file to append to"), "{name} {}", body["code"].as_str().unwrap_or_default()).expect("room");
}
