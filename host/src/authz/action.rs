//! What can be done: Cedar's actions, the same words as in the audit trail.

use utoipa::openapi::{
    RefOr,
    schema::{ObjectBuilder, Schema, Type},
};

macro_rules! actions {
    ($($name:ident $text:literal)*) => {
        /// An action, `Kaizen::Action::"agent.deploy"` in policies.
        #[expect(missing_docs, reason = "each is named by its text")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($name,)* }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As in policies and in the audit trail.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether it changes nothing: then a denial is not worth an audit event.
            pub fn reads(self) -> bool {
                self.as_str().ends_with(".read")
            }

            /// The action of this name.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

// What is created is asked of the thing it is created in: the organization, or for agents the workspace.
// A list asks `*.read` of each item. Viewing a canvas is `agent.read`, drawing on it `agent.update`.
actions! {
    OrganizationCreate "organization.create"
    OrganizationRead "organization.read"
    OrganizationUpdate "organization.update"
    OrganizationDelete "organization.delete"
    UserCreate "user.create"
    UserRead "user.read"
    UserUpdate "user.update"
    UserDelete "user.delete"
    MembershipCreate "membership.create"
    MembershipRead "membership.read"
    MembershipUpdate "membership.update"
    MembershipDelete "membership.delete"
    WorkspaceCreate "workspace.create"
    WorkspaceRead "workspace.read"
    WorkspaceUpdate "workspace.update"
    WorkspaceDelete "workspace.delete"
    AgentCreate "agent.create"
    AgentRead "agent.read"
    AgentUpdate "agent.update"
    AgentDelete "agent.delete"
    AgentVersion "agent.version"
    AgentDeploy "agent.deploy"
    GatewayCreate "gateway.create"
    GatewayRead "gateway.read"
    GatewayUpdate "gateway.update"
    GatewayDelete "gateway.delete"
    GatewayCheck "gateway.check"
    DeploymentRead "deployment.read"
    DeploymentCancel "deployment.cancel"
    DeploymentStop "deployment.stop"
    DeploymentRollback "deployment.rollback"
    JobRead "job.read"
    JobRetry "job.retry"
    JobCancel "job.cancel"
    AuditSinkCreate "audit_sink.create"
    AuditSinkRead "audit_sink.read"
    AuditSinkUpdate "audit_sink.update"
    AuditSinkDelete "audit_sink.delete"
    AuditSinkCheck "audit_sink.check"
    IdentityConnectionCreate "identity_connection.create"
    IdentityConnectionRead "identity_connection.read"
    IdentityConnectionUpdate "identity_connection.update"
    IdentityConnectionDelete "identity_connection.delete"
    IdentityConnectionCheck "identity_connection.check"
    PolicyCreate "policy.create"
    PolicyRead "policy.read"
    PolicyUpdate "policy.update"
    PolicyActivate "policy.activate"
    PolicyDelete "policy.delete"
    AuditRead "audit.read"
    PluginRead "plugin.read"
    PluginCreate "plugin.create"
    PluginActivate "plugin.activate"
    PluginDelete "plugin.delete"
}

impl utoipa::PartialSchema for Action {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(Self::ALL.iter().map(|action| action.as_str())))
            .description(Some(
                "An action, as Cedar policies name it: `Kaizen::Action::\"agent.deploy\"` is `agent.deploy`.",
            ))
            .into()
    }
}

impl utoipa::ToSchema for Action {}
