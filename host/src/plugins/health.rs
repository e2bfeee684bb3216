//! How the plugins of this host are doing: counts since it started and the last errors, in memory only.
//!
//! What is kept is bounded: for each version in use so many errors of so many organizations ([`Kept`]), texts of at most
//! [`TEXT`] characters. No organization's errors take the place of another's, unless there are more organizations with
//! errors than are remembered: then those are forgotten that had none for longest. The texts are already fit for operators
//! (see [`PluginError`]): no secrets, no control characters. They may name a tenant's hosts, so whoever shows them asks
//! whose connection it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use super::{Failure, PluginError, Plugins, Standing, Status};
use crate::domain::{connection::Kind, id::OrganizationId, plugin::SemanticVersion};

/// Characters of an error's text that are kept.
const TEXT: usize = 500;

/// Errors that are shown of one version.
const SHOWN: usize = 100;

/// How many errors are remembered for each version.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Of one organization (`plugin_errors_kept`).
    pub errors: usize,
    /// Organizations (`plugin_errors_organizations`).
    pub organizations: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { errors: 20, organizations: 500 }
    }
}

/// Which version of which plugin.
pub type Key = (Kind, String, String);

/// The health of every version that was called here.
#[derive(Default)]
pub struct Health {
    records: Mutex<BTreeMap<Key, Record>>,
    kept: Kept,
}

#[derive(Default)]
struct Record {
    calls: u64,
    failures: BTreeMap<Failure, u64>,
    last_success_at: Option<DateTime<Utc>>,
    last_failure_at: Option<DateTime<Utc>>,
    /// Latest first.
    errors: BTreeMap<OrganizationId, VecDeque<LastError>>,
}

/// How a version of a plugin did on the host that answers, since that started.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = PluginHealth)]
pub struct Report {
    /// The version.
    #[schema(value_type = SemanticVersion)]
    pub version: String,
    /// How many calls ended, well or not, of the connections of all organizations; only platform administrators see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    pub calls: Option<u64>,
    /// How many of these calls failed, by why; what did not happen is left out. Only platform administrators see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = BTreeMap<Failure, u64>, required = false)]
    pub failures: Option<BTreeMap<Failure, u64>>,
    /// When a call last succeeded; null where none did, and for those who are no platform administrators.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub last_success_at: Option<DateTime<Utc>>,
    /// When a call last failed; null where none did, and for those who are no platform administrators.
    #[serde(serialize_with = "crate::clock::micros")]
    #[schema(required = true)]
    pub last_failure_at: Option<DateTime<Utc>>,
    /// Whether its calls are let through.
    #[serde(flatten)]
    pub standing: Standing,
    /// The last calls that failed, latest first: of the connections of the caller's organization, or of all organizations for
    /// platform administrators.
    #[schema(max_items = 100)]
    pub last_errors: Vec<LastError>,
}

/// A call of a plugin that failed.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = PluginLastError)]
pub struct LastError {
    /// When the call ended.
    #[serde(serialize_with = "crate::clock::micros")]
    pub at: DateTime<Utc>,
    /// The connection that the call was made for.
    pub connection_id: Uuid,
    /// The function of the plugin that was called: `begin` or `identify` of an identity provider; `check`, `deploy`, `status` or
    /// `undeploy` of a deployment target; `check` or `deliver` of an audit sink.
    #[schema(value_type = String, example = "deliver")]
    pub export: &'static str,
    /// Why the call failed.
    pub outcome: Failure,
    /// What the plugin or the server said of it, without secrets.
    #[schema(max_length = 500)]
    pub message: String,
}

impl Health {
    /// Remembers no more than that.
    pub fn new(kept: Kept) -> Self {
        Self { kept, ..Self::default() }
    }

    /// Counts a call that ended.
    pub fn record(
        &self,
        key: Key,
        (organization, connection_id): (OrganizationId, Uuid),
        export: &'static str,
        error: Option<&PluginError>,
        at: DateTime<Utc>,
    ) {
        let mut records = self.records.lock();
        let record = records.entry(key).or_default();
        record.calls += 1;
        let Some(error) = error else {
            record.last_success_at = Some(at);
            return;
        };
        record.last_failure_at = Some(at);
        *record.failures.entry(error.outcome()).or_default() += 1;
        if !record.errors.contains_key(&organization) && record.errors.len() >= self.kept.organizations {
            let latest = |errors: &VecDeque<LastError>| errors.front().map(|error| error.at);
            let oldest = record.errors.iter().min_by_key(|(_, errors)| latest(errors)).map(|(id, _)| *id);
            oldest.and_then(|oldest| record.errors.remove(&oldest));
        }
        let errors = record.errors.entry(organization).or_default();
        errors.truncate(self.kept.errors.saturating_sub(1));
        errors.push_front(LastError {
            at,
            connection_id,
            export,
            outcome: error.outcome(),
            message: error.to_string().chars().take(TEXT).collect(),
        });
    }

