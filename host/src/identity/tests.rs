//! Sign-in, sessions and tokens against both databases. PostgreSQL is the one that `tests/run` offers.

mod fixture;
mod respell;
mod sso_states;
mod tokens;

use chrono::TimeDelta;
use secrecy::{ExposeSecret, SecretString};
use sqlx::types::Json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::fixture::{Fixture, PASSWORD, host, refused};
use super::{
    login::{Attempt, LoginError},
    organization::{NewOrganization, create_organization},
    secret::Opaque,
    session::{REFRESH_PREFIX, Refreshed},
    turns::Hashing,
};
use crate::{
    domain::{client::Client, connection::Kind, email::Email, name::Name},
    on,
    store::{
        connections::{self, Connection},
        memberships, sessions, sso, users,
    },
};

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

async fn rows(fixture: &Fixture, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table}");
    let mut conn = fixture.store.read().await.unwrap();
    on!(&mut conn, |c| sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(c).await).unwrap()
}

#[tokio::test]
async fn exchanged_refresh_tokens_are_not_kept_and_end_the_session_nevertheless() {
    for fixture in Fixture::each().await {
        for reused in [0, 3] {
            let mut tokens = vec![fixture.login().await.refresh_token];
            for _ in 0..10 {
                fixture.clock.advance(TimeDelta::minutes(2));
                let Refreshed::Tokens(next) = fixture.refresh(tokens.last().unwrap()).await else { panic!() };
                tokens.push(next.refresh_token);
            }
            let kept =
                rows(&fixture, "refresh_tokens WHERE session_id IN (SELECT id FROM sessions WHERE revoked_at IS NULL)");
            assert!(kept.await <= 3, "the one that is good, and what was exchanged lately");
            let Refreshed::Reused { organization_id } = fixture.refresh(&tokens[reused]).await else { panic!() };
            assert_eq!(organization_id, fixture.organization);
            for token in [tokens.last().unwrap(), &tokens[reused]] {
                assert!(matches!(fixture.refresh(token).await, Refreshed::Refused));
            }
            assert_eq!(fixture.actions().await.last().unwrap(), "auth.refresh Denied");
        }
        // Nobody's.
        let made_up = Opaque::random(&fixture.clock).reveal(REFRESH_PREFIX);
        assert!(matches!(fixture.refresh(&made_up).await, Refreshed::Refused));
    }
}

#[tokio::test]
async fn a_refresh_token_that_was_never_exchanged_is_only_refused_once_it_has_ended() {
    for fixture in Fixture::each().await {
        let begun = fixture.login().await;
        // Its session lives on by the cookie.
        for _ in 0..3 {
            fixture.clock.advance(TimeDelta::days(8));
            let mut tx = fixture.store.begin().await.unwrap();
            let now = fixture.clock.now();
            sessions::touch(&mut tx, fixture.organization, begun.session_id, now).await.unwrap();
            tx.commit().await.unwrap();
        }
        fixture.identity.sweep(&fixture.store, &fixture.clock, &CancellationToken::new()).await.unwrap();
        assert!(matches!(fixture.refresh(&begun.refresh_token).await, Refreshed::Refused));
        assert_eq!(fixture.actions().await.last().unwrap(), "auth.login Success");
    }
}

/// A session as an earlier version of the server left it.
#[tokio::test]
async fn sessions_of_before_families_go_on_and_know_their_old_tokens() {
    for fixture in Fixture::each().await {
        let first = fixture.login().await;
        let mut tx = fixture.store.begin().await.unwrap();
        for sql in ["UPDATE sessions SET refresh_family = NULL", "UPDATE refresh_tokens SET in_family = FALSE"] {
            on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
        }
        tx.commit().await.unwrap();
        let mut current = first.refresh_token.clone();
        for _ in 0..4 {
            let Refreshed::Tokens(next) = fixture.refresh(&current).await else { panic!() };
            current = next.refresh_token;
            fixture.clock.advance(TimeDelta::minutes(2));
        }
        assert!(rows(&fixture, "refresh_tokens").await <= 4, "the first one stays");
        assert!(matches!(fixture.refresh(&first.refresh_token).await, Refreshed::Reused { .. }));
        assert!(matches!(fixture.refresh(&current).await, Refreshed::Refused));
    }
}

