//! Text that people and policies compare: one spelling for what looks the same.
//!
//! Two names that look alike and differ in their bytes are two names for a policy and one for whoever reads it. So names are
//! brought into one spelling (NFC of UAX 15, no white space around, one space between words), and what cannot be seen, turns
//! the direction of text or imitates another letter (UTS 39, Unicode Security Mechanisms) is refused by its code point.
//!
//! | text | on top of [`comparable`] |
//! |---|---|
//! | [`Environment`](super::environment::Environment) | small letters; no word looks like one in ASCII |
//! | labels | [`distinct`]: the whole text does not look like one in ASCII, unless it is in everyday Latin letters |
//! | attributes | [`distinct_words`]: the same of its words together; the punctuation of what people write stays |
//! | [`Name`](super::name::Name) | nothing: people's names and words in one script, such as `Сара`, may look so |

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use unicode_script::{Script, UnicodeScript};
use unicode_security::{
    GeneralSecurityProfile, RestrictionLevel, RestrictionLevelDetection, is_potential_mixed_script_confusable_char,
    skeleton,
};

/// Why a text is refused: names the character by code point and class, and says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextFault {
    /// Too short or too long.
    #[error("{least} to {most} characters")]
    Length {
        /// Characters at least.
        least: usize,
        /// Characters at most.
        most: usize,
    },
    /// A character that names do not have.
    #[error("character {place} is {}: {instead}", describe(*character))]
    Character {
        /// Its position, from 1, in the text without the white space around it.
        place: usize,
        /// The character.
        character: char,
        /// What to write.
        instead: &'static str,
    },
    /// One word in letters of several scripts.
    #[error("`{word}` mixes scripts, and {} looks like another letter: write the word in one script", describe(*character))]
    Mixed {
        /// The word.
        word: String,
        /// A letter of it that looks like one of another script.
        character: char,
    },
    /// A word that looks like one in plain letters.
    #[error("`{word}` has {}, which looks like another character: write `{plain}`", describe(*character))]
    Confusable {
        /// The word.
        word: String,
        /// The character that imitates another one.
        character: char,
        /// What it looks like.
        plain: String,
    },
}

/// The one spelling of a text: NFC, without white space around it, with one space between words, and without the selectors
/// of an emoji's presentation (U+FE0E, U+FE0F), which change its look and not what it says.
pub(super) fn canonical(text: &str) -> String {
    let composed: String = text.chars().filter(|c| !matches!(c, '\u{FE0E}' | '\u{FE0F}')).nfc().collect();
    let mut canonical = String::with_capacity(composed.len());
    let mut space = false;
    for c in composed.trim().chars() {
        if c != ' ' || !space {
            canonical.push(c);
        }
        space = c == ' ';
    }
    canonical
}

/// A text in its one spelling, if everything in it can be seen and no word of it imitates letters of another script.
///
/// # Errors
/// [`TextFault::Character`] and [`TextFault::Mixed`].
pub fn comparable(text: &str) -> Result<String, TextFault> {
    let text = canonical(text);
    visible(&text)?;
    for word in words(&text) {
        unmixed(word)?;
    }
    Ok(text)
}

/// As [`comparable`], for what policies compare with texts of their own: one with other characters than ASCII's does not look
/// like one in ASCII (UTS 39, section 4), unless they are all Latin letters in everyday use, such as `ı`, `æ` and `œ`.
///
/// # Errors
/// As [`comparable`], and [`TextFault::Confusable`].
pub fn distinct(text: &str) -> Result<String, TextFault> {
    let text = comparable(text)?;
    plain_but_latin(&text)?;
    Ok(text)
}

/// As [`comparable_lines`], for what policies compare and people write: the words of one with other letters than ASCII's and
/// everyday Latin ones do not all look like words in ASCII. A dash or an apostrophe of typography is no imitation.
///
/// # Errors
/// As [`comparable`], and [`TextFault::Confusable`].
pub fn distinct_words(text: &str) -> Result<String, TextFault> {
    let text = comparable_lines(text)?;
    if !text.is_ascii() {
        plain_but_latin(&words(&text).collect::<Vec<_>>().join(" "))?;
    }
    Ok(text)
}

/// As [`comparable`] for text of several lines: line feeds, carriage returns and tabs stay.
///
/// # Errors
/// As [`comparable`].
fn comparable_lines(text: &str) -> Result<String, TextFault> {
    if !text.contains(breaks) {
        return comparable(text);
    }
    let mut lines = String::with_capacity(text.len());
    for line in text.trim().split_inclusive(breaks) {
        let end = line.chars().next_back().filter(|c| breaks(*c));
        lines.push_str(&comparable(line.trim_end_matches(breaks))?);
        lines.extend(end);
    }
    Ok(lines)
}

