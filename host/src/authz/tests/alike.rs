//! The index decides as all policies together do; the filter decides as each check alone does.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    super::{entities::Question, filter::Filter, kind::Roles, text::Source},
    *,
};

fn scope_principal() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("principal".to_owned()),
        2 => prop::sample::select(vec!["owner", "admin", "developer", "viewer", "auditor"])
            .prop_map(|role| format!(r#"principal in Kaizen::Role::"{role}""#)),
        1 => (100u128..103).prop_map(|n| format!(r#"principal == Kaizen::User::"{}""#, id::<Uuid>(n))),
        1 => (100u128..103).prop_map(|n| format!(r#"principal in Kaizen::User::"{}""#, id::<Uuid>(n))),
        1 => (1u128..3).prop_map(|n| format!(r#"principal is Kaizen::User in Kaizen::Organization::"{}""#, id::<Uuid>(n))),
        1 => Just("principal is Kaizen::User".to_owned()),
    ]
}

fn scope_action() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "action",
        r#"action == Kaizen::Action::"agent.read""#,
        r#"action == Kaizen::Action::"gateway.read""#,
        r#"action in Kaizen::Action::"agent.*""#,
        r#"action in [Kaizen::Action::"*.read", Kaizen::Action::"agent.update"]"#,
        r#"action in Kaizen::Action::"agent.read""#,
    ])
    .prop_map(str::to_owned)
}

fn scope_resource() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("resource".to_owned()),
        1 => Just("resource is Kaizen::Agent".to_owned()),
        1 => (20u128..23).prop_map(|n| format!(r#"resource == Kaizen::Agent::"{}""#, id::<Uuid>(n))),
        1 => (10u128..12).prop_map(|n| format!(r#"resource in Kaizen::Workspace::"{}""#, id::<Uuid>(n))),
        1 => (10u128..12).prop_map(|n| format!(r#"resource is Kaizen::Workspace in Kaizen::Workspace::"{}""#, id::<Uuid>(n))),
        1 => (1u128..3).prop_map(|n| format!(r#"resource in Kaizen::Organization::"{}""#, id::<Uuid>(n))),
    ]
}

/// Conditions of every shape that is recognised, and some that are not; many err for one kind or another.
fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("true".to_owned()),
        prop::sample::select(vec!["owner", "developer", "viewer"])
            .prop_map(|r| format!(r#"principal in Kaizen::Role::"{r}""#)),
        Just(r#"principal in [Kaizen::Role::"viewer", Kaizen::Role::"auditor"]"#.to_owned()),
        (10u128..12).prop_map(|n| format!(r#"resource.workspace == Kaizen::Workspace::"{}""#, id::<Uuid>(n))),
        (10u128..12).prop_map(|n| format!(r#"resource in Kaizen::Workspace::"{}""#, id::<Uuid>(n))),
        (10u128..12).prop_map(|n| format!(
            r#"resource in [Kaizen::Workspace::"{}", Kaizen::Agent::"{}"]"#,
            id::<Uuid>(n),
            id::<Uuid>(n + 10)
        )),
        (20u128..23).prop_map(|n| format!(r#"resource == Kaizen::Agent::"{}""#, id::<Uuid>(n))),
        Just("resource.owner == principal".to_owned()),
        Just("principal == resource.owner".to_owned()),
        (100u128..103).prop_map(|n| format!(r#"resource.owner == Kaizen::User::"{}""#, id::<Uuid>(n))),
        (100u128..103).prop_map(|n| format!(r#"resource.owner in [principal, Kaizen::User::"{}"]"#, id::<Uuid>(n))),
        Just("resource has owner".to_owned()),
        Just("resource has workspace && resource.workspace == resource.workspace".to_owned()),
        Just(r#"resource.name == "a""#.to_owned()),
        Just(r#"resource.name like "*b""#.to_owned()),
        Just(r#"resource has labels && resource.labels has team && resource.labels.team == "x""#.to_owned()),
        Just(r#"resource.labels.team == "x""#.to_owned()),
        Just(r#"resource.hasTag("team") && resource.getTag("team") == principal.name"#.to_owned()),
        Just(r#"resource has environment && resource.environment == "production""#.to_owned()),
        Just("principal.attributes.level >= 2".to_owned()),
        Just("principal.attributes has level && principal.attributes.level >= 2".to_owned()),
        Just("resource == principal".to_owned()),
        Just(r#"resource.owner.name == "Ada""#.to_owned()),
        Just(r#"(if true then resource else principal).name == "a""#.to_owned()),
        Just(r#"action == Kaizen::Action::"agent.read""#.to_owned()),
        Just(r#"action in Kaizen::Action::"*.read""#.to_owned()),
        Just("context.hour > 3".to_owned()),
        Just("context.environment == \"x\"".to_owned()),
        Just("principal.grants.contains({role: Kaizen::Role::\"viewer\", workspace: resource.workspace})".to_owned()),
        Just("principal.workspace_roles.contains(Kaizen::Role::\"viewer\")".to_owned()),
        Just("[resource.name, \"a\"].contains(\"a\")".to_owned()),
        Just("resource is Kaizen::Agent".to_owned()),
        Just(format!(r#"resource is Kaizen::Agent in Kaizen::Workspace::"{}""#, id::<Uuid>(10))),
        Just("principal.organization == resource.organization".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("if {a} then {b} else {c}")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let clause = prop_oneof![2 => Just("when"), 1 => Just("unless")];
    let clauses = prop::collection::vec((clause, condition()), 0..3);
    (prop::bool::ANY, scope_principal(), scope_action(), scope_resource(), clauses).prop_map(
        |(permit, p, a, r, clauses)| {
            let effect = if permit { "permit" } else { "forbid" };
            let clauses: String =
                clauses.iter().map(|(word, condition)| format!(" {word} {{ {condition} }}")).collect();
            format!("{effect} ({p}, {a}, {r}){clauses};\n")
        },
    )
}

fn policies() -> impl Strategy<Value = String> {
    prop::collection::vec(policy(), 0..6).prop_map(|policies| policies.concat())
}

fn who() -> impl Strategy<Value = Principal> {
    let role = prop::sample::select(vec![Role::Owner, Role::Admin, Role::Developer, Role::Viewer, Role::Auditor]);
    let grants = prop::collection::vec((role, prop::option::of(10u128..12)), 0..3);
    (grants, 100u128..102, prop::option::of(0i64..4)).prop_map(|(grants, user, level)| {
        let attributes = level.map_or(json!({}), |level| json!({ "level": level }));
        with_attributes(Principal { user_id: id(user), ..person(&grants) }, attributes)
    })
}

fn what() -> impl Strategy<Value = Resource> {
    let text = prop::sample::select(vec!["a", "b", "ab"]);
    let label = prop::option::of(prop::sample::select(vec!["x", "y", "Ada"]));
    let kind = prop::sample::select(vec![
        Kind::Agent,
        Kind::Agent,
        Kind::Agent,
        Kind::Gateway,
        Kind::Workspace,
        Kind::User,
        Kind::Deployment,
    ]);
    let ids = (20u128..24, prop::option::weighted(0.9, 10u128..12), prop::option::weighted(0.9, 100u128..103));
    (kind, ids, text, label, prop::option::of(Just("production".to_owned()))).prop_map(
        |(kind, (n, workspace, owner), name, label, environment)| {
            let n = match kind {
                Kind::Workspace => n - 10,
                Kind::User => n + 80,
                _ => n,
            };
            let workspace =
                if matches!(kind, Kind::Gateway | Kind::User) { None } else { workspace.map(id::<WorkspaceId>) };
            Resource {
                workspace,
                owner: if matches!(kind, Kind::Agent | Kind::Deployment) { owner.map(id::<UserId>) } else { None },
                labels: label.into_iter().map(|value| ("team".to_owned(), value.to_owned())).collect(),
                environment,
                ..Resource::new(kind, id::<Uuid>(n), acme(), name)
            }
        },
    )
}

fn action_for(kind: Kind, other: bool) -> Action {
    match (kind, other) {
        (Kind::Agent, false) => Action::AgentRead,
        (Kind::Agent, true) => Action::AgentUpdate,
        (Kind::Gateway, _) => Action::GatewayRead,
        (Kind::Workspace, _) => Action::WorkspaceRead,
        (Kind::User, _) => Action::UserRead,
        _ => Action::DeploymentRead,
    }
}

fn sources(text: &str) -> Vec<Source> {
    text::deep(|| text::read(text, None)).unwrap().unwrap_or_else(|faults| panic!("{text}\n{faults:?}")).policies
}

thread_local! {
    static WORLD: World = World::new();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_decides_as_all_policies_together(text in policies(), who in who(), on in what(), other: bool) {
        WORLD.with(|world| {
            let sources = sources(&text);
            let index = Index::compile(&world.engine.vocabulary, Origin::Tenant, &text, &sources).unwrap();
            let context = Context::default();
            let roles = Roles::effective(&who, &on);
            let action = action_for(on.kind, other);
            let question = Question { principal: &who, roles, action, resource: &on, context: &context, now: now() };
            prop_assert_eq!(world.engine.indexed(&index, &question), world.engine.everything(&sources, &question), "{}", text);
            Ok(())
        })?;
    }

    #[test]
    fn the_filter_decides_as_each_check_alone(text in policies(), who in who(), on in prop::collection::vec(what(), 0..12), other: bool) {
        WORLD.with(|world| {
            let index = Index::compile(&world.engine.vocabulary, Origin::Tenant, &text, &sources(&text)).unwrap();
            for kind in [Kind::Agent, Kind::Gateway, Kind::Workspace, Kind::User, Kind::Deployment] {
                let action = action_for(kind, other);
                let of_kind: Vec<_> = on.iter().filter(|resource| resource.kind == kind).cloned().collect();
                let alone: Vec<_> = of_kind
                    .iter()
                    .map(|resource| world.engine.decide(Tenant::Policies(&index), &who, action, resource, &Context::default(), now()).allowed)
                    .collect();
                for slice in [Duration::ZERO, Duration::MAX] {
                    let tenant = Tenant::Policies(&index);
                    let mut together = Filter::new(&world.engine, tenant, (&who, action), &of_kind, now());
                    while !together.proceed(slice, |_| {}) {}
                    prop_assert_eq!(together.allowed(), alone.clone(), "{}", text);
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn alike_resources_are_decided_once() {
    let world = World::new();
    let index = world.compile(
        r#"
        permit (principal, action == Kaizen::Action::"agent.read", resource)
        when { principal.attributes has level && principal.attributes.level >= 2 };
        forbid (principal, action == Kaizen::Action::"agent.deploy", resource) when { resource.name == "x" };
        permit (principal, action == Kaizen::Action::"agent.read", resource) when { resource.owner == principal };
    "#,
    );
    let tells = world.engine.tells(Tenant::Policies(&index), Action::AgentRead, Kind::Agent);
    use super::super::reads::*;
    for (bit, read) in [
        (R_ORGANIZATION, true),
        (R_OWN, true),
        (R_OWNER, false),
        (R_NAME, false),
        (R_IDENTITY, false),
        (R_LABELS, false),
        (R_WORKSPACE, false),
    ] {
        assert_eq!(tells.has(bit), read, "{bit}");
    }
}
