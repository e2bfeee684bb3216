//! A plausible configuration and secrets, made up from a manifest.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    domain::connection::Kind,
    plugins::{ACCESS_TOKEN, Manifest},
    sandbox::grants::Capability,
};

/// The host of made-up addresses; nothing is ever sent there.
pub const HOST: &str = "kit.example.com";
const DEPTH: usize = 8;

/// A configuration: what the schema requires, and what the capabilities name. `port` stands where a port is needed.
pub fn config(manifest: &Manifest, port: u16) -> Value {
    let named: Vec<&str> = manifest
        .capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::Http(template) | Capability::Tcp(template) => Some(template),
            _ => None,
        })
        .chain(manifest.slots.iter().flat_map(|slot| &slot.hosts))
        .flat_map(|template| template.properties())
        .collect();
    Sampler { root: manifest.schema(), port }.object(manifest.schema(), &named, 0)
}

/// The secrets that a connection has to supply.
pub fn secrets(kind: Kind, manifest: &Manifest) -> BTreeMap<String, String> {
    manifest
        .slots
        .iter()
        .filter(|slot| !(kind == Kind::IdentityProvider && slot.name == ACCESS_TOKEN))
        .map(|slot| (slot.name.clone(), format!("kit-{}-0123456789abcdef0123456789abcdef", slot.name)))
        .collect()
}

struct Sampler<'a> {
    root: &'a Value,
    port: u16,
}

impl Sampler<'_> {
    fn object(&self, schema: &Value, also: &[&str], depth: usize) -> Value {
        let required: Vec<&str> = texts(schema.get("required")).collect();
        let mut object = Map::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if required.contains(&name.as_str()) || also.contains(&name.as_str()) {
                object.insert(name.clone(), self.value(name, property, depth + 1));
            }
        }
        Value::Object(object)
    }

    fn value(&self, name: &str, schema: &Value, depth: usize) -> Value {
        if depth > DEPTH {
            return Value::Null;
        }
        if let Some(known) = known(schema) {
            return known;
        }
        if let Some(resolved) = self.resolved(schema) {
            return self.value(name, resolved, depth + 1);
        }
        match type_of(schema) {
            Some("object") => self.object(schema, &[], depth),
            Some("array") => {
                let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or_default().min(16);
                let item = schema.get("items").map_or(Value::Null, |items| self.value(name, items, depth + 1));
                (0..least).map(|_| item.clone()).collect()
            }
            Some("integer" | "number") if name.ends_with("port") => json!(self.port),
            Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
            Some("boolean") => json!(false),
            Some("null") => Value::Null,
            _ => self.text(name, schema),
        }
    }

    /// The first of what people usually write that the schema takes.
    fn text(&self, name: &str, schema: &Value) -> Value {
        let port = self.port.to_string();
        let address = format!("https://{HOST}");
        let guesses = match schema.get("format").and_then(Value::as_str) {
            Some("uri" | "iri" | "uri-reference" | "url") => vec![address.as_str()],
            Some("hostname" | "idn-hostname") => vec![HOST],
            Some("email") => vec!["kit@example.com"],
            Some("uuid") => vec!["01920000-0000-7000-8000-000000000001"],
            Some("date-time") => vec!["2026-01-01T00:00:00Z"],
            Some("ipv4") => vec!["203.0.114.1"],
            _ if ["url", "uri", "issuer", "endpoint", "server", "address"].iter().any(|word| name.contains(word)) => {
                vec![address.as_str(), HOST]
            }
            _ if ["host", "domain"].iter().any(|word| name.contains(word)) => vec![HOST, address.as_str()],
            _ if name.ends_with("port") => vec![port.as_str()],
            _ => vec![],
        };
        let usual = [
            "kit",
            "Kit",
            "kit-1",
            HOST,
            address.as_str(),
            "01920000-0000-7000-8000-000000000001",
            "1",
            "KIT",
            "kit@example.com",
        ];
        let long = "kit-".repeat(16);
        let mut all = guesses.into_iter().chain(usual).chain([long.as_str()]);
        let validator = jsonschema::draft202012::options().should_validate_formats(true).build(schema).ok();
        let taken = all.find(|text| validator.as_ref().is_none_or(|validator| validator.is_valid(&json!(text))));
        json!(taken.unwrap_or("kit"))
    }

    /// What a reference, or the first of several alternatives, stands for.
    fn resolved<'s>(&'s self, schema: &'s Value) -> Option<&'s Value> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.root.pointer(reference.strip_prefix('#')?);
        }
        ["anyOf", "oneOf", "allOf"].iter().find_map(|name| schema.get(name)?.as_array()?.first())
    }
}

/// What the schema itself names as a value.
fn known(schema: &Value) -> Option<Value> {
    let first = |name: &str| schema.get(name)?.as_array()?.first().cloned();
    let example = schema.get("example").cloned();
    schema.get("const").cloned().or_else(|| first("examples")).or(example).or_else(|| first("enum")).or_else(|| {
        // Often null or empty, which is no value to test with.
        schema.get("default").filter(|value| !value.is_null() && *value != "").cloned()
    })
}

fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
