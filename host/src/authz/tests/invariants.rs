//! Each invariant, and somebody who tries to break it.

use super::*;

const EVERYTHING: &str = r#"
    permit (principal, action, resource);
    permit (principal, action, resource) when { principal has email };
"#;

#[test]
fn no_tenant_policy_grants_across_organizations() {
    let world = World::new();
    let index = world.compile(EVERYTHING);
    let owner = person(&[(Role::Owner, None), (Role::Admin, Some(10))]);
    for (action, kind) in world.engine.vocabulary.pairs() {
        let foreign = Resource { organization: id(2), ..thing(kind) };
        let decision = world.engine.decide(Tenant::Policies(&index), &owner, action, &foreign, &context(action), now());
        assert_eq!((decision.allowed, decision.reason), (false, Reason::Forbidden), "{} {kind:?}", action.as_str());
        assert_eq!(decision.policies[0].policy.id, "organization-boundary");
    }
    let foreign = Context { gateway: Some(Resource { organization: id(2), ..gateway("x") }), ..Context::default() };
    let decision = world.decide(EVERYTHING, &owner, Action::AgentDeploy, &agent(), &foreign);
    assert_eq!(decision.reason, Reason::Forbidden, "nor to another organization's gateway");
}

#[test]
fn the_boundary_holds_by_policy_alone_too() {
    let world = World::new();
    let sources = text::read(include_str!("../../../../policies/platform/boundaries.cedar"), None).unwrap().policies;
    let mut all = sources;
    let mut tenant = text::read(EVERYTHING, None).unwrap().policies;
    for (place, source) in tenant.iter_mut().enumerate() {
        source.policy = source.policy.new_id(cedar_policy::PolicyId::new(format!("tenant{place}")));
    }
    all.append(&mut tenant);
    let owner = person(&[(Role::Owner, None)]);
    for kind in [Kind::Agent, Kind::Gateway, Kind::PolicySet, Kind::User] {
        let action = match kind {
            Kind::Agent => Action::AgentRead,
            Kind::Gateway => Action::GatewayRead,
            Kind::User => Action::UserRead,
            _ => Action::PolicyRead,
        };
        for (organization, allowed) in [(acme(), true), (id(2), false)] {
            let resource = Resource { organization, ..thing(kind) };
            let context = Context::default();
            let roles = super::super::kind::Roles::effective(&owner, &resource);
            let question = super::super::entities::Question {
                principal: &owner,
                roles,
                action,
                resource: &resource,
                context: &context,
                now: now(),
            };
            assert_eq!(world.engine.everything(&all, &question).0, allowed, "{kind:?}");
        }
    }
}

#[test]
fn owners_cannot_be_locked_out_of_policy_management() {
    let world = World::new();
    let owner = person(&[(Role::Owner, None)]);
    let hostile = [
        "forbid (principal, action, resource);",
        r#"forbid (principal in Kaizen::Role::"owner", action in Kaizen::Action::"policy.*", resource);"#,
        "forbid (principal, action, resource) when { principal.attributes.missing == 1 };",
    ];
    for text in hostile {
        for action in [
            "policy.create",
            "policy.read",
            "policy.update",
            "policy.activate",
            "policy.delete",
            "organization.read",
            "membership.read",
        ] {
            let action = Action::parse(action).unwrap();
            for kind in Kind::ALL.iter().filter(|kind| world.engine.vocabulary.applies(action, **kind)) {
                assert!(world.allows(text, &owner, action, &thing(*kind)), "{text} {}", action.as_str());
            }
        }
        let admin = person(&[(Role::Admin, None)]);
        let workspace_owner = person(&[(Role::Owner, Some(10))]);
        if text.contains("action, resource") {
            assert!(!world.allows(text, &admin, Action::PolicyRead, &thing(Kind::PolicySet)), "{text}");
            assert!(!world.allows(text, &owner, Action::AgentRead, &agent()), "what else owners do can be forbidden");
        }
        assert!(!world.allows(text, &workspace_owner, Action::PolicyActivate, &thing(Kind::PolicySet)));
    }
    // Not even by a set that cannot be read any more.
    let broken = Tenant::Unreadable("it is broken");
    let read = |who: &Principal, action, kind| {
        world.engine.decide(broken, who, action, &thing(kind), &Context::default(), now())
    };
    assert!(read(&owner, Action::PolicyActivate, Kind::PolicySet).allowed);
    assert_eq!(read(&owner, Action::AgentRead, Kind::Agent).reason, Reason::Error);
    assert_eq!(read(&person(&[(Role::Admin, None)]), Action::PolicyRead, Kind::PolicySet).reason, Reason::Error);
}

