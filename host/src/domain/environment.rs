//! Environments: what agents on a gateway are for, e.g. `production`.

use serde::{Deserialize, Serialize};

use super::text::{self, TextFault};

/// An environment's name, in the one spelling that policies compare: lower-case, NFC, without white space around it and with
/// one space between words, 1 to 63 characters. Letters and digits of UTS 39's general security profile, spaces and
/// `-_./:+@&,()#`; nothing that cannot be seen, no word in letters of two scripts, and none that looks like one in ASCII.
///
/// So `Production`, `production ` and ` PRODUCTION` are `production`, and `prоduction` with a Cyrillic `о` is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    value_type = String,
    min_length = 1,
    max_length = 63,
    example = "production",
    description = "What agents on a gateway are for, as policies compare it: it is kept in lower case, without white space around it \
                   and with one space between words. Letters, digits, spaces and `-_./:+@&,()#`; letters that imitate others are \
                   refused."
)]
pub struct Environment(String);

/// Characters of an environment's name at the most.
const ENVIRONMENT_CHARACTERS: usize = 63;

impl Environment {
    /// Brings an environment's name into its one spelling.
    ///
    /// # Errors
    /// What to change.
    pub fn parse(written: &str) -> Result<Self, TextFault> {
        let length = TextFault::Length { least: 1, most: ENVIRONMENT_CHARACTERS };
        if written.len() > 64 * ENVIRONMENT_CHARACTERS {
            return Err(length);
        }
        // Twice: what does not look like another letter as a capital may do so as a small one.
        let name = text::comparable(&text::comparable(written)?.to_lowercase())?;
        for (at, character) in name.chars().enumerate() {
            if character.is_ascii() && !character.is_ascii_alphanumeric() && !" -_./:+@&,()#".contains(character) {
                let instead = "use letters, digits, spaces and - _ . / : + @ & , ( ) #";
                return Err(TextFault::Character { place: at + 1, character, instead });
            }
        }
        for word in text::words(&name) {
            text::plain(word)?;
        }
        for (at, character) in name.chars().enumerate() {
            if !character.is_ascii() && !unicode_security::GeneralSecurityProfile::identifier_allowed(character) {
                let instead = "use letters and digits of a script in everyday use (UTS 39)";
                return Err(TextFault::Character { place: at + 1, character, instead });
            }
        }
        if (1..=ENVIRONMENT_CHARACTERS).contains(&name.chars().count()) { Ok(Self(name)) } else { Err(length) }
    }

    /// The environment's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Environment {
    type Error = TextFault;
    fn try_from(text: String) -> Result<Self, TextFault> {
        Self::parse(&text)
    }
}

impl From<Environment> for String {
    fn from(environment: Environment) -> Self {
        environment.0
    }
}

impl std::fmt::Display for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_document_says_how_long_an_environment_is() {
        let documented = serde_json::to_value(<Environment as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!((&documented["minLength"], &documented["maxLength"]), (&1.into(), &ENVIRONMENT_CHARACTERS.into()));
    }

    #[test]
    fn spellings_of_production_are_production() {
        for text in
            ["production", "Production", "PRODUCTION", " production ", "production\n", "\u{A0}Production\u{3000}"]
        {
            assert_eq!(Environment::parse(text).map(String::from), Ok("production".to_owned()), "{text:?}");
        }
        assert_eq!(Environment::parse("EU  West").map(String::from), Ok("eu west".to_owned()));
        assert_eq!(Environment::parse("\u{212A}8s").map(String::from), Ok("k8s".to_owned()));
    }

    #[test]
    fn what_imitates_an_environment_is_refused_by_its_code_point() {
        for (text, code, plain) in [
            ("pr\u{43E}duction", "U+043E", ""),
            ("produc\u{200B}tion", "U+200B", ""),
            ("\u{FEFF}production", "U+FEFF", ""),
            ("\u{202E}production", "U+202E", ""),
            ("pro\u{AD}duction", "U+00AD", ""),
            ("product\u{131}on", "U+0131", "production"),
            ("\u{FF50}roduction", "U+FF50", "production"),
            ("PRODUCT\u{130}ON", "U+0307", "production"),
            // Each letter Cyrillic: one script, and no letter that could not be taken for a Latin one.
            ("\u{501}\u{435}\u{475}", "U+0501", "dev"),
            ("prod-\u{441}", "U+0441", "c"),
        ] {
            let fault = Environment::parse(text).unwrap_err().to_string();
            assert!(fault.contains(code) && fault.contains(plain), "{text:?}: {fault}");
        }
        for text in ["pre|prod", "a\"b", "\u{1D429}rod", "x".repeat(64).as_str(), ""] {
            assert!(Environment::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn environments_may_be_in_any_script() {
        for text in
            ["staging", "eu-west-1", "qa/2", "прод", "本番", "本番-eu", "prüfung", "prøve", "x".repeat(63).as_str()]
        {
            assert_eq!(Environment::parse(text).map(String::from), Ok(text.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn the_one_spelling_is_its_own(text in "\\PC{0,40}|[a-zA-Z\u{C0}-\u{24F}\u{370}-\u{3FF}\u{400}-\u{45F} -]{0,30}") {
            if let Ok(once) = Environment::parse(&text) {
                prop_assert_eq!(Environment::parse(once.as_str()), Ok(once.clone()));
                prop_assert_eq!(Environment::parse(&format!(" {} ", once.as_str().to_uppercase())).is_ok_and(|again| again == once)
                    || !once.as_str().is_ascii(), true);
            }
        }
    }
}