#[tokio::test]
async fn a_user_has_so_many_sessions_and_the_one_used_least_recently_makes_room() {
    for mut fixture in Fixture::each().await {
        fixture.config.limits.sessions_per_user = 2;
        fixture.identity = host(&fixture.config, &fixture.clock, &fixture.store).await;
        let (one, two) = (fixture.login().await, fixture.login().await);
        assert!(!one.ended_others && !two.ended_others);
        fixture.clock.advance(TimeDelta::minutes(2));
        let Refreshed::Tokens(one) = fixture.refresh(&one.refresh_token).await else { panic!() };
        let three = fixture.login().await;
        assert!(three.ended_others);
        for session in [&one, &three] {
            fixture.bearer(session.access_token.expose_secret()).await.unwrap();
        }
        assert!(refused(fixture.bearer(two.access_token.expose_secret()).await));
        assert!(matches!(fixture.refresh(&two.refresh_token).await, Refreshed::Refused));
        assert_eq!(fixture.actions().await[3..], ["auth.logout Success", "auth.login Success"]);
        // What was ended is forgotten by and by.
        for _ in 0..5 {
            fixture.clock.advance(TimeDelta::minutes(2));
            fixture.login().await;
        }
        assert_eq!(rows(&fixture, "sessions").await, 3, "two, and the one that the last sign-in ended");
    }
}

#[tokio::test]
async fn what_was_ended_is_swept_although_it_would_have_lasted_longer() {
    for fixture in Fixture::each().await {
        let (one, _two) = (fixture.login().await, fixture.login().await);
        let of = (fixture.organization, fixture.user, one.session_id);
        assert!(fixture.identity.sign_out(&fixture.store, &fixture.clock, of).await.unwrap());
        for (days, left) in [(6, 2), (2, 1)] {
            fixture.clock.advance(TimeDelta::days(days));
            fixture.identity.sweep(&fixture.store, &fixture.clock, &CancellationToken::new()).await.unwrap();
            assert_eq!(rows(&fixture, "sessions").await, left);
        }
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
        fixture.identity.sweep(&fixture.store, &fixture.clock, &CancellationToken::new()).await.unwrap();
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
        assert!(fixture.identity.sign_out(&fixture.store, &fixture.clock, of).await.unwrap());
        assert!(!fixture.identity.sign_out(&fixture.store, &fixture.clock, of).await.unwrap(), "once");
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
        assert!(matches!(fixture.attempt(PASSWORD).await, Err(LoginError::Credentials(_))));
    }
}

#[tokio::test]
async fn failures_are_recorded_where_there_is_such_a_user() {
    for fixture in Fixture::each().await {
        assert!(matches!(fixture.attempt("another password").await, Err(LoginError::Credentials(_))));
        fixture.login().await;
        let expected = ["organization.create Success", "auth.login Failure", "auth.login Success"];
        assert_eq!(fixture.actions().await, expected);
    }
}

/// Anybody who has an organization can make a user of anybody's address there.
#[tokio::test]
async fn failures_are_told_only_where_the_person_was_seen_before() {
    for fixture in Fixture::each().await {
        let eve = Email::parse("eve@example.com").unwrap();
        let password = SecretString::from(PASSWORD);
        let new = NewOrganization {
            name: &Name::parse("Nosy").unwrap(),
            owner: &eve,
            owner_name: None,
            password: Some(&password),
            platform_administrator: false,
            actor: "system",
        };
        let (store, clock) = (&fixture.store, &fixture.clock);
        let made = create_organization(store, clock, &fixture.identity.passwords, &new).await;
        let (nosy, nosy_owner) = made.unwrap();
        let mut tx = store.begin().await.unwrap();
        let mut typed_in = users::get(&mut tx, nosy.id, nosy_owner).await.unwrap().unwrap();
        (typed_in.id, typed_in.email) = (clock.id(), fixture.email.as_str().to_owned());
        let hash = fixture
            .identity
            .passwords
            .hash(clock, &SecretString::from("marble window thimble"), Hashing::Operator)
            .await
            .unwrap();
        users::insert(&mut tx, &typed_in, Some(&hash)).await.unwrap();
        tx.commit().await.unwrap();

        assert!(matches!(fixture.attempt("another password").await, Err(LoginError::Credentials(_))));
        assert_eq!(fixture.actions().await, ["organization.create Success", "auth.login Failure"]);
        assert_eq!(fixture.actions_of(nosy.id).await, ["organization.create Success"]);
        // From the first sign-in there on, it is theirs to know too.
        fixture.attempt("marble window thimble").await.unwrap();
        assert!(matches!(fixture.attempt("another password").await, Err(LoginError::Credentials(_))));
        let expected = ["organization.create Success", "auth.login Success", "auth.login Failure"];
        assert_eq!(fixture.actions_of(nosy.id).await, expected);
    }
}

