//! Device cookies (OWASP, "Slow Down Online Guessing Attacks with Device Cookies"): a browser that signed in to an account
//! is known by them, so that others who guess that account's password cannot keep its owner out. They let nobody in.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;

use crate::{clock::Clock, domain::id::UserId, secrets::Secrets};

/// The cookie.
pub const DEVICE_COOKIE: &str = "__Host-kaizen-device";
/// How long a browser keeps it after a sign-in.
pub const LIFETIME: TimeDelta = TimeDelta::days(180);
/// Accounts that one browser is known for, at most: those it signed in to last.
const ACCOUNTS: usize = 4;

/// A browser that signed in to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    account: [u8; 16],
    nonce: [u8; 16],
}

impl Device {
    /// What stands for the account.
    pub fn account(&self) -> [u8; 16] {
        self.account
    }

    /// Some browser of an account's.
    #[cfg(test)]
    pub fn test(user: UserId, number: u8) -> Self {
        Self { account: user.0.into_bytes(), nonce: [number; 16] }
    }
}

/// Makes and reads the cookies; the same on every host of one master key.
pub struct Devices(hmac::Key);

impl Devices {
    /// With a key of their own.
    pub fn new(secrets: &Secrets) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &secrets.derive("kaizen.device-cookie.v1")))
    }

    /// What stands for a user: tells nothing of them without the key.
    fn account(&self, user: UserId) -> [u8; 16] {
        self.tag(b"account", user.0.as_bytes())
    }

    fn tag(&self, purpose: &[u8], of: &[u8]) -> [u8; 16] {
        let tag = hmac::sign(&self.0, &[purpose, &[0], of].concat());
        let mut short = [0; 16];
        short.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        short
    }

    /// What a cookie's value proves, the last account first.
    pub fn read(&self, value: Option<&str>) -> Vec<Device> {
        value.into_iter().flat_map(|value| value.split('.')).take(ACCOUNTS).filter_map(|one| self.one(one)).collect()
    }

    fn one(&self, text: &str) -> Option<Device> {
        let bytes: [u8; 48] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (said, tag) = bytes.split_at(32);
        verify_slices_are_equal(&self.tag(b"device", said), tag).ok()?;
        let (account, nonce) = said.split_at(16);
        Some(Device { account: account.try_into().ok()?, nonce: nonce.try_into().ok()? })
    }

    /// Which of these is a browser of this user's.
    pub fn of(&self, devices: &[Device], user: UserId) -> Option<Device> {
        let account = self.account(user);
        devices.iter().copied().find(|device| device.account == account)
    }

    /// The cookie's value once this user has signed in with a browser that had these.
    pub fn remember(&self, clock: &Clock, held: &[Device], user: UserId) -> String {
        let account = self.account(user);
        let this = self.of(held, user).unwrap_or_else(|| Device { account, nonce: clock.bytes() });
        let others = held.iter().copied().filter(|device| device.account != account);
        let all = std::iter::once(this).chain(others).take(ACCOUNTS).map(|Device { account, nonce }| {
            let said = [account, nonce].concat();
            URL_SAFE_NO_PAD.encode([&said[..], &self.tag(b"device", &said)].concat())
        });
        all.collect::<Vec<_>>().join(".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_known_for_the_accounts_it_signed_in_to_last_and_for_no_other() {
        let (clock, devices) = (Clock::system(), Devices::new(&Secrets::new([7; 32])));
        let users: [UserId; 5] = std::array::from_fn(|_| clock.id());
        let mut cookie = String::new();
        for user in users {
            cookie = devices.remember(&clock, &devices.read(Some(&cookie)), user);
        }
        let held = devices.read(Some(&cookie));
        assert_eq!(users.map(|user| devices.of(&held, user).is_some()), [false, true, true, true, true]);
        let again = devices.remember(&clock, &held, users[1]);
        let again = devices.read(Some(&again));
        assert_eq!(devices.of(&again, users[1]), devices.of(&held, users[1]), "it stays itself");
        assert_eq!(again.first().copied(), devices.of(&held, users[1]), "the last one first");
    }

    #[test]
    fn only_this_servers_word_counts() {
        let (clock, devices) = (Clock::system(), Devices::new(&Secrets::new([7; 32])));
        let cookie = devices.remember(&clock, &[], clock.id());
        assert_eq!(devices.read(Some(&cookie)).len(), 1);
        assert!(Devices::new(&Secrets::new([8; 32])).read(Some(&cookie)).is_empty(), "another master key");
        let flipped: String = cookie.chars().rev().collect();
        for forged in ["", ".", "x", &flipped, &cookie[1..], &format!("{cookie}A")] {
            assert!(devices.read(Some(forged)).is_empty(), "{forged}");
        }
        assert!(devices.read(None).is_empty());
    }
}
