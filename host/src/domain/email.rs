//! E-mail addresses as names of people.

use serde::{Deserialize, Serialize};

/// An e-mail address, lower-cased: what a person signs in with. Mail systems may tell `A@x` from `a@x`; people do not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = "email")]
pub struct Email(String);

/// Not an e-mail address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an e-mail address such as ada@example.com, at most 254 characters")]
pub struct NotAnEmail;

impl Email {
    /// Takes an address apart as far as RFC 5321 limits it: something, an `@`, a domain, 254 characters at the most.
    ///
    /// # Errors
    /// If it cannot be one. Whether it exists only sending mail would tell.
    pub fn parse(text: &str) -> Result<Self, NotAnEmail> {
        let text = text.trim().to_lowercase();
        let (local, domain) = text.rsplit_once('@').ok_or(NotAnEmail)?;
        let odd = |c: char| c.is_whitespace() || c.is_control() || "<>()[],;:\\\"".contains(c);
        let label = |label: &str| {
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && !label.contains(['@', '_', '/'])
        };
        if text.len() > 254
            || local.is_empty()
            || local.len() > 64
            || local.contains('@')
            || text.contains(odd)
            || !domain.split('.').all(label)
        {
            return Err(NotAnEmail);
        }
        Ok(Self(text))
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the `@`.
    pub fn local(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(local, _)| local)
    }
}

impl TryFrom<String> for Email {
    type Error = NotAnEmail;
    fn try_from(text: String) -> Result<Self, NotAnEmail> {
        Self::parse(&text)
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0
    }
}

impl std::str::FromStr for Email {
    type Err = NotAnEmail;
    fn from_str(text: &str) -> Result<Self, NotAnEmail> {
        Self::parse(text)
    }
}

impl std::fmt::Display for Email {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_white_space_do_not_tell_people_apart() {
        assert_eq!(Email::parse(" Ada@Example.COM ").unwrap().as_str(), "ada@example.com");
    }

    #[test]
    fn what_cannot_be_an_address_is_refused() {
        for text in [
            "",
            "ada",
            "@x.com",
            "ada@",
            "a@b@c.com",
            "a b@c.com",
            "a@c..com",
            "a@-c.com",
            "a@c.com\r\nBcc: x@y.z",
            "<a@c.com>",
        ] {
            assert_eq!(Email::parse(text), Err(NotAnEmail), "{text:?}");
        }
        assert!(Email::parse(&format!("{}@example.com", "a".repeat(65))).is_err());
        assert!(Email::parse(&format!("a@{}.com", "b".repeat(260))).is_err());
        assert!(Email::parse("o'brien+test@sub.example.com").is_ok());
        assert!(Email::parse("owner@localhost").is_ok());
    }
}
