//! Faults of input, each by its place, and the rules that many inputs share.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    environment::Environment,
    name::Name,
    text::{self, TextFault},
};

/// One fault of the input.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = InputFault)]
pub struct Fault {
    /// Where the fault is: a JSON pointer (RFC 6901) into the body, empty for the whole of it, or the name of a query parameter.
    #[schema(example = "/name")]
    pub pointer: String,
    /// What is expected there instead, in a sentence for people.
    #[schema(example = "1 to 200 characters")]
    pub message: String,
}

impl Fault {
    /// A fault at a pointer.
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// A name in its one spelling; as it was sent where it has a fault.
#[must_use]
pub fn name(pointer: &str, text: String, faults: &mut Vec<Fault>) -> String {
    spelled(pointer, Name::parse(&text), text, faults)
}

/// An environment in its one spelling; as it was sent where it has a fault.
#[must_use]
pub fn environment(pointer: &str, text: String, faults: &mut Vec<Fault>) -> String {
    spelled(pointer, Environment::parse(&text), text, faults)
}

fn spelled(
    pointer: &str,
    parsed: Result<impl Into<String>, TextFault>,
    sent: String,
    faults: &mut Vec<Fault>,
) -> String {
    parsed.map_or_else(
        |fault| {
            faults.push(Fault::new(pointer, fault.to_string()));
            sent
        },
        Into::into,
    )
}

/// A text that people read: at most 4,000 characters.
pub fn description(pointer: &str, text: &str, faults: &mut Vec<Fault>) {
    if text.chars().count() > 4000 || text.contains('\0') {
        faults.push(Fault::new(pointer, "at most 4,000 characters"));
    }
}

/// Brings labels into their one spelling: at most 64, keys of 1 to 63 letters, digits and `-_./`, values of at most 255
/// characters that can be seen and do not imitate ASCII's ([`text::distinct`]).
pub fn labels(pointer: &str, labels: &mut BTreeMap<String, String>, faults: &mut Vec<Fault>) {
    if labels.len() > 64 {
        faults.push(Fault::new(pointer, "at most 64 labels"));
    }
    for (key, value) in labels {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let escaped = key.replace('~', "~0").replace('/', "~1");
        if key.is_empty() || key.len() > 63 || !key.chars().all(good) {
            faults.push(Fault::new(format!("{pointer}/{escaped}"), "a key has 1 to 63 letters, digits, or - _ . /"));
        }
        match text::distinct(value) {
            Ok(spelled) if spelled.chars().count() <= 255 => *value = spelled,
            Ok(_) => faults.push(Fault::new(format!("{pointer}/{escaped}"), "at most 255 characters")),
            Err(fault) => faults.push(Fault::new(format!("{pointer}/{escaped}"), fault.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_one_spelling() {
        let of = |value: &str| BTreeMap::from([("a/b".to_owned(), value.to_owned())]);
        let mut faults = Vec::new();
        let mut good = of(" Zoe\u{308}  1 ");
        labels("/labels", &mut good, &mut faults);
        assert_eq!((good, faults.len()), (of("Zoë 1"), 0));
        labels("/labels", &mut of("sup\u{200B}port"), &mut faults);
        assert!(faults[0].pointer == "/labels/a~1b" && faults[0].message.contains("U+200B"), "{faults:?}");
        labels("/labels", &mut of("\u{501}\u{435}\u{475}"), &mut faults);
        assert!(faults[1].pointer == "/labels/a~1b" && faults[1].message.ends_with("write `dev`"), "{faults:?}");
    }
}
