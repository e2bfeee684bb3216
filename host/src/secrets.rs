//! Encryption at rest, and keys for other purposes, all from one master key.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use aws_lc_rs::hkdf;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret as _, SecretBox};
use zeroize::Zeroizing;

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
    master: SecretBox<[u8; 32]>,
    cipher: XChaCha20Poly1305,
}

/// First byte of what is sealed: which key and cipher.
const VERSION: u8 = 1;
const NONCE: usize = 24;
const FILE: &str = "master.key";

impl Secrets {
    /// Takes the master key from the settings, or from a 0600 file in the data folder that is made at the first start.
    ///
    /// # Errors
    /// If the file cannot be read or made, or others may read it.
    pub fn load(config: &Config, clock: &Clock) -> anyhow::Result<Self> {
        let master = match &config.master_key {
            Some(hex) => parse(hex.expose_secret()).ok_or_else(|| {
                anyhow::anyhow!("master_key: expected 64 hexadecimal digits, e.g. from `openssl rand -hex 32`")
            })?,
            None => from_file(&config.data_dir, clock)?,
        };
        Ok(Self::new(*master))
    }

    /// Under this master key.
    pub fn new(master: [u8; 32]) -> Self {
        let master = SecretBox::new(Box::new(master));
        let key = Zeroizing::new(derive(master.expose_secret(), "kaizen.secrets.v1"));
        Self(Arc::new(Keys { cipher: XChaCha20Poly1305::new((&*key).into()), master }))
    }

    /// Encrypts. What is sealed opens only with the same `place`: table, column and row, so that nobody who can write to
    /// the database can move a secret to where it is sent elsewhere.
    ///
    /// # Errors
    /// [`SecretsError::Seal`].
    pub fn seal(&self, clock: &Clock, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let nonce: [u8; NONCE] = clock.bytes();
        let payload = Payload { msg: plain, aad: place };
        let sealed = self.0.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SecretsError::Seal)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Decrypts what [`Secrets::seal`] made for the same `place`.
    ///
    /// # Errors
    /// [`SecretsError::Open`].
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(SecretsError::Open)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE).ok_or(SecretsError::Open)?;
        let payload = Payload { msg: sealed, aad: place };
        let opened = self.0.cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| SecretsError::Open)?;
        Ok(Zeroizing::new(opened))
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

fn parse(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut *key).ok()?;
    Some(key)
}

fn from_file(folder: &Path, clock: &Clock) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let path = folder.join(FILE);
    let shown = path.display();
    if !path.exists() {
        make(folder, &path, clock).map_err(|error| anyhow::anyhow!("cannot make the master key {shown}: {error}"))?;
    }
    let read = |error| anyhow::anyhow!("cannot read the master key {shown}: {error}");
    let mode = std::fs::metadata(&path).map_err(read)?.permissions().mode();
    if mode & 0o077 != 0 {
        anyhow::bail!(
            "the master key {shown} can be read by others (mode {:o}): run `chmod 600 {shown}`",
            mode & 0o777
        );
    }
    let text = Zeroizing::new(std::fs::read_to_string(&path).map_err(read)?);
    parse(&text).ok_or_else(|| {
        anyhow::anyhow!("{shown} is no master key (64 hexadecimal digits): restore it from a backup; without it stored secrets are lost")
    })
}

/// Made aside and linked into place, so that two servers starting at once agree on one key, and no reader sees half of it.
fn make(folder: &Path, path: &Path, clock: &Clock) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let aside = folder.join(format!("{FILE}.{}", hex::encode(clock.bytes::<8>())));
    let key = Zeroizing::new(hex::encode(Zeroizing::new(clock.bytes::<32>())));
    let made = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(key.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match std::fs::hard_link(&aside, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => std::fs::File::open(folder)?.sync_all(),
        }
    })();
    drop(std::fs::remove_file(&aside));
    made
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
    fn the_file_is_made_once_and_only_for_us() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let clock = Clock::system();
        let first = from_file(&data, &clock).unwrap();
        assert_eq!(*first, *from_file(&data, &clock).unwrap(), "the second start finds the first's");
        let path = data.join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "nothing is left over");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = from_file(&data, &clock).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        assert!(from_file(&data, &clock).is_err());
    }
}
