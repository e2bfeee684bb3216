//! Is a webhook of Kaizen Studio's genuine? With the crates `base64` 0.22, `hmac` 0.12 and `sha2` 0.10.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Seconds that the sender's clock may be off, and that a recorded request stays good.
const TOLERANCE: u64 = 300;

/// `header` is `Kaizen-Signature`, `body` the bytes as they came (before any parsing), `now` seconds since 1970.
pub fn verify(signing_key: &str, header: &str, body: &[u8], now: u64) -> bool {
    let field = |name: &str| header.split(',').filter_map(|part| part.split_once('=')).find(|part| part.0 == name);
    let (Some((_, timestamp)), Some((_, given))) = (field("t"), field("v1")) else { return false };
    if !timestamp.parse().is_ok_and(|sent: u64| now.abs_diff(sent) <= TOLERANCE) {
        return false;
    }
    let key = match signing_key.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).unwrap_or_default(),
        None => signing_key.as_bytes().to_vec(),
    };
    let pairs = given.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let Some(given) = pairs.collect::<Option<Vec<u8>>>() else { return false };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return false };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    // Compares in constant time.
    !key.is_empty() && mac.verify_slice(&given).is_ok()
}
