//! This host's signing key: an RSA 2048 key in the data folder that never leaves it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::EncodingKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{clock::Clock, store::signing_keys::PublicJwk};

/// Its name in the data folder.
const FILE: &str = "signing-key.pem";

/// A signing key that cannot be used; says what to change.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Reading or making the file failed.
    #[error("{path}: {error}: the signing key must be readable there, or the folder writable so that one can be made")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Others than the owner may read it.
    #[error(
        "{0} can be read by others (mode {1:03o}): run `chmod 600` on it, and replace the key if it may have been seen"
    )]
    Exposed(PathBuf, u32),
    /// It is not an RSA key in PEM of 2048 bits or more.
    #[error("{0} is not a usable RSA private key in PEM: remove it, and a new one is made at the next start")]
    Unusable(PathBuf),
    /// Making a key failed.
    #[error("making a signing key failed")]
    Generate,
}

/// A private key and its public half.
pub struct SigningKey {
    /// For jsonwebtoken.
    pub encoding: EncodingKey,
    /// What the other hosts are told.
    pub jwk: PublicJwk,
}

impl SigningKey {
    /// Reads the key from the data folder, or makes it there at the first start. Two processes that start at once end
    /// up with the same key.
    ///
    /// # Errors
    /// As [`KeyError`].
    pub fn load(data_dir: &Path, clock: &Clock) -> Result<Self, KeyError> {
        let path = data_dir.join(FILE);
        match read(&path)? {
            Some(pem) => Self::parse(&path, &pem),
            None => {
                make(data_dir, &path, clock)?;
                let pem = read(&path)?.ok_or_else(|| file(&path, ErrorKind::NotFound.into()))?;
                Self::parse(&path, &pem)
            }
        }
    }

    fn parse(path: &Path, pem: &[u8]) -> Result<Self, KeyError> {
        let unusable = || KeyError::Unusable(path.to_owned());
        let encoding = EncodingKey::from_rsa_pem(pem).map_err(|_| unusable())?;
        let pair = KeyPair::from_der(encoding.as_bytes()).map_err(|_| unusable())?;
        if pair.public_modulus_len() < KeySize::Rsa2048.len() {
            return Err(unusable());
        }
        let n = URL_SAFE_NO_PAD.encode(pair.public_key().modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(pair.public_key().exponent().big_endian_without_leading_zero());
        // RFC 7638: the required members, in this order, without white space.
        let thumbprint = Sha256::digest(format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#));
        let kid = URL_SAFE_NO_PAD.encode(thumbprint);
        let jwk = PublicJwk { kty: "RSA".into(), usage: "sig".into(), alg: "RS256".into(), kid, n, e };
        Ok(Self { encoding, jwk })
    }
}

fn file(path: &Path, error: std::io::Error) -> KeyError {
    KeyError::File { path: path.to_owned(), error }
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let mut opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file(path, error)),
    };
    let mode = opened.metadata().map_err(|error| file(path, error))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed(path.to_owned(), mode));
    }
    let mut pem = Zeroizing::new(Vec::with_capacity(4096));
    opened.read_to_end(&mut pem).map_err(|error| file(path, error))?;
    Ok(Some(pem))
}

/// Writes the whole key beside its place and links it there, so that it is never seen half-written and never replaced.
fn make(data_dir: &Path, path: &Path, clock: &Clock) -> Result<(), KeyError> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| KeyError::Generate)?;
    let mut pem = Zeroizing::new(String::with_capacity(2048));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    let body = Zeroizing::new(STANDARD.encode(der.as_ref()));
    for (i, c) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            pem.push('\n');
        }
        pem.push(c);
    }
    pem.push_str("\n-----END PRIVATE KEY-----\n");

    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| file(data_dir, error))?;
    let beside = data_dir.join(format!("{FILE}.{}", hex::encode(clock.bytes::<8>())));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut new| new.write_all(pem.as_bytes()).and_then(|()| new.sync_all()))
        .and_then(|()| match std::fs::hard_link(&beside, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    drop(std::fs::remove_file(&beside));
    written.map_err(|error| file(path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let clock = Clock::system();
        let first = SigningKey::load(&data, &clock).unwrap();
        let again = SigningKey::load(&data, &clock).unwrap();
        assert_eq!(first.jwk, again.jwk);
        assert_eq!(std::fs::metadata(data.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        SigningKey::load(folder.path(), &clock).unwrap();
        let path = folder.path().join(FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKey::load(folder.path(), &clock).err().unwrap();
        assert!(matches!(error, KeyError::Exposed(_, 0o640)), "{error}");
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "nonsense").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(SigningKey::load(folder.path(), &Clock::system()), Err(KeyError::Unusable(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nonsense");
    }
}
