//! A policy text in tokens, as far as they are told apart by their first characters: for bounds that hold before it is
//! parsed, and for the places of what has none in Cedar's syntax tree.

use std::ops::Range;

/// A word, a string with its quotes, a slot (`?principal`), or one other character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// Bytes before it.
    pub(super) at: usize,
    pub(super) text: &'a str,
}

/// The tokens of a text, without white space and comments.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.text.get(self.at..)?;
            let first = rest.chars().next()?;
            if first.is_whitespace() {
                self.at += first.len_utf8();
            } else if rest.starts_with("//") {
                // Cedar ends a comment at a carriage return, too.
                self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
            } else {
                let length = match first {
                    '"' => string(rest),
                    _ if first == '?' || is_word(first) => {
                        let after = rest.get(first.len_utf8()..).unwrap_or_default();
                        first.len_utf8() + after.find(|c| !is_word(c)).unwrap_or(after.len())
                    }
                    _ => first.len_utf8(),
                };
                let token = Token { at: self.at, text: rest.get(..length)? };
                self.at += length;
                return Some(token);
            }
        }
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The length of the string that a text begins with; all of it if it does not end.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Where these tokens follow each other within a part of the text; where the part begins if they do not.
pub(super) fn find(text: &str, part: &Range<usize>, sought: &[&str]) -> usize {
    let tokens: Vec<_> = Tokens::of(text.get(part.clone()).unwrap_or_default()).collect();
    let alike = |window: &&[Token<'_>]| window.iter().zip(sought).all(|(token, sought)| token.text == *sought);
    let found = tokens.windows(sought.len().max(1)).find(alike).and_then(|window| window.first());
    part.start + found.map_or(0, |token| token.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_white_space_are_no_tokens() {
        let text = "permit // (\"(\r(principal == ?principal, x.\"a\\\"b\")\n;// end";
        let tokens: Vec<_> = Tokens::of(text).map(|token| token.text).collect();
        let expected = ["permit", "(", "principal", "=", "=", "?principal", ",", "x", ".", "\"a\\\"b\"", ")", ";"];
        assert_eq!(tokens, expected);
        assert!(Tokens::of(text).all(|token| text[token.at..].starts_with(token.text)));
        assert_eq!(Tokens::of("\"never ends").map(|token| token.text).collect::<Vec<_>>(), ["\"never ends"]);
    }

    #[test]
    fn a_place_is_found_within_its_part_and_not_in_a_comment() {
        let text = "a.b; // c.d\n \"c.d\" c . d;";
        assert_eq!(find(text, &(4..text.len()), &["c", ".", "d"]), 19);
        assert_eq!(find(text, &(4..text.len()), &["a"]), 4);
    }
}
