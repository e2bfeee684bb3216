//! Addresses of an earlier version.

use chrono::TimeDelta;
use uuid::Uuid;

use super::fixture::Fixture;
use crate::{
    domain::user::User,
    identity::respell::{Address, BATCH, address, addresses, all},
    store::users::{get, insert, not_ascii},
};

/// Users with these addresses, beside the owner.
async fn users_of(fixture: &Fixture, emails: &[&str]) -> Vec<User> {
    let mut tx = fixture.store.begin().await.unwrap();
    let owner = get(&mut tx, fixture.organization, fixture.user).await.unwrap().unwrap();
    let mut made = Vec::new();
    for email in emails {
        let user = User { id: fixture.clock.id(), email: (*email).to_owned(), ..owner.clone() };
        insert(&mut tx, &user, None).await.unwrap();
        made.push(user);
    }
    tx.commit().await.unwrap();
    made
}

async fn emails(fixture: &Fixture, users: &[User]) -> Vec<String> {
    let mut conn = fixture.store.read().await.unwrap();
    let mut emails = Vec::new();
    for user in users {
        emails.push(get(&mut conn, fixture.organization, user.id).await.unwrap().unwrap().email);
    }
    emails
}

const STORED: [&str; 4] =
    ["ada@b\u{fc}cher.example", "ada@xn--strae-oqa.example", "ada@stra\u{df}e.example", "j\u{f6}rg@x.example"];
/// The third is another user's already, the fourth is none that is accepted.
const SPELLED: [&str; 4] =
    ["ada@xn--bcher-kva.example", "ada@xn--strae-oqa.example", "ada@stra\u{df}e.example", "j\u{f6}rg@x.example"];

/// Addresses whose domains were stored as they are written, before they were compared by their A-labels.
#[tokio::test]
async fn addresses_of_an_earlier_version_are_spelled_as_they_are_compared() {
    for fixture in Fixture::each().await {
        let users = users_of(&fixture, &STORED).await;
        // Two hosts that start together.
        let start = || {
            let (store, clock) = (fixture.store.clone(), fixture.clock.clone());
            tokio::spawn(async move { all(&store, &clock).await })
        };
        let (one, two) = (start(), start());
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        assert_eq!(emails(&fixture, &users).await, SPELLED);
        assert_eq!(fixture.actions().await, ["organization.create Success", "user.update Success"], "once");
    }
}

#[tokio::test]
async fn a_host_that_comes_too_late_changes_nothing_and_complains_of_nobody() {
    for fixture in Fixture::each().await {
        let (store, clock) = (&fixture.store, &fixture.clock);
        let users = users_of(&fixture, &STORED).await;
        let seen = not_ascii(&mut store.read().await.unwrap(), Uuid::nil(), BATCH).await.unwrap();
        assert_eq!(seen.len(), 3);
        all(store, clock).await.unwrap();
        for user in seen {
            let expected = match user.email.as_str() {
                "ada@b\u{fc}cher.example" => Address::ChangedMeanwhile,
                _ => Address::NotAccepted,
            };
            assert_eq!(address(store, clock, &user).await.unwrap(), expected, "{}", user.email);
        }
        assert_eq!(emails(&fixture, &users).await, SPELLED);
        assert_eq!(fixture.actions().await, ["organization.create Success", "user.update Success"], "once");
    }
}

#[tokio::test]
async fn addresses_are_looked_through_for_a_week_after_an_upgrade() {
    for fixture in Fixture::each().await {
        // The fixture's host has started already; a host of the earlier version still writes.
        let users = users_of(&fixture, &STORED[..1]).await;
        addresses(&fixture.store, &fixture.clock).await.unwrap();
        assert_eq!(emails(&fixture, &users).await, SPELLED[..1]);
        fixture.clock.advance(TimeDelta::days(8));
        let users = users_of(&fixture, &STORED[2..3]).await;
        addresses(&fixture.store, &fixture.clock).await.unwrap();
        assert_eq!(emails(&fixture, &users).await, STORED[2..3]);
    }
}
