//! What goes into plugins and comes out of them, in the host's own terms.

use std::{collections::BTreeMap, time::Duration};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Wanted;
pub use crate::sandbox::context::Progress;
use crate::{
    domain::{fault::Fault, id::OrganizationId},
    store::StoreError,
};

/// A connection, ready to be called: its configuration and its secrets in the clear.
#[derive(Clone)]
pub struct Binding {
    /// Whose it is; places for calls are shared out by it. The plugin is not told.
    pub organization_id: OrganizationId,
    /// Opaque to the plugin.
    pub connection_id: Uuid,
    /// The plugin's name, among those of its kind.
    pub plugin: String,
    /// Which version of it.
    pub wanted: Wanted,
    /// Valid against the plugin's schema.
    pub config: Value,
    /// By name.
    pub secrets: BTreeMap<String, SecretString>,
}

/// Which attempt at which piece of work.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The same for every attempt.
    pub idempotency_key: String,
    /// 1 for the first.
    pub attempt: u32,
}

/// Why a plugin's call did not succeed. The texts are fit for operators: no secrets, no control characters, bounded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PluginError {
    /// The configuration cannot work, or something was not granted; an operator must change it.
    #[error("{0}")]
    Config(String),
    /// The far side refused this piece of work.
    #[error("{0}")]
    Rejected(String),
    /// Worth another attempt.
    #[error("{message}")]
    Unavailable {
        /// What is not available.
        message: String,
        /// Where the far side said how long to wait; at most an hour.
        retry_after: Option<Duration>,
    },
    /// The call did not begin: the connection's calls are suspended, or too many are under way. It is no attempt.
    #[error("{message}")]
    Postponed {
        /// What is in the way.
        message: String,
        /// When to come back.
        after: Duration,
    },
    /// A defect of the plugin, as it says itself.
    #[error("defect of the plugin: {0}")]
    Internal(String),
    /// A trap, a limit or the clock ended the call.
    #[error("{0}")]
    Fault(String),
}

impl PluginError {
    /// Whether another attempt may succeed without anybody changing anything. A fault may be the far side's slowness, so
    /// it counts; attempts are limited anyway.
    pub fn retryable(&self) -> bool {
        matches!(self, PluginError::Unavailable { .. } | PluginError::Postponed { .. } | PluginError::Fault(_))
    }

    /// The same error, saying one thing more.
    #[must_use]
    pub(super) fn with(self, more: &str) -> Self {
        let add = |message: String| format!("{message} ({more})");
        match self {
            PluginError::Config(message) => PluginError::Config(add(message)),
            PluginError::Rejected(message) => PluginError::Rejected(add(message)),
            PluginError::Unavailable { message, retry_after } => {
                PluginError::Unavailable { message: add(message), retry_after }
            }
            PluginError::Postponed { message, after } => PluginError::Postponed { message: add(message), after },
            PluginError::Internal(message) => PluginError::Internal(add(message)),
            PluginError::Fault(message) => PluginError::Fault(add(message)),
        }
    }

    /// For metrics and records.
    pub fn outcome(&self) -> Failure {
        match self {
            PluginError::Config(_) => Failure::Config,
            PluginError::Rejected(_) => Failure::Rejected,
            PluginError::Unavailable { .. } | PluginError::Postponed { .. } => Failure::Unavailable,
            PluginError::Internal(_) => Failure::Internal,
            PluginError::Fault(_) => Failure::Fault,
        }
    }
}

/// Why a call of a plugin failed: the configuration cannot work (`config`), the other system refused (`rejected`) or could not be
/// used (`unavailable`), the plugin reported a defect of its own (`internal`), or it crashed or went over a limit (`fault`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PluginFailure)]
pub enum Failure {
    /// [`PluginError::Config`].
    Config,
    /// [`PluginError::Fault`].
    Fault,
    /// [`PluginError::Internal`].
    Internal,
    /// [`PluginError::Rejected`].
    Rejected,
    /// [`PluginError::Unavailable`] and [`PluginError::Postponed`].
    Unavailable,
}

impl Failure {
    /// As in the API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Config => "config",
            Failure::Fault => "fault",
            Failure::Internal => "internal",
            Failure::Rejected => "rejected",
            Failure::Unavailable => "unavailable",
        }
    }
}

/// Why a check of a connection tells nothing of it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// Its organization checks too often.
    #[error("this organization's connections were checked too often in this minute: check again later")]
    TooOften {
        /// When the next minute begins.
        after: Duration,
    },
    /// One is enough.
    #[error("this connection is being checked already: wait for that check to end")]
    UnderWay,
    /// It was checked, or could not be; see [`PluginError`].
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// Why a connection is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What it gets wrong, each fault by JSON pointer into the body of a request.
    #[error("{} faults", .0.len())]
    Faults(Vec<Fault>),
    /// It says nothing of the connection: the same may be taken a moment later.
    #[error("{0}")]
    Busy(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The sign-in protocol to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// OpenID Connect.
    Oidc {
        /// Exactly as in the tokens.
        issuer: String,
        /// `openid` may be missing.
        scopes: Vec<String>,
        /// Extra parameters of the authorization request.
        parameters: Vec<(String, String)>,
    },
    /// OAuth 2 without ID tokens.
    Oauth2 {
        /// Where people are sent.
        authorization_endpoint: String,
        /// Where the code is exchanged.
        token_endpoint: String,
        /// What is asked for.
        scopes: Vec<String>,
        /// Extra parameters of the authorization request.
        parameters: Vec<(String, String)>,
    },
}

/// What a verified sign-in gave.
#[derive(Debug, Clone, Default)]
pub struct IdentityGrant {
    /// Verified claims of the ID token; none for OAuth 2.
    pub claims: Option<Value>,
    /// The userinfo response, where there is one.
    pub userinfo: Option<Value>,
}

/// Who signed in, as the provider has them.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderIdentity {
    /// Stable within the connection; never empty.
    pub subject: String,
    /// As the provider has it.
    pub email: Option<String>,
    /// Whether the provider vouches for it.
    pub email_verified: bool,
    /// The name to show.
    pub name: Option<String>,
    /// As the provider names them.
    pub groups: Vec<String>,
    /// Visible to policies.
    pub attributes: Map<String, Value>,
}

/// What is deployed.
#[derive(Debug, Clone)]
pub struct Release {
    /// The same again must give the same registration.
    pub deployment_id: Uuid,
    /// Which agent.
    pub agent_id: Uuid,
    /// For people.
    pub agent_name: String,
    /// Its number.
    pub version: u32,
    /// Where to.
    pub environment: String,
    /// `kaizen.workflow.v1`, the exact text that was digested.
    pub workflow: String,
    /// SHA-256 of it, hexadecimal.
    pub digest: String,
}

/// How a target calls what was deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The target's own id.
    pub id: String,
    /// Where it is reached.
    pub endpoint: Option<String>,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// Not there yet, and what it waits for.
    Pending(String),
    /// It serves.
    Active,
    /// It will not become active, and why.
    Failed(String),
    /// The target knows nothing of it.
    Gone,
}
