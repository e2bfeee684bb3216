//! One authorization against 10, 100 and 750 policies of a tenant, beside bare Cedar on the same policies, and which of
//! 20 agents a list may show.
//!
//! `cargo bench -p kaizen --bench authz`

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark: what fails, fails loudly")]

use std::collections::{HashMap, HashSet};

use cedar_policy::{
    Authorizer, Context as CedarContext, Entities, Entity, EntityUid, PolicySet, Request, RestrictedExpression as Value,
};
use chrono::Utc;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kaizen::{
    authz::{Action, Authz, Context, Kind, Resource},
    clock::Clock,
    config::limits::ServerLimits,
    domain::{
        id::{OrganizationId, PolicySetId, PolicyVersionId, UserId, WorkspaceId},
        policy::{PolicySet as Set, PolicyText, PolicyVersion},
        principal::Principal,
        role::{Grant, Role},
        tenancy::Organization,
    },
    store::{Store, organizations, policies},
};
use uuid::Uuid;

const ROLES: [&str; 5] = ["owner", "admin", "developer", "viewer", "auditor"];
const ACTIONS: [&str; 6] =
    ["agent.read", "agent.create", "agent.update", "agent.deploy", "gateway.read", "deployment.stop"];

fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n)
}

/// Policies that differ in role, workspace and attribute; of several actions, as a tenant's are.
fn spread(count: usize) -> String {
    let policy = |n: usize| {
        format!(
            r#"@id("p{n}") permit (principal in Kaizen::Role::"{}", action == Kaizen::Action::"{}", resource)
               when {{ resource.workspace == Kaizen::Workspace::"{}" &&
                       principal.attributes has department && principal.attributes.department == "department-{n}" }};"#,
            ROLES[n % ROLES.len()],
            // Gateways are in no workspace.
            ["agent.read", "agent.create", "agent.update", "agent.deploy", "agent.version", "deployment.stop"]
                [n % ACTIONS.len()],
            id(1000 + (n as u128) % 7),
        )
    };
    (0..count).map(policy).collect()
}

/// The worst case: every policy is of the action asked for, and nothing but its condition can rule it out.
fn crowded(count: usize) -> String {
    let policy = |n: usize| {
        format!(
            r#"@id("p{n}") permit (principal, action == Kaizen::Action::"agent.read", resource)
               when {{ principal.attributes has department && principal.attributes.department == "department-{n}" }};"#
        )
    };
    (0..count).map(policy).collect()
}

fn principal(version: Option<PolicyVersionId>) -> Principal {
    let attributes = serde_json::json!({"department": "support", "clearance": 3, "region": "eu"});
    Principal {
        user_id: UserId(id(1)),
        organization_id: OrganizationId(id(2)),
        email: "ada@example.com".into(),
        name: "Ada".into(),
        grants: vec![Grant { role: Role::Developer, workspace: None }],
        attributes: attributes.as_object().unwrap().clone(),
        platform_administrator: false,
        session_id: None,
        policy_version: version,
    }
}

fn agent(n: u128) -> Resource {
    Resource {
        workspace: Some(WorkspaceId(id(1000 + n % 3))),
        owner: Some(UserId(id(n % 5))),
        labels: [("team".to_owned(), "support".to_owned())].into(),
        ..Resource::new(Kind::Agent, id(2000 + n), OrganizationId(id(2)), format!("Agent {n}"))
    }
}

