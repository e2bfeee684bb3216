//! Identifiers: one type for each kind of thing, all UUIDv7 (RFC 9562) so that they sort by age.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
                 sqlx::Type, utoipa::ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )*};
}

ids! {
    /// A tenant.
    OrganizationId
    /// A person, within one organization.
    UserId
    /// A link of a user to a subject of an identity provider.
    IdentityId
    /// A role held by a user, in an organization or one of its workspaces.
    MembershipId
    /// A folder of agents within an organization.
    WorkspaceId
    /// An agent.
    AgentId
    /// The canvas of an agent; names the collaboration session.
    CanvasId
    /// One immutable version of an agent.
    VersionId
    /// A place that agents are deployed to: a connection of the deployment-target kind.
    GatewayId
    /// One deployment of one version to one gateway.
    DeploymentId
    /// A background job.
    JobId
    /// A place that signs people in: a connection of the identity-provider kind.
    IdentityConnectionId
    /// A place that audit events go: a connection of the audit-sink kind.
    AuditSinkId
    /// A tenant's policy set.
    PolicySetId
    /// One immutable version of a policy set.
    PolicyVersionId
    /// A sign-in: what refresh tokens and the cookie belong to.
    SessionId
    /// An audit event.
    AuditEventId
}
