//! Encryption at rest, and keys for other purposes, all from one master key.

mod files;

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::hkdf;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret as _, SecretBox};
use zeroize::Zeroizing;

pub use files::Rotation;

use crate::{clock::Clock, config::Config};

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Stored under another master key, in another place, or changed since.
    #[error(
        "a stored secret cannot be decrypted: is `master_key` (KAIZEN_MASTER_KEY, or `master.key` in the data folder) the one it was stored with?"
    )]
    Open,
    /// More than can be encrypted at once.
    #[error("too long to be encrypted")]
    Seal,
}

/// Encrypts and decrypts what must not lie in the database in the clear. Cheap to clone.
#[derive(Clone)]
pub struct Secrets(Arc<Keys>);

struct Keys {
    /// The master key as it was at the start; other keys are derived from it for as long as this process runs.
    master: SecretBox<[u8; 32]>,
    ring: ArcSwap<Ring>,
    /// Where the keys come from and may be replaced meanwhile.
    folder: Option<(PathBuf, Clock)>,
}

/// The keys in use.
struct Ring {
    current: Sealing,
    /// They still open what is stored.
    others: Vec<Sealing>,
}

/// What one master key seals and opens with.
#[derive(Clone)]
struct Sealing {
    /// Says whether two are the same; tells nothing of the key.
    id: [u8; 32],
    cipher: XChaCha20Poly1305,
}

impl Sealing {
    fn new(master: &[u8; 32]) -> Self {
        let key = Zeroizing::new(derive(master, "kaizen.secrets.v1"));
        Self { id: derive(master, "kaizen.secrets.id.v1"), cipher: XChaCha20Poly1305::new((&*key).into()) }
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let rest = sealed.strip_prefix(&[VERSION])?;
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let payload = Payload { msg: sealed, aad: place };
        self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok().map(Zeroizing::new)
    }

    fn seal(&self, clock: &Clock, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let nonce: [u8; NONCE] = clock.bytes();
        let payload = Payload { msg: plain, aad: place };
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SecretsError::Seal)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }
}

impl Ring {
    fn knows(&self, key: &Sealing) -> bool {
        std::iter::once(&self.current).chain(&self.others).any(|known| known.id == key.id)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        std::iter::once(&self.current).chain(&self.others).find_map(|key| key.open(place, sealed))
    }
}

/// First byte of what is sealed: which cipher.
const VERSION: u8 = 1;
const NONCE: usize = 24;

impl Secrets {
    /// Takes the master key from the settings, or from a 0600 file in the data folder that is made at the first start.
    ///
    /// # Errors
    /// If the file cannot be read or made, or others may read it.
    pub fn load(config: &Config, clock: &Clock) -> anyhow::Result<Self> {
        let parse = |name: &str, hex: &secrecy::SecretString| {
            files::parse(hex.expose_secret()).ok_or_else(|| {
                anyhow::anyhow!("{name}: expected 64 hexadecimal digits, e.g. from `openssl rand -hex 32`")
            })
        };
        let also = config.master_key_also.iter().map(|hex| parse("master_key_also", hex));
        let also = also.collect::<anyhow::Result<Vec<_>>>()?;
        let (current, mut others, folder) = match &config.master_key {
            Some(hex) => (parse("master_key", hex)?, Vec::new(), None),
            None => {
                let (current, others) = files::keys(&config.data_dir, clock)?;
                (current, others, Some((config.data_dir.clone(), clock.clone())))
            }
        };
        others.extend(also);
        let ring =
            Ring { current: Sealing::new(&current), others: others.iter().map(|key| Sealing::new(key)).collect() };
        let master = SecretBox::new(Box::new(*current));
        Ok(Self(Arc::new(Keys { master, ring: ArcSwap::from_pointee(ring), folder })))
    }

    /// Under this master key.
    pub fn new(master: [u8; 32]) -> Self {
        let ring = Ring { current: Sealing::new(&master), others: Vec::new() };
        let master = SecretBox::new(Box::new(master));
        Self(Arc::new(Keys { master, ring: ArcSwap::from_pointee(ring), folder: None }))
    }

    /// Encrypts. What is sealed opens only with the same `place`: table, column and row, so that nobody who can write to
    /// the database can move a secret to where it is sent elsewhere.
    ///
    /// # Errors
    /// [`SecretsError::Seal`].
    pub fn seal(&self, clock: &Clock, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SecretsError> {
        // Seldom, so it may look whether the key was replaced; what is sealed with the old one has to be found again.
        self.refresh();
        self.0.ring.load().current.seal(clock, place, plain)
    }

    /// Decrypts what [`Secrets::seal`] made for the same `place`.
    ///
    /// # Errors
    /// [`SecretsError::Open`].
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        if let Some(opened) = self.0.ring.load().open(place, sealed) {
            return Ok(opened);
        }
        self.refresh();
        self.0.ring.load().open(place, sealed).ok_or(SecretsError::Open)
    }

