//! Which access tokens are taken.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use http::{HeaderMap, HeaderValue, Method, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use super::fixture::{Fixture, bearer, config, host, refused};
use crate::{
    domain::{
        id::{OrganizationId, UserId},
        role::Role,
    },
    identity::{AuthError, Identity, token::Claims},
};

fn parts(token: &str) -> (String, String, String) {
    let mut parts = token.split('.').map(str::to_owned);
    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
}

fn encode(value: &serde_json::Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn a_token_and_a_cookie_are_the_user_with_their_roles() {
    for fixture in Fixture::each().await {
        let signed_in = fixture.login().await;
        let principal = fixture.bearer(signed_in.access_token.expose_secret()).await.unwrap();
        assert_eq!((principal.organization_id, principal.user_id), (fixture.organization, fixture.user));
        assert!(principal.has_role(Role::Owner));
        assert_eq!(principal.session_id, Some(signed_in.session_id));
        let cookie = format!("x=y; __Host-kaizen={}", signed_in.cookie.unwrap().expose_secret());
        let cookie = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&cookie).unwrap())]);
        assert_eq!(fixture.ask(&cookie).await.unwrap().user_id, fixture.user);
        let post = fixture.identity.authenticate(&fixture.store, &fixture.clock, &Method::POST, &cookie).await;
        assert!(matches!(post, Err(AuthError::Origin)));
        assert!(refused(fixture.ask(&HeaderMap::new()).await));
        // A bearer token that does not hold is not made up for by a cookie that does.
        let mut both = cookie;
        both.extend(bearer("x.y.z"));
        assert!(refused(fixture.ask(&both).await));
    }
}

#[tokio::test]
async fn tampered_tokens_are_refused() {
    for fixture in Fixture::each().await {
        let token = fixture.login().await.access_token.expose_secret().to_owned();
        let (head, body, signature) = parts(&token);
        fixture.bearer(&token).await.unwrap();
        let header: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&head).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&body).unwrap()).unwrap();
        assert_eq!(header["typ"], "at+jwt");
        let with = |name: &str, value: serde_json::Value| {
            let mut header = header.clone();
            header[name] = value;
            encode(&header)
        };
        let mut other = claims.clone();
        other["sub"] = json!(Uuid::nil());
        let public = fixture.identity.jwks(&fixture.store, &fixture.clock).await.unwrap().remove(0);
        let hmac = |secret: &[u8]| {
            let mut header = Header::new(Algorithm::HS256);
            header.typ = Some("at+jwt".into());
            header.kid = Some(public.kid.clone());
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
        };
        let forged = [
            format!("{head}.{}.{signature}", encode(&other)),
            format!("{head}.{body}."),
            format!("{head}.{body}"),
            format!("{}.{body}.", with("alg", json!("none"))),
            format!("{}.{body}.{signature}", with("alg", json!("none"))),
            format!("{}.{body}.{signature}", with("alg", json!("PS256"))),
            format!("{}.{body}.{signature}", with("kid", json!("unknown"))),
            format!("{}.{body}.{signature}", with("typ", json!("JWT"))),
            hmac(public.n.as_bytes()),
            hmac(&URL_SAFE_NO_PAD.decode(&public.n).unwrap()),
            hmac(b""),
            format!("{token}A"),
            format!("{token}.{signature}"),
            "a.b.c".into(),
            String::new(),
            "x".repeat(100_000),
        ];
        for forged in forged {
            assert!(refused(fixture.bearer(&forged).await), "{forged}");
        }
        for scheme in ["Basic", "bearer", "Bearer"] {
            let value = HeaderValue::from_str(&format!("{scheme} {token}")).unwrap();
            let good = fixture.ask(&HeaderMap::from_iter([(header::AUTHORIZATION, value)])).await.is_ok();
            assert_eq!(good, scheme != "Basic");
        }
    }
}

