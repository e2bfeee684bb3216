//! Policy sets as they are stored: loaded by version, in force at once, and of their own organization only.

use super::{super::Authz, *};
use crate::{
    clock::Clock,
    domain::{
        id::{PolicySetId, PolicyVersionId},
        policy::{PolicySet, PolicyText, PolicyVersion},
        tenancy::Organization,
    },
    store::{Store, StoreError, fixture::Database, organizations, policies},
};

struct Stored {
    store: Store,
    authz: Authz,
    _database: Database,
}

impl Stored {
    async fn new() -> Self {
        Self::on(Database::sqlite().await).await
    }

    async fn on(database: Database) -> Self {
        let store = database.store.clone();
        let mut tx = store.begin().await.unwrap();
        for n in [1, 2] {
            let organization = Organization {
                id: id(n),
                name: format!("Organization {n}"),
                policy_version_id: None,
                created_at: now(),
                updated_at: now(),
                revision: 1,
            };
            organizations::insert(&mut tx, &organization).await.unwrap();
        }
        tx.commit().await.unwrap();
        Self {
            store,
            authz: Authz::new(Clock::fixed(now(), 7), &ServerLimits::default()).unwrap(),
            _database: database,
        }
    }

    async fn set(&self, organization: u128, n: u128) -> PolicySetId {
        let set = PolicySet {
            id: id(1000 + n),
            organization_id: id(organization),
            name: format!("set {n}"),
            description: String::new(),
            active_version: None,
            latest_version: None,
            created_by: id(100),
            created_at: now(),
            updated_at: now(),
            revision: 1,
        };
        let mut tx = self.store.begin().await.unwrap();
        policies::insert(&mut tx, &set).await.unwrap();
        tx.commit().await.unwrap();
        set.id
    }

    async fn version(&self, organization: u128, set: PolicySetId, n: u128, text: &str) -> PolicyVersionId {
        let mut tx = self.store.begin().await.unwrap();
        let number = policies::next_number(&mut tx, id(organization), set).await.unwrap().unwrap();
        let version = PolicyVersion {
            id: id(2000 + n),
            policy_id: set,
            number,
            digest: String::new(),
            note: String::new(),
            created_by: id(100),
            created_at: now(),
        };
        let version_id = version.id;
        let written = PolicyText { version, text: text.into() };
        policies::insert_version(&mut tx, id(organization), &written, &Default::default()).await.unwrap();
        tx.commit().await.unwrap();
        version_id
    }

    async fn reason(&self, version: Option<PolicyVersionId>) -> Reason {
        let who = Principal { policy_version: version, ..person(&[(Role::Developer, None)]) };
        let context = Context::default();
        let decision = self.authz.check(&self.store, &who, Action::AgentRead, &agent(), &context).await.unwrap();
        let filtered = self.authz.filter(&self.store, &who, Action::AgentRead, &[agent(), agent()]).await.unwrap();
        assert_eq!(filtered, [decision.allowed; 2]);
        decision.reason
    }
}

const FORBID: &str = r#"forbid (principal, action == Kaizen::Action::"agent.read", resource);"#;

#[tokio::test]
async fn the_version_that_the_principal_carries_decides() {
    let stored = Stored::new().await;
    let set = stored.set(1, 1).await;
    let (open, closed) = (stored.version(1, set, 1, "").await, stored.version(1, set, 2, FORBID).await);
    for (version, reason) in [
        (None, Reason::Allowed),
        (Some(open), Reason::Allowed),
        (Some(closed), Reason::Forbidden),
        (Some(open), Reason::Allowed),
    ] {
        assert_eq!(stored.reason(version).await, reason);
    }
}

