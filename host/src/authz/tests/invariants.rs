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
    let sources = text::parse(include_str!("../../../../policies/platform/boundaries.cedar")).unwrap().policies;
    let mut all = sources;
    let mut tenant = text::parse(EVERYTHING).unwrap().policies;
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

#[test]
fn a_tenant_cannot_grant_what_is_the_platforms() {
    let world = World::new();
    let owner = person(&[(Role::Owner, None)]);
    let decision =
        world.decide(EVERYTHING, &owner, Action::OrganizationCreate, &thing(Kind::Organization), &Context::default());
    assert_eq!((decision.allowed, decision.reason), (false, Reason::Forbidden));
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
    assert!(tenant::compile(&world.engine.vocabulary, "permit (principal, action").is_err());
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