    /// The same value under the current key; `None` where it is already.
    ///
    /// # Errors
    /// [`SecretsError::Open`] where none of the keys opens it.
    pub fn reseal(&self, clock: &Clock, place: &[u8], sealed: &[u8]) -> Result<Option<Vec<u8>>, SecretsError> {
        let ring = self.0.ring.load();
        if ring.current.open(place, sealed).is_some() {
            return Ok(None);
        }
        let plain = ring.open(place, sealed).ok_or(SecretsError::Open)?;
        ring.current.seal(clock, place, &plain).map(Some)
    }

    /// Takes over keys that were replaced in the data folder. Those it had still open what is stored.
    fn refresh(&self) {
        let Some((folder, clock)) = &self.0.folder else { return };
        let (current, others) = match files::keys(folder, clock) {
            Ok(keys) => keys,
            Err(error) => return tracing::error!(%error, "cannot look whether the master key was replaced"),
        };
        let before = self.0.ring.load_full();
        let mut ring =
            Ring { current: Sealing::new(&current), others: others.iter().map(|key| Sealing::new(key)).collect() };
        if ring.current.id == before.current.id && ring.others.iter().all(|key| before.knows(key)) {
            return;
        }
        if ring.current.id != before.current.id {
            tracing::info!("the master key was replaced: the new one is used from now on");
        }
        for old in std::iter::once(&before.current).chain(&before.others) {
            if !ring.knows(old) {
                ring.others.push(old.clone());
            }
        }
        self.0.ring.store(Arc::new(ring));
    }

    /// A key for another purpose, named by `label` (HKDF-SHA-256, RFC 5869). The same on every host of the same master key.
    pub fn derive(&self, label: &str) -> [u8; 32] {
        derive(self.0.master.expose_secret(), label)
    }
}

fn derive(master: &[u8; 32], label: &str) -> [u8; 32] {
    let mut key = [0; 32];
    let info = [label.as_bytes()];
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"kaizen").extract(master);
    // 32 bytes are one block of the hash: the only error there is, asking for too much, cannot happen.
    let filled = extracted.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    debug_assert!(filled.is_ok());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_opens_only_where_it_belongs() {
        let clock = Clock::system();
        let secrets = Secrets::new([1; 32]);
        let sealed = secrets.seal(&clock, b"connections/1/secrets", b"hunter2").unwrap();
        assert_eq!(&**secrets.open(b"connections/1/secrets", &sealed).unwrap(), b"hunter2");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert!(secrets.open(b"connections/2/secrets", &sealed).is_err(), "moved to another row");
        assert!(Secrets::new([2; 32]).open(b"connections/1/secrets", &sealed).is_err(), "another key");
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(secrets.open(b"connections/1/secrets", &bad).is_err(), "bit flipped at {at}");
            assert!(secrets.open(b"connections/1/secrets", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert_ne!(sealed, secrets.seal(&clock, b"connections/1/secrets", b"hunter2").unwrap(), "a nonce is used once");
    }

    #[test]
    fn keys_for_other_purposes_differ_and_stay() {
        let secrets = Secrets::new([1; 32]);
        assert_eq!(secrets.derive("a"), Secrets::new([1; 32]).derive("a"));
        assert_ne!(secrets.derive("a"), secrets.derive("b"));
        assert_ne!(secrets.derive("a"), Secrets::new([2; 32]).derive("a"));
        assert_ne!(secrets.derive("a"), [0; 32]);
    }

    #[test]
    fn a_running_server_follows_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let set = [("data_dir".to_owned(), folder.path().display().to_string())];
        let config = Config::load(None, [], set).unwrap();
        let server = Secrets::load(&config, &clock).unwrap();
        let derived = server.derive("a");
        let old = server.seal(&clock, b"1", b"old").unwrap();

        let rotation = Rotation::begin(folder.path(), &clock).unwrap();
        let admin = Secrets::load(&config, &clock).unwrap();
        let new = admin.reseal(&clock, b"1", &old).unwrap().expect("under the old key");
        assert_eq!(&**server.open(b"1", &new).unwrap(), b"old");
        assert_eq!(&**server.open(b"1", &old).unwrap(), b"old", "not re-encrypted yet");
        assert!(admin.reseal(&clock, b"1", &new).unwrap().is_none());
        let fresh = server.seal(&clock, b"2", b"fresh").unwrap();
        assert!(admin.reseal(&clock, b"2", &fresh).unwrap().is_none(), "sealed with the new key at once");
        assert!(admin.reseal(&clock, b"2", &new).is_err(), "of another place");
        rotation.finish().unwrap();
        assert_eq!(derived, server.derive("a"), "what was derived stays for as long as the server runs");
        let later = Secrets::load(&config, &clock).unwrap();
        assert_eq!(&**later.open(b"1", &old).unwrap(), b"old", "written at the very moment of the rotation");
    }
}
