//! Names that people read and compare.

use serde::{Deserialize, Serialize};

use super::text::{self, TextFault};

/// The name of an organization, a person, a workspace, an agent, a connection or a policy set: 1 to 200 characters in one
/// spelling ([`text::comparable`]). Case counts: `acme` and `Acme` are two names. Letters of any script are good; one word in
/// letters of two scripts, of which one looks like a letter of the other (UTS 39, section 5.2), is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    value_type = String,
    min_length = 1,
    max_length = 200,
    example = "Customer support",
    description = "A display name. White space around it is dropped, and one space is left between words. It has no characters that \
                   cannot be seen, such as controls, and no word that mixes letters of two scripts of which one looks like the \
                   other. Case counts."
)]
pub struct Name(String);

/// Characters of a name at the most.
const NAME_CHARACTERS: usize = 200;

impl Name {
    /// Brings a name into its one spelling.
    ///
    /// # Errors
    /// What to change.
    pub fn parse(text: &str) -> Result<Self, TextFault> {
        let length = TextFault::Length { least: 1, most: NAME_CHARACTERS };
        // Nothing is said about the characters of what is far too long.
        if text.len() > 64 * NAME_CHARACTERS {
            return Err(length);
        }
        let name = text::comparable(text)?;
        if (1..=NAME_CHARACTERS).contains(&name.chars().count()) { Ok(Self(name)) } else { Err(length) }
    }

    /// A name made of one that comes from elsewhere and cannot be sent back: without the characters that names do not have,
    /// and cut where it is too long. `None` where nothing is left, or where its words imitate others.
    pub fn fitting(text: &str) -> Option<Self> {
        let short: String = text.chars().take(4 * NAME_CHARACTERS).collect();
        let short: String = text::fitting(&short).chars().take(NAME_CHARACTERS).collect();
        Self::parse(&short).ok()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = TextFault;
    fn try_from(text: String) -> Result<Self, TextFault> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl std::str::FromStr for Name {
    type Err = TextFault;
    fn from_str(text: &str) -> Result<Self, TextFault> {
        Self::parse(text)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_200_characters() {
        for bad in ["", "  ", &"x".repeat(201), &"x".repeat(100_000)] {
            assert_eq!(Name::parse(bad), Err(TextFault::Length { least: 1, most: 200 }), "{}", bad.len());
        }
        assert_eq!(Name::parse(&"é".repeat(200)).map(String::from), Ok("é".repeat(200)));
        assert_eq!(Name::parse(" Acme ").map(String::from), Ok("Acme".to_owned()));
    }

    #[test]
    fn the_document_says_how_long_a_name_is() {
        let documented = serde_json::to_value(<Name as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!((&documented["minLength"], &documented["maxLength"]), (&1.into(), &NAME_CHARACTERS.into()));
    }

    #[test]
    fn a_name_from_elsewhere_is_made_to_fit() {
        let fitting = |text: &str| Name::fitting(text).map(String::from);
        assert_eq!(fitting(" Ada\u{7}\u{202E} Lovelace "), Some("Ada Lovelace".to_owned()));
        assert_eq!(fitting(&"n".repeat(5000)), Some("n".repeat(200)));
        assert_eq!(fitting("\n\u{200B}"), None);
        assert_eq!(fitting("\u{410}da"), None);
    }
}
