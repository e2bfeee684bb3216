//! Where settings come from: what was given later, by a nearer source, covers what was given before.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::settings;
use crate::domain::nearest::nearest;

/// A setting that cannot be used: names it, where it was set, and what to change.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}: {message}")]
pub struct ConfigError {
    source_name: String,
    message: String,
}

pub(super) fn fault(source_name: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError { source_name: source_name.into(), message: message.into() }
}

/// Values by name with where each came from, so that an error can say so.
#[derive(Default)]
pub(super) struct Layers(BTreeMap<&'static str, (String, String)>);

impl Layers {
    pub(super) fn set(&mut self, name: &str, value: String, source: String) -> Result<(), ConfigError> {
        match settings().find(|s| s.name == name) {
            Some(setting) => {
                self.0.insert(setting.name, (value, source));
                Ok(())
            }
            None => {
                let meant = nearest(name, settings().map(|setting| setting.name));
                let meant = meant.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
                Err(fault(source, format!("unknown setting `{name}`{meant}")))
            }
        }
    }

    /// The settings that someone gave.
    pub(super) fn given(&self) -> BTreeSet<&'static str> {
        self.0.keys().copied().collect()
    }

    /// Where a setting comes from.
    pub(super) fn source<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).map_or(name, |(_, source)| source)
    }

    pub(super) fn parse<T>(
        &self,
        name: &str,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        match self.0.get(name) {
            Some((value, source)) => parse(value.trim())
                .map_err(|why| fault(source, format!("`{}` is not usable: {why}", shown(name, value)))),
            None => Ok(default),
        }
    }
}

/// A value as an error may show it: addresses of databases hold passwords.
fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if matches!(name, "database_url" | "redis_url" | "master_key" | "master_key_also") { "(not shown)" } else { value }
}

pub(super) fn read_file(layers: &mut Layers, path: &Path, text: &str) -> Result<(), ConfigError> {
    let source = path.display().to_string();
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // toml's own text is a drawing of several lines.
        let line =
            error.span().and_then(|span| text.get(..span.start)).map_or(0, |before| before.lines().count().max(1));
        fault(&source, format!("line {line}: {}", error.message()))
    })?;
    read_table(layers, &source, "", table)
}

/// `[plugins] trusted_keys = …` is `plugins_trusted_keys`, and so are the others whose names begin alike.
fn read_table(layers: &mut Layers, source: &str, prefix: &str, table: toml::Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        let value = match value {
            toml::Value::Table(table) if prefix.is_empty() => {
                read_table(layers, source, &format!("{name}_"), table)?;
                continue;
            }
            toml::Value::String(text) => text,
            toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Float(_) => value.to_string(),
            toml::Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| fault(source, format!("`{name}`: a list may hold strings only")))?
                .join(","),
            _ => return Err(fault(source, format!("`{name}`: expected a string, a number or a list of strings"))),
        };
        layers.set(&name, value, source.to_owned())?;
    }
    Ok(())
}
