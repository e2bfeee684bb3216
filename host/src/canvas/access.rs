//! What somebody may do on a canvas, as of now: draw (`agent.update`), look (`agent.read`), or neither.

use serde::Serialize;

use super::Parts;
use crate::{
    authz::{Action, Context, Kind, Resource},
    domain::{agent::Agent, principal::Principal},
    store::StoreError,
};

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Draw.
    Edit,
    /// Look.
    View,
}

/// The agent as policies see it.
pub fn resource(agent: &Agent) -> Resource {
    Resource {
        workspace: Some(agent.workspace_id),
        labels: agent.labels.0.clone(),
        owner: Some(agent.created_by),
        ..Resource::new(Kind::Agent, agent.id, agent.organization_id, agent.name.clone())
    }
}

impl Parts {
    /// What policies let them do; `None`: not even look.
    ///
    /// # Errors
    /// If the tenant's policies cannot be loaded.
    pub(super) async fn access(&self, principal: &Principal, agent: &Resource) -> Result<Option<Access>, StoreError> {
        // Read first: who may not look may not draw, whatever else a policy says.
        if !self.may(principal, Action::AgentRead, agent).await? {
            return Ok(None);
        }
        let edit = self.may(principal, Action::AgentUpdate, agent).await?;
        Ok(Some(if edit { Access::Edit } else { Access::View }))
    }

    async fn may(&self, principal: &Principal, action: Action, agent: &Resource) -> Result<bool, StoreError> {
        Ok(self.authz.check(&self.store, principal, action, agent, &Context::default()).await?.allowed)
    }
}
