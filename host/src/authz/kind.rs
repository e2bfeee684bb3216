//! What policies speak of: kinds of things, one thing with what is visible of it, and the circumstances.

use std::{borrow::Cow, collections::BTreeMap};

use utoipa::openapi::{
    RefOr,
    schema::{ObjectBuilder, Schema, Type},
};
use uuid::Uuid;

use crate::domain::{
    id::{OrganizationId, UserId, WorkspaceId},
    principal::Principal,
    role::Role,
};

/// The kinds of things that policies speak of: Cedar entity types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `Kaizen::Organization`.
    Organization,
    /// `Kaizen::User`.
    User,
    /// `Kaizen::Membership`.
    Membership,
    /// `Kaizen::Workspace`.
    Workspace,
    /// `Kaizen::Agent`; its versions and its canvas are acted on as the agent.
    Agent,
    /// `Kaizen::Gateway`.
    Gateway,
    /// `Kaizen::Deployment`.
    Deployment,
    /// `Kaizen::AuditSink`.
    AuditSink,
    /// `Kaizen::IdentityConnection`.
    IdentityConnection,
    /// `Kaizen::PolicySet`.
    PolicySet,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Self] = &[
        Kind::Organization,
        Kind::User,
        Kind::Membership,
        Kind::Workspace,
        Kind::Agent,
        Kind::Gateway,
        Kind::Deployment,
        Kind::AuditSink,
        Kind::IdentityConnection,
        Kind::PolicySet,
    ];

    /// The entity type's name within the namespace `Kaizen`.
    pub fn entity_type(self) -> &'static str {
        match self {
            Kind::Organization => "Organization",
            Kind::User => "User",
            Kind::Membership => "Membership",
            Kind::Workspace => "Workspace",
            Kind::Agent => "Agent",
            Kind::Gateway => "Gateway",
            Kind::Deployment => "Deployment",
            Kind::AuditSink => "AuditSink",
            Kind::IdentityConnection => "IdentityConnection",
            Kind::PolicySet => "PolicySet",
        }
    }

    /// As the audit trail, the API and sentences name it: `identity_connection`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Organization => "organization",
            Kind::User => "user",
            Kind::Membership => "membership",
            Kind::Workspace => "workspace",
            Kind::Agent => "agent",
            Kind::Gateway => "gateway",
            Kind::Deployment => "deployment",
            Kind::AuditSink => "audit_sink",
            Kind::IdentityConnection => "identity_connection",
            Kind::PolicySet => "policy",
        }
    }
}

impl utoipa::PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(Self::ALL.iter().map(|kind| kind.as_str())))
            .description(Some("A type of thing that policies decide about; `policy` is a policy set."))
            .into()
    }
}

impl utoipa::ToSchema for Kind {
    fn name() -> Cow<'static, str> {
        "ResourceType".into()
    }
}

/// One thing that is acted on, with what policies can see of it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its entity type.
    pub kind: Kind,
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub organization: OrganizationId,
    /// The workspace it is in, for agents and deployments; a workspace names itself.
    pub workspace: Option<WorkspaceId>,
    /// Its name.
    pub name: String,
    /// For gateways and deployments.
    pub environment: Option<String>,
    /// For agents and gateways.
    pub labels: BTreeMap<String, String>,
    /// Who made it, for agents and deployments; the user it is about, for memberships.
    pub owner: Option<UserId>,
}

impl Resource {
    /// A thing with no more than a name.
    pub fn new(kind: Kind, id: impl Into<Uuid>, organization: OrganizationId, name: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            organization,
            workspace: None,
            name: name.into(),
            environment: None,
            labels: BTreeMap::new(),
            owner: None,
        }
    }

    /// The organization itself: what is acted on when something is created in it.
    pub fn organization(id: OrganizationId) -> Self {
        Self::new(Kind::Organization, id.0, id, "")
    }

    /// The workspace that roles held in one workspace are compared with.
    pub(super) fn in_workspace(&self) -> Option<WorkspaceId> {
        if self.kind == Kind::Workspace { Some(WorkspaceId(self.id)) } else { self.workspace }
    }
}

/// What else a decision may turn on: Cedar's `context`. A value that is needed and absent denies.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// For `agent.deploy`: where to.
    pub gateway: Option<Resource>,
    /// For `agent.deploy`: into which environment; the gateway's own if absent.
    pub environment: Option<String>,
    /// For `membership.create`, `.update` and `.delete`: the role in question (for an update, ask for the old and the
    /// new one). For `user.update` and `user.delete`: [`Role::Owner`] if the user in question is an owner.
    pub role: Option<Role>,
}

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Roles(u8);

/// Every role, strongest first.
pub(super) const ROLES: [Role; 5] = [Role::Owner, Role::Admin, Role::Developer, Role::Viewer, Role::Auditor];

impl Roles {
    fn bit(role: Role) -> u8 {
        match role {
            Role::Owner => 1,
            Role::Admin => 2,
            Role::Developer => 4,
            Role::Viewer => 8,
            Role::Auditor => 16,
        }
    }

    pub(super) fn contains(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Role> {
        ROLES.into_iter().filter(move |role| self.contains(*role))
    }

    fn of(principal: &Principal, held: impl Fn(Option<WorkspaceId>) -> bool) -> Self {
        Self(principal.grants.iter().filter(|g| held(g.workspace)).fold(0, |bits, grant| bits | Self::bit(grant.role)))
    }

    /// Roles that hold for this resource: those held everywhere and those held in its workspace. This is what
    /// `principal in Kaizen::Role::"…"` asks.
    pub(super) fn effective(principal: &Principal, resource: &Resource) -> Self {
        let workspace = resource.in_workspace();
        Self::of(principal, |held| held.is_none() || held == workspace)
    }

    /// Roles held in the whole organization.
    pub(super) fn everywhere(principal: &Principal) -> Self {
        Self::of(principal, |held| held.is_none())
    }

    /// Roles held in at least one workspace.
    pub(super) fn somewhere(principal: &Principal) -> Self {
        Self::of(principal, |held| held.is_some())
    }
}
