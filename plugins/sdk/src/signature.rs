//! HMAC-SHA256 signatures (RFC 2104, FIPS 180-4), for far sides that check who sent a request.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::{Error, Result, Secret};

/// Shorter keys can be guessed (RFC 2104, section 3, asks for at least the hash's length; half is what services hand
/// out).
pub const SHORTEST_KEY: usize = 16;

/// How a key that is given in base64 begins, in the specification of Standard Webhooks.
const BASE64_KEY: &str = "whsec_";

/// HMAC-SHA256 over the parts, one after the other.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length (RFC 2104, section 2), so this never fails.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// HMAC-SHA256 over the parts, one after the other, as lower-case hexadecimal.
pub fn hmac_sha256_hex(key: &[u8], parts: &[&[u8]]) -> String {
    hex(&hmac_sha256(key, parts))
}

/// SHA-256, as lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The value of a signature header over a timestamp (Unix seconds) and a body: `t=TIMESTAMP,v1=HEX`, where HEX is
/// HMAC-SHA256 over `TIMESTAMP.BODY`. The receiver computes the same, compares in constant time, and refuses old
/// timestamps, so a recorded request can't be replayed later.
pub fn timestamped(key: &[u8], unix_seconds: u64, body: &[u8]) -> String {
    let timestamp = unix_seconds.to_string();
    let hex = hmac_sha256_hex(key, &[timestamp.as_bytes(), b".", body]);
    format!("t={timestamp},v1={hex}")
}

/// The headers of a signed webhook: `Kaizen-Signature` as [`timestamped`] makes it, and beside it those of Standard
/// Webhooks (`Webhook-Id`, `Webhook-Timestamp`, `Webhook-Signature: v1,BASE64` over `ID.TIMESTAMP.BODY`), for which
/// receivers find libraries in most languages. `id` is the same for every attempt at the same piece of work.
///
/// The key is the text as it is, except after `whsec_`, where it is base64, as Standard Webhooks has it.
///
/// # Errors
/// [`Error::Config`] for a key that is too short or no base64, and for an `id` that can't be in a header.
pub fn webhook(secret: Secret, id: &str, unix_seconds: u64, body: &[u8]) -> Result<[(&'static str, String); 4]> {
    let revealed = secret.reveal()?;
    let text = revealed.expose();
    let fail = |why: String| Error::Config(format!("secret `{}`: {why}", secret.name()));
    let key = match text.strip_prefix(BASE64_KEY) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| {
            fail(format!("what follows `{BASE64_KEY}` is not base64; give the key as it was handed out"))
        })?,
        None => text.as_bytes().to_vec(),
    };
    if key.len() < SHORTEST_KEY {
        return Err(fail(format!("it needs at least {SHORTEST_KEY} characters")));
    }
    let timestamp = unix_seconds.to_string();
    let standard = hmac_sha256(&key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    Ok([
        ("kaizen-signature", timestamped(&key, unix_seconds, body)),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", format!("v1,{}", STANDARD.encode(standard))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 1, 2 and 6.
    #[test]
    fn it_agrees_with_the_published_vectors() {
        assert_eq!(
            hmac_sha256_hex(&[0x0b; 20], &[b"Hi There"]),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hmac_sha256_hex(b"Jefe", &[b"what do ya want ", b"for nothing?"]),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hmac_sha256_hex(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn the_timestamp_is_signed_too() {
        let signature = timestamped(b"key", 1_700_000_000, b"{}");
        let hex = hmac_sha256_hex(b"key", &[b"1700000000.{}"]);
        assert_eq!(signature, format!("t=1700000000,v1={hex}"));
        assert_ne!(signature.split_once(",v1=").unwrap().1, hmac_sha256_hex(b"key", &[b"1700000001.{}"]));
    }

    /// The example of the Standard Webhooks libraries' own tests.
    #[test]
    fn a_webhook_is_signed_as_standard_webhooks_has_it() {
        crate::testing::secret("signing-key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let headers = webhook(
            Secret::named("signing-key"),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        )
        .unwrap();
        assert_eq!(headers[1], ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned()));
        assert_eq!(headers[2], ("webhook-timestamp", "1614265330".to_owned()));
        assert_eq!(headers[3], ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned()));
    }

    #[test]
    fn a_key_that_can_be_guessed_is_refused_without_being_shown() {
        for bad in ["short", "whsec_c2hvcnQ=", "whsec_???"] {
            crate::testing::secret("signing-key", bad);
            let error = webhook(Secret::named("signing-key"), "id", 1, b"").unwrap_err();
            assert!(matches!(&error, Error::Config(why) if !why.contains(bad)), "{bad}: {error}");
        }
    }
}
