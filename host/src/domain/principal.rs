//! Who is asking: what a request, a socket or a job acts as.

use super::id::{OrganizationId, PolicyVersionId, SessionId, UserId};
use super::role::{Grant, Role};

/// A signed-in user as of this request: read from the database each time, so that revoking acts at once.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The user.
    pub user_id: UserId,
    /// The one organization this request acts in.
    pub organization_id: OrganizationId,
    /// Lower-cased e-mail address.
    pub email: String,
    /// The name to show.
    pub name: String,
    /// Roles held.
    pub grants: Vec<Grant>,
    /// Visible to policies as `principal.attributes`: a JSON object of strings, numbers, booleans and string lists.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// May create organizations and manage what all tenants share.
    pub platform_administrator: bool,
    /// The sign-in this request belongs to.
    pub session_id: Option<SessionId>,
    /// The tenant policies in force: the active version of the organization's policy set.
    pub policy_version: Option<PolicyVersionId>,
}

impl Principal {
    /// Whether a role is held in the whole organization.
    pub fn has_role(&self, role: Role) -> bool {
        self.grants.iter().any(|grant| grant.role == role && grant.workspace.is_none())
    }
}
