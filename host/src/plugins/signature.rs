//! Ed25519 signatures of components (RFC 8032): who vouches for a plugin that does not come with the server.
//!
//! What is signed is [`CONTEXT`] followed by SHA-256 of the file, so that a signature made for something else never
//! counts. A signature travels as text beside the file, `FILE.wasm.sig`: `ed25519:KEY:SIGNATURE`, the public key and the
//! signature in hexadecimal. A public key is `ed25519:KEY`, as the setting `plugins_trusted_keys` takes it; a secret
//! key's file holds `ed25519-secret:SEED`.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{clock::Clock, domain::connection::Kind};

/// What every signed message begins with.
const CONTEXT: &[u8] = b"kaizen-plugin-signature-v1\n";
const PUBLIC: &str = "ed25519:";
const SECRET: &str = "ed25519-secret:";

/// Why a signature or a key is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not a public key.
    #[error("`{0}` is not a key: expected ed25519: and 64 hexadecimal digits, as `kaizen plugin keygen` prints it")]
    Key(String),
    /// Not a secret key.
    #[error(
        "not a secret key: expected the file that `kaizen plugin keygen` wrote, ed25519-secret: and 64 hexadecimal digits"
    )]
    Secret,
    /// Not a signature.
    #[error(
        "not a signature: expected ed25519:KEY:SIGNATURE in hexadecimal, the content of the .sig file that `kaizen plugin sign` wrote"
    )]
    Shape,
    /// None where one is needed.
    #[error(
        "it is not signed, and plugins_trusted_keys is set: sign it with `kaizen plugin sign --key FILE` and a key listed there"
    )]
    Missing,
    /// Somebody else's.
    #[error("it is signed with {0}, which is not among plugins_trusted_keys")]
    Untrusted(PublicKey),
    /// Of a key that counts for other plugins.
    #[error("it is signed with {key}, which plugins_trusted_keys lists for {scopes} and not for {plugin}")]
    Scope {
        /// Whose signature.
        key: String,
        /// What it counts for.
        scopes: String,
        /// What was signed.
        plugin: String,
    },
    /// Not a scope of a key.
    #[error(
        "`{0}` is not what a key can be for: expected NAME or KIND/NAME before the @, e.g. audit-sink/acme-*@ed25519:…; a * may \
         end the name"
    )]
    NoScope(String),
    /// Of another file, or tampered with.
    #[error("the signature does not fit the component: it was made for another file, or one of the two was changed")]
    Wrong,
}

/// Whose signature it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// What signs. Never shown.
pub struct SecretKey(Zeroizing<[u8; 32]>);

/// A signature with the key it is to be verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Whose.
    pub key: PublicKey,
    bytes: [u8; 64],
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", hex::encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut key = [0; 32];
        text.strip_prefix(PUBLIC)
            .and_then(|digits| hex::decode_to_slice(digits, &mut key).ok())
            .map(|()| Self(key))
            .ok_or_else(|| SignatureError::Key(text.chars().take(100).collect()))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, hex::encode(self.bytes))
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, digits) = text.trim().rsplit_once(':').ok_or(SignatureError::Shape)?;
        let mut bytes = [0; 64];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| SignatureError::Shape)?;
        Ok(Self { key: key.parse().map_err(|_| SignatureError::Shape)?, bytes })
    }
}

fn message(wasm: &[u8]) -> Vec<u8> {
    [CONTEXT, Sha256::digest(wasm).as_slice()].concat()
}

impl SecretKey {
    /// A new one.
    pub fn generate(clock: &Clock) -> Self {
        Self(Zeroizing::new(clock.bytes()))
    }

    /// From a file's text.
    ///
    /// # Errors
    /// [`SignatureError::Secret`]; the text is not repeated.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let mut seed = Zeroizing::new([0; 32]);
        let digits = text.trim().strip_prefix(SECRET).ok_or(SignatureError::Secret)?;
        hex::decode_to_slice(digits, seed.as_mut_slice()).map_err(|_| SignatureError::Secret)?;
        Ok(Self(seed))
    }

    /// For its file.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{SECRET}{}\n", &*Zeroizing::new(hex::encode(self.0.as_slice()))))
    }

    fn pair(&self) -> Result<Ed25519KeyPair, SignatureError> {
        Ed25519KeyPair::from_seed_unchecked(self.0.as_slice()).map_err(|_| SignatureError::Secret)
    }

    /// What others verify with.
    ///
    /// # Errors
    /// If the library refuses the key.
    pub fn public(&self) -> Result<PublicKey, SignatureError> {
        let pair = self.pair()?;
        pair.public_key().as_ref().try_into().map(PublicKey).map_err(|_| SignatureError::Secret)
    }

    /// Signs a component.
    ///
    /// # Errors
    /// If the library refuses the key.
    pub fn sign(&self, wasm: &[u8]) -> Result<Signature, SignatureError> {
        let signature = self.pair()?.sign(&message(wasm));
        let bytes = signature.as_ref().try_into().map_err(|_| SignatureError::Secret)?;
        Ok(Signature { key: self.public()?, bytes })
    }
}

