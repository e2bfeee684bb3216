//! Links to people at identity providers, those of an earlier version among them.

use super::*;
use crate::{clock::Clock, store::fixture::Database};

/// A tenant with one user and two identity connections, in the database as it was before links had an issuer.
struct Old {
    organization: OrganizationId,
    user: UserId,
    oidc: Uuid,
    other: Uuid,
}

const ISSUER: &str = "https://id.example.com";

impl Old {
    async fn insert(tx: &mut Tx, now: DateTime<Utc>) -> Self {
        let new = || Clock::system().id::<Uuid>();
        let old = Self { organization: OrganizationId(new()), user: UserId(new()), oidc: new(), other: new() };
        let sql = "INSERT INTO organizations (id, name, created_at, updated_at) VALUES ($1, 'Acme', $2, $2)";
        on!(tx, |c| sqlx::query(sql).bind(old.organization).bind(now).execute(c).await.map(drop)).unwrap();
        for (id, email) in [(old.user, "ada@example.com"), (UserId(new()), "typed-in@example.com")] {
            let sql = "INSERT INTO users (id, organization_id, email, name, active, platform_administrator, attributes,
                                          created_at, updated_at)
                       VALUES ($1, $2, $3, 'Ada', TRUE, FALSE, $4, $5, $5)";
            let attributes = sqlx::types::Json(serde_json::Map::new());
            on!(tx, |c| sqlx::query(sql)
                .bind(id)
                .bind(old.organization)
                .bind(email)
                .bind(&attributes)
                .bind(now)
                .execute(c)
                .await
                .map(drop))
            .unwrap();
        }
        for (id, plugin) in [(old.oidc, "oidc"), (old.other, "github")] {
            let sql = "INSERT INTO connections (id, organization_id, kind, name, plugin, config, secrets, secret_names, labels,
                                                active, created_at, updated_at)
                       VALUES ($1, $2, 'identity_provider', $3, $3, $4, $5, $6, $7, TRUE, $8, $8)";
            let config = sqlx::types::Json(serde_json::json!({ "issuer": ISSUER }));
            let (names, labels) = (sqlx::types::Json(Vec::<String>::new()), sqlx::types::Json(serde_json::Map::new()));
            on!(tx, |c| sqlx::query(sql)
                .bind(id)
                .bind(old.organization)
                .bind(plugin)
                .bind(&config)
                .bind(Vec::<u8>::new())
                .bind(&names)
                .bind(&labels)
                .bind(now)
                .execute(c)
                .await
                .map(drop))
            .unwrap();
            let sql =
                "INSERT INTO accounts (organization_id, connection_id, subject, user_id, created_at, last_sign_in_at)
                       VALUES ($1, $2, 'subject', $3, $4, $4)";
            on!(tx, |c| sqlx::query(sql)
                .bind(old.organization)
                .bind(id)
                .bind(old.user)
                .bind(now)
                .execute(c)
                .await
                .map(drop))
            .unwrap();
        }
        old
    }

    fn provider<'a>(&self, connection: Uuid, issuer: &'a str) -> Provider<'a> {
        Provider { organization: self.organization, connection, issuer }
    }
}

#[tokio::test]
async fn links_of_an_earlier_version_still_lead_to_their_users() {
    for database in Database::each_after(11).await {
        let (store, now) = (&database.store, Clock::system().now());
        let mut tx = store.begin().await.unwrap();
        let old = Old::insert(&mut tx, now).await;
        tx.commit().await.unwrap();
        store.migrate().await.unwrap();

        let mut tx = store.begin().await.unwrap();
        let links = list(&mut tx, old.organization, old.user, Uuid::nil(), 10).await.unwrap();
        let mut issuers: Vec<_> = links.iter().map(|link| (link.connection_id, link.issuer.as_str())).collect();
        issuers.sort_unstable();
        let mut expected = [(old.oidc, ISSUER), (old.other, "")];
        expected.sort_unstable();
        assert_eq!(issuers, expected);
        assert!(links.iter().all(|link| link.created_at == now && link.subject == "subject"), "{links:?}");
        let of = |connection, issuer| old.provider(connection, issuer);
        assert_eq!(find(&mut tx, of(old.oidc, ISSUER), "subject").await.unwrap().unwrap().1, old.user);
        assert!(find(&mut tx, of(old.oidc, "https://other.example.com"), "subject").await.unwrap().is_none());
        // One whose issuer is not known is of the one that its connection has, and of no other from the next sign-in on.
        let (link, user) = find(&mut tx, of(old.other, "https://one.example.com"), "subject").await.unwrap().unwrap();
        assert_eq!(user, old.user);
        signed_in(&mut tx, of(old.other, "https://one.example.com"), link, now).await.unwrap();
        assert!(find(&mut tx, of(old.other, "https://two.example.com"), "subject").await.unwrap().is_none());

        // Who was seen to use their address is known; what was typed in is not.
        let sql = "SELECT email FROM users WHERE confirmed_at IS NOT NULL";
        let confirmed: Vec<String> = on!(&mut tx, |c| sqlx::query_scalar(sql).fetch_all(c).await).unwrap();
        assert_eq!(confirmed, ["ada@example.com"]);
        tx.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_link_that_was_removed_meanwhile_signs_nobody_in() {
    for database in Database::each_after(11).await {
        let (store, now) = (&database.store, Clock::system().now());
        let mut tx = store.begin().await.unwrap();
        let old = Old::insert(&mut tx, now).await;
        tx.commit().await.unwrap();
        store.migrate().await.unwrap();
        let provider = old.provider(old.oidc, ISSUER);
        let (link, user) = find(&mut store.read().await.unwrap(), provider, "subject").await.unwrap().unwrap();
        let mut tx = store.begin().await.unwrap();
        assert!(remove(&mut tx, old.organization, user, link).await.unwrap().is_some());
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let signed_in = signed_in(&mut tx, provider, link, now).await;
        assert!(matches!(signed_in, Err(StoreError::Stale)), "{signed_in:?}");
        tx.rollback().await.unwrap();
    }
}
