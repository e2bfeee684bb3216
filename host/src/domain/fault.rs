//! Faults of input, each by its place, and the rules that many inputs share.

use std::collections::BTreeMap;

use serde::Serialize;

/// One fault of the input.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the body, or the name of a query parameter.
    pub pointer: String,
    /// What to change.
    pub message: String,
}

impl Fault {
    /// A fault at a pointer.
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// A name that people read: 1 to 200 characters, no control characters, no white space around it.
pub fn name(pointer: &str, text: &str, faults: &mut Vec<Fault>) {
    let length = text.chars().count();
    if length == 0 || length > 200 || text.trim() != text || text.chars().any(char::is_control) {
        faults.push(Fault::new(pointer, "1 to 200 characters, without control characters or white space around them"));
    }
}

/// A text that people read: at most 4,000 characters.
pub fn description(pointer: &str, text: &str, faults: &mut Vec<Fault>) {
    if text.chars().count() > 4000 || text.contains('\0') {
        faults.push(Fault::new(pointer, "at most 4,000 characters"));
    }
}

/// Labels: at most 64, keys of 1 to 63 letters, digits and `-_./`, values of at most 255 characters.
pub fn labels(pointer: &str, labels: &BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    if labels.len() > 64 {
        faults.push(Fault::new(pointer, "at most 64 labels"));
    }
    for (key, value) in labels {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let escaped = key.replace('~', "~0").replace('/', "~1");
        if key.is_empty() || key.len() > 63 || !key.chars().all(good) {
            faults.push(Fault::new(format!("{pointer}/{escaped}"), "a key has 1 to 63 letters, digits, or - _ . /"));
        }
        if value.chars().count() > 255 || value.chars().any(char::is_control) {
            faults
                .push(Fault::new(format!("{pointer}/{escaped}"), "at most 255 characters, without control characters"));
        }
    }
}
