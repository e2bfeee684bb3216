//! What serde says of input, by its place and in words for people who do not know Rust.

use super::problem::Fault;
use crate::domain::nearest::nearest;

/// The fault that a message of serde's tells of, where the input was read up to this JSON pointer.
pub fn fault(pointer: String, message: &str) -> Fault {
    // serde_json adds where in the text it was: the pointer says it better.
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let at = |name: &str| {
        let name = name.replace('~', "~0").replace('/', "~1");
        if pointer.ends_with(&format!("/{name}")) { pointer.clone() } else { format!("{pointer}/{name}") }
    };
    match (message.split_once('`').map_or(message, |(before, _)| before).trim_end(), quoted.as_slice()) {
        ("missing field", [name]) => Fault::new(at(name), "is missing"),
        ("duplicate field", [name]) => Fault::new(at(name), "is given more than once: give it once"),
        ("unknown field", [name, known @ ..]) => {
            Fault::new(at(name), format!("is not a property here{}", meant(name, known)))
        }
        ("unknown variant", [value, known @ ..]) => {
            let mut one_of = format!("has to be one of {}", listed(known));
            if let Some(meant) = nearest(value, known.iter().copied()) {
                one_of = format!("{one_of}; did you mean `{meant}`?");
            }
            Fault::new(pointer, one_of)
        }
        _ if message.starts_with("invalid type: null,") => {
            Fault::new(pointer, format!("cannot be null; it has to be {}", expected(message)))
        }
        _ if message.starts_with("invalid type: ")
            || message.starts_with("invalid value: ")
            || message.starts_with("invalid length ") =>
        {
            Fault::new(pointer, format!("has to be {}", expected(message)))
        }
        _ if message.starts_with("UUID parsing failed") => Fault::new(pointer, "has to be an id (a UUID)"),
        _ if message.starts_with("data did not match any variant") => {
            Fault::new(pointer, "does not have the shape of any that can be here")
        }
        _ if TIMES.contains(&message) => {
            Fault::new(pointer, "has to be a time as RFC 3339 writes it, e.g. `2026-01-31T09:00:00Z`")
        }
        // What the types of this program say themselves is in plain words.
        _ => Fault::new(pointer, message),
    }
}

/// What chrono says of times that are none.
const TIMES: [&str; 5] = [
    "premature end of input",
    "input contains invalid characters",
    "input is out of range",
    "trailing input",
    "input is not enough for unique date and time",
];

fn meant(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("; did you mean `{meant}`?"),
        None if known.is_empty() => "; nothing is".to_owned(),
        None => format!("; there are {}", listed(known)),
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// What serde expected, without the names of Rust's types.
fn expected(message: &str) -> String {
    let expected = message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
    match expected {
        "a string" | "a borrowed string" | "string" | "str" => "a text",
        "a boolean" => "`true` or `false`",
        "u8" | "u16" | "u32" | "u64" | "usize" | "u128" => "a whole number that is not negative, and not too large",
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "a whole number that is not too large",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a UUID string" | "a formatted UUID string" => "an id (a UUID)",
        "an RFC 3339 formatted date and time string" | "a formatted date and time string or a unix timestamp" => {
            "a time as RFC 3339 writes it, e.g. `2026-01-31T09:00:00Z`"
        }
        object if object == "a map" || object.starts_with("struct ") => "an object",
        one if one.starts_with("enum ") || one.contains("variant") => {
            "one of the values that the API's description lists"
        }
        list if list.starts_with("a tuple") || list.starts_with("an array") || list.starts_with("tuple ") => "a list",
        // The words of a type of this program.
        own if !own.is_empty() => return own.to_owned(),
        _ => "of another kind",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::{DateTime, Utc};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Input {
        name: String,
        id: Option<uuid::Uuid>,
        count: Option<u16>,
        on: Option<bool>,
        at: Option<DateTime<Utc>>,
        colours: Option<Vec<Colour>>,
        labels: Option<BTreeMap<String, String>>,
    }

    /// The fault of a JSON text.
    fn of(text: &str) -> (String, String) {
        let problem = super::super::extract::parse::<Input>(&text.to_owned().into()).unwrap_err();
        let fault = problem.errors.into_iter().next().unwrap_or_else(|| Fault::new("(not JSON)", problem.detail));
        (fault.pointer, fault.message)
    }

    #[test]
    fn faults_have_their_place_and_plain_words() {
        for (text, pointer, message) in [
            ("{}", "/name", "is missing"),
            (r#"["x"]"#, "", "has to be an object"),
            (r#""x""#, "", "has to be an object"),
            (r#"{"name":1}"#, "/name", "has to be a text"),
            (r#"{"name":null}"#, "/name", "cannot be null; it has to be a text"),
            (r#"{"name":"a","name":"b"}"#, "/name", "is given more than once: give it once"),
            (r#"{"nme":"a"}"#, "/nme", "is not a property here; did you mean `name`?"),
            (
                r#"{"something_else":"a"}"#,
                "/something_else",
                "is not a property here; there are `name`, `id`, `count`, `on`, `at`, `colours`, `labels`",
            ),
            (r#"{"name":"a","id":"Support"}"#, "/id", "has to be an id (a UUID)"),
            (
                r#"{"name":"a","count":-1}"#,
                "/count",
                "has to be a whole number that is not negative, and not too large",
            ),
            (
                r#"{"name":"a","count":70000}"#,
                "/count",
                "has to be a whole number that is not negative, and not too large",
            ),
            (r#"{"name":"a","on":"yes"}"#, "/on", "has to be `true` or `false`"),
            (
                r#"{"name":"a","at":"2026-11-27"}"#,
                "/at",
                "has to be a time as RFC 3339 writes it, e.g. `2026-01-31T09:00:00Z`",
            ),
            (r#"{"name":"a","colours":["blue"]}"#, "/colours/0", "has to be one of `red`, `green`"),
            (
                r#"{"name":"a","colours":["gren"]}"#,
                "/colours/0",
                "has to be one of `red`, `green`; did you mean `green`?",
            ),
            (r#"{"name":"a","colours":{}}"#, "/colours", "has to be a list"),
            (r#"{"name":"a","labels":{"a/b":1}}"#, "/labels/a~1b", "has to be a text"),
        ] {
            assert_eq!(of(text), (pointer.to_owned(), message.to_owned()), "{text}");
        }
        assert!(of("{").1.starts_with("The body is not JSON"), "{:?}", of("{"));
    }
}