#[tokio::test]
async fn a_version_that_is_not_there_or_another_tenants_denies() {
    let stored = Stored::new().await;
    let theirs = stored.set(2, 1).await;
    let permits = stored.version(2, theirs, 1, "permit (principal, action, resource);").await;
    assert_eq!(stored.reason(Some(permits)).await, Reason::Error);
    assert_eq!(stored.reason(Some(id(9999))).await, Reason::Error);
    let broken = stored.version(2, theirs, 2, "permit (").await;
    let who = Principal { organization_id: id(2), policy_version: Some(broken), ..person(&[(Role::Developer, None)]) };
    let on = Resource { organization: id(2), ..agent() };
    let decision = stored.authz.check(&stored.store, &who, Action::AgentRead, &on, &Context::default()).await.unwrap();
    assert_eq!((decision.allowed, decision.reason), (false, Reason::Error));
    assert!(decision.sentence().contains("the policy set in force cannot be used"), "{}", decision.sentence());
}

#[tokio::test]
async fn what_is_in_force_is_the_organizations_own_and_stays_there() {
    let stored = Stored::new().await;
    let (ours, theirs) = (stored.set(1, 1).await, stored.set(2, 2).await);
    let own = stored.version(1, ours, 1, FORBID).await;
    let foreign = stored.version(2, theirs, 2, FORBID).await;
    let mut tx = stored.store.begin().await.unwrap();
    assert!(policies::put_in_force(&mut tx, acme(), Some(foreign), now()).await.is_err(), "another tenant's");
    drop(tx);
    let mut tx = stored.store.begin().await.unwrap();
    policies::put_in_force(&mut tx, acme(), Some(own), now()).await.unwrap();
    tx.commit().await.unwrap();
    let mut conn = stored.store.read().await.unwrap();
    let set = policies::get(&mut conn, acme(), ours).await.unwrap().unwrap();
    assert_eq!((set.active_version, set.latest_version), (Some(1), Some(1)));
    assert!(policies::get(&mut conn, acme(), theirs).await.unwrap().is_none());
    assert!(policies::version(&mut conn, acme(), theirs, 1).await.unwrap().is_none());
    drop(conn);
    let mut tx = stored.store.begin().await.unwrap();
    assert!(matches!(policies::delete(&mut tx, &set).await, Err(StoreError::Stale)), "it is in force");
    drop(tx);
    let mut tx = stored.store.begin().await.unwrap();
    assert_eq!(policies::in_force(&mut tx, acme()).await.unwrap(), Some(own));
    policies::put_in_force(&mut tx, acme(), None, now()).await.unwrap();
    assert!(matches!(policies::delete(&mut tx, &set).await, Err(StoreError::Stale)), "what is in force is part of it");
    let set = policies::get(&mut tx, acme(), ours).await.unwrap().unwrap();
    policies::delete(&mut tx, &set).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_machine_without_threads_denies_nobody_for_good() {
    let stored = Stored::new().await;
    let set = stored.set(1, 1).await;
    let open = stored.version(1, set, 1, "permit (principal, action, resource);").await;
    let who = Principal { policy_version: Some(open), ..person(&[(Role::Developer, None)]) };
    let context = Context::default();
    stored.authz.0.workers.exhaust(true);
    for _ in 0..2 {
        let decision = stored.authz.check(&stored.store, &who, Action::AgentRead, &agent(), &context).await;
        assert!(matches!(decision, Err(StoreError::Unavailable(_))), "{decision:?}");
    }
    let validated = stored.authz.validate(acme(), "permit (principal, action, resource);".into()).await;
    assert!(matches!(validated, Err(super::super::Invalid::Unavailable(_))), "{validated:?}");
    stored.authz.0.workers.exhaust(false);
    assert_eq!(stored.reason(Some(open)).await, Reason::Allowed);
}

#[tokio::test]
async fn of_an_organization_the_last_version_is_kept() {
    let stored = Stored::new().await;
    let set = stored.set(1, 1).await;
    for n in 1..6 {
        let version = stored.version(1, set, n, FORBID).await;
        assert_eq!(stored.reason(Some(version)).await, Reason::Forbidden);
    }
    assert_eq!(stored.authz.0.tenants.kept().await, 1);
}

#[tokio::test]
async fn what_cannot_be_written_of_one_organization_holds_up_no_other() {
    use crate::{
        authz::{About, Deciding},
        on,
    };
    let stored = Stored::new().await;
    let index = async |sql: &'static str| {
        let mut tx = stored.store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
    };
    let mut in_force = Vec::new();
    for n in [1, 2] {
        let set = stored.set(n, n).await;
        let version = stored.version(n, set, n, FORBID).await;
        let mut tx = stored.store.begin().await.unwrap();
        policies::put_in_force(&mut tx, id(n), Some(version), now()).await.unwrap();
        tx.commit().await.unwrap();
        in_force.push((id::<OrganizationId>(n), set, version));
    }
    let (written, refused) = (in_force[0], in_force[1]);
    let policy = About {
        id: "p".into(),
        origin: Origin::Tenant,
        permits: false,
        description: None,
        place: 0,
        line: 1,
        column: 1,
    };
    let erred = [Deciding { policy: policy.into(), error: Some("the same".into()) }];
    let counts = async |(organization, set, _): (OrganizationId, PolicySetId, PolicyVersionId)| {
        let mut conn = stored.store.read().await.unwrap();
        let rows = policies::errors(&mut conn, organization, set, 10).await.unwrap();
        rows.iter().map(|row| row.count).collect::<Vec<_>>()
    };
    // The database takes the first organization's row, and none of the other.
    index("CREATE UNIQUE INDEX one_message ON policy_errors (message)").await;
    let errors = &stored.authz.0.errors;
    errors.note(written.0, written.2, erred.iter(), now());
    errors.write(&stored.store, None).await.unwrap();
    // They are written in any order.
    for n in 1..=20 {
        for (organization, _, version) in [written, refused] {
            errors.note(organization, version, erred.iter(), now());
        }
        assert!(errors.write(&stored.store, None).await.is_err());
        assert_eq!((counts(written).await, counts(refused).await), (vec![n + 1], vec![]));
    }
    index("DROP INDEX one_message").await;
    errors.write(&stored.store, None).await.unwrap();
    assert_eq!((counts(written).await, counts(refused).await), (vec![21], vec![20]));
}

