//! Who a session is of.

use serde_json::json;

use super::*;
use crate::store::{Store, fixture::Database};

const ROLES: usize = 4;

fn id<T: From<Uuid>>(n: usize) -> T {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n as u128).into()
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// The first user has two sessions and the second one; each has a role in each of some workspaces.
async fn seed(store: &Store) -> Vec<Named> {
    let mut tx = store.begin().await.unwrap();
    let organization: Uuid = id(0);
    let sql = "INSERT INTO organizations (id, name, created_at, updated_at) VALUES ($1, 'o', $2, $2)";
    on!(&mut tx, |c| sqlx::query(sql).bind(organization).bind(now()).execute(c).await.map(drop)).unwrap();
    for n in 1..=ROLES {
        let sql = "INSERT INTO workspaces (id, organization_id, name, description, created_at, updated_at)
                   VALUES ($1, $2, $3, '', $4, $4)";
        on!(&mut tx, |c| sqlx::query(sql)
            .bind(id::<Uuid>(10 + n))
            .bind(organization)
            .bind(format!("workspace {n}"))
            .bind(now())
            .execute(c)
            .await
            .map(drop))
        .unwrap();
    }
    let mut sessions = Vec::new();
    for (user, count) in [(1, 2), (2, 1)] {
        let email = format!("u{user}@example.com");
        let attributes = json!({ "level": user });
        let sql = "INSERT INTO users (id, organization_id, email, name, active, platform_administrator, attributes, created_at, updated_at)
                   VALUES ($1, $2, $3, 'n', TRUE, FALSE, $4, $5, $5)";
        on!(&mut tx, |c| sqlx::query(sql)
            .bind(id::<Uuid>(user))
            .bind(organization)
            .bind(&email)
            .bind(Json(&attributes))
            .bind(now())
            .execute(c)
            .await
            .map(drop))
        .unwrap();
        for n in 1..=ROLES {
            let sql =
                "INSERT INTO memberships (id, organization_id, user_id, role, workspace_id, created_at, updated_at)
                       VALUES ($2, $5, $3, 'viewer', $4, $1, $1)";
            on!(&mut tx, |c| sqlx::query(sql)
                .bind(now())
                .bind(id::<Uuid>(100 * user + n))
                .bind(id::<Uuid>(user))
                .bind(id::<Uuid>(10 + n))
                .bind(organization)
                .execute(c)
                .await
                .map(drop))
            .unwrap();
        }
        for n in 0..count {
            let named = Named { organization: organization.into(), user: id(user), session: id(1000 * user + n) };
            let session = NewSession {
                id: named.session,
                organization_id: named.organization,
                user_id: named.user,
                method: "password",
                cookie_hash: named.session.0.as_bytes(),
                refresh_family: &[],
                user_agent: "",
                created_at: now(),
                expires_at: now() + chrono::TimeDelta::hours(1),
            };
            insert(&mut tx, &session).await.unwrap();
            sessions.push(named);
        }
    }
    tx.commit().await.unwrap();
    sessions
}

#[tokio::test]
async fn attributes_are_read_once_for_each_session_however_many_roles_it_has() {
    for database in Database::each().await {
        let store = &database.store;
        let sessions = seed(store).await;
        let live = (now(), now() - chrono::TimeDelta::hours(1));
        let mut conn = store.read().await.unwrap();
        let found = by_ids(&mut conn, &sessions, live).await.unwrap();
        for named in &sessions {
            let alone = by_ids(&mut conn, std::slice::from_ref(named), live).await.unwrap();
            for found in [&found[named], &alone[named]] {
                let user = if named.user == id(1) { 1 } else { 2 };
                assert_eq!(found.principal.attributes["level"], user, "{found:?}");
                assert_eq!(found.principal.grants.len(), ROLES, "{found:?}");
            }
        }
        let sql = principal_by!("", "s.organization_id = $3");
        for first in 0..ROLES * sessions.len() {
            let mut rows: Vec<Row> = on!(&mut conn, |c| {
                sqlx::query_as(sql).bind(live.0).bind(live.1).bind(sessions[0].organization).fetch_all(c).await
            })
            .unwrap();
            assert_eq!(rows.len(), ROLES * sessions.len());
            let with = |named: &Named| {
                let of_it = rows.iter().filter(|row| row.session_id == Some(named.session));
                of_it.filter(|row| row.attributes.is_some()).count()
            };
            assert_eq!(sessions.iter().map(with).collect::<Vec<_>>(), [1, 1, 1]);
            // The database gives them in any order.
            rows.rotate_left(first);
            for named in &sessions {
                let own: Vec<Row>;
                (own, rows) = rows.into_iter().partition(|row| row.session_id == Some(named.session));
                let principal = seen(own).unwrap().unwrap().principal;
                assert!(principal.attributes["level"].is_number() && principal.grants.len() == ROLES);
            }
        }
    }
}