/// An action, and for some of them the role in question.
type Asked = (Action, Option<Role>);

/// What only owners may do, whatever a tenant's policies permit.
const OWNERS: &[Asked] = &[
    (Action::OrganizationDelete, None),
    (Action::UserUpdate, Some(Role::Owner)),
    (Action::UserDelete, Some(Role::Owner)),
    (Action::MembershipCreate, Some(Role::Owner)),
    (Action::MembershipUpdate, Some(Role::Owner)),
    (Action::MembershipDelete, Some(Role::Owner)),
    (Action::IdentityConnectionCreate, None),
    (Action::IdentityConnectionUpdate, None),
    (Action::IdentityConnectionDelete, None),
];

/// What only platform administrators may do.
const PLATFORM: &[Action] =
    &[Action::OrganizationCreate, Action::PluginCreate, Action::PluginActivate, Action::PluginDelete];

/// Every action with every role that it may be about.
fn asked() -> Vec<Asked> {
    let about = |action: &Action| match action {
        Action::MembershipCreate | Action::MembershipUpdate | Action::MembershipDelete => {
            vec![Some(Role::Owner), Some(Role::Admin), Some(Role::Viewer)]
        }
        Action::UserUpdate | Action::UserDelete => vec![None, Some(Role::Owner)],
        _ => vec![None],
    };
    Action::ALL.iter().flat_map(|action| about(action).into_iter().map(|role| (*action, role))).collect()
}

#[test]
fn no_role_gains_what_is_out_of_a_tenants_reach_where_everything_is_permitted() {
    let world = World::new();
    let index = world.compile(EVERYTHING);
    let roles = [Role::Admin, Role::Developer, Role::Viewer, Role::Auditor];
    let mut people: Vec<Vec<(Role, Option<u128>)>> = vec![Vec::new(), roles.map(|role| (role, None)).to_vec()];
    people.extend(roles.iter().flat_map(|role| [vec![(*role, None)], vec![(*role, Some(10))]]));
    people.push(vec![(Role::Owner, Some(11))]);
    for grants in people {
        let who = person(&grants);
        let mut refused = Vec::new();
        for (action, role) in asked() {
            for kind in Kind::ALL.iter().filter(|kind| world.engine.vocabulary.applies(action, **kind)) {
                let context = Context { role, ..context(action) };
                let on = thing(*kind);
                let decision = world.engine.decide(Tenant::Policies(&index), &who, action, &on, &context, now());
                if !decision.allowed {
                    refused.push((action, role));
                }
            }
        }
        refused.dedup();
        let of_platform = |action: &Action| PLATFORM.contains(action) || *action == Action::PluginRead;
        let mut owners: Vec<_> = refused.iter().filter(|(action, _)| !of_platform(action)).copied().collect();
        owners.sort_by_key(|(action, _)| *action);
        let mut expected = OWNERS.to_vec();
        expected.sort_by_key(|(action, _)| *action);
        assert_eq!(owners, expected, "{grants:?}");
        for action in PLATFORM {
            assert!(refused.contains(&(*action, None)), "{grants:?} {}", action.as_str());
        }
    }
    // Owners may what is theirs, and nothing of the platform's.
    let owner = person(&[(Role::Owner, None)]);
    for (action, role) in asked() {
        for kind in Kind::ALL.iter().filter(|kind| world.engine.vocabulary.applies(action, **kind)) {
            let context = Context { role, ..context(action) };
            let on = thing(*kind);
            let decision = world.engine.decide(Tenant::Policies(&index), &owner, action, &on, &context, now());
            assert_eq!(decision.allowed, !PLATFORM.contains(&action), "{} {kind:?}", action.as_str());
        }
    }
}