/// A text that comes from elsewhere and cannot be sent back, without what [`comparable`] refuses by its character alone: spaces
/// of other widths are ordinary ones. The words that are left may still mix scripts.
pub(super) fn fitting(text: &str) -> String {
    let space = |c: char| if c.general_category() == GeneralCategory::SpaceSeparator { ' ' } else { c };
    let joiner = |c: char| matches!(c, '\u{200C}' | '\u{200D}');
    let text: String = text.chars().map(space).filter(|c| joiner(*c) || unfit(*c, None, None).is_none()).collect();
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if !joiner(c) || joins(c, kept.chars().next_back(), rest.peek().copied()) {
            kept.push(c);
        }
    }
    canonical(&kept)
}

/// As [`fitting`] for text of several lines: line feeds, carriage returns and tabs stay.
pub fn fitting_lines(text: &str) -> String {
    text.trim()
        .split_inclusive(breaks)
        .map(|line| {
            let end = line.chars().next_back().filter(|c| breaks(*c));
            fitting(line.trim_end_matches(breaks)).chars().chain(end).collect::<String>()
        })
        .collect()
}

fn breaks(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t')
}

fn visible(text: &str) -> Result<(), TextFault> {
    let mut before = None;
    let mut rest = text.chars().enumerate().peekable();
    while let Some((at, character)) = rest.next() {
        let after = rest.peek().map(|(_, c)| *c);
        if let Some(instead) = unfit(character, before, after) {
            return Err(TextFault::Character { place: at + 1, character, instead });
        }
        before = Some(character);
    }
    Ok(())
}

/// What to write instead of a character that cannot be told by looking at it.
fn unfit(c: char, before: Option<char>, after: Option<char>) -> Option<&'static str> {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Unassigned};
    if c.is_ascii_graphic() || c == ' ' {
        return None;
    }
    if matches!(c, '\u{200C}' | '\u{200D}') && joins(c, before, after) {
        return None;
    }
    match c.general_category() {
        Control | LineSeparator | ParagraphSeparator => Some("leave it out, or write a space"),
        SpaceSeparator => Some("write an ordinary space (U+0020)"),
        Format => Some("leave it out"),
        PrivateUse | Unassigned => Some("leave it out: it means nothing outside of one font or program"),
        // Fillers and selectors, which are no format characters and cannot be seen either (Default_Ignorable_Code_Point).
        _ if skeleton(c.encode_utf8(&mut [0; 4])).next().is_none() => Some("leave it out"),
        _ => None,
    }
}

/// Whether a joiner is seen here: between letters of a script that is written with joiners (UAX 31, section 2.3), or
/// between the parts of one emoji.
fn joins(joiner: char, before: Option<char>, after: Option<char>) -> bool {
    use Script::{
        Arabic, Bengali, Devanagari, Gujarati, Gurmukhi, Kannada, Malayalam, Mongolian, Oriya, Sinhala, Syriac, Tamil,
        Telugu,
    };
    let (Some(before), Some(after)) = (before, after) else { return false };
    let written_with_joiners = |c: char| {
        matches!(
            c.script(),
            Arabic
                | Bengali
                | Devanagari
                | Gujarati
                | Gurmukhi
                | Kannada
                | Malayalam
                | Mongolian
                | Oriya
                | Sinhala
                | Syriac
                | Tamil
                | Telugu
        )
    };
    let emoji =
        |c: char| matches!(c.general_category(), GeneralCategory::OtherSymbol | GeneralCategory::ModifierSymbol);
    (written_with_joiners(before) && written_with_joiners(after))
        || (joiner == '\u{200D}' && emoji(before) && emoji(after))
}

/// The words of a text: runs of letters, marks and digits.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    use unicode_properties::GeneralCategoryGroup::{Letter, Mark, Number};
    let within =
        |c: char| matches!(c.general_category_group(), Letter | Mark | Number) || matches!(c, '\u{200C}' | '\u{200D}');
    text.split(move |c| !within(c)).filter(|word| !word.is_empty())
}

/// Refuses a word in letters of scripts that are not written together, if one of them looks like a letter of another.
pub(super) fn unmixed(word: &str) -> Result<(), TextFault> {
    if word.is_ascii() {
        return Ok(());
    }
    let letters: String = word.chars().filter(|c| c.identifier_allowed()).collect();
    if letters.check_restriction_level(RestrictionLevel::ModeratelyRestrictive) {
        return Ok(());
    }
    let imitates = |c: &char| c.script() != Script::Latin && is_potential_mixed_script_confusable_char(*c);
    match letters.chars().find(imitates) {
        Some(character) => Err(TextFault::Mixed { word: word.to_owned(), character }),
        None => Ok(()),
    }
}

