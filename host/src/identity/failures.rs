//! Sign-ins that fail: a line of the log, a count of `kaizen_sign_ins_total`, and where the organization is known an event of its
//! audit trail, all with the same code. Codes are stable; texts are for people.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    IssueError,
    code::{ProviderError, clean},
    provision::Refusal,
    session::Method,
    sso::SsoError,
};
use crate::{
    audit::{self, Record},
    clock::Clock,
    domain::{audit::Outcome, client::Client, id::OrganizationId},
    plugins::PluginError,
    store::{Store, StoreError},
};

/// Who signs in, as far as the request tells.
#[derive(Debug, Clone, Copy)]
pub struct Visit<'a> {
    /// From where.
    pub client: Client,
    /// As the browser names itself.
    pub user_agent: &'a str,
}

impl Visit<'_> {
    /// What an audit event tells of it.
    pub fn details(&self, method: Method) -> Value {
        json!({
            "method": method.as_str(),
            "client": self.client.address,
            "user_agent": super::session::cut(self.user_agent),
        })
    }
}

/// Counts a sign-in; `outcome` is `success` or the code of a failure.
pub fn count(method: Method, outcome: &'static str) {
    metrics::counter!("kaizen_sign_ins_total", "method" => method.as_str(), "outcome" => outcome).increment(1);
}

/// Connections and refusals whose failures are counted at once.
const COUNTERS: u64 = 10_000;

/// Which failures still go into the audit trail and the log: who has an account at a provider, and anybody who begins a sign-in, can fail as
/// often as they like, and a trail is for good. What the server itself refuses to somebody whom the provider vouches for is counted
/// apart, by its code: what anybody can cause must not keep it out of the trail.
pub struct Recorded {
    most: u32,
    of: Cache<(Uuid, Option<&'static str>), Arc<AtomicU32>>,
}

impl Recorded {
    /// So many in an hour for each connection, and for each refusal of its people.
    pub fn new(most: u32) -> Self {
        let hour = Duration::from_secs(3600);
        Self { most, of: Cache::builder().max_capacity(COUNTERS).time_to_live(hour).build() }
    }

    /// Whether one more such failure of this connection is recorded, and whether it is the last one for now.
    fn admit(&self, connection: Uuid, error: &SsoError) -> Option<bool> {
        let refusal = match error {
            SsoError::Refusal(refusal) => Some(refusal.code()),
            _ => None,
        };
        let so_far =
            self.of.get_with((connection, refusal), Arc::default).fetch_add(1, Ordering::Relaxed).saturating_add(1);
        (so_far <= self.most).then_some(so_far == self.most)
    }
}

impl SsoError {
    /// A stable name, for the log, metrics and the audit trail.
    pub fn code(&self) -> &'static str {
        match self {
            SsoError::NotFound => "no_connection",
            SsoError::Changed => "connection_changed",
            SsoError::ReturnTo => "return_to_refused",
            SsoError::State => "not_under_way",
            SsoError::Refused { .. } => "refused_by_provider",
            SsoError::Provider(error) => error.code(),
            SsoError::Plugin(PluginError::Unavailable { .. } | PluginError::Postponed { .. }) => "plugin_unavailable",
            SsoError::Plugin(_) => "plugin_failed",
            SsoError::Config(_) => "connection_settings",
            SsoError::Refusal(refusal) => refusal.code(),
            SsoError::Timeout => "timeout",
            SsoError::Issue(error) => error.code(),
        }
    }
}

/// An identity connection that somebody tried to sign in by.
#[derive(Debug, Clone, Copy)]
pub struct By {
    /// Whose.
    pub organization: OrganizationId,
    /// Which.
    pub connection: Uuid,
}

