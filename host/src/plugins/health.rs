//! How the plugins of this host are doing: counts since it started and the last errors, in memory only.
//!
//! What is kept is bounded: [`ERRORS`] errors for each version in use, texts of at most [`TEXT`] characters. They are
//! already fit for operators (see [`PluginError`]): no secrets, no control characters. They may name a tenant's hosts,
//! so whoever shows them asks whose connection it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;

use super::{PluginError, Plugins, Standing};
use crate::domain::connection::Kind;

/// Errors kept for each version.
const ERRORS: usize = 20;
/// Characters of an error's text that are kept.
const TEXT: usize = 500;

/// Which version of which plugin.
pub type Key = (Kind, String, String);

/// The health of every version that was called here.
#[derive(Default)]
pub struct Health(Mutex<BTreeMap<Key, Record>>);

#[derive(Default)]
struct Record {
    calls: u64,
    failures: BTreeMap<&'static str, u64>,
    last_success_at: Option<DateTime<Utc>>,
    last_failure_at: Option<DateTime<Utc>>,
    errors: VecDeque<LastError>,
}

/// How a version did since this host started.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = PluginHealth)]
pub struct Report {
    /// Which version.
    pub version: String,
    /// Calls that ended, well or not, of all connections: for platform administrators, as are the next three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Those that did not succeed, by `config`, `rejected`, `unavailable`, `internal` or `fault`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, u64>>)]
    pub failures: Option<BTreeMap<&'static str, u64>>,
    /// When a call last succeeded.
    #[serde(serialize_with = "crate::clock::micros")]
    pub last_success_at: Option<DateTime<Utc>>,
    /// When a call last failed.
    #[serde(serialize_with = "crate::clock::micros")]
    pub last_failure_at: Option<DateTime<Utc>>,
    /// Whether its calls are let through.
    #[serde(flatten)]
    pub standing: Standing,
    /// The last errors, latest first: of the caller's own connections, or of all for platform administrators.
    pub last_errors: Vec<LastError>,
}

/// A call that failed.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = PluginLastError)]
pub struct LastError {
    /// When it ended.
    #[serde(serialize_with = "crate::clock::micros")]
    pub at: DateTime<Utc>,
    /// For which connection.
    pub connection_id: Uuid,
    /// Which of the plugin's functions.
    #[schema(value_type = String)]
    pub export: &'static str,
    /// `config`, `rejected`, `unavailable`, `internal` or `fault`.
    #[schema(value_type = String)]
    pub outcome: &'static str,
    /// What it said.
    pub message: String,
}

impl Health {
    /// Counts a call that ended.
    pub fn record(
        &self,
        key: Key,
        connection_id: Uuid,
        export: &'static str,
        error: Option<&PluginError>,
        at: DateTime<Utc>,
    ) {
        let mut records = self.0.lock();
        let record = records.entry(key).or_default();
        record.calls += 1;
        let Some(error) = error else {
            record.last_success_at = Some(at);
            return;
        };
        record.last_failure_at = Some(at);
        *record.failures.entry(error.outcome()).or_default() += 1;
        record.errors.truncate(ERRORS - 1);
        record.errors.push_front(LastError {
            at,
            connection_id,
            export,
            outcome: error.outcome(),
            message: error.to_string().chars().take(TEXT).collect(),
        });
    }

    /// How the versions of a plugin did, with those of the last errors that `shown` lets through.
    pub fn of(&self, kind: Kind, name: &str, shown: impl Fn(&LastError) -> bool) -> Vec<Report> {
        let records = self.0.lock();
        let own = records.iter().filter(|((k, n, _), _)| *k == kind && n == name);
        own.map(|((_, _, version), record)| Report {
            version: version.clone(),
            calls: Some(record.calls),
            failures: Some(record.failures.clone()),
            last_success_at: record.last_success_at,
            last_failure_at: record.last_failure_at,
            standing: Standing { status: "ok", tripped: None, suspended: Vec::new() },
            last_errors: record.errors.iter().filter(|error| shown(error)).cloned().collect(),
        })
        .collect()
    }

    /// Forgets versions that are no longer in use.
    pub fn keep(&self, in_use: &BTreeSet<Key>) {
        self.0.lock().retain(|key, _| in_use.contains(key));
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

    #[test]
    fn errors_are_bounded_latest_first_and_shown_only_to_whom_they_concern() {
        let health = Health::default();
        let (ours, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |second: u32| DateTime::from_timestamp(i64::from(second), 0).unwrap();
        health.record(key("1.0.0"), ours, "deliver", None, at(0));
        for second in 1..=50 {
            let error = PluginError::Rejected(format!("{second} {}", "x".repeat(1000)));
            health.record(key("1.0.0"), if second == 50 { theirs } else { ours }, "deliver", Some(&error), at(second));
        }
        let all = health.of(Kind::AuditSink, "webhook", |_| true);
        assert_eq!((all.len(), all[0].calls), (1, Some(51)));
        assert_eq!(all[0].failures, Some(BTreeMap::from([("rejected", 50)])));
        assert_eq!((all[0].last_success_at, all[0].last_failure_at), (Some(at(0)), Some(at(50))));
        assert_eq!(all[0].last_errors.len(), ERRORS);
        assert!(all[0].last_errors[0].message.starts_with("50 ") && all[0].last_errors[0].message.len() == TEXT);
        let own = health.of(Kind::AuditSink, "webhook", |error| error.connection_id == ours);
        assert_eq!(own[0].last_errors.len(), ERRORS - 1);
        assert!(own[0].last_errors[0].message.starts_with("49 "));
        assert!(health.of(Kind::DeploymentTarget, "webhook", |_| true).is_empty());
    }

    #[test]
    fn what_is_no_longer_in_use_is_forgotten() {
        let health = Health::default();
        for version in ["1.0.0", "1.1.0"] {
            health.record(key(version), Uuid::nil(), "check", None, DateTime::UNIX_EPOCH);
        }
        health.keep(&BTreeSet::from([key("1.1.0")]));
        let left: Vec<_> = health.of(Kind::AuditSink, "webhook", |_| true).into_iter().map(|r| r.version).collect();
        assert_eq!(left, ["1.1.0"]);
    }
}
