//! E-mail addresses as names of people: the one place that says when two spellings are the same address.
//!
//! | part | is compared |
//! |---|---|
//! | before the `@` | letters A to Z by their lower case; other characters than ASCII are refused |
//! | after the `@` | as DNS does: by its A-labels (UTS 46 without transitional processing, RFC 5891), in lower case |
//!
//! Mail systems may tell `A@x` from `a@x`; people do not. What stands before the `@` means what the mail system there says
//! (RFC 5321, section 2.3.11). Beyond ASCII (RFC 6531) nobody else can say which spellings are the same mailbox: Unicode's case
//! folding makes `kim` of `\u{212A}im`. So such addresses name nobody here. A domain is refused where UTS 46 would change
//! more than its case: with invisible, bidirectional or full-width characters.

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

/// An e-mail address in the one spelling that it is compared and stored in: what a person signs in with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    value_type = String,
    format = "idn-email",
    min_length = 3,
    max_length = 254,
    pattern = r"^[\t\n\f\r ]*[!#-'*+\--9=?A-Z^-~]{1,64}@[^@]+$",
    example = "ada@example.com",
    description = "An e-mail address. Before the `@` it has ASCII characters only, of which case does not matter; after it, a domain \
                   that DNS can have, compared by its A-labels (RFC 5891). White space around it is dropped."
)]
pub struct Email(String);

/// Why a text is not an e-mail address here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEmail {
    /// It has not the parts of one.
    #[error("an e-mail address such as ada@example.com, at most 254 characters")]
    Shape,
    /// Other characters than ASCII before the `@`.
    #[error(
        "an e-mail address with nothing but ASCII characters before the @: others look alike and name somebody else"
    )]
    Local,
    /// A domain that DNS cannot have.
    #[error("an e-mail address whose domain is a name that DNS can have, without invisible or full-width characters")]
    Domain,
}