async fn stored(store: &Store, organization: &Organization, n: u128, text: &str) -> PolicyVersionId {
    let now = organization.created_at;
    let set = Set {
        id: PolicySetId(id(10_000 + n)),
        organization_id: organization.id,
        name: format!("set {n}"),
        description: String::new(),
        active_version: None,
        latest_version: None,
        created_by: UserId(id(1)),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    let version = PolicyVersion {
        id: PolicyVersionId(id(20_000 + n)),
        policy_id: set.id,
        number: 1,
        digest: String::new(),
        note: String::new(),
        created_by: set.created_by,
        created_at: now,
    };
    let version_id = version.id;
    let mut tx = store.begin().await.unwrap();
    policies::insert(&mut tx, &set).await.unwrap();
    let written = PolicyText { version, text: text.to_owned() };
    policies::insert_version(&mut tx, organization.id, &written, &policies::Validation::default()).await.unwrap();
    tx.commit().await.unwrap();
    version_id
}

/// The same request for bare Cedar, its entities built beforehand.
fn bare(text: &str) -> (Request, PolicySet, Entities) {
    let uid = |kind: &str, id: &str| -> EntityUid { format!("Kaizen::{kind}::\"{id}\"").parse().unwrap() };
    let platform =
        ["boundaries", "member", "owner", "admin", "developer", "viewer", "auditor", "platform_administrator"];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/platform/");
    let mut all: String =
        platform.iter().map(|file| std::fs::read_to_string(format!("{folder}{file}.cedar")).unwrap()).collect();
    all.push_str(text);
    let string = |text: &str| Value::new_string(text.to_owned());
    let (user, organization) = (uid("User", &id(1).to_string()), uid("Organization", &id(2).to_string()));
    let attributes = Value::new_record([
        ("department".to_owned(), string("support")),
        ("clearance".to_owned(), Value::new_long(3)),
        ("region".to_owned(), string("eu")),
    ]);
    let of_user = HashMap::from([
        ("organization".to_owned(), Value::new_entity_uid(organization.clone())),
        ("email".to_owned(), string("ada@example.com")),
        ("attributes".to_owned(), attributes.unwrap()),
        ("workspace_roles".to_owned(), Value::new_set([])),
        ("platform_administrator".to_owned(), Value::new_bool(false)),
    ]);
    let workspace = uid("Workspace", &id(1000).to_string());
    let on = uid("Agent", &id(2000).to_string());
    let of_agent = HashMap::from([
        ("organization".to_owned(), Value::new_entity_uid(organization.clone())),
        ("workspace".to_owned(), Value::new_entity_uid(workspace.clone())),
        ("owner".to_owned(), Value::new_entity_uid(user.clone())),
        ("name".to_owned(), string("Agent 0")),
    ]);
    let action = uid("Action", "agent.read");
    let groups = HashSet::from([uid("Action", "agent.*"), uid("Action", "*.read")]);
    let entities = [
        Entity::new(user.clone(), of_user, HashSet::from([uid("Role", "developer"), organization.clone()])).unwrap(),
        Entity::new(on.clone(), of_agent, HashSet::from([workspace, organization])).unwrap(),
        Entity::new_no_attrs(action.clone(), groups),
    ];
    let request = Request::new(user, action, on, CedarContext::empty(), None).unwrap();
    (request, all.parse().unwrap(), Entities::from_entities(entities, None).unwrap())
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let now = Clock::system().now();
    let organization = Organization {
        id: OrganizationId(id(2)),
        name: "Acme".into(),
        policy_version_id: None,
        created_at: now.max(chrono::DateTime::<Utc>::MIN_UTC),
        updated_at: now,
        revision: 1,
    };
    let url = format!("sqlite:{}", folder.path().join("bench.db").display());
    let store = runtime.block_on(async {
        let store = Store::connect(&url, &Default::default()).await.unwrap();
        store.migrate().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        organizations::insert(&mut tx, &organization).await.unwrap();
        tx.commit().await.unwrap();
        store
    });
    let authz = Authz::new(Clock::system(), &ServerLimits::default()).unwrap();
    let twenty: Vec<_> = (0..20).map(agent).collect();
    let context = Context::default();
    let mut n = 0;
    for (shape, policies) in [("spread", spread as fn(usize) -> String), ("crowded", crowded)] {
        let mut group = criterion.benchmark_group(shape);
        for count in [10, 100, 750] {
            let text = policies(count);
            runtime.block_on(authz.validate(organization.id, text.clone())).unwrap();
            n += 1;
            let version = runtime.block_on(stored(&store, &organization, n, &text));
            let who = principal(Some(version));
            group.bench_function(BenchmarkId::new("one authorization", count), |b| {
                b.to_async(&runtime).iter(|| async {
                    let decision = authz.check(&store, &who, Action::AgentRead, &agent(0), &context).await.unwrap();
                    assert!(decision.allowed);
                });
            });
            group.bench_function(BenchmarkId::new("filtering 20 agents", count), |b| {
                b.to_async(&runtime).iter(|| async {
                    let allowed = authz.filter(&store, &who, Action::AgentRead, &twenty).await.unwrap();
                    assert_eq!(allowed.len(), 20);
                });
            });
            let (request, set, entities) = bare(&text);
            let authorizer = Authorizer::new();
            group.bench_function(BenchmarkId::new("bare Cedar", count), |b| {
                b.iter(|| {
                    let response = authorizer.is_authorized(&request, &set, &entities);
                    assert_eq!(response.decision(), cedar_policy::Decision::Allow);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(authz, benches);
criterion_main!(authz);
