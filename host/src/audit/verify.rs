//! Does a chain hold: every hash is computed again, from the first event to the head.

use serde::Serialize;

use crate::{
    domain::{
        audit::{GENESIS, chain_hash},
        id::OrganizationId,
    },
    store::{self, Store, StoreError},
};

/// Events read at once.
const BATCH: i64 = 500;

/// What verifying the chain of an audit trail found.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditVerification, example = json!({
    "valid": true,
    "events": 42,
    "head": { "sequence": 42, "hash": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c" }
}))]
pub struct Report {
    /// Whether the chain holds from its first event to its head.
    pub valid: bool,
    /// How many events were checked and hold.
    #[schema(minimum = 0)]
    pub events: i64,
    /// Where the chain ended when verification began.
    pub head: Head,
    /// The first place where the chain does not hold; absent if it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub first_fault: Option<Fault>,
}

/// The end of a chain, as it was when verification began.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditChainHead)]
pub struct Head {
    /// The last event's place in the chain; 0 for an empty chain.
    #[schema(minimum = 0)]
    pub sequence: i64,
    /// The last event's hash; 64 zeros for an empty chain.
    pub hash: String,
}

/// Where a chain does not hold, and how.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditChainFault)]
pub struct Fault {
    /// The event's place in the chain; 0 where the chain's end itself is not there.
    #[schema(minimum = 0)]
    pub sequence: i64,
    /// What is wrong with the event.
    pub kind: FaultKind,
    /// What is wrong, as a sentence.
    pub message: String,
}

/// How a chain does not hold: the event is not there (`missing`), it is not the one that was recorded or not at this place
/// (`altered`), or the recorded end of the chain is not the hash of its last event or is not there (`head`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditChainFaultKind)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The event is not there.
    Missing,
    /// The event is not the one that was recorded, or not at this place.
    Altered,
    /// The chain's recorded end is not the hash of its last event, or is not there.
    Head,
}