impl Email {
    /// Takes an address apart, and spells it as it is compared: something, an `@`, a domain, 254 characters at the most
    /// (RFC 5321, section 4.5.3.1). ASCII white space around it is dropped.
    ///
    /// # Errors
    /// If it cannot be one. Whether it exists only sending mail would tell.
    pub fn parse(text: &str) -> Result<Self, NotAnEmail> {
        let text = text.trim_ascii();
        if text.len() > 1024 {
            return Err(NotAnEmail::Shape);
        }
        let (local, domain) = text.rsplit_once('@').ok_or(NotAnEmail::Shape)?;
        if !local.is_ascii() {
            return Err(NotAnEmail::Local);
        }
        let odd = |b: u8| !b.is_ascii_graphic() || b"<>()[],;:\\\"@".contains(&b);
        if local.is_empty() || local.len() > 64 || local.bytes().any(odd) {
            return Err(NotAnEmail::Shape);
        }
        let domain = domain_of(domain).ok_or(NotAnEmail::Domain)?;
        let address = format!("{}@{domain}", local.to_ascii_lowercase());
        if address.len() > 254 { Err(NotAnEmail::Shape) } else { Ok(Self(address)) }
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

/// A domain by its A-labels, where that changes nothing but case: what looks the same and is spelled otherwise is refused.
fn domain_of(domain: &str) -> Option<String> {
    let mut lower = String::with_capacity(domain.len());
    for c in domain.chars() {
        if c.is_ascii() {
            lower.push(c.to_ascii_lowercase());
        } else if c.to_lowercase().any(|c| c.is_ascii()) {
            // KELVIN SIGN is `k` in lower case, and a capital I with a dot begins with an `i`.
            return None;
        } else {
            lower.extend(c.to_lowercase());
        }
    }
    let uts46 = Uts46::new();
    let (deny, hyphens) = (AsciiDenyList::STD3, Hyphens::CheckFirstLast);
    let ascii = uts46.to_ascii(lower.as_bytes(), deny, hyphens, DnsLength::Verify).ok()?;
    let (unicode, result) = uts46.to_unicode(ascii.as_bytes(), deny, hyphens);
    result.ok()?;
    let same = ascii.split('.').count() == lower.split('.').count()
        && lower
            .split('.')
            .zip(ascii.split('.').zip(unicode.split('.')))
            .all(|(given, (a, u))| given == a || given == u);
    same.then(|| ascii.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            assert!(Email::parse(text).is_err(), "{text:?}");
        }
        assert!(Email::parse(&format!("{}@example.com", "a".repeat(65))).is_err());
        assert!(Email::parse(&format!("a@{}.com", "b".repeat(260))).is_err());
        assert!(Email::parse("o'brien+test@sub.example.com").is_ok());
        assert!(Email::parse("owner@localhost").is_ok());
    }

    #[test]
    fn a_look_alike_is_never_taken_for_another_address() {
        // KELVIN SIGN, a dotless and a dotted I, long s, full-width, a ligature, Cyrillic, and what nobody sees.
        for local in [
            "\u{212A}im",
            "k\u{131}m",
            "K\u{130}M",
            "ki\u{17F}s",
            "\u{FF4B}im",
            "\u{FB01}n",
            "\u{43A}im",
            "ki\u{200B}m",
            "ki\u{AD}m",
            "\u{202E}kim",
            "kim\u{FEFF}",
            "ki\u{301}m",
            "\u{A0}kim",
            "j\u{F6}rg",
        ] {
            assert_eq!(Email::parse(&format!("{local}@example.com")), Err(NotAnEmail::Local), "{local:?}");
        }
        for domain in [
            "\u{212A}aizen.com",
            "exam\u{200B}ple.com",
            "exam\u{AD}ple.com",
            "\u{FF45}xample.com",
            "example\u{3002}com",
            "example.com\u{202E}",
            "\u{130}x.com",
            "exam\u{2060}ple.com",
            "\u{FB01}.com",
            "a_b.com",
            "a b.com",
            "[192.0.2.1]",
            "example.com.",
            ".example.com",
            "xn--\u{FC}.com",
            "xn--a.com",
            "xn--bcher-kvb.example",
            "\u{5D0}a.com",
            "b\u{FC}cher\u{200D}.example",
        ] {
            assert_eq!(Email::parse(&format!("kim@{domain}")), Err(NotAnEmail::Domain), "{domain:?}");
        }
    }

    /// The document refuses nothing that is accepted; of what it allows, domains are looked at more closely.
    #[test]
    fn the_document_describes_addresses_as_they_are_checked() {
        let schema = serde_json::to_value(<Email as utoipa::PartialSchema>::schema()).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let local = "x".repeat(64);
        let long = format!("{local}@{0}.{0}.{1}", "d".repeat(63), "d".repeat(61));
        assert_eq!(long.len(), 254);
        for (text, accepted) in [
            (" Ada@Example.COM \n", true),
            ("a@b", true),
            ("!#$%&'*+-/=?^_`{|}~.0@example.com", true),
            ("ada@b\u{FC}cher.example", true),
            (long.as_str(), true),
            (format!("{long}d").as_str(), false),
            (format!("{local}x@example.com").as_str(), false),
            ("", false),
            ("ada", false),
            ("@x.com", false),
            ("ada@", false),
            ("a@b@c.com", false),
            ("a b@c.com", false),
            ("<a@c.com>", false),
            ("\u{E9}@x.com", false),
        ] {
            assert_eq!((schema.is_valid(&text.into()), Email::parse(text).is_ok()), (accepted, accepted), "{text:?}");
        }
    }

    #[test]
    fn a_domain_is_compared_as_dns_does() {
        let spelled = [
            "ada@B\u{FC}CHER.example",
            "Ada@b\u{FC}cher.EXAMPLE",
            "ada@xn--bcher-kva.example",
            "ada@XN--BCHER-KVA.example",
        ];
        for text in spelled {
            assert_eq!(Email::parse(text).unwrap().as_str(), "ada@xn--bcher-kva.example", "{text}");
        }
        assert_eq!(Email::parse("a@stra\u{DF}e.example").unwrap().as_str(), "a@xn--strae-oqa.example");
        assert_ne!(Email::parse("a@strasse.example"), Email::parse("a@stra\u{DF}e.example"));
        assert!(Email::parse("a@r3---x.example").is_ok(), "hyphens where punycode has them");
    }

    proptest! {
        /// Whatever is accepted is ASCII, and is its own spelling; what was ASCII changed its case at the most.
        #[test]
        fn an_accepted_address_is_spelled_one_way(text in "\\PC{1,12}@\\PC{1,12}") {
            if let Ok(email) = Email::parse(&text) {
                prop_assert!(email.as_str().is_ascii());
                prop_assert_eq!(&Email::parse(email.as_str()).unwrap(), &email);
                prop_assert_eq!(email.local(), text.trim_ascii().rsplit_once('@').unwrap().0.to_ascii_lowercase());
            }
        }
    }
}
