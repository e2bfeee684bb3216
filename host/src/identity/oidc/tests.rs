//! Tokens and answers that a good provider never sends.

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://id.example.com/a";
const NOW: i64 = 1_800_000_000;

/// A provider's key, by its id.
struct Key(Ed25519KeyPair, &'static str);

impl Key {
    fn new(kid: &'static str) -> Self {
        Self(Ed25519KeyPair::generate().unwrap(), kid)
    }

    fn public(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    fn set(&self) -> Keys {
        let x = URL_SAFE_NO_PAD.encode(self.public());
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.1, "x": x });
        serde_json::from_value(json!({ "keys": [key] })).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        token(&json!({ "alg": "EdDSA", "kid": self.1 }), claims, |text| self.0.sign(text).as_ref().to_vec())
    }
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(sign(text.as_bytes())))
}

/// Good claims with these in place of theirs; `null` takes one away.
fn claims(changed: Value) -> Value {
    let mut claims = json!({ "iss": ISSUER, "sub": "248", "aud": "us", "nonce": "n", "iat": NOW, "exp": NOW + 300 });
    for (name, value) in changed.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn check(keys: &Keys, raw: &str, max_age: Option<TimeDelta>) -> Result<Value, ClaimsVerificationError> {
    let issuer = IssuerUrl::new(ISSUER.to_owned()).unwrap();
    let now = DateTime::from_timestamp(NOW, 0).unwrap();
    let expected = Expected { issuer: &issuer, client_id: "us", nonce: "n", max_age, access_token: "at", now };
    verify(keys, &expected, raw)
}

#[test]
fn an_id_token_holds_only_for_this_sign_in_now() {
    let key = Key::new("1");
    let keys = key.set();
    for good in [
        json!({}),
        json!({ "azp": "us", "aud": ["us"], "groups": ["a"] }),
        // Clocks differ by some minutes.
        json!({ "iat": NOW + 60, "nbf": NOW + 200 }),
        // Microsoft Entra ID dates its tokens five minutes back.
        json!({ "iat": NOW - 301, "nbf": NOW - 301, "exp": NOW + 3599 }),
        json!({ "iat": NOW - 3600, "exp": NOW - 1 }),
    ] {
        let claims = claims(good);
        assert_eq!(check(&keys, &key.sign(&claims), None).unwrap(), claims);
    }
    for bad in [
        json!({ "iss": "https://id.example.com/a/" }),
        json!({ "iss": "https://id.example.com/b" }),
        json!({ "iss": null }),
        json!({ "aud": "them" }),
        json!({ "aud": [] }),
        json!({ "aud": ["us", "them"] }),
        json!({ "aud": null }),
        json!({ "azp": "them" }),
        json!({ "nonce": "another" }),
        json!({ "nonce": null }),
        json!({ "sub": null }),
        json!({ "iat": NOW + 61 }),
        json!({ "iat": null }),
        json!({ "exp": NOW - 301 }),
        json!({ "exp": null }),
        json!({ "nbf": NOW + 301 }),
        json!({ "at_hash": "AAAAAAAAAAAAAAAAAAAAAA" }),
    ] {
        assert!(check(&keys, &key.sign(&claims(bad.clone())), None).is_err(), "{bad}");
    }
}

#[test]
fn an_id_token_is_signed_by_one_of_the_providers_keys() {
    let key = Key::new("1");
    let keys = key.set();
    let good = claims(json!({}));
    let none = token(&json!({ "alg": "none" }), &good, |_| Vec::new());
    // With what everybody knows for the shared secret.
    let hmac = |text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.public()), text).as_ref().to_vec();
    let shared = token(&json!({ "alg": "HS256", "kid": "1" }), &good, hmac);
    let critical = token(&json!({ "alg": "EdDSA", "kid": "1", "crit": ["b64"] }), &good, |text| {
        key.0.sign(text).as_ref().to_vec()
    });
    let mut altered: Vec<String> = key.sign(&good).split('.').map(str::to_owned).collect();
    altered[1] = URL_SAFE_NO_PAD.encode(claims(json!({ "sub": "1" })).to_string());
    for bad in [none, shared, critical, altered.join("."), "a.b.c".into(), "a.b".into(), String::new()] {
        assert!(check(&keys, &bad, None).is_err(), "{bad}");
    }
    // These are worth another look at the provider's keys.
    for stranger in [Key::new("1"), Key::new("2")] {
        let error = check(&keys, &stranger.sign(&good), None).unwrap_err();
        assert!(matches!(error, ClaimsVerificationError::SignatureVerification(_)), "{error}");
    }
}

#[test]
fn whoever_asks_for_a_recent_sign_in_gets_no_older_one() {
    let key = Key::new("1");
    let signed_in =
        |at: Value| check(&key.set(), &key.sign(&claims(json!({ "auth_time": at }))), Some(TimeDelta::hours(1)));
    assert!(signed_in(json!(NOW - 3600)).is_ok());
    assert!(signed_in(json!(NOW - 3600 - 301)).is_err());
    assert!(signed_in(Value::Null).is_err(), "the browser dropped `max_age` from the request");
}

