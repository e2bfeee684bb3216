//! What each platform role may do, without any tenant policy.

use super::*;

/// Actions that a role may do on one thing of every kind they apply to; of its own organization, in workspace 10.
fn permitted(world: &World, who: &Principal) -> Vec<&'static str> {
    let mut permitted: Vec<_> = Action::ALL
        .iter()
        .filter(|action| {
            let kinds = Kind::ALL.iter().filter(|kind| world.engine.vocabulary.applies(**action, **kind));
            let decide = |kind: &Kind| {
                world.engine.decide(Tenant::None, who, **action, &thing(*kind), &context(**action), now()).allowed
            };
            let decided: Vec<bool> = kinds.map(decide).collect();
            decided.iter().any(|allowed| *allowed)
        })
        .map(|action| action.as_str())
        .collect();
    permitted.sort_unstable();
    permitted
}

fn all_but(without: &[&str]) -> Vec<&'static str> {
    let mut all: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).filter(|a| !without.contains(a)).collect();
    all.sort_unstable();
    all
}

/// What only platform administrators may do, whatever their roles.
const PLATFORM: [&str; 4] = ["organization.create", "plugin.activate", "plugin.create", "plugin.delete"];

#[test]
fn owners_may_do_everything_in_their_organization() {
    let world = World::new();
    assert_eq!(permitted(&world, &person(&[(Role::Owner, None)])), all_but(&PLATFORM));
}

#[test]
fn admins_may_do_everything_but_remove_the_organization_or_choose_identity_providers() {
    let world = World::new();
    let admin = person(&[(Role::Admin, None)]);
    let not = [
        "identity_connection.create",
        "identity_connection.delete",
        "identity_connection.update",
        "organization.delete",
    ];
    assert_eq!(permitted(&world, &admin), all_but(&[&not[..], &PLATFORM].concat()));
}

#[test]
fn developers_build_and_deploy() {
    let world = World::new();
    let expected = [
        "agent.create",
        "agent.delete",
        "agent.deploy",
        "agent.read",
        "agent.update",
        "agent.version",
        "deployment.cancel",
        "deployment.read",
        "deployment.rollback",
        "deployment.stop",
        "gateway.check",
        "gateway.read",
        "job.cancel",
        "job.read",
        "job.retry",
        "organization.read",
        "plugin.read",
        "user.read",
        "workspace.read",
    ];
    assert_eq!(permitted(&world, &person(&[(Role::Developer, None)])), expected);
}

#[test]
fn viewers_read_agents_and_deployments() {
    let world = World::new();
    let expected = ["agent.read", "deployment.read", "gateway.read", "job.read", "organization.read", "workspace.read"];
    assert_eq!(permitted(&world, &person(&[(Role::Viewer, None)])), expected);
}

#[test]
fn auditors_read_everything_and_change_nothing() {
    let world = World::new();
    let mut reads: Vec<_> = Action::ALL.iter().filter(|a| a.reads()).map(|a| a.as_str()).collect();
    reads.sort_unstable();
    assert_eq!(permitted(&world, &person(&[(Role::Auditor, None)])), reads);
}

#[test]
fn without_a_role_only_the_organization_and_oneself_are_read() {
    let world = World::new();
    let nobody = person(&[]);
    assert_eq!(permitted(&world, &nobody), ["organization.read"]);
    let oneself = Resource::new(Kind::User, nobody.user_id, acme(), "Ada");
    assert!(world.allows("", &nobody, Action::UserRead, &oneself));
    assert!(!world.allows("", &nobody, Action::UserUpdate, &oneself), "their attributes decide what they may do");
    let own = Resource { owner: Some(nobody.user_id), ..thing(Kind::Membership) };
    assert!(world.allows("", &nobody, Action::MembershipRead, &own));
}

#[test]
fn platform_administrators_create_organizations_and_touch_no_tenants_things() {
    let world = World::new();
    let operator = Principal { platform_administrator: true, ..person(&[]) };
    let expected = [
        "organization.create",
        "organization.read",
        "plugin.activate",
        "plugin.create",
        "plugin.delete",
        "plugin.read",
    ];
    assert_eq!(permitted(&world, &operator), expected);
    // Nor can a tenant give that away.
    let owner = person(&[(Role::Owner, None)]);
    for action in [Action::PluginCreate, Action::PluginActivate, Action::PluginDelete] {
        assert!(!world.allows("permit (principal, action, resource);", &owner, action, &thing(Kind::Organization)));
    }
}

