//! Masks secrets in a stream of bytes, also where one is split over several pieces.
//!
//! Each byte of an occurrence becomes `*`, so lengths stay as announced. Besides the secret itself its usual encodings
//! are found: as JSON string, percent-encoded, and base64. This is against far sides that repeat what they were sent; a
//! host that a secret is bound to is trusted with it, and could always hide it better than any search can find.

use std::sync::Arc;

use base64::Engine as _;

/// Shorter secrets are not searched for: they would mask half of every answer, and hide nothing.
const SHORTEST: usize = 4;
/// The same for what is found inside of base64.
const SHORTEST_INSIDE: usize = 8;

/// What to look for.
#[derive(Default)]
pub struct Needles {
    needles: Vec<Vec<u8>>,
    /// Which bytes a needle begins with.
    first: Vec<bool>,
}

impl Needles {
    /// The secrets and their usual encodings.
    pub fn new<'a>(secrets: impl Iterator<Item = &'a str>) -> Self {
        let mut needles = Vec::new();
        for secret in secrets.filter(|secret| secret.len() >= SHORTEST) {
            let json = serde_json::Value::from(secret).to_string();
            let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
            let base64url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
            let json = json.trim_matches('"').to_owned();
            let percent = form.replace('+', "%20");
            let lower = percent.split('%').enumerate().map(|(at, part)| match part.split_at_checked(2) {
                Some((digits, rest)) if at > 0 => format!("%{}{rest}", digits.to_ascii_lowercase()),
                _ => part.to_owned(),
            });
            let lower = lower.collect();
            let all = [secret.to_owned(), json, percent, lower, form, base64, base64url];
            needles.extend(all.map(String::into_bytes));
            needles.extend(inside_base64(secret.as_bytes()));
        }
        if needles.is_empty() {
            return Self::default();
        }
        needles.sort();
        needles.dedup();
        let mut first = vec![false; 256];
        for byte in needles.iter().filter_map(|needle| needle.first()) {
            if let Some(slot) = first.get_mut(usize::from(*byte)) {
                *slot = true;
            }
        }
        Self { needles, first }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    fn begins(&self, byte: u8) -> bool {
        self.first.get(usize::from(byte)).copied().unwrap_or(false)
    }
}

/// What a secret looks like inside a longer text that is encoded as base64, such as `user:secret`: the characters that are
/// all its own, for each of the three places at which it can begin.
fn inside_base64(secret: &[u8]) -> Vec<Vec<u8>> {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let mut found = Vec::new();
    for (before, shared) in [(0, 0), (1, 2), (2, 3)] {
        let bytes: Vec<u8> = std::iter::repeat_n(0, before).chain(secret.iter().copied()).collect();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = engine.encode(&bytes);
            // The last character also holds bits of what follows, unless the secret ends with a group of three bytes.
            let end = text.len() - usize::from(!bytes.len().is_multiple_of(3));
            found.extend(
                text.get(shared..end).filter(|own| own.len() >= SHORTEST_INSIDE).map(|own| own.as_bytes().to_vec()),
            );
        }
    }
    found
}

/// Masks one stream.
pub struct Mask {
    needles: Arc<Needles>,
    /// Bytes at the end of what came so far that may be the beginning of a secret.
    held: Vec<u8>,
    /// The same bytes as they will be handed on, if no secret begins in them.
    shown: Vec<u8>,
}

impl Mask {
    /// At the beginning of a stream.
    pub fn new(needles: Arc<Needles>) -> Self {
        Self { needles, held: Vec::new(), shown: Vec::new() }
    }

    /// A whole text at once.
    pub fn all(needles: Arc<Needles>, bytes: &[u8]) -> Vec<u8> {
        let mut mask = Self::new(needles);
        let mut out = mask.push(bytes);
        out.extend(mask.finish());
        out
    }

