//! Sign-in, sessions and tokens against both databases. PostgreSQL is the one that `tests/run` offers.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta};
use http::{HeaderMap, HeaderValue, Method, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sqlx::{ConnectOptions, Connection as _, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{
    AuthError, Identity,
    login::{Attempt, LoginError},
    organization::{NewOrganization, create_organization},
    session::{Refreshed, SignedIn},
    token::Claims,
};
use crate::{
    clock::Clock,
    config::Config,
    domain::{
        email::Email,
        id::{OrganizationId, UserId},
        principal::Principal,
        role::Role,
    },
    sandbox::egress,
    store::{self, Store, memberships, sessions, users},
};

const PASSWORD: &str = "gentle otter drums";

/// A database with one organization, and a host at it.
struct Fixture {
    url: String,
    store: Store,
    clock: Clock,
    config: Config,
    identity: Identity,
    organization: OrganizationId,
    user: UserId,
    email: Email,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn each() -> Vec<Self> {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("kaizen.db").display());
        let mut each = vec![Self::at(url, folder).await];
        if let Ok(url) = std::env::var("KZTEST_POSTGRES_URL") {
            let name = format!("unit_{}", Clock::system().id::<Uuid>().simple());
            let mut admin = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
            admin.close().await.unwrap();
            let mut url = url::Url::parse(&url).unwrap();
            url.set_path(&name);
            each.push(Self::at(url.to_string(), tempfile::tempdir().unwrap()).await);
        }
        each
    }

    async fn at(url: String, folder: tempfile::TempDir) -> Self {
        let store = Store::connect(&url, 8).await.unwrap();
        store.migrate().await.unwrap();
        let clock = Clock::fixed(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 7);
        let config = config(&url, folder.path());
        let identity = host(&config, &clock, &store).await;
        let (email, password) = (Email::parse("ada@example.com").unwrap(), SecretString::from(PASSWORD));
        let (organization, user) = {
            let new = NewOrganization {
                name: "Acme",
                owner: &email,
                owner_name: "Ada",
                password: Some(&password),
                platform_administrator: false,
                actor: "system",
                request_id: "",
            };
            create_organization(&store, &clock, &identity.passwords, &new).await.unwrap()
        };
        Self { url, store, clock, config, identity, organization: organization.id, user, email, _folder: folder }
    }

    async fn attempt(&self, password: &str) -> Result<SignedIn, LoginError> {
        let password = SecretString::from(password);
        let attempt = Attempt {
            email: &self.email,
            password: &password,
            organization: None,
            client: None,
            user_agent: "test",
            request_id: "r",
        };
        self.identity.login(&self.store, &self.clock, attempt).await
    }

    async fn login(&self) -> SignedIn {
        self.attempt(PASSWORD).await.unwrap()
    }

    async fn ask(&self, headers: &HeaderMap) -> Result<Principal, AuthError> {
        self.identity.authenticate(&self.store, &self.clock, &Method::GET, headers).await
    }

    async fn bearer(&self, token: &str) -> Result<Principal, AuthError> {
        self.ask(&bearer(token)).await
    }

    async fn refresh(&self, token: &SecretString) -> Refreshed {
        self.identity.refresh(&self.store, &self.clock, token, "r").await.unwrap()
    }

    async fn actions(&self) -> Vec<String> {
        let events =
            store::audit::after(&mut self.store.read().await.unwrap(), self.organization, 0, 100).await.unwrap();
        events.into_iter().map(|event| format!("{} {:?}", event.action, event.outcome)).collect()
    }
}

fn config(url: &str, folder: &Path) -> Config {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let flags = [
        set("database_url", url),
        set("data_dir", folder.to_str().unwrap()),
        set("public_url", "https://studio.example.com"),
    ];
    Config::load(None, [], flags).unwrap()
}

async fn host(config: &Config, clock: &Clock, store: &Store) -> Identity {
    let policy = egress::Policy { allow: Vec::new(), allow_private: Vec::new() };
    let egress = egress::Client::new(policy, std::sync::Arc::new(egress::SystemResolver));
    Identity::new(config, clock, store, &egress).await.unwrap()
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap())])
}

