//! What a tenant connects to through a plugin.

use serde::{Deserialize, Serialize};

/// What a plugin and its connections are for: signing people in (`identity_provider`), deploying agents (`deployment_target`)
/// or taking audit events (`audit_sink`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
#[schema(as = ConnectionKind)]
pub enum Kind {
    /// Signs people in: an identity connection.
    IdentityProvider,
    /// What agents are deployed to: a gateway.
    DeploymentTarget,
    /// Where audit events go: an audit sink.
    AuditSink,
}

impl Kind {
    /// As stored and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::IdentityProvider => "identity_provider",
            Kind::DeploymentTarget => "deployment_target",
            Kind::AuditSink => "audit_sink",
        }
    }

    /// As its WIT package is called.
    pub fn from_wit(name: &str) -> Option<Self> {
        match name {
            "identity-provider" => Some(Kind::IdentityProvider),
            "deployment-target" => Some(Kind::DeploymentTarget),
            "audit-sink" => Some(Kind::AuditSink),
            _ => None,
        }
    }

    /// What people call such a connection.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::IdentityProvider => "identity connection",
            Kind::DeploymentTarget => "gateway",
            Kind::AuditSink => "audit sink",
        }
    }
}