    /// The next piece; returns what can be handed on.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        let mut out = std::mem::take(&mut self.shown);
        out.extend_from_slice(piece);
        let mut hold = bytes.len();
        for at in 0..bytes.len() {
            let Some(rest) = bytes.get(at..) else { break };
            if !rest.first().is_some_and(|byte| self.needles.begins(*byte)) {
                continue;
            }
            for needle in &self.needles.needles {
                if rest.starts_with(needle) {
                    if let Some(found) = out.get_mut(at..at + needle.len()) {
                        found.fill(b'*');
                    }
                } else if needle.starts_with(rest) {
                    hold = hold.min(at);
                }
            }
        }
        self.held = bytes.split_off(hold);
        self.shown = out.split_off(hold);
        out
    }

    /// The end of the stream: what is held is no secret, or was found to be part of one.
    pub fn finish(&mut self) -> Vec<u8> {
        self.held.clear();
        std::mem::take(&mut self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needles(secrets: &[&str]) -> Arc<Needles> {
        Arc::new(Needles::new(secrets.iter().copied()))
    }

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|window| window == needle)
    }

    #[test]
    fn every_cut_gives_the_same() {
        let needles = needles(&["s3cr3t", "s3cr3t-longer", "tokentoken"]);
        let text = b"a s3cr3t b s3cr3t-longer c tokentokentoken d s3cr3 s3cr3ts3cr3t tokentoke";
        let whole = Mask::all(needles.clone(), text);
        assert_eq!(whole.len(), text.len());
        assert_eq!(&whole, b"a ****** b ************* c *************** d s3cr3 ************ tokentoke");
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut mask = Mask::new(needles.clone());
                let mut out = mask.push(&text[..first]);
                out.extend(mask.push(&text[first..second]));
                out.extend(mask.push(&text[second..]));
                out.extend(mask.finish());
                assert_eq!(out, whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn usual_encodings_are_found() {
        let secret = "pa ss\"wö/rd+1";
        let needles = needles(&[secret]);
        let base64 = base64::engine::general_purpose::STANDARD.encode(secret);
        for text in [
            serde_json::json!({ "x": secret }).to_string(),
            format!("x={base64}"),
            "x=pa%20ss%22w%C3%B6%2Frd%2B1".into(),
            "x=pa+ss%22w%C3%B6%2Frd%2B1&".into(),
            "x=pa%20ss%22w%c3%b6%2frd%2b1".into(),
        ] {
            let masked = String::from_utf8_lossy(&Mask::all(needles.clone(), text.as_bytes())).into_owned();
            assert!(masked.contains("******") && !masked.contains("ss"), "{text} became {masked}");
        }
    }

    #[test]
    fn a_secret_inside_of_base64_is_found_wherever_it_begins() {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        let needles = needles(&["s3cr3t-token-1"]);
        for before in ["", "a", "ab", "user:", "a@b.c:"] {
            for after in ["", "x", "xy", "xyz"] {
                for engine in [STANDARD, URL_SAFE] {
                    let text = engine.encode(format!("{before}s3cr3t-token-1{after}"));
                    let masked = Mask::all(needles.clone(), text.as_bytes());
                    let hidden = masked.iter().filter(|byte| **byte == b'*').count();
                    // 14 bytes are 19 characters; one at each end is shared.
                    assert!(hidden >= 17, "{before}…{after}: {text} became {}", String::from_utf8_lossy(&masked));
                }
            }
        }
    }

    #[test]
    fn nothing_is_held_without_reason() {
        let mut mask = Mask::new(needles(&["s3cr3t"]));
        assert_eq!(mask.push(b"data: hello\n"), b"data: hello\n");
        assert_eq!(mask.push(b"abc s3"), b"abc ");
        assert_eq!(mask.push(b"x"), b"s3x");
        assert!(mask.finish().is_empty());
    }

    proptest! {
        #[test]
        fn no_secret_gets_through_however_it_is_cut(
            secrets in prop::collection::vec("[ab]{4,7}", 1..4),
            text in prop::collection::vec("[abc]{0,9}", 0..12),
        ) {
            let needles = Arc::new(Needles::new(secrets.iter().map(String::as_str)));
            let mut mask = Mask::new(needles.clone());
            let mut out = Vec::new();
            for piece in &text {
                out.extend(mask.push(piece.as_bytes()));
            }
            out.extend(mask.finish());
            let whole = text.concat();
            prop_assert_eq!(out.len(), whole.len());
            prop_assert_eq!(&out, &Mask::all(needles, whole.as_bytes()));
            for secret in &secrets {
                prop_assert!(!contains(&out, secret.as_bytes()));
            }
            for (before, after) in whole.bytes().zip(&out) {
                prop_assert!(*after == before || *after == b'*');
            }
        }
    }
}