impl Signature {
    /// From the row of a version.
    pub fn stored(signer: Option<&str>, signature: Option<&str>) -> Option<Self> {
        format!("{}:{}", signer?, signature?).parse().ok()
    }

    /// The signature alone, hexadecimal, for the row of a version.
    pub fn digits(&self) -> String {
        hex::encode(self.bytes)
    }

    /// Whether it is of this component.
    ///
    /// # Errors
    /// [`SignatureError::Wrong`].
    pub fn verify(&self, wasm: &[u8]) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, self.key.0)
            .verify(&message(wasm), &self.bytes)
            .map_err(|_| SignatureError::Wrong)
    }
}

/// Which plugins a key may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    /// All kinds, if none.
    kind: Option<Kind>,
    /// A name, or what names begin with.
    name: String,
    /// Whether the name may go on.
    prefix: bool,
}

/// A key whose signatures count, as `plugins_trusted_keys` lists it: `ed25519:KEY` for every plugin, or
/// `[KIND/]NAME@ed25519:KEY` for plugins of this name, of which a `*` may be the end. A key may be listed several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    key: PublicKey,
    scope: Option<Scope>,
}

impl FromStr for Scope {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = || SignatureError::NoScope(text.chars().take(100).collect());
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (Some(Kind::from_wit(kind).ok_or_else(fault)?), name),
            None => (None, text),
        };
        let (name, prefix) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.chars().all(plain) || (name.is_empty() && !prefix) {
            return Err(fault());
        }
        Ok(Self { kind, name: name.to_owned(), prefix })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = self.kind {
            write!(f, "{}/", kind.as_str().replace('_', "-"))?;
        }
        write!(f, "{}{}", self.name, if self.prefix { "*" } else { "" })
    }
}

impl Scope {
    fn covers(&self, kind: Kind, name: &str) -> bool {
        let named = if self.prefix { name.starts_with(&self.name) } else { name == self.name };
        named && self.kind.is_none_or(|own| own == kind)
    }
}

impl FromStr for TrustedKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((scope, key)) => Ok(Self { key: key.parse()?, scope: Some(scope.parse()?) }),
            None => Ok(Self { key: text.parse()?, scope: None }),
        }
    }
}

impl fmt::Display for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{scope}@{}", self.key),
            None => self.key.fmt(f),
        }
    }
}

/// The keys whose signatures count; with none, nothing needs to be signed.
#[derive(Debug, Clone, Default)]
pub struct Trust(Vec<TrustedKey>);

impl Trust {
    /// These.
    pub fn new(keys: Vec<TrustedKey>) -> Self {
        Self(keys)
    }