/// Refuses a text that has other characters than ASCII's and looks as if it had not.
pub(super) fn plain(word: &str) -> Result<(), TextFault> {
    unlike_ascii(word, |c| !c.is_ascii())
}

/// The same, unless these are Latin letters in everyday use: `Yazılım`, `Næstved` and `cœur` are words, not imitations.
fn plain_but_latin(text: &str) -> Result<(), TextFault> {
    unlike_ascii(text, |c| {
        let everyday = c.script() == Script::Latin && c.identifier_allowed();
        !c.is_ascii() && !everyday
    })
}

/// Refuses a text that has such characters and looks as if it were in ASCII.
fn unlike_ascii(text: &str, doubtful: fn(char) -> bool) -> Result<(), TextFault> {
    let Some(character) = text.chars().find(|c| doubtful(*c)) else { return Ok(()) };
    // A dot above `i` or `j` lies on the one that these have.
    let dotted = text.replace("i\u{307}", "i").replace("j\u{307}", "j");
    let others: String = dotted.chars().filter(|c| !c.is_ascii()).collect();
    if !look(&others).is_ascii() {
        return Ok(());
    }
    // What is in no doubt stays as it is: UTS 39 would write `rn` for `m`.
    let letter = |c: char| if doubtful(c) { look(c.encode_utf8(&mut [0; 4])) } else { c.to_string() };
    let plain = dotted.chars().map(letter).collect();
    Err(TextFault::Confusable { word: text.to_owned(), character, plain })
}

/// What a text looks like, in ASCII where that is possible.
fn look(text: &str) -> String {
    // The only one of ASCII's characters whose skeleton is not in ASCII.
    let percent: String = skeleton("%").collect();
    skeleton(text).collect::<String>().replace(&percent, "%")
}

