//! Policies that could not be evaluated: counted for the operator, logged within a bound, and kept for the tenant, who finds
//! them with the version in force. Where somebody asks for one thing they read it in the answer; from a list or an open
//! canvas the thing is only missing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use cedar_policy::EvaluationError;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Deciding, Origin, index::About};
use crate::{
    config::limits::ServerLimits,
    domain::id::{OrganizationId, PolicyVersionId},
    store::{Store, StoreError, policies},
};

/// Characters that are kept of what went wrong.
const MESSAGE: usize = 500;

/// PostgreSQL's text has no U+0000, which a policy can write as `\u{0}`.
fn storable(character: char) -> char {
    if character == '\0' { char::REPLACEMENT_CHARACTER } else { character }
}

/// Counts an error by whose policy it is and of what sort, which is the same few for all tenants.
pub(super) fn count(origin: Origin, error: &EvaluationError) {
    let reason = match error {
        EvaluationError::EntityAttrDoesNotExist(_) | EvaluationError::RecordAttrDoesNotExist(_) => "absent",
        EvaluationError::TypeError(_) => "type",
        EvaluationError::IntegerOverflow(_) => "overflow",
        EvaluationError::EntityDoesNotExist(_) => "entity",
        EvaluationError::FailedExtensionFunctionExecution(_) => "function",
        _ => "other",
    };
    let origin = match origin {
        Origin::Platform => "platform",
        Origin::Tenant => "tenant",
    };
    metrics::counter!("kaizen_policy_errors_total", "policies" => origin, "reason" => reason).increment(1);
}

/// Errors of one policy since they were last written down.
struct Pending {
    policy: Arc<About>,
    message: String,
    count: i64,
    last: DateTime<Utc>,
}

/// By the policy's place in its set.
type OfVersion = HashMap<usize, Pending>;

#[derive(Default)]
struct Waiting {
    by_version: HashMap<(OrganizationId, PolicyVersionId), OfVersion>,
    policies: usize,
}

/// The errors of this host that are not written down yet.
pub(super) struct Errors {
    waiting: Mutex<Waiting>,
    per_version: usize,
    most: usize,
    log_lines: usize,
    every: Duration,
}

impl Errors {
    pub(super) fn new(limits: &ServerLimits) -> Self {
        Self {
            waiting: Mutex::default(),
            per_version: limits.policy_errors_per_version,
            most: limits.policy_errors_waiting,
            log_lines: limits.policy_error_log_lines,
            every: Duration::from_secs(limits.policy_error_seconds),
        }
    }

    /// Takes in the errors of one decision.
    pub(super) fn note<'a>(
        &self,
        organization: OrganizationId,
        version: PolicyVersionId,
        errors: impl Iterator<Item = &'a Deciding>,
        now: DateTime<Utc>,
    ) {
        for Deciding { policy, error } in errors.filter(|deciding| deciding.policy.origin == Origin::Tenant) {
            let message = error.as_deref().unwrap_or_default().chars().take(MESSAGE).map(storable).collect();
            let pending = Pending { policy: policy.clone(), message, count: 1, last: now };
            self.add(&mut self.waiting.lock(), (organization, version), pending);
        }
    }

    fn add(&self, waiting: &mut Waiting, key: (OrganizationId, PolicyVersionId), pending: Pending) {
        let room = waiting.policies < self.most;
        let of_version = waiting.by_version.entry(key).or_default();
        let room = room && of_version.len() < self.per_version;
        match of_version.get_mut(&pending.policy.place) {
            Some(known) => {
                known.count = known.count.saturating_add(pending.count);
                if pending.last >= known.last {
                    (known.message, known.last) = (pending.message, pending.last);
                }
            }
            None if room => {
                of_version.insert(pending.policy.place, pending);
                waiting.policies += 1;
            }
            // The metric counted it.
            None => {}
        }
        if of_version.is_empty() {
            waiting.by_version.remove(&key);
        }
    }

    /// Writes down what waits, of one organization or of all.
    ///
    /// # Errors
    /// As the database says, the first of them; what is not written waits on.
    pub(super) async fn write(&self, store: &Store, only: Option<OrganizationId>) -> Result<(), StoreError> {
        let due: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let wanted =
                |(organization, _): &(OrganizationId, PolicyVersionId)| only.is_none_or(|only| only == *organization);
            let due: Vec<_> = waiting.by_version.extract_if(|key, _| wanted(key)).collect();
            waiting.policies -= due.iter().map(|(_, of_version)| of_version.len()).sum::<usize>();
            due
        };
        if only.is_none() {
            self.log(&due);
        }
        let mut failed = None;
        let mut due = due.into_iter();
        while let Some(((organization, version), of_version)) = due.next() {
            let mut rows: Vec<_> = of_version.values().map(Pending::row).collect();
            // Hosts that write the same rows take their locks in one order.
            rows.sort_by_key(|row| row.place);
            let Err(error) = write(store, organization, version, &rows).await else { continue };
            self.again((organization, version), of_version);
            // The others would find the same database. Rows that it does not take are one organization's.
            if matches!(error, StoreError::Unavailable(_) | StoreError::Unwritable(..)) {
                due.for_each(|(key, of_version)| self.again(key, of_version));
                return Err(error);
            }
            failed.get_or_insert(error);
        }
        failed.map_or(Ok(()), Err)
    }

    /// What was not written waits on.
    fn again(&self, key: (OrganizationId, PolicyVersionId), of_version: OfVersion) {
        let mut waiting = self.waiting.lock();
        of_version.into_values().for_each(|pending| self.add(&mut waiting, key, pending));
    }

    /// One line for each organization, as many as are allowed.
    fn log(&self, due: &[((OrganizationId, PolicyVersionId), OfVersion)]) {
        for ((organization, version), of_version) in due.iter().take(self.log_lines) {
            let Some(most) = of_version.values().max_by_key(|pending| pending.count) else { continue };
            let decisions: i64 = of_version.values().map(|pending| pending.count).sum();
            let (policy, error) = (&most.policy.id, &most.message);
            let policies = of_version.len();
            tracing::warn!(%organization, %version, policies, decisions, policy, error, "policies in force could not be evaluated");
        }
        let more = due.len().saturating_sub(self.log_lines);
        if more > 0 {
            tracing::warn!(organizations = more, "policies of further organizations could not be evaluated");
        }
    }
}

impl Pending {
    fn row(&self) -> policies::ErrorRow {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        policies::ErrorRow {
            place: number(self.policy.place),
            policy: self.policy.id.chars().map(storable).collect(),
            line: number(self.policy.line),
            column: number(self.policy.column),
            message: self.message.clone(),
            count: self.count,
            last_at: self.last,
        }
    }
}

async fn write(
    store: &Store,
    organization: OrganizationId,
    version: PolicyVersionId,
    rows: &[policies::ErrorRow],
) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    for row in rows {
        policies::add_errors(&mut tx, organization, version, row).await?;
    }
    tx.commit().await
}

/// Writes down what waits, again and again on `tasks`, and once more after `stopping`.
pub(super) fn start(
    errors: impl AsRef<Errors> + Send + Sync + 'static,
    store: Store,
    stopping: CancellationToken,
    tasks: &TaskTracker,
) {
    tasks.spawn(async move {
        loop {
            let going_on = stopping.run_until_cancelled(tokio::time::sleep(errors.as_ref().every)).await.is_some();
            if let Err(error) = errors.as_ref().write(&store, None).await {
                tracing::warn!(%error, "errors of policies were not written down yet");
            }
            if !going_on {
                return;
            }
        }
    });
}
