//! Patterns that name configuration: `{config.url}`, `https://{config.tenant}.example.com`, `{config.host}:6514`.

use serde_json::Value;
use url::Url;

use super::pattern::{self, Pattern, PatternError, Scheme, Target};

/// A value of the configuration from which no address can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The top-level property.
    pub property: String,
    /// What to change.
    pub message: String,
}

/// A piece of a template: text, or the value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Property(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// `{config.url}`: scheme, host and port of that URL.
    Url(String),
    /// `https://{config.a}.example.com:{config.port}`.
    Parts { scheme: Scheme, host: Vec<Piece>, port: Option<Vec<Piece>> },
}

/// A pattern that may name configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    shape: Shape,
}

impl Template {
    /// Of an `http` capability or a secret's host: `https://…`, `http://…` or `{config.NAME}`.
    ///
    /// # Errors
    /// If it is neither.
    pub fn http(source: &str) -> Result<Self, PatternError> {
        if let [Piece::Property(name)] = pieces(source)?.as_slice() {
            return Ok(Self { source: source.to_owned(), shape: Shape::Url(name.clone()) });
        }
        let (scheme, rest) = match source.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => {
                return Err(PatternError::new(format!(
                    "`{source}`: expected https://HOST, http://HOST:PORT or {{config.NAME}}"
                )));
            }
        };
        Self::parts(source, scheme, rest)
    }

    /// Of a `tcp` capability: `HOST:PORT`.
    ///
    /// # Errors
    /// If it is not.
    pub fn tcp(source: &str) -> Result<Self, PatternError> {
        Self::parts(source, Scheme::Tcp, source)
    }

    fn parts(source: &str, scheme: Scheme, authority: &str) -> Result<Self, PatternError> {
        let (host, port) = pattern::split_port(authority.strip_suffix('/').unwrap_or(authority));
        let shape = Shape::Parts { scheme, host: pieces(host)?, port: port.map(pieces).transpose()? };
        let template = Self { source: source.to_owned(), shape };
        // With a plausible value for each property it must be a pattern: found at install, not at the first call.
        template.fill(&|_| Some(Value::from("1")))?;
        Ok(template)
    }

    /// As written in the manifest.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The properties it names.
    pub fn properties(&self) -> impl Iterator<Item = &str> {
        let (url, host, port): (_, &[Piece], &[Piece]) = match &self.shape {
            Shape::Url(name) => (Some(name.as_str()), &[], &[]),
            Shape::Parts { host, port, .. } => (None, host, port.as_deref().unwrap_or_default()),
        };
        url.into_iter().chain(host.iter().chain(port).filter_map(|piece| match piece {
            Piece::Property(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        }))
    }

    /// The pattern under a configuration; `None` where a property that it names is absent: then it grants nothing.
    ///
    /// # Errors
    /// Where a property's value is no address.
    pub fn resolve(&self, config: &Value) -> Result<Option<Pattern>, ConfigFault> {
        self.fill(&|name| config.get(name).cloned()).map_err(|error| ConfigFault {
            property: self.properties().next().unwrap_or_default().to_owned(),
            message: error.to_string(),
        })
    }

    fn fill(&self, value: &dyn Fn(&str) -> Option<Value>) -> Result<Option<Pattern>, PatternError> {
        match &self.shape {
            Shape::Url(name) => {
                let Some(text) = value(name).as_ref().and_then(text_of) else { return Ok(None) };
                let url = Url::parse(&text).map_err(|_| {
                    PatternError::new(format!("`{text}` is not an address; expected e.g. https://host.example.com"))
                })?;
                Ok(Some(Pattern::exactly(Target::of_url(&url)?)))
            }
            Shape::Parts { scheme, host, port } => {
                let Some(host) = join(host, value, host.len() == 1)? else { return Ok(None) };
                let port = match port {
                    None => None,
                    Some(pieces) => match join(pieces, value, false)? {
                        Some(port) => Some(port),
                        None => return Ok(None),
                    },
                };
                Pattern::from_parts(*scheme, &host, port.as_deref()).map(Some)
            }
        }
    }
}

/// A property's value as text; absent, null and empty are the same.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn join(pieces: &[Piece], value: &dyn Fn(&str) -> Option<Value>, whole: bool) -> Result<Option<String>, PatternError> {
    let mut joined = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => joined.push_str(text),
            Piece::Property(name) => {
                let Some(text) = value(name).as_ref().and_then(text_of) else { return Ok(None) };
                let labels = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
                let host = whole && pattern::parse_host(&text).is_ok();
                if !labels && !host {
                    return Err(PatternError::new(format!(
                        "`{text}` is not a host name: letters, digits, dots and hyphens only"
                    )));
                }
                joined.push_str(&text);
            }
        }
    }
    Ok(Some(joined))
}

fn pieces(text: &str) -> Result<Vec<Piece>, PatternError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let name = after.split_once('}').and_then(|(inside, tail)| {
            rest = tail;
            inside.strip_prefix("config.")
        });
        match name {
            Some(name) if !name.is_empty() && !name.contains(['{', '.']) => {
                pieces.push(Piece::Property(name.to_owned()))
            }
            _ => {
                return Err(PatternError::new(format!("`{text}`: expected {{config.NAME}} with a top-level property")));
            }
        }
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}
