//! Before an agent, a gateway or an organization is removed: its deployments.

use crate::{
    api::problem::{Problem, Result},
    domain::{deployment::DeploymentState, id::OrganizationId},
    store::{
        Tx,
        deployments::{self, Kept, Of},
    },
};

/// Deployments that a refusal names at the most.
const NAMED: usize = 3;

/// Forgets what is over, so that what it refers to can be removed.
///
/// # Errors
/// 409 that names the deployments which are not over, and what to do about each.
pub async fn forget(tx: &mut Tx, organization: OrganizationId, of: Of) -> Result<()> {
    let limit = i64::try_from(NAMED + 1).unwrap_or(i64::MAX);
    let kept = deployments::kept(tx, organization, of, limit).await?;
    if kept.is_empty() { Ok(deployments::forget(tx, organization, of).await?) } else { Err(refusal(&kept)) }
}

fn refusal(kept: &[Kept]) -> Problem {
    let mut named: Vec<String> = kept.iter().take(NAMED).map(instead).collect();
    if kept.len() > NAMED {
        named.push("and there are more (GET /api/v1/deployments)".to_owned());
    }
    Problem::conflict(format!("It is still in use, and can be deleted once it is not: {}.", named.join("; ")))
}

/// What to do about a deployment.
fn instead(Kept { id, status, job_id }: &Kept) -> String {
    let one = format!("deployment {id} is {}", status.as_str());
    match status {
        DeploymentState::Queued | DeploymentState::Running => {
            format!("{one}: cancel it with POST /api/v1/deployments/{id}/cancel")
        }
        DeploymentState::Active => format!("{one}: stop it with POST /api/v1/deployments/{id}/stop"),
        DeploymentState::Stopping => {
            format!(
                "{one}: wait for its job {job_id}, or retry that with POST /api/v1/jobs/{job_id}/retry if it has failed"
            )
        }
        DeploymentState::Failed | DeploymentState::Cancelled | DeploymentState::Stopped => {
            format!("{one}, and its job {job_id} still cleans up at the gateway: wait for it")
        }
    }
}
