use chrono::TimeDelta;
use serde_json::json;

use super::*;
use crate::{
    audit::{Record, record},
    clock::Clock,
    domain::audit::Outcome,
    jobs::fixture::{Fixture, Tenant},
};

const LEASE: TimeDelta = TimeDelta::seconds(30);

async fn events(fixture: &Fixture, tenant: &Tenant, count: i64) {
    let mut tx = fixture.store.begin().await.unwrap();
    for n in 0..count {
        let event = Record {
            organization_id: tenant.organization,
            actor: "system".to_owned(),
            action: "agent.update",
            target: "agent/1".to_owned(),
            outcome: Outcome::Success,
            details: json!({ "n": n }),
        };
        record(&mut tx, &Clock::system(), event).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn claim_at(fixture: &Fixture, tenant: &Tenant, sink: AuditSinkId, now: DateTime<Utc>) -> Option<Cursor> {
    let mut tx = fixture.store.begin().await.unwrap();
    let cursor = claim(&mut tx, tenant.organization, sink, "d", now, now + LEASE).await.unwrap();
    tx.commit().await.unwrap();
    cursor
}

async fn state_of(fixture: &Fixture, tenant: &Tenant, sink: AuditSinkId) -> Delivery {
    state(&mut fixture.store.read().await.unwrap(), tenant.organization, sink).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_sink_begins_where_the_chain_ends_when_it_is_made() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        events(&fixture, &tenant, 3).await;
        let sink = fixture.sink(&tenant).await;
        let later = Clock::system().now() + TimeDelta::seconds(1);
        assert!(due(&mut fixture.store.read().await.unwrap(), later, 10, 3).await.unwrap().is_empty());
        events(&fixture, &tenant, 2).await;
        let waiting = due(&mut fixture.store.read().await.unwrap(), later, 10, 3).await.unwrap();
        assert_eq!(waiting, [(tenant.organization, sink)]);
        let seen = state_of(&fixture, &tenant, sink).await;
        assert_eq!((seen.delivered_sequence, seen.head_sequence, seen.lag, seen.failures), (3, 5, 2, 0));
        assert_eq!(lag(&mut fixture.store.read().await.unwrap()).await.unwrap(), [("file".to_owned(), 2)]);
    }
}

#[tokio::test]
async fn one_tenant_does_not_take_the_places_of_others() {
    for fixture in Fixture::each().await {
        let (greedy, other) = (fixture.tenant().await, fixture.tenant().await);
        let mut sinks = Vec::new();
        for _ in 0..6 {
            sinks.push(fixture.sink(&greedy).await);
        }
        let only = fixture.sink(&other).await;
        events(&fixture, &greedy, 1).await;
        events(&fixture, &other, 1).await;
        let later = Clock::system().now() + TimeDelta::seconds(1);
        let waiting = || async {
            let found = due(&mut fixture.store.read().await.unwrap(), later, 10, 3).await.unwrap();
            let own = found.iter().filter(|(organization, _)| *organization == greedy.organization).count();
            (own, found.contains(&(other.organization, only)))
        };
        assert_eq!(waiting().await, (3, true));
        for (sink, left) in sinks.iter().zip([2, 1, 0, 0]) {
            claim_at(&fixture, &greedy, *sink, later).await.unwrap();
            assert_eq!(waiting().await, (left, true));
        }
    }
}

#[tokio::test]
async fn one_host_at_a_time_delivers_and_a_stalled_one_moves_nothing() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let sink = fixture.sink(&tenant).await;
        events(&fixture, &tenant, 5).await;
        let now = Clock::system().now();
        let stalled = claim_at(&fixture, &tenant, sink, now).await.unwrap();
        assert!(claim_at(&fixture, &tenant, sink, now).await.is_none());
        assert!(due(&mut fixture.store.read().await.unwrap(), now, 10, 3).await.unwrap().is_empty());
        let successor = claim_at(&fixture, &tenant, sink, now + LEASE).await.unwrap();
        let mut tx = fixture.store.begin().await.unwrap();
        assert!(matches!(delivered(&mut tx, &stalled, 5, now, now).await, Err(StoreError::Stale)));
        assert!(matches!(renew(&mut tx, &stalled, now).await, Err(StoreError::Stale)));
        assert!(matches!(failed(&mut tx, &stalled, "x", now).await, Err(StoreError::Stale)));
        delivered(&mut tx, &successor, 2, now, now + LEASE).await.unwrap();
        release(&mut tx, &successor).await.unwrap();
        tx.commit().await.unwrap();
        let seen = state_of(&fixture, &tenant, sink).await;
        assert_eq!((seen.delivered_sequence, seen.lag), (2, 3));
        assert!(seen.delivered_at.is_some());
        assert_eq!(claim_at(&fixture, &tenant, sink, now + LEASE).await.unwrap().sequence, 2);
    }
}

#[tokio::test]
async fn a_failing_sink_waits_shows_why_and_is_tried_at_once_when_it_was_changed() {
    for fixture in Fixture::each().await {
        let tenant = fixture.tenant().await;
        let sink = fixture.sink(&tenant).await;
        events(&fixture, &tenant, 1).await;
        let now = Clock::system().now();
        let cursor = claim_at(&fixture, &tenant, sink, now).await.unwrap();
        let mut tx = fixture.store.begin().await.unwrap();
        failed(&mut tx, &cursor, "unauthorized", now + TimeDelta::hours(1)).await.unwrap();
        tx.commit().await.unwrap();
        let seen = state_of(&fixture, &tenant, sink).await;
        assert_eq!((seen.failures, seen.last_error.as_deref()), (1, Some("unauthorized")));
        assert_eq!(seen.next_attempt_at, Some(now + TimeDelta::hours(1)));
        assert!(claim_at(&fixture, &tenant, sink, now + TimeDelta::minutes(59)).await.is_none());
        let mut tx = fixture.store.begin().await.unwrap();
        let sql = "UPDATE connections SET updated_at = $2 WHERE id = $1";
        on!(&mut tx, |c| sqlx::query(sql).bind(sink).bind(now).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
        let again = claim_at(&fixture, &tenant, sink, now).await.unwrap();
        assert_eq!((again.sequence, again.attempt), (0, 1));
    }
}

#[tokio::test]
async fn another_tenant_s_sink_is_not_there() {
    for fixture in Fixture::each().await {
        let (owner, other) = (fixture.tenant().await, fixture.tenant().await);
        let sink = fixture.sink(&owner).await;
        let mut tx = fixture.store.begin().await.unwrap();
        assert!(state(&mut tx, other.organization, sink).await.unwrap().is_none());
        let now = Clock::system().now();
        assert!(claim(&mut tx, other.organization, sink, "d", now, now + LEASE).await.unwrap().is_none());
    }
}