#[test]
fn a_tenant_has_no_say_in_what_is_the_platforms() {
    let world = World::new();
    let administrator = Principal { platform_administrator: true, ..person(&[(Role::Viewer, None)]) };
    let hostile = [
        "forbid (principal, action, resource);",
        r#"forbid (principal, action in [Kaizen::Action::"plugin.*", Kaizen::Action::"organization.create"], resource);"#,
        "permit (principal, action, resource) when { principal.attributes.missing == 1 };",
    ];
    let all = [PLATFORM, &[Action::PluginRead]].concat();
    for text in hostile {
        for action in &all {
            assert!(
                world.allows(text, &administrator, *action, &thing(Kind::Organization)),
                "{text} {}",
                action.as_str()
            );
        }
    }
    for action in &all {
        let on = thing(Kind::Organization);
        let broken = Tenant::Unreadable("it is broken");
        let decision = world.engine.decide(broken, &administrator, *action, &on, &Context::default(), now());
        assert!(decision.allowed, "{}", action.as_str());
        let decision = world.decide(EVERYTHING, &person(&[]), *action, &on, &Context::default());
        assert!(!decision.allowed, "{}", action.as_str());
    }
}

#[test]
fn policies_that_decide_are_named_in_the_order_of_the_text() {
    let world = World::new();
    let policy = |n: usize| {
        format!(
            r#"@id("f{n}") forbid (principal, action == Kaizen::Action::"agent.read", resource);
               @id("e{n}") forbid (principal, action == Kaizen::Action::"agent.update", resource) when {{ context.hour * 9223372036854775807 > {n} }};"#
        )
    };
    let text: String = (0..12).map(policy).collect();
    let index = world.compile(&text);
    let owner = person(&[(Role::Owner, None)]);
    let ids = |action| {
        let context = Context::default();
        let decision = world.engine.decide(Tenant::Policies(&index), &owner, action, &agent(), &context, now());
        decision.policies.iter().map(|deciding| deciding.policy.id.clone()).collect::<Vec<_>>()
    };
    for _ in 0..20 {
        assert_eq!(ids(Action::AgentRead), (0..12).map(|n| format!("f{n}")).collect::<Vec<_>>());
        assert_eq!(ids(Action::AgentUpdate), (0..12).map(|n| format!("e{n}")).collect::<Vec<_>>());
    }
}

#[test]
fn policies_that_err_are_told_where_another_one_decides_too() {
    let world = World::new();
    let text = r#"
        @id("no") forbid (principal, action == Kaizen::Action::"agent.read", resource);
        @id("errs") permit (principal, action, resource) when { principal.attributes.clearance >= 3 };"#;
    let who = person(&[(Role::Viewer, None)]);
    let decision = world.decide(text, &who, Action::AgentRead, &agent(), &Context::default());
    assert_eq!(decision.reason, Reason::Forbidden);
    let errors: Vec<_> = decision.errors().map(|d| (d.policy.id.as_str(), d.policy.line, d.policy.column)).collect();
    assert_eq!(errors, [("errs", 3, 9)]);
}

#[test]
fn deny_wins_whatever_the_order_and_the_source() {
    let world = World::new();
    let owner = person(&[(Role::Owner, None)]);
    let forbid = r#"@id("no") forbid (principal, action == Kaizen::Action::"agent.read", resource is Kaizen::Agent);"#;
    for text in [forbid.to_owned(), format!("{EVERYTHING}{forbid}"), format!("{forbid}{EVERYTHING}")] {
        let decision = world.decide(&text, &owner, Action::AgentRead, &agent(), &Context::default());
        assert_eq!((decision.allowed, decision.reason), (false, Reason::Forbidden));
        assert_eq!(decision.policies.len(), 1);
        assert_eq!(
            (decision.policies[0].policy.id.as_str(), decision.policies[0].policy.origin),
            ("no", Origin::Tenant)
        );
    }
}