fn metadata(changed: Value) -> Result<Provider, String> {
    let mut document = json!({
        "issuer": ISSUER,
        "authorization_endpoint": "https://id.example.com/authorize",
        "token_endpoint": "https://id.example.com/token",
        "userinfo_endpoint": "https://id.example.com/me",
        "jwks_uri": "https://id.example.com/keys",
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    document.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
    Provider::new(&serde_json::from_value(document).unwrap())
}

#[test]
fn neither_code_nor_secret_nor_token_goes_out_in_the_clear() {
    assert_eq!(metadata(json!({})).unwrap().auth, ClientAuth::Basic);
    let post = json!({ "token_endpoint_auth_methods_supported": ["client_secret_post"] });
    assert_eq!(metadata(post).unwrap().auth, ClientAuth::Post);
    for name in ["authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"] {
        let error = metadata(json!({ name: "http://id.example.com/x" })).err().unwrap();
        assert!(error.contains(name) && error.contains("https"), "{error}");
    }
    assert!(metadata(json!({ "authorization_endpoint": "javascript:alert(1)" })).is_err());
}

#[test]
fn userinfo_that_is_out_of_order_is_told_from_one_that_is_not_for_us() {
    let answer = |status: u16, kind: &str, body: &'static str| {
        let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
        userinfo_of(&response.body(Bytes::from_static(body.as_bytes())).unwrap())
    };
    assert_eq!(answer(200, "application/json", r#"{"sub":"1"}"#).unwrap(), Some(json!({ "sub": "1" })));
    for (status, kind) in [(401, ""), (403, "text/html"), (404, ""), (200, "application/jwt; charset=utf-8")] {
        assert_eq!(answer(status, kind, "a.b.c").unwrap(), None);
    }
    for (status, body) in [(500, ""), (503, "{}"), (429, "{}"), (302, ""), (204, ""), (200, "<html>"), (200, "[]")] {
        assert!(matches!(answer(status, "application/json", body), Err(ProviderError::Provider(_))), "{status} {body}");
    }
}

#[test]
fn rsa_keys_shorter_than_2048_bits_are_not_used() {
    let rsa = |kid: &str, modulus: Vec<u8>| json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(modulus) });
    let padded = [vec![0; 64], vec![0xff; 200]].concat();
    let mut almost = vec![0xff; 256];
    almost[0] = 0x7f;
    let keys = json!({ "keys": [
        rsa("1024", vec![0xff; 128]), rsa("padded", padded), rsa("2047", almost), rsa("2048", vec![0xff; 256]),
        rsa("4096", vec![0xff; 512]), rsa("none", Vec::new()),
    ] });
    let mut keys: Keys = serde_json::from_value(keys).unwrap();
    let elliptic = Key::new("ed").set();
    keys = JsonWebKeySet::new([keys.keys().clone(), elliptic.keys().clone()].concat());
    let left = serde_json::to_value(usable(&keys)).unwrap();
    let left: Vec<&str> = left["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect();
    assert_eq!(left, ["2048", "4096", "ed"]);
}

/// Anybody can begin a sign-in: an issuer that is not there is not asked for each of them.
#[tokio::test]
async fn an_issuer_that_failed_is_left_alone_for_a_while() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let counted = asked.clone();
    let serving = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            drop(socket);
        }
    });
    let policy = egress::Policy {
        allow: vec![crate::sandbox::pattern::Pattern::everything()],
        allow_private: vec!["127.0.0.0/8".parse().unwrap()],
        ..egress::Policy::default()
    };
    let limits = ServerLimits { discovery_cool_down_seconds: 600, ..ServerLimits::default() };
    let providers = Providers::new(egress::Client::new(policy, Arc::new(egress::SystemResolver::default())), &limits);
    let all = futures::future::join_all((0..20).map(|_| providers.provider(&issuer))).await;
    assert!(all.iter().all(|answer| matches!(answer, Err(ProviderError::Shared(_)))));
    assert!(providers.provider(&issuer).await.is_err());
    let before = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(before <= 2, "{before} connections for 21 sign-ins");
    // An administrator who asks is told how it is now.
    assert!(providers.check(&issuer).await.is_err());
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > before);
    serving.abort();
}

/// Keys change while several people sign in: one fetches the new ones, and all are checked against them.
#[tokio::test]
async fn keys_are_fetched_once_for_all_who_miss_one() {
    let provider = metadata(json!({})).unwrap();
    // It may go nowhere, so that an attempt to fetch shows as an error.
    let policy = egress::Policy::default();
    let providers = Providers::new(
        egress::Client::new(policy, Arc::new(egress::SystemResolver::default())),
        &ServerLimits::default(),
    );
    let now = DateTime::from_timestamp(NOW, 0).unwrap();
    let used = provider.keys.load_full();
    provider.keys.store(Arc::new(Key::new("2").set()));
    assert!(providers.refetch(&provider, &used, now).await.unwrap(), "another sign-in has fetched them");
    let used = provider.keys.load_full();
    assert!(providers.refetch(&provider, &used, now).await.is_err());
    assert!(!providers.refetch(&provider, &used, now + COOL_DOWN - TimeDelta::seconds(1)).await.unwrap());
    assert!(providers.refetch(&provider, &used, now + COOL_DOWN).await.is_err());
}
