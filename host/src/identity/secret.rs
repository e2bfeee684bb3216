//! Opaque secrets: 256 random bits, handed out once and kept as SHA-256. Random enough that a plain digest cannot be
//! turned back, which a password's could.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::clock::Clock;

/// Bytes that all secrets of one family have in common.
const FAMILY: usize = 16;

/// A secret that its holder presents again.
pub struct Opaque(Zeroizing<[u8; 32]>);

impl Opaque {
    /// A new one.
    pub fn random(clock: &Clock) -> Self {
        Self(Zeroizing::new(clock.bytes()))
    }

    /// One that was presented: what follows `prefix` is base64url of 32 bytes.
    pub fn parse(prefix: &str, text: &str) -> Option<Self> {
        // 43 characters are 32 bytes.
        let text = text.strip_prefix(prefix).filter(|text| text.len() == 43)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// As handed out.
    pub fn reveal(&self, prefix: &str) -> SecretString {
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.0));
        format!("{prefix}{}", *text).into()
    }

    /// As stored.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(*self.0).into()
    }

    /// Another secret that only the holder of this one can find, given the salt (HMAC-SHA-256).
    pub fn derive(&self, salt: &[u8]) -> Self {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &*self.0);
        let tag = aws_lc_rs::hmac::sign(&key, salt);
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(tag.as_ref());
        Self(bytes)
    }

    /// The secret that follows this one in its family, which only the holder of this one can find, given the salt: half of it is the
    /// family's, half is derived.
    pub fn successor(&self, salt: &[u8]) -> Self {
        let mut next = self.derive(salt);
        next.0.iter_mut().zip(self.0.iter()).take(FAMILY).for_each(|(next, own)| *next = *own);
        next
    }

    /// What all of this one's family have in common, as stored: whoever presents it was given one of them.
    pub fn family_hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.get(..FAMILY).unwrap_or_default()).into()
    }

    /// The bytes as base64url: a value to send, where this secret was derived to be sent.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(*self.0)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_secret_survives_its_text_and_nothing_else_does() {
        let secret = Opaque::random(&Clock::system());
        let text = secret.reveal("kzr_");
        let text = text.expose_secret();
        assert_eq!(Opaque::parse("kzr_", text).unwrap().hash(), secret.hash());
        assert!(Opaque::parse("kz_", text).is_none());
        assert!(Opaque::parse("kzr_", &text[..text.len() - 1]).is_none());
        assert!(Opaque::parse("kzr_", &format!("{text}A")).is_none());
        assert!(Opaque::parse("kzr_", "").is_none());
    }

    #[test]
    fn successors_are_of_one_family_and_are_found_from_the_one_before() {
        let (a, b) = (Opaque::random(&Clock::system()), Opaque::random(&Clock::system()));
        let (next, other) = (a.successor(b"1"), a.successor(b"2"));
        assert_eq!(next.hash(), a.successor(b"1").hash());
        for (one, two) in [(&a, &next), (&next, &other), (&a, &b)] {
            assert_ne!(one.hash(), two.hash());
        }
        assert_eq!([next.family_hash(), other.successor(b"3").family_hash()], [a.family_hash(); 2]);
        assert_ne!(a.family_hash(), b.family_hash());
    }

    #[test]
    fn what_is_derived_depends_on_secret_and_salt() {
        let (a, b) = (Opaque::random(&Clock::system()), Opaque::random(&Clock::system()));
        assert_eq!(a.derive(b"1").hash(), a.derive(b"1").hash());
        assert_ne!(a.derive(b"1").hash(), a.derive(b"2").hash());
        assert_ne!(a.derive(b"1").hash(), b.derive(b"1").hash());
    }
}