fn refused(result: Result<Principal, AuthError>) -> bool {
    matches!(result, Err(AuthError::Unauthenticated))
}

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
        assert!(refused(fixture.bearer(&token).await));
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

#[tokio::test]
async fn a_refresh_token_is_good_once_and_for_tabs_at_the_same_time() {
    for fixture in Fixture::each().await {
        let first = fixture.login().await;
        let Refreshed::Tokens(second) = fixture.refresh(&first.refresh_token).await else { panic!() };
        assert_ne!(second.refresh_token.expose_secret(), first.refresh_token.expose_secret());
        fixture.clock.advance(TimeDelta::seconds(10));
        let Refreshed::Tokens(again) = fixture.refresh(&first.refresh_token).await else { panic!() };
        assert_eq!(again.refresh_token.expose_secret(), second.refresh_token.expose_secret());
        let Refreshed::Tokens(third) = fixture.refresh(&second.refresh_token).await else { panic!() };
        fixture.bearer(third.access_token.expose_secret()).await.unwrap();

        // Now somebody comes with what was used long ago.
        fixture.clock.advance(TimeDelta::seconds(1));
        let Refreshed::Reused { organization_id } = fixture.refresh(&first.refresh_token).await else { panic!() };
        assert_eq!(organization_id, fixture.organization);
        assert!(matches!(fixture.refresh(&third.refresh_token).await, Refreshed::Refused));
        assert!(refused(fixture.bearer(third.access_token.expose_secret()).await));
        assert!(matches!(fixture.refresh(&first.refresh_token).await, Refreshed::Refused));
        assert_eq!(
            fixture.actions().await,
            ["organization.create Success", "auth.login Success", "auth.refresh Denied"]
        );
    }
}

#[tokio::test]
async fn sessions_end_by_time_and_by_idleness() {
    for fixture in Fixture::each().await {
        let signed_in = fixture.login().await;
        fixture.clock.advance(TimeDelta::days(14));
        assert!(matches!(fixture.refresh(&signed_in.refresh_token).await, Refreshed::Refused), "idle");
        let mut current = fixture.login().await;
        for _ in 0..2 {
            fixture.clock.advance(TimeDelta::days(13));
            let Refreshed::Tokens(next) = fixture.refresh(&current.refresh_token).await else { panic!() };
            current = next;
        }
        fixture.clock.advance(TimeDelta::days(4));
        assert!(matches!(fixture.refresh(&current.refresh_token).await, Refreshed::Refused), "thirty days");
        fixture.clock.advance(TimeDelta::days(30));
        fixture.identity.sweep(&fixture.store, &fixture.clock).await.unwrap();
        let mut conn = fixture.store.read().await.unwrap();
        let session = sessions::user_of(&mut conn, fixture.organization, current.session_id).await;
        assert_eq!(session.unwrap(), None, "swept");
    }
}

#[tokio::test]
async fn what_is_revoked_is_felt_by_the_next_request() {
    for fixture in Fixture::each().await {
        let (one, two) = (fixture.login().await, fixture.login().await);
        let (first, second) = (one.access_token.expose_secret(), two.access_token.expose_secret());
        let principal = fixture.bearer(second).await.unwrap();
        let of = (fixture.organization, fixture.user, one.session_id);
        assert!(fixture.identity.sign_out(&fixture.store, &fixture.clock, of, "r").await.unwrap());
        assert!(!fixture.identity.sign_out(&fixture.store, &fixture.clock, of, "r").await.unwrap(), "once");
        assert!(refused(fixture.bearer(first).await));

        let mut tx = fixture.store.begin().await.unwrap();
        let listed =
            memberships::list(&mut tx, fixture.organization, Some(fixture.user), Uuid::nil(), 10).await.unwrap();
        memberships::delete(&mut tx, &listed[0]).await.unwrap();
        tx.commit().await.unwrap();
        assert!(fixture.bearer(second).await.unwrap().grants.is_empty());

        let mut tx = fixture.store.begin().await.unwrap();
        let mut user = users::get(&mut tx, fixture.organization, fixture.user).await.unwrap().unwrap();
        user.active = false;
        users::update(&mut tx, &user, None).await.unwrap();
        tx.commit().await.unwrap();
        assert!(refused(fixture.bearer(second).await));
        let mut conn = fixture.store.read().await.unwrap();
        assert!(fixture.identity.again(&mut conn, &fixture.clock, &principal).await.unwrap().is_none());
        assert!(fixture.identity.principal(&mut conn, fixture.organization, fixture.user).await.unwrap().is_none());
        assert!(matches!(fixture.attempt(PASSWORD).await, Err(LoginError::Credentials)));
    }
}

