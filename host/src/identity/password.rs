//! Passwords: argon2id (RFC 9106) with OWASP's parameters, rules after NIST SP 800-63B-4, and a bound on how much of the
//! machine hashing may take.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version, password_hash::SaltString,
};
use secrecy::{ExposeSecret, SecretString};

use super::turns::{Hashing, Turn, Turns};
use crate::{
    clock::Clock,
    config::limits::ServerLimits,
    domain::{email::Email, fault::Fault},
};

/// KiB of memory, passes and lanes: OWASP's second choice, 19 MiB.
const PARAMETERS: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Characters of a password.
pub const LENGTH: std::ops::RangeInclusive<usize> = 8..=128;

/// Too many passwords to look at: come back later.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// All turns are taken.
    #[error("too many passwords to look at right now")]
    Busy,
    /// Hashing failed: a defect, or no memory.
    #[error("hashing failed: {0}")]
    Failed(String),
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another password.
    Wrong,
    /// This password.
    Right,
    /// This password, hashed with parameters of the past: hash it again.
    Outdated,
}

/// Hashes and compares, a few at a time. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    turns: Turns,
    /// A hash of nothing anyone knows, to compare with where there is no user: that takes as long.
    decoy: Arc<str>,
}

fn hasher() -> Result<Argon2<'static>, PasswordError> {
    let (memory, passes, lanes) = PARAMETERS;
    let params = Params::new(memory, passes, lanes, None).map_err(|e| PasswordError::Failed(e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &[u8], salt: &[u8; 16]) -> Result<String, PasswordError> {
    let salt = SaltString::encode_b64(salt).map_err(|e| PasswordError::Failed(e.to_string()))?;
    let hash = hasher()?.hash_password(password, &salt).map_err(|e| PasswordError::Failed(e.to_string()))?;
    Ok(hash.to_string())
}

fn verify(password: &[u8], stored: &str) -> Verdict {
    let Ok(parsed) = PasswordHash::new(stored) else { return Verdict::Wrong };
    // The parameters are the stored hash's own.
    if Argon2::default().verify_password(password, &parsed).is_err() {
        return Verdict::Wrong;
    }
    let (memory, passes, lanes) = PARAMETERS;
    let current = parsed.algorithm == argon2::ARGON2ID_IDENT
        && Params::try_from(&parsed).is_ok_and(|p| (p.m_cost(), p.t_cost(), p.p_cost()) == (memory, passes, lanes));
    if current { Verdict::Right } else { Verdict::Outdated }
}

impl Passwords {
    /// As many at a time as half the machine has cores: the others answer requests.
    ///
    /// # Errors
    /// If hashing does not work at all.
    pub fn new(clock: &Clock, limits: &ServerLimits) -> Result<Self, PasswordError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let decoy = hash(&clock.bytes::<32>(), &clock.bytes())?.into();
        Ok(Self { turns: Turns::new((cores / 2).max(1), limits), decoy })
    }

    async fn turn(&self, of: Hashing) -> Result<Turn, PasswordError> {
        self.turns.take(of).await.ok_or(PasswordError::Busy)
    }

    /// A PHC string for a new password.
    ///
    /// # Errors
    /// As [`PasswordError`].
    pub async fn hash(&self, clock: &Clock, password: &SecretString, of: Hashing) -> Result<String, PasswordError> {
        let turn = self.turn(of).await?;
        let (password, salt) = (password.clone(), clock.bytes());
        let work = move || {
            let _turn = turn;
            hash(password.expose_secret().as_bytes(), &salt)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| PasswordError::Failed(e.to_string()))?
    }

    /// Compares a password with each of some hashes. Where there is none to compare with it still takes as long as one:
    /// how long an answer takes must not tell whether there is such a user.
    ///
    /// # Errors
    /// As [`PasswordError`].
    pub async fn verify(
        &self,
        password: &SecretString,
        stored: Vec<Option<String>>,
        of: Hashing,
    ) -> Result<Vec<Verdict>, PasswordError> {
        let turn = self.turn(of).await?;
        let (password, decoy) = (password.clone(), self.decoy.clone());
        let work = move || {
            let _turn = turn;
            let password = password.expose_secret().as_bytes();
            if stored.iter().all(Option::is_none) {
                verify(password, &decoy);
            }
            stored.iter().map(|stored| stored.as_deref().map_or(Verdict::Wrong, |s| verify(password, s))).collect()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| PasswordError::Failed(e.to_string()))
    }
}

/// Checks a new password: 8 to 128 characters (NIST SP 800-63B, section 5.1.1.2) of any kind, and none that everyone tries first. There are no rules about
/// kinds of characters; they make passwords worse (NIST SP 800-63B-4, section 3.1.1.2).
pub fn check(pointer: &str, password: &SecretString, email: &Email, faults: &mut Vec<Fault>) {
    let text = password.expose_secret();
    if !LENGTH.contains(&text.chars().count()) {
        faults.push(Fault::new(pointer, "8 to 128 characters; several words make a good one"));
        return;
    }
    let lower = text.to_lowercase();
    // `Password1234!!` is `password`: what people add at the end is tried as well.
    let bare = lower.trim_matches(|c: char| !c.is_alphabetic());
    if lower == email.as_str() || (email.local().len() >= 4 && bare == email.local()) {
        faults.push(Fault::new(pointer, "not the e-mail address"));
    } else if COMMON.contains(&bare) || COMMON.contains(&lower.as_str()) || is_repeated(&lower) || is_sequence(&lower) {
        faults
            .push(Fault::new(pointer, "not one of the passwords that are tried first; several words make a good one"));
    }
}

