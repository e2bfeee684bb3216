//! Who may do what: Cedar policies of the platform and of the tenant.

mod action;

use std::collections::BTreeMap;

pub use action::Action;
use uuid::Uuid;

use crate::{
    domain::{
        id::{OrganizationId, UserId, WorkspaceId},
        principal::Principal,
        role::Role,
    },
    store::{Store, StoreError},
};

/// The kinds of things that policies speak of: Cedar entity types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// As the audit trail and the API name it.
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
}

/// What else a decision may turn on: Cedar's `context`.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// For `agent.deploy`: where to.
    pub gateway: Option<Resource>,
    /// For `agent.deploy`: into which environment.
    pub environment: Option<String>,
    /// For `membership.create`, `.update` and `.delete`: the role in question.
    pub role: Option<Role>,
}

/// Decides. Cheap to clone.
#[derive(Clone)]
pub struct Authz {}

/// A decision and what made it.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
}

impl Decision {
    /// For the problem and the audit event.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// For people.
    pub fn sentence(&self, _action: Action) -> String {
        String::new()
    }
}

impl Authz {
    /// Decides many of one kind: which of them the principal may act on.
    ///
    /// # Errors
    /// If the tenant's policies cannot be loaded.
    pub async fn filter(
        &self,
        _store: &Store,
        _principal: &Principal,
        _action: Action,
        resources: &[Resource],
    ) -> Result<Vec<bool>, StoreError> {
        Ok(vec![false; resources.len()])
    }

    /// Reads and validates the platform's policies, which are part of the binary.
    ///
    /// # Errors
    /// If they do not hold up: a defect.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    /// Decides one request.
    ///
    /// # Errors
    /// If the tenant's policies cannot be loaded.
    pub async fn check(
        &self,
        _store: &Store,
        _principal: &Principal,
        _action: Action,
        _resource: &Resource,
        _context: &Context,
    ) -> Result<Decision, StoreError> {
        Ok(Decision { allowed: false })
    }
}