    /// How the versions of a plugin did, with those of the last errors that `shown` lets through.
    pub fn of(&self, kind: Kind, name: &str, shown: impl Fn(&LastError) -> bool) -> Vec<Report> {
        let records = self.records.lock();
        let own = records.iter().filter(|((k, n, _), _)| *k == kind && n == name);
        own.map(|((_, _, version), record)| Report {
            version: version.clone(),
            calls: Some(record.calls),
            failures: Some(record.failures.clone()),
            last_success_at: record.last_success_at,
            last_failure_at: record.last_failure_at,
            standing: Standing { status: Status::Ok, tripped: None, suspended: Vec::new() },
            last_errors: {
                let all = record.errors.values().flatten().filter(|error| shown(error));
                let mut errors: Vec<LastError> = all.cloned().collect();
                errors.sort_by_key(|error| std::cmp::Reverse(error.at));
                errors.truncate(SHOWN);
                errors
            },
        })
        .collect()
    }

    /// Forgets versions that are no longer in use.
    pub fn keep(&self, in_use: &BTreeSet<Key>) {
        self.records.lock().retain(|key, _| in_use.contains(key));
    }
}

impl Report {
    /// Without what tells how much other tenants use it, and when.
    #[must_use]
    pub fn without_totals(self) -> Self {
        Self { calls: None, failures: None, last_success_at: None, last_failure_at: None, ..self }
    }
}

impl Plugins {
    /// How the versions of a plugin do on this host, with what concerns these connections.
    pub fn reports(&self, kind: Kind, name: &str, visible: impl Fn(Uuid) -> bool) -> Vec<Report> {
        let mut reports = self.0.health.of(kind, name, |error| visible(error.connection_id));
        let registry = self.0.registry.load();
        for report in &mut reports {
            if registry.version(kind, name, &report.version).is_some() {
                report.standing = self.0.shares.of(kind, name).standing(&visible);
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(version: &str) -> Key {
        (Kind::AuditSink, "webhook".into(), version.into())
    }

    fn organization(id: u128) -> OrganizationId {
        OrganizationId(Uuid::from_u128(id))
    }

    #[test]
    fn errors_are_bounded_latest_first_and_shown_only_to_whom_they_concern() {
        let health = Health::new(Kept { errors: 20, organizations: 2 });
        let (ours, theirs) = ((organization(1), Uuid::from_u128(1)), (organization(2), Uuid::from_u128(2)));
        let at = |second: u32| DateTime::from_timestamp(i64::from(second), 0).unwrap();
        let failed = |whose, second: u32| {
            let error = PluginError::Rejected(format!("{second} {}", "x".repeat(1000)));
            health.record(key("1.0.0"), whose, "deliver", Some(&error), at(second));
        };
        health.record(key("1.0.0"), ours, "deliver", None, at(0));
        failed(theirs, 1);
        for second in 2..=50 {
            failed(ours, second);
        }
        let all = health.of(Kind::AuditSink, "webhook", |_| true);
        assert_eq!((all.len(), all[0].calls), (1, Some(51)));
        assert_eq!(all[0].failures, Some(BTreeMap::from([(Failure::Rejected, 50)])));
        assert_eq!((all[0].last_success_at, all[0].last_failure_at), (Some(at(0)), Some(at(50))));
        assert_eq!(all[0].last_errors.len(), 21);
        assert!(all[0].last_errors[0].message.starts_with("50 ") && all[0].last_errors[0].message.len() == TEXT);
        let of = |whose: (OrganizationId, Uuid)| {
            let mut own = health.of(Kind::AuditSink, "webhook", |error| error.connection_id == whose.1);
            own.remove(0).last_errors
        };
        assert_eq!(of(theirs).len(), 1, "49 errors of another organization did not push it out");
        failed((organization(3), Uuid::from_u128(3)), 51);
        assert!(
            of(theirs).is_empty() && of(ours).len() == 20,
            "the organization that was quiet for longest is forgotten"
        );
        assert!(health.of(Kind::DeploymentTarget, "webhook", |_| true).is_empty());
    }

    #[test]
    fn the_schemas_have_the_limits_of_the_server() {
        let report = serde_json::to_value(<Report as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!(report["allOf"][1]["properties"]["last_errors"]["maxItems"], SHOWN);
        let error = serde_json::to_value(<LastError as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!(error["properties"]["message"]["maxLength"], TEXT);
    }

    #[test]
    fn what_is_no_longer_in_use_is_forgotten() {
        let health = Health::default();
        for version in ["1.0.0", "1.1.0"] {
            health.record(key(version), (organization(1), Uuid::nil()), "check", None, DateTime::UNIX_EPOCH);
        }
        health.keep(&BTreeSet::from([key("1.1.0")]));
        let left: Vec<_> = health.of(Kind::AuditSink, "webhook", |_| true).into_iter().map(|r| r.version).collect();
        assert_eq!(left, ["1.1.0"]);
    }
}