#[tokio::test]
async fn what_errs_is_kept_for_the_version_in_force_within_bounds() {
    let stored = Stored::new().await;
    let set = stored.set(1, 1).await;
    let text: String = (0..150)
        .map(|n| {
            format!(
                "@id(\"e{n}\") permit (principal, action, resource) when {{ principal.attributes.level >= {n} }};\n"
            )
        })
        .collect();
    let version = stored.version(1, set, 1, &text).await;
    let mut tx = stored.store.begin().await.unwrap();
    policies::put_in_force(&mut tx, acme(), Some(version), now()).await.unwrap();
    tx.commit().await.unwrap();
    for _ in 0..2 {
        assert_eq!(stored.reason(Some(version)).await, Reason::Error);
    }
    stored.authz.write_errors(&stored.store, acme()).await.unwrap();
    let errors = policies::errors(&mut stored.store.read().await.unwrap(), acme(), set, 1000).await.unwrap();
    assert_eq!(errors.len(), 100, "of 150 policies");
    // A check, and a list of things that no policy tells apart, twice.
    assert!(errors.iter().all(|row| row.count == 4 && row.line == row.place + 1 && row.column == 1), "{errors:?}");
    assert!(errors[0].message.contains("level"), "{errors:?}");
    assert_eq!(stored.reason(Some(version)).await, Reason::Error);
    let mut tx = stored.store.begin().await.unwrap();
    policies::put_in_force(&mut tx, acme(), None, now()).await.unwrap();
    tx.commit().await.unwrap();
    stored.authz.write_errors(&stored.store, acme()).await.unwrap();
    assert!(policies::errors(&mut stored.store.read().await.unwrap(), acme(), set, 1000).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_errs_is_kept_whatever_characters_a_policy_has_in_it() {
    for database in Database::each().await {
        let stored = Stored::on(database).await;
        let set = stored.set(1, 1).await;
        let text =
            r#"@id("a\u{0}b") permit (principal, action, resource) when { principal.attributes["lev\u{0}el"] >= 1 };"#;
        let version = stored.version(1, set, 1, text).await;
        let mut tx = stored.store.begin().await.unwrap();
        policies::put_in_force(&mut tx, acme(), Some(version), now()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(stored.reason(Some(version)).await, Reason::Error);
        stored.authz.write_errors(&stored.store, acme()).await.unwrap();
        let errors = policies::errors(&mut stored.store.read().await.unwrap(), acme(), set, 1000).await.unwrap();
        assert_eq!(errors.iter().map(|row| row.policy.as_str()).collect::<Vec<_>>(), ["a\u{FFFD}b"]);
        assert!(!errors[0].message.contains('\0'), "{errors:?}");
    }
}

/// On one thread: whoever lists much lets others in between, and is given up where nobody waits any more.
#[tokio::test]
async fn deciding_for_much_lets_others_in_between() {
    let stored = Stored::new().await;
    let set = stored.set(1, 1).await;
    let text: String = (0..200)
        .map(|n| format!("permit (principal, action, resource) when {{ resource.name like \"*{n}-*-*x\" }};\n"))
        .collect();
    let version = stored.version(1, set, 1, &text).await;
    let who = Principal { policy_version: Some(version), ..person(&[]) };
    let agents: Vec<_> = (0..2_000).map(|n| Resource { name: format!("agent {n}"), ..agent() }).collect();
    let list = || stored.authz.filter(&stored.store, &who, Action::AgentRead, &agents);
    list().await.unwrap();
    let (first, second) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let counted = async |of: &std::cell::Cell<u32>| {
        loop {
            of.set(of.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = counted(&first) => {}
        done = async { tokio::join!(list(), list()) } => assert!(done.0.is_ok() && done.1.is_ok()),
    }
    assert!(first.get() > 20, "others ran {} times", first.get());
    assert!(stored.authz.0.long.is_empty());
    let mut late = Box::pin(list());
    assert!(futures::poll!(&mut late).is_pending(), "it can be given up in the middle");
    drop(late);
    tokio::select! {
        biased;
        () = counted(&second) => {}
        _ = list() => {}
    }
    assert!(stored.authz.0.long.is_empty() && second.get() > 10);
}

#[tokio::test]
async fn long_lists_of_one_organization_are_decided_one_after_the_other() {
    let stored = Stored::new().await;
    let text: String = (0..200)
        .map(|n| format!("permit (principal, action, resource) when {{ resource.name like \"*{n}-*-*x\" }};\n"))
        .collect();
    let mut callers = Vec::new();
    for n in [1, 2] {
        let set = stored.set(n, n).await;
        let version = stored.version(n, set, n, &text).await;
        let who = Principal { organization_id: id(n), policy_version: Some(version), ..person(&[]) };
        let own = |place| Resource { organization: id(n), name: format!("agent {place}"), ..agent() };
        callers.push((who, (0..500).map(own).collect::<Vec<_>>()));
    }
    let [acme, other] = callers.as_slice() else { panic!("two") };
    let list = async |of: &(Principal, Vec<Resource>)| {
        stored.authz.filter(&stored.store, &of.0, Action::AgentRead, &of.1).await.unwrap();
    };
    // Their policies are loaded then.
    tokio::join!(list(acme), list(other));
    // How often a list is polled that nobody keeps waiting.
    let polls = async |of| {
        let (mut listing, mut polls) = (Box::pin(list(of)), 1);
        while futures::poll!(&mut listing).is_pending() {
            polls += 1;
            assert!(polls < 1_000_000, "it waits for another");
        }
        polls
    };
    let alone = polls(acme).await;
    assert!(alone > 10, "{alone}");
    let (mut first, mut second) = (Box::pin(list(acme)), Box::pin(list(acme)));
    assert!(futures::poll!(&mut first).is_pending());
    for _ in 0..10 * alone {
        assert!(futures::poll!(&mut second).is_pending(), "it waits for the first");
    }
    // Another organization's does not.
    polls(other).await;
    first.await;
    second.await;
    assert!(stored.authz.0.long.is_empty());
}
