//! The schema of a plugin's configurations. The plugin wrote it, and the server applies it outside of the sandbox, so what
//! that may cost is bounded here, before it is used for the first time:
//!
//! | in a schema | what it could cost |
//! |---|---|
//! | `$ref` leads to a place in the same schema (`#/…`) and never back to where it stands | a recursion without end |
//! | with every `$ref` followed, at most [`WEIGHT`] subschemas, `true` and `false` among them | work that doubles with each definition |
//! | a `pattern` needs no look-around or back-reference | matching in time exponential in the text, up to the engine's limit |
//! | so many patterns, and so many bytes of them compiled (`plugin_schema_patterns`, `plugin_schema_patterns_kib`) | memory, and matching in time of both multiplied |
//!
//! What remains is done on threads for blocking work, a few at a time, and is waited for no longer than `plugin_schema_ms`.
//!
//! The first two `jsonschema` 0.61 withstands (measured: loops end, and 24 definitions that name the next one twice cost
//! nothing); it does not promise to, and a server that is ended by a schema is ended for every tenant.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use tokio::{sync::Semaphore, time::timeout};

use crate::sandbox::limits::Bounds;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Bytes of a schema at the most.
const BYTES: usize = 256 << 10;
/// Objects that there may be once every `$ref` is replaced by what it leads to.
const WEIGHT: usize = 2000;
/// `$ref`s that may lead to each other in a row.
const DEPTH: usize = 32;
/// What changes where a `$ref` leads.
const MOVES: [&str; 5] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"];
/// What holds subschemas by names that authors choose (`patternProperties` does, too).
const NAMED: [&str; 5] = ["properties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Not schemas, whatever is in them.
const PLAIN: [&str; 4] = ["const", "default", "enum", "examples"];

/// Bytes of one compiled pattern.
const PATTERN_BYTES: usize = 256 << 10;
/// Faults told at once.
const FAULTS: usize = 50;

/// Schemas that are compiled or applied at once. What takes too long keeps its place until it ends.
static WORKING: Semaphore = Semaphore::const_new(4);

/// What schemas may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Patterns, with every `$ref` followed.
    patterns: usize,
    /// Bytes of all of them, compiled.
    patterns_bytes: usize,
    /// To compile one, or to apply it to one configuration.
    time: Duration,
}

impl From<&Bounds> for Cost {
    fn from(bounds: &Bounds) -> Self {
        let Bounds { schema_patterns: patterns, schema_patterns_bytes: patterns_bytes, schema_time: time, .. } =
            *bounds;
        Self { patterns, patterns_bytes, time }
    }
}

/// A checked schema.
#[derive(Clone)]
pub(super) struct Schema {
    pub(super) value: Value,
    validator: Arc<Validator>,
    time: Duration,
}

/// What a configuration gets wrong.
#[derive(Debug)]
pub(super) struct Mistake {
    /// JSON pointer into the configuration.
    pub(super) pointer: String,
    pub(super) message: String,
    /// The same without any value of the configuration.
    pub(super) masked: String,
}

/// Why a schema was not applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undone {
    /// The threads are busy with other schemas: it says nothing of this one.
    #[error("the server is busy checking other configurations: try again")]
    Busy,
    /// What it costs.
    #[error("{0}")]
    Schema(String),
}

/// Does what may take long elsewhere.
async fn aside<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Undone> {
    let failed = |error: &dyn std::fmt::Display| Undone::Schema(error.to_string());
    let place = timeout(time, WORKING.acquire()).await.map_err(|_| Undone::Busy)?.map_err(|error| failed(&error))?;
    let begun = Arc::new(AtomicBool::new(false));
    let begins = begun.clone();
    let working = tokio::task::spawn_blocking(move || {
        begins.store(true, Ordering::Relaxed);
        let _place = place;
        work()
    });
    match timeout(time, working).await {
        Ok(done) => done.map_err(|error| failed(&error)),
        Err(_) if begun.load(Ordering::Relaxed) => {
            Err(failed(&format!("it takes longer than {} ms (`plugin_schema_ms`)", time.as_millis())))
        }
        // It still waits for a thread, behind work of other kinds.
        Err(_) => Err(Undone::Busy),
    }
}

