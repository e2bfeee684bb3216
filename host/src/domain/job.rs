//! Background jobs: what they are, where they stand, and when a failed attempt is repeated.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use super::id::{DeploymentId, JobId, OrganizationId};

/// What a job does: `deployment.deploy` brings a version to a gateway, `deployment.undeploy` takes it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[sqlx(type_name = "TEXT")]
pub enum JobKind {
    /// Brings a version to a gateway.
    #[serde(rename = "deployment.deploy")]
    #[sqlx(rename = "deployment.deploy")]
    Deploy,
    /// Takes a deployment off its gateway.
    #[serde(rename = "deployment.undeploy")]
    #[sqlx(rename = "deployment.undeploy")]
    Undeploy,
}

impl JobKind {
    /// As stored and as shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deployment.deploy",
            Self::Undeploy => "deployment.undeploy",
        }
    }
}

/// Where a job stands: it waits (`queued`), has a worker (`running`), is done (`succeeded`), is not done and not tried again by
/// itself (`failed`), or was called off (`cancelled`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "TEXT", rename_all = "snake_case")]
pub enum JobState {
    /// Waits for its time and a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Done.
    Succeeded,
    /// Not done, and not tried again by itself.
    Failed,
    /// Called off.
    Cancelled,
}

impl JobState {
    /// As stored and as shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens by itself.
    pub fn over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What a job works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = JobPayload)]
pub struct Payload {
    /// The deployment that the job brings to its gateway, or takes off it.
    pub deployment_id: DeploymentId,
}

/// A background job: one piece of work for a deployment, with its attempts.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "01932fa4-18c2-7d05-9b6a-2f7e4c1d8a39",
    "kind": "deployment.deploy",
    "payload": { "deployment_id": "01932fa4-18c1-7c44-8f02-7a5b3e9d6c10" },
    "state": "queued",
    "run_at": "2026-11-27T10:30:04.250000Z",
    "attempts": 2,
    "max_attempts": 5,
    "cancel_requested": false,
    "lease_until": null,
    "last_error": "gateway.example.com answered 503",
    "created_at": "2026-11-27T10:30:00.118204Z",
    "updated_at": "2026-11-27T10:30:02.006311Z",
    "finished_at": null
}))]
pub struct Job {
    /// The id of the job.
    pub id: JobId,
    /// Whose it is.
    #[serde(skip)]
    pub organization_id: OrganizationId,
    /// What the job does.
    pub kind: JobKind,
    /// What the job works on.
    #[schema(value_type = Payload)]
    pub payload: Json<Payload>,
    /// Where the job stands.
    pub state: JobState,
    /// The time from which on a worker may begin the next attempt.
    #[serde(serialize_with = "crate::clock::micros")]
    pub run_at: DateTime<Utc>,
    /// Attempts that have begun; from 0 again where a failed job was retried.
    #[schema(minimum = 0)]
    pub attempts: i64,
    /// Attempts at the most, before the job has failed. Cancelling allows for a few more, in which to undo.
    #[schema(minimum = 1)]
    pub max_attempts: i64,
    /// Whether the job was cancelled while it was waiting or running. What an attempt did at the gateway is then undone.
    pub cancel_requested: bool,
    /// Whether an earlier attempt may have reached the far side without its end being known.
    #[serde(skip)]
    pub uncertain: bool,
    /// The worker that holds it.
    #[serde(skip)]
    pub lease_owner: Option<String>,
    /// Until when the running attempt has the job to itself; it prolongs this as long as it works. Null unless it runs.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub lease_until: Option<DateTime<Utc>>,
    /// Counts claims: a write under an older fence is refused.
    #[serde(skip)]
    pub fence: i64,
    /// Why the last attempt failed; null if none has.
    #[schema(required = true, max_length = 2000)]
    pub last_error: Option<String>,
    /// When the job was added.
    #[serde(serialize_with = "crate::clock::micros")]
    pub created_at: DateTime<Utc>,
    /// When the job last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub updated_at: DateTime<Utc>,
    /// When the job succeeded, failed or was cancelled; null while it waits or runs.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub finished_at: Option<DateTime<Utc>>,
}

/// The first pause after a failed attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that a far side can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// How long to wait after the `failures`-th failure in a row: doubles from a second up to `longest`, the second half of it
/// random ("equal jitter"), so that what failed together does not come back together. A wait that the far side asked for
/// is kept, with up to a tenth on top, and at most an hour.
///
/// `random` is uniform over all its values.
pub fn backoff(failures: u32, asked: Option<Duration>, longest: Duration, random: u64) -> Duration {
    let fraction = random as f64 / u64::MAX as f64;
    match asked {
        Some(asked) => asked.min(LONGEST_ASKED).mul_f64(1.0 + fraction / 10.0),
        None => {
            let whole = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
            whole.mul_f64(0.5 + fraction / 2.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_double_up_to_the_longest_and_spread() {
        for (failures, whole) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60), (u32::MAX, 60)] {
            assert_eq!(backoff(failures, None, LONGEST, 0), Duration::from_secs(whole) / 2);
            assert_eq!(backoff(failures, None, LONGEST, u64::MAX), Duration::from_secs(whole));
        }
    }

    #[test]
    fn the_far_side_s_wish_is_kept_within_reason() {
        let asked = Some(Duration::from_secs(90));
        assert_eq!(backoff(1, asked, LONGEST, 0), Duration::from_secs(90));
        assert_eq!(backoff(1, asked, LONGEST, u64::MAX), Duration::from_secs(99));
        assert!(backoff(1, Some(Duration::from_secs(u64::MAX)), LONGEST, u64::MAX) <= Duration::from_secs(3960));
    }
}