impl super::Identity {
    /// Logs, counts and records a sign-in elsewhere that failed. Returns the organization whose audit trail tells of it.
    pub async fn sso_failed(
        &self,
        (store, clock): (&Store, &Clock),
        by: Option<By>,
        error: &SsoError,
        visit: &Visit<'_>,
    ) -> Option<OrganizationId> {
        let code = error.code();
        count(Method::Sso, code);
        let why = clean(&super::code::chain(error), 500);
        let Some(By { organization, connection }) = by else {
            // Anybody can cause it as often as they like.
            tracing::debug!(code, client = %visit.client.address, error = why, "sign-in elsewhere failed");
            return None;
        };
        if matches!(error, SsoError::Issue(IssueError::Store(StoreError::Unwritable(..)))) {
            // Named in the log once, where it began; and no event could be written.
            tracing::debug!(code, connection_id = %connection, client = %visit.client.address, "sign-in elsewhere failed");
            return None;
        }
        let Some(last) = self.recorded.admit(connection, error) else {
            tracing::debug!(code, connection_id = %connection, client = %visit.client.address, error = why, "sign-in elsewhere failed");
            return None;
        };
        tracing::warn!(code, organization_id = %organization, connection_id = %connection, client = %visit.client.address, error = why,
            "sign-in elsewhere failed");
        let mut details = visit.details(Method::Sso);
        let mut target = format!("identity_connection/{connection}");
        if let Some(details) = details.as_object_mut() {
            details.insert("connection_id".into(), json!(connection));
            details.insert("code".into(), json!(code));
            details.insert("reason".into(), json!(why));
            match error {
                SsoError::Refused { error, description } => {
                    details.insert("provider_error".into(), json!(error));
                    details.insert("provider_error_description".into(), json!(description));
                }
                SsoError::Refusal(Refusal::AnotherSubject { user, subject, linked }) => {
                    target = format!("user/{user}");
                    details.insert("subject".into(), json!(subject));
                    details.insert("linked_subjects".into(), json!(linked));
                }
                SsoError::Refusal(
                    Refusal::Disabled(user) | Refusal::PlatformAdministrator(user) | Refusal::Unlinked(user),
                ) => {
                    target = format!("user/{user}");
                }
                SsoError::Refusal(Refusal::Claim(name)) => {
                    details.insert("claim".into(), json!(name));
                }
                _ => {}
            }
            if last {
                let more = "further failures like this one are counted and not recorded for up to an hour";
                details.insert("note".into(), json!(more));
            }
        }
        let event = Record {
            organization_id: organization,
            actor: "anonymous".to_owned(),
            action: "auth.login",
            target,
            outcome: Outcome::Failure,
            details,
        };
        let written = async {
            let mut tx = store.begin().await?;
            audit::record(&mut tx, clock, event).await?;
            tx.commit().await
        };
        match written.await {
            Ok(()) => Some(organization),
            Err(error) => {
                tracing::error!(%error, organization_id = %organization, "a failed sign-in could not be recorded");
                None
            }
        }
    }
}

/// Whether the provider's code says that it cannot now, rather than that it will not.
pub fn refused(error: &str, description: Option<&str>) -> SsoError {
    let text = super::code::brief(error);
    let description =
        description.map(|text| clean(text, super::code::DESCRIPTION)).filter(|text| !text.trim().is_empty());
    if super::code::UNAVAILABLE.contains(&error) {
        let more = description.map(|text| format!(": {text}")).unwrap_or_default();
        return ProviderError::Unavailable(format!("the provider answered {text}{more}")).into();
    }
    SsoError::Refused { error: text, description }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::UserId;

    #[test]
    fn a_trail_takes_so_many_failures_of_a_connection() {
        let recorded = Recorded::new(3);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let answers: Vec<_> = (0..5).map(|_| recorded.admit(one, &SsoError::State)).collect();
        assert_eq!(answers, [Some(false), Some(false), Some(true), None, None]);
        assert_eq!(recorded.admit(other, &SsoError::State), Some(false));
    }

    #[test]
    fn failures_that_anybody_can_cause_do_not_keep_refusals_out_of_the_trail() {
        let recorded = Recorded::new(3);
        let connection = Uuid::from_u128(1);
        let taken_over = Refusal::AnotherSubject {
            user: UserId(Uuid::nil()),
            subject: "2".to_owned(),
            linked: vec!["1".to_owned()],
        };
        let (taken_over, unverified) = (SsoError::Refusal(taken_over), SsoError::Refusal(Refusal::Unverified));
        for _ in 0..10 {
            recorded.admit(connection, &refused("access_denied", None));
            recorded.admit(connection, &unverified);
        }
        assert_eq!(recorded.admit(connection, &SsoError::Timeout), None, "what anybody can cause has one bound");
        let answers: Vec<_> = (0..4).map(|_| recorded.admit(connection, &taken_over)).collect();
        assert_eq!(answers, [Some(false), Some(false), Some(true), None], "and so has each refusal");
    }

    #[test]
    fn what_a_provider_says_is_kept_short_and_plain() {
        let long = format!("<b>no\u{202e}\r\n{}", "x".repeat(400));
        let SsoError::Refused { error, description } = refused("access_denied", Some(&long)) else { panic!() };
        assert_eq!(error, "access_denied");
        let description = description.unwrap();
        assert!(description.starts_with("<b>nox") && description.chars().count() == 300, "{description}");
        for error in ["temporarily_unavailable", "server_error"] {
            assert_eq!(refused(error, Some("down")).code(), "provider_unavailable");
        }
    }
}