impl Schema {
    /// Parses a JSON Schema, draft 2020-12.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) async fn parse(text: String, cost: Cost) -> Result<Self, Undone> {
        let parsed = aside(cost.time, move || parse(&text, cost)).await?;
        let (value, validator) = parsed.map_err(Undone::Schema)?;
        Ok(Self { value, validator: Arc::new(validator), time: cost.time })
    }

    /// What a configuration gets wrong, up to 50 mistakes.
    ///
    /// # Errors
    /// Where that cannot be told in time.
    pub(super) async fn mistakes(&self, config: &Value) -> Result<Vec<Mistake>, Undone> {
        let (validator, config) = (self.validator.clone(), config.clone());
        aside(self.time, move || {
            let errors = validator.iter_errors(&config).take(FAULTS);
            let mistake = |error: jsonschema::ValidationError<'_>| Mistake {
                pointer: error.instance_path().to_string(),
                message: error.to_string(),
                masked: error.masked().to_string(),
            };
            errors.map(mistake).collect()
        })
        .await
    }
}

fn parse(text: &str, cost: Cost) -> Result<(Value, Validator), String> {
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
    // First: what is checked next takes time by the size of the schema.
    let mut weighing = Weighing { root: &schema, open: Vec::new(), known: BTreeMap::new() };
    let weight = weighing.weigh(&schema)?;
    if weight.subschemas > WEIGHT {
        return Err(format!("it is too large: with every `$ref` followed, at most {WEIGHT} subschemas are allowed"));
    }
    if weight.patterns > cost.patterns {
        let most = cost.patterns;
        return Err(format!("it is too large: with every `$ref` followed, at most {most} patterns are allowed"));
    }
    if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
        return Err(format!("{}: {error}", error.instance_path()));
    }
    let size = PATTERN_BYTES.min(cost.patterns_bytes / weight.patterns.max(1));
    let options = jsonschema::draft202012::options().should_validate_formats(true);
    let options = options.with_pattern_options(PatternOptions::regex().size_limit(size).dfa_size_limit(1 << 20));
    let validator = options.build(&schema).map_err(|error| format!("{}: {error}", error.instance_path()))?;
    Ok((schema, validator))
}

#[derive(Clone, Copy, Default)]
struct Weight {
    subschemas: usize,
    patterns: usize,
}

impl Weight {
    const SUBSCHEMA: Self = Self { subschemas: 1, patterns: 0 };
    const PATTERN: Self = Self { subschemas: 0, patterns: 1 };

    fn and(self, more: Self) -> Self {
        Self {
            subschemas: self.subschemas.saturating_add(more.subschemas),
            patterns: self.patterns.saturating_add(more.patterns),
        }
    }
}

struct Weighing<'a> {
    root: &'a Value,
    /// The `$ref`s that led here.
    open: Vec<&'a str>,
    /// What is behind each `$ref`.
    known: BTreeMap<&'a str, Weight>,
}

impl<'a> Weighing<'a> {
    /// What a part of the schema holds, with what is behind its `$ref`s.
    fn weigh(&mut self, part: &'a Value) -> Result<Weight, String> {
        match part {
            Value::Object(members) => {
                let mut sum = Weight::SUBSCHEMA;
                for (key, value) in members {
                    let more = match (key.as_str(), value) {
                        ("$ref", Value::String(to)) => self.behind(to)?,
                        ("pattern", Value::String(_)) => Weight::PATTERN,
                        ("patternProperties", Value::Object(of)) => {
                            Weight { subschemas: 0, patterns: of.len() }.and(self.weigh_named(of)?)
                        }
                        (key, Value::Object(of)) if NAMED.contains(&key) => self.weigh_named(of)?,
                        (key, Value::String(_))
                            if MOVES.contains(&key) && !(key == "$id" && std::ptr::eq(part, self.root)) =>
                        {
                            return Err(format!("`{key}` is not understood: refer to a place by `$ref: \"#/…\"`"));
                        }
                        (key, _) if PLAIN.contains(&key) => Weight::default(),
                        (_, value) => self.weigh(value)?,
                    };
                    sum = sum.and(more);
                }
                Ok(sum)
            }
            Value::Array(parts) => parts.iter().try_fold(Weight::default(), |sum, part| Ok(sum.and(self.weigh(part)?))),
            Value::Bool(_) => Ok(Weight::SUBSCHEMA),
            _ => Ok(Weight::default()),
        }
    }

