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
        #[schema(value_type = Uuid, example = "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c01")]
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
    /// The id of an organization, which is a tenant.
    OrganizationId
    /// The id of a user: a person, within one organization.
    UserId
    /// The id of an identity: a link of a user to a subject of an identity provider.
    IdentityId
    /// The id of a membership: a role held by a user, in an organization or one of its workspaces.
    MembershipId
    /// The id of a workspace, which is a folder of agents within an organization.
    WorkspaceId
    /// The id of an agent.
    AgentId
    /// The id of an agent's canvas; names the collaboration session.
    CanvasId
    /// The id of one immutable version of an agent.
    VersionId
    /// The id of a gateway: a place that agents are deployed to, which is a connection of the deployment-target kind.
    GatewayId
    /// The id of one deployment of one version to one gateway.
    DeploymentId
    /// The id of a background job.
    JobId
    /// The id of an identity connection: a place that signs people in, which is a connection of the identity-provider kind.
    IdentityConnectionId
    /// The id of an audit sink: a place that audit events go, which is a connection of the audit-sink kind.
    AuditSinkId
    /// The id of a tenant's policy set.
    PolicySetId
    /// The id of one immutable version of a policy set.
    PolicyVersionId
    /// The id of a sign-in: what refresh tokens and the cookie belong to.
    SessionId
    /// The id of an audit event.
    AuditEventId
}
