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

/// One text to look for, prepared for the search of Knuth, Morris and Pratt: in one pass, whatever text and far side are.
struct Needle {
    bytes: Vec<u8>,
    /// For each beginning of it, how much of its end is a beginning again.
    borders: Vec<usize>,
}

impl Needle {
    fn new(bytes: Vec<u8>) -> Self {
        let mut needle = Self { borders: vec![0; bytes.len()], bytes };
        let mut border = 0;
        for at in 1..needle.bytes.len() {
            if let Some(byte) = needle.bytes.get(at).copied() {
                border = needle.advance(border, byte);
            }
            if let Some(slot) = needle.borders.get_mut(at) {
                *slot = border;
            }
        }
        needle
    }

    /// How much of it stands at the end of a text, after `matched` of it did and then came `byte`.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while self.bytes.get(matched) != Some(&byte) {
            if matched == 0 {
                return 0;
            }
            matched = self.border(matched);
        }
        matched + 1
    }

    fn border(&self, matched: usize) -> usize {
        matched.checked_sub(1).and_then(|at| self.borders.get(at)).copied().unwrap_or(0)
    }
}

/// What to look for.
#[derive(Default)]
pub struct Needles {
    needles: Vec<Needle>,
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
        Self { needles: needles.into_iter().map(Needle::new).collect(), first }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Bytes of the longest.
    pub fn longest(&self) -> usize {
        self.needles.iter().map(|needle| needle.bytes.len()).max().unwrap_or(0)
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
    /// How far each needle has come.
    found: Vec<Found>,
    /// Bytes at the end of what came so far that may be the beginning of a secret, as they will be handed on if they are not.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Found {
    /// So much of the needle stands at the end of what came so far.
    matched: usize,
    /// Up to here, in what is held, its occurrences are masked already.
    masked: usize,
}

impl Mask {
    /// At the beginning of a stream.
    pub fn new(needles: Arc<Needles>) -> Self {
        Self { found: vec![Found::default(); needles.needles.len()], needles, held: Vec::new() }
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
        let mut out = std::mem::take(&mut self.held);
        let before = out.len();
        out.extend_from_slice(piece);
        let mut hold = before;
        for (end, byte) in (before + 1..).zip(piece) {
            if hold == 0 && !self.needles.begins(*byte) {
                continue;
            }
            hold = 0;
            for (needle, found) in self.needles.needles.iter().zip(&mut self.found) {
                found.matched = needle.advance(found.matched, *byte);
                let whole = needle.bytes.len();
                if found.matched == whole {
                    if let Some(occurrence) = out.get_mut(found.masked.max(end - whole)..end) {
                        occurrence.fill(b'*');
                    }
                    found.masked = end;
                    found.matched = needle.border(whole);
                }
                hold = hold.max(found.matched);
            }
        }
        let handed_on = out.len() - hold;
        self.held = out.split_off(handed_on);
        for found in &mut self.found {
            found.masked = found.masked.saturating_sub(handed_on);
        }
        out
    }

    /// The end of the stream: what is held is no secret, or was found to be part of one.
    pub fn finish(&mut self) -> Vec<u8> {
        self.found.fill(Found::default());
        std::mem::take(&mut self.held)
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

    #[test]
    fn a_far_side_cannot_make_the_search_slow() {
        // What compares every occurrence anew needs the length of the secret times that of the answer: hours.
        let secret = "a".repeat(16 << 10);
        let mut mask = Mask::new(needles(&[&secret]));
        let piece = vec![b'a'; 64 << 10];
        let masked: usize = (0..256).map(|_| mask.push(&piece).iter().filter(|byte| **byte == b'*').count()).sum();
        assert_eq!(masked + mask.finish().len(), 16 << 20);
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