/// What is left of the usual ones when digits and signs around them are taken away.
const COMMON: &[&str] = &[
    "password",
    "passwort",
    "passw0rd",
    "p@ssw0rd",
    "p@ssword",
    "passwordpassword",
    "mypassword",
    "thepassword",
    "changeme",
    "change-me",
    "changemenow",
    "changethis",
    "letmein",
    "letmeinnow",
    "welcome",
    "welcomehome",
    "administrator",
    "admin",
    "adminadmin",
    "adminpassword",
    "root",
    "rootroot",
    "superuser",
    "secret",
    "topsecret",
    "supersecret",
    "default",
    "qwerty",
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertyqwerty",
    "asdfasdfasdf",
    "1q2w3e4r5t6y",
    "1qaz2wsx3edc",
    "q1w2e3r4t5y6",
    "qazwsxedcrfv",
    "iloveyou",
    "iloveyouforever",
    "sunshine",
    "princess",
    "football",
    "baseball",
    "basketball",
    "liverpool",
    "superman",
    "spiderman",
    "dragon",
    "monkey",
    "master",
    "trustno1",
    "whatever",
    "internet",
    "computer",
    "michael",
    "charlie",
    "jennifer",
    "kaizen",
    "kaizenstudio",
    "kaizen-studio",
    "kaizenkaizen",
    "testtesttest",
    "testpassword",
    "examplepassword",
    "winter",
    "spring",
    "summer",
    "autumn",
    "january",
    "february",
    "march",
    "april",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// One to four characters over and over.
fn is_repeated(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    (1..=4).any(|unit| chars.iter().zip(chars.iter().skip(unit)).all(|(a, b)| a == b))
}

/// Nothing but letters or digits in their order, up or down: `abcdefghijkl`, `1234567890123`.
fn is_sequence(text: &str) -> bool {
    let step = |a: char, b: char| match (a.to_digit(10), b.to_digit(10)) {
        (Some(a), Some(b)) => [(a + 1) % 10 == b, (b + 1) % 10 == a],
        _ => [u32::from(a) + 1 == u32::from(b), u32::from(b) + 1 == u32::from(a)],
    };
    let steps: Vec<[bool; 2]> = text.chars().zip(text.chars().skip(1)).map(|(a, b)| step(a, b)).collect();
    steps.iter().all(|[up, _]| *up) || steps.iter().all(|[_, down]| *down)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(password: &str) -> bool {
        let mut faults = Vec::new();
        check(
            "/password",
            &password.to_owned().into(),
            &Email::parse("ada.lovelace@example.com").unwrap(),
            &mut faults,
        );
        faults.is_empty()
    }

    #[test]
    fn length_counts_and_kinds_of_characters_do_not() {
        assert!(good("gentle otter drums"));
        assert!(good("zwölf zeichen"));
        assert!(good("vxkqjwzmbtrp"));
        assert!(good("eightish"));
        assert!(!good("sevench"));
        assert!(!good(&"a1b2c3d4e5f6g7h8".repeat(9)));
        assert!(good(&"gentle otter drums ".repeat(6)));
    }

    #[test]
    fn what_everyone_tries_first_is_refused() {
        for password in [
            "ada.lovelace@example.com",
            "Ada.Lovelace1234",
            "password1234",
            "Password1234!",
            "123456789012",
            "qwertyuiop123",
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "abcdefghijklmn",
            "987654321098",
            "Summer2026!!!",
            "administrator",
        ] {
            assert!(!good(password), "{password}");
        }
    }

    #[tokio::test]
    async fn only_the_password_itself_is_right() {
        let clock = Clock::system();
        let passwords = Passwords::new(&clock, &ServerLimits::default()).unwrap();
        let of = Hashing::Operator;
        let (right, wrong) = (SecretString::from("gentle otter drums"), SecretString::from("gentle otter drumz"));
        let stored = passwords.hash(&clock, &right, of).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_ne!(stored, passwords.hash(&clock, &right, of).await.unwrap(), "salted");
        let hashes = || vec![Some(stored.clone()), None, Some("nonsense".into())];
        assert_eq!(
            passwords.verify(&right, hashes(), of).await.unwrap(),
            [Verdict::Right, Verdict::Wrong, Verdict::Wrong]
        );
        assert_eq!(passwords.verify(&wrong, hashes(), of).await.unwrap(), [Verdict::Wrong; 3]);
        assert!(passwords.verify(&right, vec![], of).await.unwrap().is_empty());
    }

    #[test]
    fn weaker_parameters_are_right_and_outdated() {
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8192, 1, 1, None).unwrap());
        let salt = SaltString::encode_b64(&[7; 16]).unwrap();
        let stored = weak.hash_password(b"gentle otter drums", &salt).unwrap().to_string();
        assert_eq!(verify(b"gentle otter drums", &stored), Verdict::Outdated);
        assert_eq!(verify(b"gentle otter drumz", &stored), Verdict::Wrong);
    }
}