    /// What subschemas by name hold: a property may be called `default` or `enum`, too.
    fn weigh_named(&mut self, of: &'a serde_json::Map<String, Value>) -> Result<Weight, String> {
        of.values().try_fold(Weight::SUBSCHEMA, |sum, part| Ok(sum.and(self.weigh(part)?)))
    }

    fn behind(&mut self, to: &'a str) -> Result<Weight, String> {
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
        let weight = self.weigh(place)?;
        self.open.pop();
        self.known.insert(to, weight);
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Result<(Value, Validator), String> {
        super::parse(text, Cost::from(&Bounds::default()))
    }

    #[test]
    fn patterns_are_few_and_small() {
        // Each of them compiles to a megabyte or so, and weighed nothing.
        let many: serde_json::Map<_, _> = (0..5000).map(|n| (format!("\\w{{18}}a{n:04}"), json!(true))).collect();
        let booleans: Vec<bool> = vec![true; 3000];
        let behind = json!({ "$defs": { "name": { "pattern": "^a$" } },
            "properties": (0..65).map(|n| (format!("p{n}"), json!({ "$ref": "#/$defs/name" }))).collect::<serde_json::Map<_, _>>() });
        let large = (0..40).map(|n| (format!("^\\p{{L}}{{30}}{n}$"), json!({}))).collect::<serde_json::Map<_, _>>();
        for (schema, why) in [
            (json!({ "properties": { "default": { "patternProperties": many } } }), "subschemas"),
            (json!({ "patternProperties": many }), "subschemas"),
            (json!({ "allOf": booleans }), "subschemas"),
            (behind, "at most 64 patterns"),
            (json!({ "patternProperties": large }), "pattern"),
            (json!({ "properties": { "a": { "pattern": "(\\p{L}x|y){900}" } } }), "pattern"),
        ] {
            let begun = std::time::Instant::now();
            let error = parse(&schema.to_string()).map(drop).unwrap_err();
            assert!(error.contains(why), "expected `{why}`: {error}");
            println!("refused after {:.1?}: {why}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn what_takes_long_is_not_waited_for() {
        let cost = Cost { time: Duration::from_millis(20), ..Cost::from(&Bounds::default()) };
        let (began, waits) = std::sync::mpsc::channel::<()>();
        let waits = Arc::new(std::sync::Mutex::new(waits));
        let error = loop {
            let waits = waits.clone();
            let error = aside(cost.time, move || waits.lock().unwrap().recv()).await.unwrap_err();
            // Other tests of this process use the threads too.
            if error != Undone::Busy {
                break error;
            }
        };
        assert!(error.to_string().contains("longer than 20 ms"), "{error}");
        drop(began);
        let schema =
            Schema::parse(json!({ "required": ["a"] }).to_string(), Cost::from(&Bounds::default())).await.unwrap();
        let mistakes = schema.mistakes(&json!({ "b": "secret" })).await.unwrap();
        assert_eq!((mistakes.len(), mistakes[0].pointer.as_str()), (1, ""));
        assert!(!mistakes[0].masked.contains("secret"), "{mistakes:?}");
    }

    #[tokio::test]
    async fn a_configuration_is_not_wrong_because_the_threads_are_busy() {
        let cost = Cost { time: Duration::from_millis(50), ..Cost::from(&Bounds::default()) };
        let schema = Schema::parse(json!({ "required": ["a"] }).to_string(), Cost::from(&Bounds::default()));
        let schema = Schema { time: cost.time, ..schema.await.unwrap() };
        let all = WORKING.acquire_many(4).await.unwrap();
        assert_eq!(schema.mistakes(&json!({})).await.map(|mistakes| mistakes.len()), Err(Undone::Busy));
        let parsed = Schema::parse("{}".into(), cost).await;
        assert!(matches!(parsed, Err(Undone::Busy)));
        drop(all);
        let patient = Schema { time: Duration::from_secs(60), ..schema };
        assert_eq!(patient.mistakes(&json!({})).await.map(|mistakes| mistakes.len()), Ok(1));
    }

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