#[tokio::test]
async fn failures_are_recorded_where_there_is_such_a_user() {
    for fixture in Fixture::each().await {
        assert!(matches!(fixture.attempt("another password").await, Err(LoginError::Credentials)));
        fixture.login().await;
        let expected = ["organization.create Success", "auth.login Failure", "auth.login Success"];
        assert_eq!(fixture.actions().await, expected);
    }
}

#[tokio::test]
async fn an_address_of_several_organizations_chooses() {
    for fixture in Fixture::each().await {
        let password = SecretString::from(PASSWORD);
        // They are offered in the order in which they were made.
        fixture.clock.advance(TimeDelta::seconds(1));
        let new = NewOrganization {
            name: "Beta",
            owner: &fixture.email,
            owner_name: "",
            password: Some(&password),
            platform_administrator: false,
            actor: "system",
            request_id: "",
        };
        let made = create_organization(&fixture.store, &fixture.clock, &fixture.identity.passwords, &new).await;
        let (beta, _) = made.unwrap();
        let Err(LoginError::Several(choices)) = fixture.attempt(PASSWORD).await else { panic!() };
        let names: Vec<_> = choices.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["Acme", "Beta"]);
        let attempt = Attempt {
            email: &fixture.email,
            password: &password,
            organization: Some(beta.id),
            client: None,
            user_agent: "",
            request_id: "",
        };
        let signed_in = fixture.identity.login(&fixture.store, &fixture.clock, attempt).await.unwrap();
        assert_eq!(signed_in.organization_id, beta.id);
    }
}

#[tokio::test]
async fn two_who_remove_each_other_leave_one_owner() {
    for fixture in Fixture::each().await {
        let mut tx = fixture.store.begin().await.unwrap();
        let mut second = users::get(&mut tx, fixture.organization, fixture.user).await.unwrap().unwrap();
        (second.id, second.email) = (fixture.clock.id(), "eve@example.com".into());
        users::insert(&mut tx, &second, None).await.unwrap();
        let mut membership =
            memberships::list(&mut tx, fixture.organization, None, Uuid::nil(), 10).await.unwrap().remove(0);
        (membership.id, membership.user_id) = (fixture.clock.id(), second.id);
        memberships::insert(&mut tx, &membership).await.unwrap();
        tx.commit().await.unwrap();
        let mut conn = fixture.store.read().await.unwrap();
        let all = memberships::list(&mut conn, fixture.organization, None, Uuid::nil(), 10).await.unwrap();
        drop(conn);
        assert_eq!(all.len(), 2);
        let remove = async |membership| {
            let mut tx = fixture.store.begin().await.unwrap();
            memberships::lock_owners(&mut tx, fixture.organization).await.unwrap();
            memberships::delete(&mut tx, membership).await.unwrap();
            let left = memberships::owners(&mut tx, fixture.organization).await.unwrap();
            if left > 0 {
                tx.commit().await.unwrap();
            }
            left
        };
        let (one, two) = tokio::join!(remove(&all[0]), remove(&all[1]));
        assert_eq!(one + two, 1, "one saw the other's removal");
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