    /// Whether a component may be installed, as far as its bytes tell; see [`Trust::permits`] for the rest. A signature that
    /// is there must hold, also where none is needed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, wasm: &[u8], signature: Option<&Signature>) -> Result<(), SignatureError> {
        match signature {
            None if self.0.is_empty() => Ok(()),
            None => Err(SignatureError::Missing),
            Some(signature) if !self.0.is_empty() && !self.0.iter().any(|trusted| trusted.key == signature.key) => {
                Err(SignatureError::Untrusted(signature.key))
            }
            Some(signature) => signature.verify(wasm),
        }
    }

    /// Whether the key of a signature that holds counts for this plugin.
    ///
    /// # Errors
    /// [`SignatureError::Scope`], [`SignatureError::Missing`].
    pub fn permits(&self, signer: Option<&str>, kind: Kind, name: &str) -> Result<(), SignatureError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let signer = signer.ok_or(SignatureError::Missing)?;
        let own = || self.0.iter().filter(|trusted| trusted.key.to_string() == signer);
        if own().any(|trusted| trusted.scope.as_ref().is_none_or(|scope| scope.covers(kind, name))) {
            return Ok(());
        }
        let scopes: Vec<String> = own().filter_map(|trusted| trusted.scope.as_ref()).map(Scope::to_string).collect();
        let plugin = format!("{}/{name}", kind.as_str().replace('_', "-"));
        Err(SignatureError::Scope { key: signer.to_owned(), scopes: scopes.join(", "), plugin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(seed: u64) -> SecretKey {
        SecretKey::generate(&Clock::fixed(chrono::DateTime::UNIX_EPOCH, seed))
    }

    #[test]
    fn only_a_trusted_signature_of_this_very_file_counts() {
        let (ours, theirs) = (secret(1), secret(2));
        let trust = Trust::new(vec![ours.public().unwrap().to_string().parse().unwrap()]);
        let signed = ours.sign(b"component").unwrap();
        assert_eq!(trust.check(b"component", Some(&signed)), Ok(()));
        assert_eq!(trust.check(b"Component", Some(&signed)), Err(SignatureError::Wrong));
        assert_eq!(trust.check(b"component", None), Err(SignatureError::Missing));
        let foreign = theirs.sign(b"component").unwrap();
        assert_eq!(trust.check(b"component", Some(&foreign)), Err(SignatureError::Untrusted(foreign.key)));
        // Their signature under our name.
        let forged = Signature { key: signed.key, ..foreign };
        assert_eq!(trust.check(b"component", Some(&forged)), Err(SignatureError::Wrong));
        for at in [0, 31, 32, 63] {
            let mut bent = signed.clone();
            bent.bytes[at] ^= 1;
            assert_eq!(trust.check(b"component", Some(&bent)), Err(SignatureError::Wrong));
        }
    }

    #[test]
    fn a_key_counts_for_the_plugins_it_is_listed_for() {
        let (ours, theirs) = (secret(1).public().unwrap().to_string(), secret(2).public().unwrap().to_string());
        let listed = [format!("audit-sink/acme-*@{ours}"), format!("webhook@{ours}"), theirs.clone()];
        let listed: Vec<TrustedKey> = listed.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(listed[0].to_string(), format!("audit-sink/acme-*@{ours}"));
        let trust = Trust::new(listed);
        let permits = |signer: &str, kind, name| trust.permits(Some(signer), kind, name);
        assert_eq!(permits(&ours, Kind::AuditSink, "acme-logs"), Ok(()));
        assert_eq!(permits(&ours, Kind::DeploymentTarget, "webhook"), Ok(()));
        for (kind, name) in
            [(Kind::DeploymentTarget, "acme-logs"), (Kind::AuditSink, "oidc"), (Kind::AuditSink, "webhook2")]
        {
            let refused = permits(&ours, kind, name).unwrap_err().to_string();
            assert!(refused.contains("audit-sink/acme-*, webhook") && refused.contains(name), "{refused}");
        }
        assert_eq!(permits(&theirs, Kind::IdentityProvider, "anything"), Ok(()));
        assert_eq!(trust.permits(None, Kind::AuditSink, "acme-logs"), Err(SignatureError::Missing));
        assert_eq!(Trust::default().permits(None, Kind::AuditSink, "x"), Ok(()));
        for nonsense in ["@", "sink/x@", "audit-sink/@", "a*b@", "A@"] {
            let text = format!("{nonsense}{ours}");
            assert!(matches!(text.parse::<TrustedKey>(), Err(SignatureError::NoScope(_))), "{text}");
        }
        assert!(matches!("x@ed25519:00".parse::<TrustedKey>(), Err(SignatureError::Key(_))));
    }

    #[test]
    fn without_trusted_keys_nothing_needs_a_signature_and_a_wrong_one_is_still_wrong() {
        let signed = secret(2).sign(b"component").unwrap();
        let trust = Trust::default();
        assert_eq!(trust.check(b"component", None), Ok(()));
        assert_eq!(trust.check(b"component", Some(&signed)), Ok(()));
        assert_eq!(trust.check(b"other", Some(&signed)), Err(SignatureError::Wrong));
    }

    #[test]
    fn the_plain_digest_signed_with_the_same_key_does_not_count() {
        let ours = secret(1);
        let bytes = ours.pair().unwrap().sign(&Sha256::digest(b"component")).as_ref().try_into().unwrap();
        let signature = Signature { key: ours.public().unwrap(), bytes };
        assert_eq!(signature.verify(b"component"), Err(SignatureError::Wrong));
    }

    #[test]
    fn texts_are_read_back_and_nonsense_is_named() {
        let ours = secret(1);
        let signed = ours.sign(b"component").unwrap();
        assert_eq!(format!("{signed}\n").parse::<Signature>().unwrap(), signed);
        assert_eq!(signed.key.to_string().parse::<PublicKey>().unwrap(), signed.key);
        assert_eq!(SecretKey::parse(&ours.text()).unwrap().public(), ours.public());
        for nonsense in ["", ":", "ed25519:", "ed25519:00:00", &signed.to_string()[1..], &signed.key.to_string()] {
            assert_eq!(nonsense.parse::<Signature>(), Err(SignatureError::Shape), "{nonsense}");
        }
        assert!(matches!("abc".parse::<PublicKey>(), Err(SignatureError::Key(_))));
        assert!(matches!(SecretKey::parse("ed25519:00"), Err(SignatureError::Secret)));
    }

    #[test]
    fn it_is_the_ed25519_of_rfc_8032() {
        // Section 7.1, test 1: the public key of this secret key.
        let text = "ed25519-secret:9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = SecretKey::parse(text).unwrap().public().unwrap();
        assert_eq!(public.to_string(), "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    }
}
