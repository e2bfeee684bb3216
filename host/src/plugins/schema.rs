//! The schema of a plugin's configurations. The plugin wrote it, and the server applies it outside of the sandbox, so what
//! that may cost is bounded here, before it is used for the first time:
//!
//! | in a schema | what it could cost |
//! |---|---|
//! | `$ref` leads to a place in the same schema (`#/…`) and never back to where it stands | a recursion without end |
//! | with every `$ref` followed, at most [`WEIGHT`] subschemas | work that doubles with each definition |
//! | a `pattern` needs no look-around or back-reference | matching in time exponential in the text, up to the engine's limit |
//!
//! The first two `jsonschema` 0.61 withstands (measured: loops end, and 24 definitions that name the next one twice cost
//! nothing); it does not promise to, and a server that is ended by a schema is ended for every tenant.

use std::collections::BTreeMap;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Bytes of a schema at the most.
const BYTES: usize = 256 << 10;
/// Objects that there may be once every `$ref` is replaced by what it leads to.
const WEIGHT: usize = 2000;
/// `$ref`s that may lead to each other in a row.
const DEPTH: usize = 32;
/// What changes where a `$ref` leads.
const MOVES: [&str; 5] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"];
/// Not schemas, whatever is in them.
const PLAIN: [&str; 4] = ["const", "default", "enum", "examples"];

/// Parses a JSON Schema, draft 2020-12.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<(Value, Validator), String> {
    if text.len() > BYTES {
        return Err(format!("it has {} bytes; at most {BYTES} are allowed", text.len()));
    }
    let schema: Value = match serde_json::from_str(text) {
        Ok(schema @ Value::Object(_)) => schema,
        Ok(_) => return Err("expected an object".into()),
        Err(error) => return Err(error.to_string()),
    };
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or(DRAFT);
    if draft.trim_end_matches('#') != DRAFT {
        return Err(format!("`$schema` is {draft}; only draft 2020-12 ({DRAFT}) is understood"));
    }
    if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
        return Err(format!("{}: {error}", error.instance_path()));
    }
    let mut weighing = Weighing { root: &schema, open: Vec::new(), known: BTreeMap::new() };
    let weight = weighing.subschemas(&schema)?;
    if weight > WEIGHT {
        return Err(format!("it is too large: with every `$ref` followed, at most {WEIGHT} subschemas are allowed"));
    }
    let options = jsonschema::draft202012::options().should_validate_formats(true);
    let options = options.with_pattern_options(PatternOptions::regex().size_limit(1 << 20));
    let validator = options.build(&schema).map_err(|error| format!("{}: {error}", error.instance_path()))?;
    Ok((schema, validator))
}

struct Weighing<'a> {
    root: &'a Value,
    /// The `$ref`s that led here.
    open: Vec<&'a str>,
    /// What is behind each `$ref`.
    known: BTreeMap<&'a str, usize>,
}

impl<'a> Weighing<'a> {
    /// The objects in a part of the schema, with those behind its `$ref`s.
    fn subschemas(&mut self, part: &'a Value) -> Result<usize, String> {
        match part {
            Value::Object(members) => {
                let mut sum = 1_usize;
                for (key, value) in members {
                    let more = match (key.as_str(), value) {
                        ("$ref", Value::String(to)) => self.behind(to)?,
                        (key, Value::String(_))
                            if MOVES.contains(&key) && !(key == "$id" && std::ptr::eq(part, self.root)) =>
                        {
                            return Err(format!("`{key}` is not understood: refer to a place by `$ref: \"#/…\"`"));
                        }
                        (key, _) if PLAIN.contains(&key) => 0,
                        (_, value) => self.subschemas(value)?,
                    };
                    sum = sum.saturating_add(more);
                }
                Ok(sum)
            }
            Value::Array(parts) => parts.iter().try_fold(0_usize, |sum, part| {
                let more = self.subschemas(part)?;
                Ok(sum.saturating_add(more))
            }),
            _ => Ok(0),
        }
    }

    fn behind(&mut self, to: &'a str) -> Result<usize, String> {
        if let Some(weight) = self.known.get(to) {
            return Ok(*weight);
        }
        if self.open.contains(&to) || to == "#" {
            return Err(format!("`$ref: \"{to}\"` leads back to itself"));
        }
        if self.open.len() >= DEPTH {
            return Err(format!("`$ref: \"{to}\"`: more than {DEPTH} lead to each other in a row"));
        }
        let place = to.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let place = place.ok_or_else(|| format!("`$ref: \"{to}\"` leads to no place in this schema"))?;
        self.open.push(to);
        let weight = self.subschemas(place)?;
        self.open.pop();
        self.known.insert(to, weight);
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_authors_write_is_understood() {
        let schema = json!({
            "$schema": DRAFT, "$id": "https://example.com/schema", "type": "object",
            "properties": {
                "$ref": { "type": "string" }, "$anchor": { "type": "string" },
                "url": { "$ref": "#/$defs/url" }, "other": { "$ref": "#/$defs/url" },
                "name": { "type": "string", "pattern": "^[a-z]{1,63}$", "default": { "$ref": "nowhere" } },
            },
            "$defs": { "url": { "type": "string", "format": "uri" } },
        });
        let (_, validator) = parse(&schema.to_string()).unwrap();
        assert!(validator.is_valid(&json!({ "url": "https://a.example", "name": "a" })));
        assert!(!validator.is_valid(&json!({ "url": "not a URL" })));
        assert!(!validator.is_valid(&json!({ "name": "A" })));
    }

    #[test]
    fn what_would_cost_too_much_is_refused() {
        // Each definition names the next one twice.
        let mut definitions = serde_json::Map::new();
        for n in 0..20 {
            let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
            definitions.insert(format!("d{n}"), json!({ "allOf": [next, next] }));
        }
        definitions.insert("d20".into(), json!({}));
        let wide = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
        let mut definitions = serde_json::Map::new();
        for n in 0..5000 {
            definitions.insert(format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) }));
        }
        definitions.insert("d5000".into(), json!({}));
        let deep = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
        let around = json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "anyOf": [{ "$ref": "#/$defs/b" }] }, "b": { "not": { "$ref": "#/$defs/a" } } } });
        for (schema, why) in [
            (json!({ "$ref": "#" }), "leads back to itself"),
            (json!({ "properties": { "a": { "$ref": "#/properties/a" } } }), "leads back to itself"),
            (json!({ "properties": { "a": { "not": { "$ref": "#" } } } }), "leads back to itself"),
            (around, "leads back to itself"),
            (deep, "in a row"),
            (wide, "too large"),
            (json!({ "$ref": "https://evil.example/schema" }), "no place in this schema"),
            (json!({ "$ref": "#/$defs/none" }), "no place in this schema"),
            (json!({ "$dynamicAnchor": "a", "$dynamicRef": "#a" }), "is not understood"),
            (json!({ "properties": { "a": { "$id": "#" } } }), "is not understood"),
            (json!({ "properties": { "a": { "pattern": "(?=(a+))a*b\\1" } } }), "pattern"),
            (json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } }), "pattern"),
            (json!({ "description": "x".repeat(BYTES) }), "bytes"),
        ] {
            let error = parse(&schema.to_string()).map(drop).unwrap_err();
            assert!(error.contains(why), "expected `{why}`: {error}");
        }
    }
}