/// A character by code point and by what kind it is, for people.
fn describe(c: char) -> String {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Unassigned};
    let named = match c {
        '\u{00A0}' => "no-break space",
        '\u{00AD}' => "soft hyphen",
        '\u{200B}' => "zero width space",
        '\u{200C}' => "zero width non-joiner",
        '\u{200D}' => "zero width joiner",
        '\u{2028}' => "line separator",
        '\u{2029}' => "paragraph separator",
        '\u{2060}' => "word joiner",
        '\u{FEFF}' => "byte order mark, or zero width no-break space",
        '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
            "a control of text direction"
        }
        '\u{E0000}'..='\u{E007F}' => "an invisible tag",
        _ => match c.general_category() {
            Control => "a control character",
            Format => "an invisible format character",
            LineSeparator | ParagraphSeparator => "a line break",
            SpaceSeparator => "a space of another width",
            PrivateUse => "a private-use character",
            Unassigned => "not a character of Unicode",
            _ if skeleton(c.encode_utf8(&mut [0; 4])).next().is_none() => "an invisible character",
            _ => return format!("`{c}` (U+{:04X}, {})", u32::from(c), c.script().full_name()),
        },
    };
    format!("U+{:04X} ({named})", u32::from(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_look_has_one_spelling() {
        for (written, canonical) in [
            ("Zoe\u{308}", "Zoë"),
            ("  Support \t\n", "Support"),
            ("two   words", "two words"),
            ("\u{2764}\u{FE0F} team", "\u{2764} team"),
            ("\u{212A}im", "Kim"),
        ] {
            assert_eq!(comparable(written).as_deref(), Ok(canonical), "{written:?}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_refused_by_its_code_point() {
        for c in [
            '\u{0}',
            '\u{7}',
            '\u{AD}',
            '\u{34F}',
            '\u{61C}',
            '\u{115F}',
            '\u{180E}',
            '\u{200B}',
            '\u{200D}',
            '\u{200E}',
            '\u{2028}',
            '\u{2029}',
            '\u{202E}',
            '\u{2060}',
            '\u{2066}',
            '\u{3164}',
            '\u{FEFF}',
            '\u{FFFE}',
            '\u{E0041}',
            '\u{E0100}',
            '\u{E000}',
            '\u{A0}',
            '\u{2003}',
            '\u{3000}',
        ] {
            let fault = comparable(&format!("a{c}b")).unwrap_err();
            assert!(matches!(fault, TextFault::Character { place: 2, character, .. } if character == c), "{fault:?}");
            assert!(fault.to_string().contains(&format!("U+{:04X}", u32::from(c))), "{fault}");
        }
        let text = comparable("de\u{200B}v").unwrap_err().to_string();
        assert_eq!(text, "character 3 is U+200B (zero width space): leave it out");
    }

    #[test]
    fn people_keep_their_names() {
        for name in [
            "Ada Lovelace",
            "Владимир Кузнецов",
            "Ελένη Παπαδοπούλου",
            "王小明",
            "髙橋 花子",
            "김민수",
            "محمد علی",
            "نیم\u{200C}روز",
            "क्\u{200D}ष",
            "Nguyễn Thị Ánh",
            "Þórður O’Brien-Smith",
            "IT-отдел",
            "Tシャツ",
            "\u{1F469}\u{200D}\u{1F4BB} platform",
            "Ω lab",
        ] {
            assert!(comparable(name).is_ok(), "{name}: {:?}", comparable(name));
        }
    }

    #[test]
    fn a_word_in_letters_of_two_scripts_is_refused() {
        for word in ["pr\u{43E}duction", "\u{410}da", "s\u{3BF}lo", "\u{415}U west"] {
            let fault = comparable(word).unwrap_err();
            assert!(matches!(fault, TextFault::Mixed { .. }), "{word}: {fault:?}");
            assert!(fault.to_string().contains("U+0"), "{fault}");
        }
    }

    #[test]
    fn what_is_not_ascii_does_not_look_like_it() {
        for (text, plain) in [
            ("\u{501}\u{435}\u{475}", "dev"),
            ("prod-\u{441}", "prod-c"),
            ("100% \u{440}", "100% p"),
            ("Yaz\u{131}l\u{131}m \u{440}", "Yaz\u{131}l\u{131}m p"),
            ("\u{FF50}roduction", "production"),
            ("\u{3F1}\u{3BF}", "po"),
        ] {
            for checked in [distinct(text), distinct_words(text), distinct_words(&format!("1 Main St\n{text}"))] {
                assert!(matches!(checked, Err(TextFault::Confusable { .. })), "{text}: {checked:?}");
            }
            let fault = distinct(text).unwrap_err().to_string();
            assert!(fault.ends_with(&format!("write `{plain}`")), "{fault}");
        }
        for percent in ["100\u{FF05}", "100\u{FE6A}", "100\u{66A}"] {
            let fault = distinct(percent).unwrap_err().to_string();
            assert!(fault.ends_with("write `100%`"), "{fault}");
            assert!(plain(percent).is_err());
        }
        assert!(('!'..='~').all(|c| look(&c.to_string()).is_ascii()), "ASCII looks like ASCII");
        // Words of Turkish, Danish, French, Icelandic, Azerbaijani and Vietnamese. As environments they are not accepted.
        for word in ["Yazılım", "ışık", "Næstved", "cœur", "Þór", "þjónusta", "Bakı 2", "Đặng – ı"] {
            assert_eq!(distinct_words(word).as_deref(), Ok(word));
        }
        assert_eq!(
            ["Yazılım", "cœur", "Næstved"].map(|word| (distinct(word).is_ok(), plain(word).is_ok())),
            [(true, false); 3]
        );
        // One word that could be ASCII's does not make the text so.
        for text in ["отдел", "работа с клиентами", "Ελένη", "本番-eu", "prüfung", "Café", "1 – отдел", "Café – 1"]
        {
            assert_eq!((distinct(text).is_ok(), distinct_words(text).is_ok()), (true, true), "{text}");
        }
        for text in ["eu\u{2013}west", "O\u{2019}Brien"] {
            assert_eq!((distinct(text).is_ok(), distinct_words(text).is_ok()), (false, true), "{text}");
        }
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(comparable_lines(" 1 Main St \r\nSpringfield\n").as_deref(), Ok("1 Main St\r\nSpringfield"));
        assert!(comparable_lines("a\nb\u{200B}").is_err());
    }

    #[test]
    fn what_may_not_be_there_can_be_dropped() {
        assert_eq!(fitting(" Ada\u{7} \u{202E}Love\u{200B}lace\u{0} "), "Ada Lovelace");
        assert_eq!(fitting("\u{200B}\u{200B}"), "");
        assert_eq!(fitting("Acme\u{A0}GmbH"), "Acme GmbH");
        assert_eq!(fitting("نیم\u{200C}\u{200C}روز"), "نیم\u{200C}روز");
        assert_eq!(fitting_lines(" 1 Main\u{A0}St\r\nSpring\u{AD}field\n"), "1 Main St\r\nSpringfield");
    }

    proptest! {
        #[test]
        fn the_one_spelling_is_its_own(text in "\\PC{0,40}|[a-z\u{300}-\u{30F} \u{FE0F}\u{200B}-\u{200D}\u{A0}\u{627}-\u{62F}\u{410}-\u{44F}]{0,20}") {
            if let Ok(once) = comparable(&text) {
                prop_assert_eq!(comparable(&once), Ok(once));
            }
            let kept = fitting(&text);
            prop_assert!(visible(&kept).is_ok() && canonical(&kept) == kept, "{:?}", kept);
        }
    }
}
