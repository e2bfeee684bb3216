//! What the far side answers when all is well, and the rest of a case: configuration, secrets, claims.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, request::Parts};
use include_dir::{Dir, include_dir};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{domain::connection::Kind, sandbox::pattern::Target};

/// Cases for the bundled plugins, `KIND/NAME.json`.
static CASES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/plugins/kit/cases");

/// What a plugin is tested with. In a file it is either this, or a connection's configuration alone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The connection's configuration; made up from the manifest's schema where it is absent.
    pub config: Option<Value>,
    /// The connection's secrets; made up where they are absent.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Identity providers: the ID token's claims; null where there is none (OAuth 2).
    #[serde(default, deserialize_with = "even_null")]
    pub claims: Option<Value>,
    /// Identity providers: the userinfo response.
    pub userinfo: Option<Value>,
    /// What the far side answers, the first that fits; anything else gets a plain `200`.
    #[serde(default)]
    pub answers: Vec<Rule>,
    /// The body of the far side's 404, where a plugin tells what is gone from a wrong address by it.
    pub not_found: Option<Value>,
}

/// One answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `GET` and so on; any where it is absent.
    method: Option<String>,
    /// `/path?query` or `https://host/path?query`, with `*` for any text.
    url: String,
    /// 200 where it is absent.
    #[serde(default = "ok")]
    status: u16,
    /// Beside the usual ones.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// JSON. An object with the member `$request` is laid over the request's own object.
    #[serde(default)]
    body: Value,
}

fn ok() -> u16 {
    200
}

/// Tells null from absent.
fn even_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Case {
    /// Reads a case, or a configuration alone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let members = ["config", "secrets", "claims", "userinfo", "answers", "not_found"];
        let whole = value.as_object().is_some_and(|object| match object.get("config") {
            Some(config) => config.is_object(),
            None => object.keys().all(|key| members.contains(&key.as_str())),
        });
        if whole {
            return serde_json::from_value(value).map_err(|error| error.to_string());
        }
        Ok(Self { config: Some(value), ..Self::default() })
    }

    /// With another's parts where this one has none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let answers = if self.answers.is_empty() { other.answers } else { self.answers };
        Self {
            config: self.config.or(other.config),
            secrets: other.secrets.into_iter().chain(self.secrets).collect(),
            claims: self.claims.or(other.claims),
            userinfo: self.userinfo.or(other.userinfo),
            answers,
            not_found: self.not_found.or(other.not_found),
        }
    }

    /// The case of a bundled plugin, where it has one.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn bundled(kind: Kind, name: &str) -> Result<Option<Self>, String> {
        let path = format!("{}/{name}.json", kind.as_str());
        CASES.get_file(path).and_then(|file| file.contents_utf8()).map(Self::parse).transpose()
    }
}

/// One answer, ready to be sent.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, but for those that all have.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// With a status and a body; an impossible status is 500.
    pub fn new(status: u16, body: Bytes) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers: HeaderMap::new(), body }
    }

    /// With a header more.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = value.parse() {
            self.headers.insert(name, value);
        }
        self
    }
}

/// All answers of a case.
#[derive(Debug, Default)]
pub struct Answers {
    /// Where all is well.
    pub rules: Vec<Rule>,
    /// The body of a 404, where the far side has its own.
    pub not_found: Option<Value>,
}

impl Answers {
    /// The answer to a request, when all is well.
    pub fn find(&self, target: &Target, request: &Parts, body: &[u8]) -> Answer {
        let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
        let rule = self.rules.iter().find(|rule| {
            let address = if rule.url.starts_with('/') { path.to_owned() } else { format!("{target}{path}") };
            rule.method.as_deref().is_none_or(|method| method == request.method.as_str()) && fits(&rule.url, &address)
        });
        let Some(rule) = rule else {
            let usual = json!({ "id": "kit-1", "status": "ok", "state": "active", "text": "Success", "code": 0 });
            return Answer::new(200, usual.to_string().into());
        };
        let body = match &rule.body {
            Value::Null => String::new(),
            Value::Object(object) if object.contains_key("$request") => over(object, body).to_string(),
            body => body.to_string(),
        };
        let mut answer = Answer::new(rule.status, body.into());
        for (name, value) in &rule.headers {
            if let Ok(name) = name.parse::<HeaderName>() {
                answer = answer.with(name, value);
            }
        }
        answer
    }
}

/// The request's own object, with the answer's members laid over it.
fn over(object: &Map<String, Value>, request: &[u8]) -> Value {
    let mut merged: Map<String, Value> = serde_json::from_slice(request).unwrap_or_default();
    for (name, value) in object.iter().filter(|(name, _)| *name != "$request") {
        match (merged.get_mut(name), value) {
            (Some(Value::Object(ours)), Value::Object(theirs)) => ours.extend(theirs.clone()),
            _ => {
                merged.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(merged)
}

/// Whether a text fits a pattern in which `*` stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| rest.get(at..).is_some_and(|rest| fits(after, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a*", "/a", true),
            ("/a/*/c*", "/a/b/c?x=1", true),
            ("/a/*/c", "/a/b/d", false),
            ("*", "https://é", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_configuration_alone_is_a_case() {
        assert_eq!(Case::parse(r#"{"url": "https://a"}"#).unwrap().config, Some(json!({ "url": "https://a" })));
        let whole = Case::parse(r#"{"config": {"a": 1}, "answers": [{"url": "/x", "body": {"id": "1"}}]}"#).unwrap();
        assert_eq!((whole.config, whole.answers.len()), (Some(json!({ "a": 1 })), 1));
        assert!(Case::parse(r#"{"answers": [{"path": "/x"}]}"#).is_err());
        let why = Case::parse(r#"{"config": {"a": 1}, "anwsers": []}"#).unwrap_err();
        assert!(why.contains("anwsers"), "{why}");
        assert!(Case::parse("{").is_err());
    }

    #[test]
    fn what_a_case_leaves_out_comes_from_the_other() {
        let own = Case::parse(r#"{"config": {"a": 1}, "secrets": {"s": "own"}}"#).unwrap();
        let other =
            r#"{"config": {"a": 2}, "secrets": {"s": "x", "t": "y"}, "claims": null, "answers": [{"url": "/x"}]}"#;
        let both = own.or(Case::parse(other).unwrap());
        assert_eq!((both.config, both.answers.len()), (Some(json!({ "a": 1 })), 1));
        assert_eq!((both.secrets["s"].as_str(), both.secrets["t"].as_str()), ("own", "y"));
        assert_eq!(both.claims, Some(Value::Null), "a provider without ID tokens stays one");
    }

    #[test]
    fn every_bundled_case_is_of_a_bundled_plugin() {
        for folder in CASES.dirs() {
            let kind = folder.path().to_str().unwrap();
            for file in folder.files() {
                Case::parse(file.contents_utf8().unwrap()).unwrap();
                let name = file.path().file_stem().unwrap().to_str().unwrap();
                assert!(crate::plugins::bundled().any(|(k, n, _)| k.as_str() == kind && n == name), "{kind}/{name}");
            }
        }
    }
}