#[tokio::test]
async fn what_was_signed_for_something_else_is_refused() {
    for fixture in Fixture::each().await {
        let signed_in = fixture.login().await;
        let pem = std::fs::read(fixture.config.data_dir.join("signing-key.pem")).unwrap();
        let key = EncodingKey::from_rsa_pem(&pem).unwrap();
        let kid = fixture.identity.jwks(&fixture.store, &fixture.clock).await.unwrap().remove(0).kid;
        let now = fixture.clock.now().timestamp();
        let good = Claims {
            iss: "https://studio.example.com".into(),
            aud: "kaizen".into(),
            sub: fixture.user,
            org: fixture.organization,
            sid: signed_in.session_id,
            jti: "1".into(),
            iat: now,
            nbf: now,
            exp: now + 900,
        };
        let sign = |typ: &str, claims: &Claims| {
            let mut header = Header::new(Algorithm::RS256);
            (header.typ, header.kid) = (Some(typ.to_owned()), Some(kid.clone()));
            jsonwebtoken::encode(&header, claims, &key).unwrap()
        };
        fixture.bearer(&sign("at+jwt", &good)).await.unwrap();
        fixture.bearer(&sign("application/at+jwt", &good)).await.unwrap();
        // Another host of this installation, which browsers reach elsewhere.
        let elsewhere = Claims { iss: "https://other.example.com".into(), ..good.clone() };
        fixture.bearer(&sign("at+jwt", &elsewhere)).await.unwrap();
        let bad = [
            Claims { aud: "other".into(), ..good.clone() },
            Claims { exp: now, ..good.clone() },
            Claims { exp: now - 1, iat: now - 800, nbf: now - 800, ..good.clone() },
            Claims { nbf: now + 31, ..good.clone() },
            Claims { exp: now + 86_400, ..good.clone() },
            Claims { sub: UserId(Uuid::nil()), ..good.clone() },
            Claims { org: OrganizationId(Uuid::nil()), ..good.clone() },
            Claims { sid: fixture.clock.id(), ..good.clone() },
        ];
        for claims in bad {
            // Twice: what was verified once is remembered.
            assert!(refused(fixture.bearer(&sign("at+jwt", &claims)).await), "{claims:?}");
            assert!(refused(fixture.bearer(&sign("at+jwt", &claims)).await), "{claims:?}");
        }
        assert!(refused(fixture.bearer(&sign("JWT", &good)).await));
    }
}

#[tokio::test]
async fn a_remembered_token_still_ends() {
    for fixture in Fixture::each().await {
        let token = fixture.login().await.access_token.expose_secret().to_owned();
        fixture.bearer(&token).await.unwrap();
        fixture.clock.advance(TimeDelta::seconds(899));
        fixture.bearer(&token).await.unwrap();
        fixture.clock.advance(TimeDelta::seconds(1));
        assert!(matches!(fixture.bearer(&token).await, Err(AuthError::Expired)));
    }
}

#[tokio::test]
async fn one_host_verifies_the_tokens_of_another() {
    for fixture in Fixture::each().await {
        let token = fixture.login().await.access_token.expose_secret().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let other = host(&config(&fixture.url, folder.path()), &fixture.clock, &fixture.store).await;
        let ask = async |identity: &Identity, token: &str| {
            identity.authenticate(&fixture.store, &fixture.clock, &Method::GET, &bearer(token)).await
        };
        ask(&other, &token).await.unwrap();
        assert_eq!(other.jwks(&fixture.store, &fixture.clock).await.unwrap().len(), 2);
        // The first host learns of a third, later one by its unknown key; not sooner than the cool-down allows.
        let third_folder = tempfile::tempdir().unwrap();
        let third = host(&config(&fixture.url, third_folder.path()), &fixture.clock, &fixture.store).await;
        let claims = other.tokens.verify(&fixture.store, &fixture.clock, &token).await.unwrap();
        let token = third.tokens.issue(&fixture.clock, (claims.org, claims.sub, claims.sid)).unwrap();
        assert!(refused(ask(&other, &token).await), "asked a moment ago");
        fixture.clock.advance(TimeDelta::seconds(6));
        ask(&other, &token).await.unwrap();
    }
}

proptest! {
    /// Whatever is sent in place of a token is refused, and nothing panics.
    #[test]
    fn nothing_but_a_token_is_a_token(noise in "\\PC{0,60}", head in "[A-Za-z0-9_-]{0,40}", body in "[A-Za-z0-9_-]{0,40}") {
        thread_local! {
            static HOST: (tokio::runtime::Runtime, Fixture) = {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let fixture = runtime.block_on(async { Fixture::each().await.remove(0) });
                (runtime, fixture)
            };
        }
        HOST.with(|(runtime, fixture)| {
            for token in [noise.clone(), format!("{head}.{body}.{head}"), format!("{head}..{noise}")] {
                if let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}")) {
                    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
                    assert!(refused(runtime.block_on(fixture.ask(&headers))));
                }
            }
        });
    }
}
