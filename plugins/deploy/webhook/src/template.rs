//! The body: a JSON template whose texts have placeholders.

use kaizen_plugin::target::Release;
use kaizen_plugin::{Call, Error, Result};
use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeSeq as _, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::Config;

/// The body where the configuration has no template of its own.
const DEFAULT: &str = r#"{
    "action": "{{action}}", "registration_id": "{{registration_id}}", "deployment_id": "{{deployment_id}}",
    "agent_id": "{{agent_id}}", "agent_name": "{{agent_name}}", "version": "{{version}}",
    "environment": "{{environment}}", "digest": "{{digest}}", "workflow": "{{workflow}}"
}"#;

/// What the receiver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Say whether it takes requests.
    Check,
    /// Deploy a release.
    Deploy,
    /// Say how a registration is.
    Status,
    /// Remove a registration.
    Undeploy,
}

impl Action {
    /// As in the body and in the header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Deploy => "deploy",
            Self::Status => "status",
            Self::Undeploy => "undeploy",
        }
    }
}

/// What placeholders stand for in one request.
pub struct Values {
    /// What the receiver is to do.
    pub action: Action,
    idempotency_key: String,
    attempt: u32,
    registration: Option<String>,
    release: Option<Release>,
}

/// A placeholder's value.
enum Filled<'a> {
    Text(&'a str),
    Number(u32),
    Json(&'a RawValue),
    Nothing,
}

impl Values {
    /// Those that every action has.
    pub fn new(call: &Call<Config>, action: Action) -> Self {
        Self {
            action,
            idempotency_key: call.idempotency_key.clone(),
            attempt: call.attempt,
            registration: None,
            release: None,
        }
    }

    /// With a release's.
    pub fn release(mut self, release: &Release) -> Self {
        self.release = Some(release.clone());
        self
    }

    /// With the id of what is there.
    pub fn registration(mut self, id: &str) -> Self {
        self.registration = Some(id.to_owned());
        self
    }

    /// The body.
    ///
    /// # Errors
    /// [`Error::Config`] for a placeholder that doesn't exist.
    pub fn fill(&self, template: Option<&Map<String, Value>>) -> Result<String> {
        let template = match template {
            Some(template) => template.clone(),
            None => serde_json::from_str(DEFAULT)?,
        };
        let template = Value::Object(template);
        self.check(&template)?;
        Ok(serde_json::to_string(&Filling { values: self, template: &template })?)
    }

    /// Every placeholder there is must be known: a misspelt one would silently be sent as it is.
    fn check(&self, template: &Value) -> Result<()> {
        match template {
            Value::String(text) => {
                for piece in pieces(text) {
                    let Piece::Placeholder(name) = piece else { continue };
                    if self.get(name).is_none() {
                        let why = if name.starts_with("secret:") {
                            "a secret is never put into a body; the signature proves who sends it".to_owned()
                        } else {
                            format!("there is: {}", NAMES.join(", "))
                        };
                        let shown: String = name.chars().take(60).collect();
                        return Err(Error::Config(format!("template: `{{{{{shown}}}}}` is no placeholder; {why}")));
                    }
                }
                Ok(())
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.check(item)),
            Value::Object(members) => members.values().try_for_each(|member| self.check(member)),
            _ => Ok(()),
        }
    }

    /// A placeholder's value; `None` for what is none.
    fn get(&self, name: &str) -> Option<Filled<'_>> {
        let release = self.release.as_ref();
        Some(match name {
            "action" => Filled::Text(self.action.name()),
            "idempotency_key" => Filled::Text(&self.idempotency_key),
            "attempt" => Filled::Number(self.attempt),
            "registration_id" => self.registration.as_deref().map_or(Filled::Nothing, Filled::Text),
            "deployment_id" => release.map_or(Filled::Nothing, |release| Filled::Text(&release.deployment_id)),
            "agent_id" => release.map_or(Filled::Nothing, |release| Filled::Text(&release.agent_id)),
            "agent_name" => release.map_or(Filled::Nothing, |release| Filled::Text(&release.agent_name)),
            "version" => release.map_or(Filled::Nothing, |release| Filled::Number(release.version)),
            "environment" => release.map_or(Filled::Nothing, |release| Filled::Text(&release.environment)),
            "digest" => release.map_or(Filled::Nothing, |release| Filled::Text(&release.digest)),
            "workflow" => release.map_or(Filled::Nothing, |release| Filled::Json(&release.workflow)),
            _ => return None,
        })
    }

    /// A text with its placeholders filled in, once: what was filled in is not looked at again.
    fn text(&self, template: &str) -> String {
        let mut text = String::with_capacity(template.len());
        for piece in pieces(template) {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Placeholder(name) => match self.get(name) {
                    Some(Filled::Text(value)) => text.push_str(value),
                    Some(Filled::Number(value)) => text.push_str(&value.to_string()),
                    Some(Filled::Json(value)) => text.push_str(value.get()),
                    Some(Filled::Nothing) | None => {}
                },
            }
        }
        text
    }
}

const NAMES: [&str; 11] = [
    "action",
    "agent_id",
    "agent_name",
    "attempt",
    "deployment_id",
    "digest",
    "environment",
    "idempotency_key",
    "registration_id",
    "version",
    "workflow",
];

/// A part of a text.
enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

/// A text's parts. `{{` without `}}` is text.
fn pieces(mut text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut placeholder = None;
    std::iter::from_fn(move || {
        if let Some(name) = placeholder.take() {
            return Some(Piece::Placeholder(name));
        }
        if text.is_empty() {
            return None;
        }
        let found = text.split_once("{{").and_then(|(before, after)| {
            let (name, later) = after.split_once("}}")?;
            Some((before, name.trim(), later))
        });
        let Some((before, name, later)) = found else { return Some(Piece::Text(std::mem::take(&mut text))) };
        text = later;
        if before.is_empty() {
            return Some(Piece::Placeholder(name));
        }
        placeholder = Some(name);
        Some(Piece::Text(before))
    })
}

/// A template being written with its placeholders filled in. It is written in one go, so that the workflow keeps its bytes.
struct Filling<'a> {
    values: &'a Values,
    template: &'a Value,
}

impl Serialize for Filling<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let with = |template| Filling { values: self.values, template };
        match self.template {
            Value::String(text) => {
                let mut pieces = pieces(text);
                let whole = match (pieces.next(), pieces.next()) {
                    (Some(Piece::Placeholder(name)), None) => self.values.get(name),
                    _ => None,
                };
                match whole {
                    Some(Filled::Text(value)) => serializer.serialize_str(value),
                    Some(Filled::Number(value)) => serializer.serialize_u32(value),
                    Some(Filled::Json(value)) => value.serialize(serializer),
                    Some(Filled::Nothing) => serializer.serialize_unit(),
                    None => serializer.serialize_str(&self.values.text(text)),
                }
            }
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&with(item))?;
                }
                list.end()
            }
            Value::Object(members) => {
                let mut object = serializer.serialize_map(Some(members.len()))?;
                for (name, member) in members {
                    object.serialize_entry(name, &with(member))?;
                }
                object.end()
            }
            other => other.serialize(serializer),
        }
    }
}