#[test]
fn a_role_held_in_one_workspace_counts_there_only() {
    let world = World::new();
    for role in [Role::Owner, Role::Admin, Role::Developer] {
        let here = person(&[(role, Some(10))]);
        let elsewhere = person(&[(role, Some(11))]);
        for action in [Action::AgentRead, Action::AgentUpdate, Action::AgentDeploy] {
            assert!(world.allows("", &here, action, &agent()), "{role:?} {}", action.as_str());
            assert!(!world.allows("", &elsewhere, action, &agent()), "{role:?} {}", action.as_str());
        }
        assert!(world.allows("", &here, Action::AgentCreate, &thing(Kind::Workspace)));
        assert!(!world.allows("", &elsewhere, Action::AgentCreate, &thing(Kind::Workspace)));
        // What is the whole organization's is not theirs, but for reading what they deploy to.
        assert!(!world.allows("", &here, Action::GatewayUpdate, &gateway("staging")));
        assert!(world.allows("", &here, Action::GatewayRead, &gateway("staging")));
        assert!(!world.allows("", &here, Action::PolicyActivate, &thing(Kind::PolicySet)));
        assert!(!world.allows("", &here, Action::WorkspaceCreate, &thing(Kind::Organization)));
        assert!(!world.allows("", &here, Action::AuditRead, &thing(Kind::Organization)));
    }
    let viewer = person(&[(Role::Viewer, Some(10))]);
    assert!(world.allows("", &viewer, Action::AgentRead, &agent()));
    assert!(!world.allows("", &viewer, Action::AgentUpdate, &agent()));
}

#[test]
fn only_owners_make_change_or_remove_owners() {
    let world = World::new();
    let everything = "permit (principal, action, resource);";
    let owner_role = Context { role: Some(Role::Owner), ..Context::default() };
    let on =
        |action| if action == Action::MembershipCreate { thing(Kind::Organization) } else { thing(Kind::Membership) };
    for action in [Action::MembershipCreate, Action::MembershipUpdate, Action::MembershipDelete] {
        let admin = person(&[(Role::Admin, None)]);
        let decision = world.decide(everything, &admin, action, &on(action), &owner_role);
        assert_eq!((decision.allowed, decision.reason), (false, Reason::Forbidden), "{}", action.as_str());
        assert!(world.allows("", &admin, action, &on(action)), "other roles are theirs to give");
        assert!(world.decide("", &person(&[(Role::Owner, None)]), action, &on(action), &owner_role).allowed);
        // A route that forgets to say which role is in question gets nothing.
        let forgotten = world.decide("", &admin, action, &on(action), &Context::default());
        assert_eq!((forgotten.allowed, forgotten.reason), (false, Reason::Error));
    }
    for action in [Action::UserUpdate, Action::UserDelete] {
        let admin = person(&[(Role::Admin, None)]);
        assert!(!world.decide(everything, &admin, action, &thing(Kind::User), &owner_role).allowed);
        assert!(world.allows("", &admin, action, &thing(Kind::User)));
    }
}

#[test]
fn schema_and_server_speak_of_the_same_actions() {
    // Loading fails for an action that is missing, or that the schema has beyond them; here: each is in its groups.
    let world = World::new();
    let groups = world.engine.vocabulary.groups();
    for action in Action::ALL {
        let (area, verb) = action.as_str().split_once('.').unwrap();
        assert!(groups[&format!("{area}.*")].contains(action), "{}", action.as_str());
        assert_eq!(groups["*.read"].contains(action), verb == "read", "{}", action.as_str());
        assert!(Kind::ALL.iter().any(|kind| world.engine.vocabulary.applies(*action, *kind)));
    }
}

#[test]
fn what_is_built_for_deciding_conforms_to_the_schema() {
    let world = World::new();
    let none = super::super::attributes::Types::default();
    let schema = world.engine.vocabulary.schema(&none, &none, false).unwrap();
    let who = person(&[(Role::Developer, None), (Role::Viewer, Some(10))]);
    let mut everything = super::super::reads::Reads::default();
    everything.add(u32::MAX);
    for (action, kind) in world.engine.vocabulary.pairs() {
        let mut resource = thing(kind);
        resource.labels.clear();
        let mut context = context(action);
        if let Some(gateway) = &mut context.gateway {
            gateway.labels.clear();
        }
        let roles = super::super::kind::Roles::effective(&who, &resource);
        let question = super::super::entities::Question {
            principal: &who,
            roles,
            action,
            resource: &resource,
            context: &context,
            now: now(),
        };
        let (request, entities) = question.build(&world.engine.vocabulary, &everything).unwrap();
        // Our context has `role`, `gateway` and the like only where they are given.
        cedar_policy::Request::new(
            request.principal().unwrap().clone(),
            request.action().unwrap().clone(),
            request.resource().unwrap().clone(),
            request.context().unwrap().clone(),
            Some(&schema),
        )
        .unwrap_or_else(|error| panic!("{} {kind:?}: {error}", action.as_str()));
        // The schema brings the actions along itself.
        // Of another person only organization and name are known.
        let known = |entity: &&cedar_policy::Entity| {
            let (uid, name) = (entity.uid(), entity.uid().type_name().basename().to_owned());
            name != "Action" && (name != "User" || &uid == request.principal().unwrap())
        };
        let ours = entities.iter().filter(known).cloned();
        cedar_policy::Entities::from_entities(ours, Some(&schema))
            .unwrap_or_else(|error| panic!("{} {kind:?}: {error:?}", action.as_str()));
    }
}