/// Verifies an organization's chain; none if there is neither such an organization nor an event of it. Events recorded meanwhile are left out.
///
/// # Errors
/// As the database says.
pub async fn verify(store: &Store, organization: OrganizationId) -> Result<Option<Report>, StoreError> {
    let recorded = store::audit::head(&mut store.read().await?, organization).await?;
    let fault = |sequence, kind, message: String| Some(Fault { sequence, kind, message });
    let Some((sequence, hash)) = recorded else {
        if !store::audit::is_expected(&mut store.read().await?, organization).await? {
            return Ok(None);
        }
        let message = "the chain's head is not there: it was removed, and how many events there were is not known";
        let first_fault = fault(0, FaultKind::Head, message.to_owned());
        let head = Head { sequence: 0, hash: GENESIS.to_owned() };
        return Ok(Some(Report { valid: false, events: 0, head, first_fault }));
    };
    let head = Head { sequence, hash };
    let (mut checked, mut previous) = (0, GENESIS.to_owned());
    let first_fault = 'chain: loop {
        // A connection for each batch: a long chain must not keep one from the requests.
        let batch = store::audit::after(&mut store.read().await?, organization, checked, BATCH).await?;
        if batch.is_empty() && checked < head.sequence {
            let missing = checked + 1;
            break fault(missing, FaultKind::Missing, format!("event {missing} and all after it are not there"));
        }
        for event in &batch {
            if event.sequence > head.sequence {
                break;
            }
            let expected = checked + 1;
            if event.sequence != expected {
                break 'chain fault(expected, FaultKind::Missing, format!("event {expected} is not there"));
            }
            if chain_hash(&previous, event) != event.hash {
                let message = format!("event {expected} is not as it was recorded, or not where it was recorded");
                break 'chain fault(expected, FaultKind::Altered, message);
            }
            (checked, previous) = (expected, event.hash.clone());
        }
        if checked >= head.sequence {
            break None;
        }
    };
    let first_fault = first_fault.or_else(|| {
        let message = "the chain's head is not the hash of its last event".to_owned();
        if previous == head.hash { None } else { fault(head.sequence, FaultKind::Head, message) }
    });
    Ok(Some(Report { valid: first_fault.is_none(), events: checked, head, first_fault }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::{
        audit::{Record, record},
        clock::Clock,
        domain::audit::Outcome,
        on,
    };

    const ORGANIZATION: OrganizationId = OrganizationId(Uuid::from_u128(7));

    struct Chain {
        store: Store,
        _folder: tempfile::TempDir,
    }

    impl Chain {
        /// More than one batch.
        async fn of(events: i64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("audit.db").display());
            let store = Store::connect(&url, &Default::default()).await.unwrap();
            store.migrate().await.unwrap();
            let mut tx = store.begin().await.unwrap();
            store::audit::begin_chain(&mut tx, ORGANIZATION).await.unwrap();
            for n in 0..events {
                let record_ = Record {
                    organization_id: ORGANIZATION,
                    actor: format!("user/{}", n % 3),
                    action: "agent.update",
                    target: "agent/1".to_owned(),
                    outcome: Outcome::Success,
                    details: json!({ "n": n }),
                };
                record(&mut tx, &Clock::system(), record_).await.unwrap();
            }
            tx.commit().await.unwrap();
            Self { store, _folder: folder }
        }

        /// As somebody with the database file in their hands would.
        async fn tamper(&self, statements: &[&'static str]) {
            let mut tx = self.store.begin().await.unwrap();
            for trigger in ["audit_follows", "audit_advance", "audit_no_update", "audit_no_delete"] {
                let drop = sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"));
                on!(&mut tx, |c| sqlx::query(drop).execute(c).await.map(|_| ())).unwrap();
            }
            for statement in statements {
                let rows = on!(&mut tx, |c| sqlx::query(*statement).execute(c).await.map(|done| done.rows_affected()));
                assert!(rows.unwrap() > 0, "{statement}");
            }
            tx.commit().await.unwrap();
        }

        async fn report(&self) -> Report {
            verify(&self.store, ORGANIZATION).await.unwrap().unwrap()
        }

        async fn fault(&self) -> (i64, FaultKind) {
            let report = self.report().await;
            assert!(!report.valid);
            let fault = report.first_fault.unwrap();
            (fault.sequence, fault.kind)
        }
    }

    #[tokio::test]
    async fn an_untouched_chain_holds_over_several_batches() {
        let chain = Chain::of(BATCH + 10).await;
        let report = chain.report().await;
        assert_eq!((report.valid, report.events, report.head.sequence), (true, BATCH + 10, BATCH + 10));
    }

    #[tokio::test]
    async fn an_empty_chain_holds_and_an_unknown_organization_has_none() {
        let chain = Chain::of(0).await;
        assert!(chain.report().await.valid);
        let unknown = OrganizationId(Uuid::from_u128(8));
        assert_eq!(verify(&chain.store, unknown).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_database_itself_refuses_edits_and_forks() {
        let chain = Chain::of(3).await;
        let mut tx = chain.store.begin().await.unwrap();
        for statement in
            ["UPDATE audit_events SET actor = 'x' WHERE sequence = 2", "DELETE FROM audit_events WHERE sequence = 3"]
        {
            assert!(on!(&mut tx, |c| sqlx::query(statement).execute(c).await.map(drop)).is_err(), "{statement}");
        }
        drop(tx);
        assert!(chain.report().await.valid);
    }

    #[tokio::test]
    async fn an_edited_event_is_found() {
        for column in
            ["actor = 'user/9'", "details = '{}'", "occurred_at = '2020-01-01T00:00:00+00:00'", "outcome = 'denied'"]
        {
            let chain = Chain::of(5).await;
            let statement: &'static str =
                Box::leak(format!("UPDATE audit_events SET {column} WHERE sequence = 3").into_boxed_str());
            chain.tamper(&[statement]).await;
            assert_eq!(chain.fault().await, (3, FaultKind::Altered), "{column}");
        }
    }

    #[tokio::test]
    async fn an_edited_event_with_its_own_hash_recomputed_breaks_the_next() {
        let chain = Chain::of(5).await;
        let mut events =
            store::audit::after(&mut chain.store.read().await.unwrap(), ORGANIZATION, 0, 10).await.unwrap();
        let before = events[1].hash.clone();
        let event = &mut events[2];
        event.actor = "user/9".to_owned();
        let statement = format!(
            "UPDATE audit_events SET actor = 'user/9', hash = '{}' WHERE sequence = 3",
            chain_hash(&before, event)
        );
        chain.tamper(&[Box::leak(statement.into_boxed_str())]).await;
        assert_eq!(chain.fault().await, (4, FaultKind::Altered));
    }

    #[tokio::test]
    async fn a_dropped_event_is_found_in_the_middle_and_at_the_end() {
        let chain = Chain::of(5).await;
        chain.tamper(&["DELETE FROM audit_events WHERE sequence = 3"]).await;
        assert_eq!(chain.fault().await, (3, FaultKind::Missing));
        let chain = Chain::of(5).await;
        chain.tamper(&["DELETE FROM audit_events WHERE sequence = 5"]).await;
        assert_eq!(chain.fault().await, (5, FaultKind::Missing));
    }

    #[tokio::test]
    async fn a_closed_gap_is_found() {
        let chain = Chain::of(5).await;
        chain
            .tamper(&[
                "DELETE FROM audit_events WHERE sequence = 3",
                "UPDATE audit_events SET sequence = sequence - 1 WHERE sequence > 3",
            ])
            .await;
        assert_eq!(chain.fault().await, (3, FaultKind::Altered));
    }

    #[tokio::test]
    async fn reordered_events_are_found() {
        let chain = Chain::of(5).await;
        chain
            .tamper(&[
                "UPDATE audit_events SET sequence = 99 WHERE sequence = 2",
                "UPDATE audit_events SET sequence = 2 WHERE sequence = 4",
                "UPDATE audit_events SET sequence = 4 WHERE sequence = 99",
            ])
            .await;
        assert_eq!(chain.fault().await, (2, FaultKind::Altered));
    }

    #[tokio::test]
    async fn a_shortened_chain_whose_head_was_moved_back_keeps_no_matching_hash() {
        let chain = Chain::of(5).await;
        chain.tamper(&["DELETE FROM audit_events WHERE sequence = 5", "UPDATE audit_heads SET sequence = 4"]).await;
        assert_eq!(chain.fault().await, (4, FaultKind::Head));
    }

    #[tokio::test]
    async fn a_head_that_was_removed_is_told_with_and_without_its_chain() {
        let chain = Chain::of(5).await;
        chain.tamper(&["DELETE FROM audit_heads"]).await;
        assert_eq!(store::audit::chains(&mut chain.store.read().await.unwrap()).await.unwrap(), [ORGANIZATION]);
        assert_eq!(chain.fault().await, (0, FaultKind::Head));

        let chain = Chain::of(5).await;
        let organization = "INSERT INTO organizations (id, revision, name, created_at, updated_at)
                            SELECT organization_id, 1, 'Acme', MIN(occurred_at), MIN(occurred_at) FROM audit_events";
        chain.tamper(&[organization, "DELETE FROM audit_events", "DELETE FROM audit_heads"]).await;
        assert_eq!(store::audit::chains(&mut chain.store.read().await.unwrap()).await.unwrap(), [ORGANIZATION]);
        assert_eq!(chain.fault().await, (0, FaultKind::Head));
    }
}