#[test]
fn doubt_denies() {
    let world = World::new();
    let developer = person(&[(Role::Developer, None)]);
    let erring = [
        // An unknown attribute, in a forbid (which Cedar alone would skip) and in a permit.
        r#"@id("x") forbid (principal, action, resource) when { principal.attributes.clearance < 3 };"#,
        r#"@id("x") permit (principal, action, resource) when { principal.attributes.clearance >= 3 };"#,
        // Arithmetic that overflows.
        r#"@id("x") forbid (principal, action, resource) when { context.hour * 9223372036854775807 > 0 };"#,
        // A label that is not there.
        r#"@id("x") permit (principal, action == Kaizen::Action::"agent.read", resource) when { resource.labels.missing == "y" };"#,
    ];
    for text in erring {
        let decision = world.decide(text, &developer, Action::AgentRead, &agent(), &Context::default());
        assert_eq!((decision.allowed, decision.reason), (false, Reason::Error), "{text}");
        assert_eq!(decision.policies[0].policy.id, "x");
        assert!(decision.sentence().contains("could not be evaluated"), "{}", decision.sentence());
    }
    // An attribute of another type than the policy needs.
    let textual = with_attributes(developer.clone(), json!({"clearance": "three"}));
    assert_eq!(
        world.decide(erring[0], &textual, Action::AgentRead, &agent(), &Context::default()).reason,
        Reason::Error
    );
    let cleared = with_attributes(developer.clone(), json!({"clearance": 3}));
    assert!(world.allows(erring[0], &cleared, Action::AgentRead, &agent()));
    // A deployment to nowhere, asked of a policy that turns on where.
    let production = r#"forbid (principal, action == Kaizen::Action::"agent.deploy", resource) when { context.environment == "production" };"#;
    let decision = world.decide(production, &developer, Action::AgentDeploy, &agent(), &Context::default());
    assert_eq!(decision.reason, Reason::Error);
    // An action asked of a kind of thing that it does not apply to.
    let decision = world.engine.decide(
        Tenant::None,
        &person(&[(Role::Owner, None)]),
        Action::AgentRead,
        &gateway(""),
        &Context::default(),
        now(),
    );
    assert_eq!((decision.allowed, decision.reason), (false, Reason::Error));
}

#[test]
fn a_set_that_is_in_force_and_unreadable_denies() {
    let world = World::new();
    let compiled = text::deep(|| tenant::compile(&world.engine.vocabulary, "permit (principal, action")).unwrap();
    assert!(compiled.is_err());
}

#[test]
fn explanations_tell_forbidden_from_not_permitted() {
    let world = World::new();
    let viewer = person(&[(Role::Viewer, None), (Role::Developer, Some(11))]);
    let decision = world.decide("", &viewer, Action::AgentDeploy, &agent(), &context(Action::AgentDeploy));
    assert_eq!(decision.reason, Reason::NotPermitted);
    insta::assert_snapshot!(decision.sentence(), @"No policy permits agent.deploy on agent 01900000-0000-7000-8000-000000000014; roles held: viewer, developer in another workspace.");
    let friday = r#"
        @id("no-friday-deploys")
        @description("Nothing is deployed on a Friday.")
        forbid (principal, action == Kaizen::Action::"agent.deploy", resource)
        when { context.weekday == "friday" };
    "#;
    let owner = person(&[(Role::Owner, None)]);
    let decision = world.decide(friday, &owner, Action::AgentDeploy, &agent(), &context(Action::AgentDeploy));
    insta::assert_snapshot!(decision.sentence(), @"Forbidden by tenant policy `no-friday-deploys`: Nothing is deployed on a Friday.");
    insta::assert_json_snapshot!(decision.to_json(), @r#"
    {
      "allowed": false,
      "reason": "forbidden",
      "message": "Forbidden by tenant policy `no-friday-deploys`: Nothing is deployed on a Friday.",
      "policies": [
        {
          "id": "no-friday-deploys",
          "source": "tenant",
          "effect": "forbid",
          "description": "Nothing is deployed on a Friday."
        }
      ]
    }
    "#);
    let decision = world.decide(friday, &owner, Action::AgentRead, &agent(), &Context::default());
    insta::assert_snapshot!(decision.sentence(), @"Permitted by platform policy `owner`.");
    let other = Resource { organization: id(2), ..agent() };
    let decision = world.decide("", &owner, Action::AgentRead, &other, &Context::default());
    insta::assert_snapshot!(decision.sentence(), @"Forbidden by platform policy `organization-boundary`: Nobody acts in another organization.");
    let decision = world.decide(
        r#"@id("cleared") forbid (principal, action, resource) when { principal.attributes.clearance < 3 };"#,
        &owner,
        Action::AgentRead,
        &agent(),
        &Context::default(),
    );
    insta::assert_snapshot!(decision.sentence(), @"Denied because tenant policy `cleared` could not be evaluated: record does not have the attribute `clearance`. Doubt denies; guard what may be absent with `has`.");
}