#[tokio::test]
async fn an_address_of_several_organizations_chooses() {
    for fixture in Fixture::each().await {
        let password = SecretString::from(PASSWORD);
        // They are offered in the order in which they were made.
        fixture.clock.advance(TimeDelta::seconds(1));
        let new = NewOrganization {
            name: &Name::parse("Beta").unwrap(),
            owner: &fixture.email,
            owner_name: None,
            password: Some(&password),
            platform_administrator: false,
            actor: "system",
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
            client: Client::UNKNOWN,
            devices: &[],
            user_agent: "",
        };
        let signed_in = fixture.identity.login(&fixture.store, &fixture.clock, attempt).await.unwrap();
        assert_eq!(signed_in.organization_id, beta.id);
    }
}

/// Anybody can have twenty identity connections, and make a user of anybody's address.
#[tokio::test]
async fn nobodys_place_to_sign_in_is_pushed_out_by_others() {
    for fixture in Fixture::each().await {
        let (store, clock) = (&fixture.store, &fixture.clock);
        let eve = Email::parse("eve@example.com").unwrap();
        let new = NewOrganization {
            name: &Name::parse("Nosy").unwrap(),
            owner: &eve,
            owner_name: None,
            password: None,
            platform_administrator: false,
            actor: "system",
        };
        let made = create_organization(store, clock, &fixture.identity.passwords, &new).await;
        let (nosy, nosy_owner) = made.unwrap();
        let mut tx = store.begin().await.unwrap();
        let mut typed_in = users::get(&mut tx, nosy.id, nosy_owner).await.unwrap().unwrap();
        (typed_in.id, typed_in.email) = (clock.id(), fixture.email.as_str().to_owned());
        users::insert(&mut tx, &typed_in, None).await.unwrap();
        users::confirm(&mut tx, fixture.organization, fixture.user, clock.now()).await.unwrap();
        let mut last = None;
        for n in 0..=20 {
            clock.advance(TimeDelta::seconds(1));
            let connection = Connection {
                id: clock.id(),
                organization_id: if n == 20 { fixture.organization } else { nosy.id },
                kind: Kind::IdentityProvider,
                name: format!("connection {n}"),
                plugin: "oidc".to_owned(),
                plugin_version: None,
                plugin_line: None,
                config: Json(serde_json::json!({})),
                secrets: Vec::new(),
                secret_names: Json(Vec::new()),
                environment: None,
                labels: Json(std::collections::BTreeMap::new()),
                active: true,
                created_at: clock.now(),
                updated_at: clock.now(),
                revision: 1,
            };
            connections::insert(&mut tx, &connection).await.unwrap();
            last = Some(connection.id);
        }
        tx.commit().await.unwrap();
        let found = sso::sign_in_connections(&mut store.read().await.unwrap(), &fixture.email, 20).await.unwrap();
        assert_eq!((found.len(), found.first().map(|connection| connection.id)), (20, last));
        // Somebody signs in to the user that they typed in.
        let mut tx = store.begin().await.unwrap();
        users::confirm(&mut tx, nosy.id, typed_in.id, clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let found = sso::sign_in_connections(&mut store.read().await.unwrap(), &fixture.email, 20).await.unwrap();
        assert_eq!((found.len(), found.get(1).map(|connection| connection.id)), (20, last));
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
