//! What must hold of authorization.

mod alike;
mod invariants;
mod roles;
mod stored;
mod texts;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{
    Action, Context, Decision, Kind, Origin, PolicyFault, Reason, Resource, Validated,
    engine::{Engine, Tenant},
    index::Index,
    tenant,
    text::{self, Bounds},
};
use crate::{
    config::limits::ServerLimits,
    domain::{
        id::{OrganizationId, UserId, WorkspaceId},
        principal::Principal,
        role::{Grant, Role},
    },
};

/// Fixed ids: `n` tells them apart.
fn id<T: From<Uuid>>(n: u128) -> T {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n).into()
}

fn acme() -> OrganizationId {
    id(1)
}

/// A Friday.
fn now() -> DateTime<Utc> {
    "2026-11-20T10:30:00Z".parse().unwrap()
}

fn person(grants: &[(Role, Option<u128>)]) -> Principal {
    let grant = |(role, workspace): &(Role, Option<u128>)| Grant { role: *role, workspace: workspace.map(id) };
    Principal {
        user_id: id(100),
        organization_id: acme(),
        email: "ada@acme.example".into(),
        name: "Ada".into(),
        grants: grants.iter().map(grant).collect(),
        attributes: serde_json::Map::new(),
        platform_administrator: false,
        session_id: None,
        policy_version: None,
    }
}

fn with_attributes(mut principal: Principal, attributes: serde_json::Value) -> Principal {
    principal.attributes = attributes.as_object().unwrap().clone();
    principal
}

/// An agent in workspace 10, made by somebody else.
fn agent() -> Resource {
    Resource {
        workspace: Some(id(10)),
        owner: Some(id(101)),
        labels: [("team".to_owned(), "support".to_owned())].into(),
        ..Resource::new(Kind::Agent, id::<Uuid>(20), acme(), "Support bot")
    }
}

fn gateway(environment: &str) -> Resource {
    Resource {
        environment: Some(environment.into()),
        labels: [("region".to_owned(), "eu".to_owned())].into(),
        ..Resource::new(Kind::Gateway, id::<Uuid>(30), acme(), "Gateway")
    }
}

/// One thing of a kind, in workspace 10 where it is in one.
fn thing(kind: Kind) -> Resource {
    match kind {
        Kind::Organization => Resource::organization(acme()),
        Kind::Workspace => Resource::new(kind, id::<Uuid>(10), acme(), "Main"),
        Kind::Agent => agent(),
        Kind::Gateway => gateway("staging"),
        Kind::Deployment => Resource {
            workspace: Some(id(10)),
            owner: Some(id(101)),
            environment: Some("staging".into()),
            ..Resource::new(kind, id::<Uuid>(40), acme(), "Support bot")
        },
        Kind::Membership => Resource { owner: Some(id(101)), ..Resource::new(kind, id::<Uuid>(50), acme(), "viewer") },
        Kind::User => Resource::new(kind, id::<Uuid>(101), acme(), "Ben"),
        _ => Resource::new(kind, id::<Uuid>(60), acme(), "Thing"),
    }
}

/// What a route would say.
fn context(action: Action) -> Context {
    match action {
        Action::AgentDeploy => Context { gateway: Some(gateway("staging")), ..Context::default() },
        Action::MembershipCreate | Action::MembershipUpdate | Action::MembershipDelete => {
            Context { role: Some(Role::Viewer), ..Context::default() }
        }
        _ => Context::default(),
    }
}

struct World {
    engine: Engine,
}

impl World {
    fn new() -> Self {
        Self { engine: Engine::new().unwrap() }
    }

    fn validate(&self, text: &str) -> Result<Validated, Vec<PolicyFault>> {
        let bounds = Bounds::of(&ServerLimits::default());
        text::deep(|| super::validate(&self.engine, text, &bounds, &|| false)).unwrap()
    }

    /// Validated strictly first, as every stored text is.
    fn compile(&self, text: &str) -> Index {
        self.validate(text).unwrap_or_else(|faults| panic!("{text}\n{faults:?}"));
        text::deep(|| tenant::compile(&self.engine.vocabulary, text)).unwrap().unwrap()
    }

    fn decide(&self, policies: &str, who: &Principal, action: Action, on: &Resource, context: &Context) -> Decision {
        let index = self.compile(policies);
        self.engine.decide(Tenant::Policies(&index), who, action, on, context, now())
    }

    fn allows(&self, policies: &str, who: &Principal, action: Action, on: &Resource) -> bool {
        self.decide(policies, who, action, on, &context(action)).allowed
    }
}
