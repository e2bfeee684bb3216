//! Each connection's share of a plugin, and whether its calls are suspended. In memory, on each host, and for all versions
//! of a plugin together: another version neither adds places nor forgets what keeps failing.
//!
//! Every connection has a [`Breaker`]. A plugin as a whole is *tripped* when its own defects (traps, limits, errors it
//! calls internal) come in a row, from several connections and with nothing working in between. That suspends nobody by
//! itself, or one tenant's hostile far side could keep a plugin from all others; but from then on a connection's first defect
//! suspends it. The first call that works, of whatever connection, ends it.

mod breaker;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::ToSchema;
use uuid::Uuid;

pub use breaker::{Admitted, Breaker, Suspension, Verdict};

use crate::{
    clock::Clock,
    domain::{connection::Kind, id::OrganizationId},
    sandbox::limits::{Bounds, LogRate},
};

/// Suspended connections that are listed.
const LISTED: usize = 100;
/// Connections that are remembered before those without anything to remember are forgotten.
const LANES: usize = 1024;
/// After so many seconds without a call, what was remembered of a connection is forgotten: far more than the longest pause between
/// two tries, so that it is one that was deleted, or that nobody calls.
const UNUSED_SECONDS: i64 = 7200;
/// Organizations whose checks are remembered before those of past minutes are forgotten.
const CHECKERS: usize = 1024;
/// Defects in a row that trip a plugin, for each failure that suspends a connection.
const TRIPS: u32 = 2;
/// Connections that these must come from.
const WITNESSES: usize = 2;

/// One connection's share of a plugin.
pub(super) struct Lane {
    /// Somebody checks it just now.
    checking: Arc<Semaphore>,
    /// Its lines in the log.
    pub(super) lines: Arc<LogRate>,
    breaker: Mutex<Breaker>,
    /// When a call or a check of it began last, in seconds.
    used: AtomicI64,
}

impl Lane {
    fn is_unused(&self, now: i64) -> bool {
        now.saturating_sub(self.used.load(Ordering::Relaxed)) > UNUSED_SECONDS
    }
}

/// The connections of every plugin.
pub(super) struct Shares {
    clock: Clock,
    bounds: Arc<Bounds>,
    of: Mutex<BTreeMap<(Kind, String), Arc<Lanes>>>,
    /// Checks of each organization in a minute, by its number.
    checks: Mutex<HashMap<OrganizationId, (i64, u32)>>,
}

impl Shares {
    pub(super) fn new(clock: Clock, bounds: Arc<Bounds>) -> Self {
        Self { clock, bounds, of: Mutex::default(), checks: Mutex::default() }
    }

    /// The connections of one plugin, whatever versions of it they run.
    pub(super) fn of(&self, kind: Kind, name: &str) -> Arc<Lanes> {
        let mut of = self.of.lock();
        let lanes = || Arc::new(Lanes::new(self.clock.clone(), self.bounds.clone()));
        of.entry((kind, name.to_owned())).or_insert_with(lanes).clone()
    }

    /// Forgets plugins that are not there any more.
    pub(super) fn keep(&self, known: impl Fn(Kind, &str) -> bool) {
        self.of.lock().retain(|(kind, name), _| known(*kind, name));
    }

    /// Forgets a connection that was deleted.
    pub(super) fn forget(&self, kind: Kind, name: &str, connection: Uuid) {
        let lanes = self.of.lock().get(&(kind, name.to_owned())).cloned();
        if let Some(lanes) = lanes {
            lanes.state.lock().lanes.remove(&connection);
        }
    }

    /// Counts a check of one of an organization's connections.
    ///
    /// # Errors
    /// How long to wait, where there were too many in this minute.
    pub(super) fn count_check(&self, organization: OrganizationId) -> Result<(), Duration> {
        let now = self.clock.now().timestamp();
        let minute = now.div_euclid(60);
        let mut checks = self.checks.lock();
        if checks.len() >= CHECKERS {
            checks.retain(|_, (counted, _)| *counted == minute);
        }
        let (counted, count) = checks.entry(organization).or_insert((minute, 0));
        if *counted != minute {
            (*counted, *count) = (minute, 0);
        }
        if *count >= self.bounds.checks_per_minute {
            return Err(Duration::from_secs(u64::try_from(60 - now.rem_euclid(60)).unwrap_or(60)));
        }
        *count += 1;
        Ok(())
    }
}

/// The connections of one plugin.
pub(super) struct Lanes {
    clock: Clock,
    bounds: Arc<Bounds>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Uuid, Arc<Lane>>,
    /// Lanes at which it is time to look for those that can go.
    sweep_at: usize,
    /// Defects in a row, and some of the connections they came from.
    defects: u32,
    witnesses: BTreeSet<Uuid>,
    tripped: Option<(Uuid, Tripped)>,
}

/// Whether the calls of a plugin are let through on the host that answers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = PluginStanding)]
pub struct Standing {
    /// Whether calls are let through.
    pub status: Status,
    /// Since when the plugin fails whatever the connection, and how; null where it does not.
    #[schema(required = true)]
    pub tripped: Option<Tripped>,
    /// The connections whose calls are suspended, at most 100 of them: of the caller's organization, or of all organizations for
    /// platform administrators.
    #[schema(max_items = 100)]
    pub suspended: Vec<Suspended>,
}

/// Whether the calls of a plugin are let through: all of them (`ok`), but for those of some connections, which are suspended
/// (`degraded`), or while the plugin fails whatever the connection, so that a connection's first failure suspends its calls
/// (`tripped`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PluginStatus)]
pub enum Status {
    /// Nothing is suspended.
    Ok,
    /// Calls of some connections are suspended.
    Degraded,
    /// It fails whatever the connection.
    Tripped,
}

/// That a plugin fails whatever the connection: until a call succeeds, the first failure of a connection suspends its calls.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = PluginTrip)]
pub struct Tripped {
    /// Since when the plugin fails whatever the connection.
    #[serde(serialize_with = "crate::clock::micros")]
    pub since: DateTime<Utc>,
    /// What the last failure before that said; a general sentence where that was a call of another organization.
    pub reason: String,
}

/// A connection whose calls are suspended, as they failed several times in a row. They are tried again by themselves.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = SuspendedConnection)]
pub struct Suspended {
    /// The connection.
    pub connection_id: Uuid,
    /// Since when its calls are suspended.
    #[serde(serialize_with = "crate::clock::micros")]
    pub since: DateTime<Utc>,
    /// When the next call is let through, to see whether it works again.
    #[serde(serialize_with = "crate::clock::micros")]
    pub until: DateTime<Utc>,
    /// How many calls failed in a row.
    #[schema(value_type = u64, minimum = 1)]
    pub failures: u32,
    /// What the last of these failures said.
    pub reason: String,
}

/// A call that was let through. Dropped without [`Pass::ended`], it tells nothing.
pub(super) struct Pass<'a> {
    lanes: &'a Lanes,
    pub(super) lane: Arc<Lane>,
    connection: Uuid,
    admitted: Admitted,
    ended: bool,
}

impl Pass<'_> {
    /// The call ended so.
    pub(super) fn ended(mut self, verdict: Verdict, message: &str) {
        self.ended = true;
        self.lanes.record(&self, verdict, message);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.lane.breaker.lock().abandon(self.admitted);
        }
    }
}

impl Lanes {
    pub(super) fn new(clock: Clock, bounds: Arc<Bounds>) -> Self {
        Self { clock, bounds, state: Mutex::default() }
    }

    /// Lets a call through, or says why not; see [`Breaker::admit`].
    pub(super) fn admit(&self, connection: Uuid, forced: bool) -> Result<Pass<'_>, Suspended> {
        let lane = self.lane(connection);
        let admitted = lane.breaker.lock().admit(self.clock.now(), forced);
        match admitted {
            Ok(admitted) => Ok(Pass { lanes: self, lane, connection, admitted, ended: false }),
            Err(suspension) => Err(suspended_of(connection, &suspension)),
        }
    }

    /// Lets one check of a connection through at a time; `None` while another is under way.
    pub(super) fn check(&self, connection: Uuid) -> Option<OwnedSemaphorePermit> {
        self.lane(connection).checking.clone().try_acquire_owned().ok()
    }

    /// How long until then.
    pub(super) fn wait(&self, until: DateTime<Utc>) -> Duration {
        (until - self.clock.now()).to_std().unwrap_or_default()
    }

    fn lane(&self, connection: Uuid) -> Arc<Lane> {
        let now = self.clock.now().timestamp();
        let mut state = self.state.lock();
        if let Some(lane) = state.lanes.get(&connection) {
            lane.used.store(now, Ordering::Relaxed);
            return lane.clone();
        }
        if state.lanes.len() >= state.sweep_at {
            // Those in use, and those with something to remember, stay.
            state.lanes.retain(|_, lane| {
                let busy = Arc::strong_count(lane) > 1 || lane.checking.available_permits() == 0;
                busy || !(lane.breaker.lock().is_clean() || lane.is_unused(now))
            });
            state.sweep_at = LANES.max(state.lanes.len() * 2);
        }
        let lane = Arc::new(Lane {
            checking: Arc::new(Semaphore::new(1)),
            lines: Arc::new(LogRate::new(self.bounds.log_lines_per_second, self.clock.clone())),
            breaker: Mutex::default(),
            used: AtomicI64::new(now),
        });
        state.lanes.insert(connection, lane.clone());
        lane
    }

    fn record(&self, pass: &Pass<'_>, verdict: Verdict, message: &str) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        match verdict {
            Verdict::Works => {
                (state.defects, state.tripped) = (0, None);
                state.witnesses.clear();
            }
            Verdict::Away(_) => {}
            Verdict::Defect => {
                state.defects = state.defects.saturating_add(1);
                if state.witnesses.len() < WITNESSES {
                    state.witnesses.insert(pass.connection);
                }
                let enough = state.defects >= self.bounds.trip_failures.saturating_mul(TRIPS);
                if enough && state.witnesses.len() >= WITNESSES && state.tripped.is_none() {
                    tracing::warn!(target: "kaizen::plugin", reason = message, "a plugin fails whatever the connection");
                    state.tripped = Some((pass.connection, Tripped { since: now, reason: message.to_owned() }));
                }
            }
        }
        let after = if verdict == Verdict::Defect && state.tripped.is_some() { 1 } else { self.bounds.trip_failures };
        drop(state);
        let rules = (after, self.bounds.trip_pause);
        let opened = pass.lane.breaker.lock().record(now, pass.admitted, verdict, message, rules);
        if opened {
            metrics::counter!("kaizen_plugin_suspensions_total").increment(1);
            tracing::warn!(target: "kaizen::plugin", connection = %pass.connection, reason = message, "calls are suspended");
        }
    }

    /// Why this connection's calls are suspended, where they are.
    pub(super) fn suspension(&self, connection: Uuid) -> Option<Suspended> {
        let lane = self.state.lock().lanes.get(&connection).cloned()?;
        let breaker = lane.breaker.lock();
        breaker.suspension().map(|suspension| suspended_of(connection, suspension))
    }

    /// To be shown to somebody who may see these connections.
    pub(super) fn standing(&self, visible: impl Fn(Uuid) -> bool) -> Standing {
        let now = self.clock.now().timestamp();
        let mut state = self.state.lock();
        state.lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_unused(now));
        let suspended = state.lanes.iter().filter(|(connection, _)| visible(**connection));
        let suspended = suspended.filter_map(|(connection, lane)| {
            lane.breaker.lock().suspension().map(|suspension| suspended_of(*connection, suspension))
        });
        let mut suspended: Vec<Suspended> = suspended.collect();
        suspended.sort_by_key(|suspended| (suspended.since, suspended.connection_id));
        suspended.truncate(LISTED);
        let tripped = state.tripped.as_ref().map(|(connection, tripped)| {
            // What tripped it may have been somebody else's call.
            let reason =
                if visible(*connection) { tripped.reason.as_str() } else { "calls of several connections failed" };
            Tripped { reason: reason.to_owned(), ..tripped.clone() }
        });
        let status = match (&tripped, suspended.is_empty()) {
            (Some(_), _) => Status::Tripped,
            (None, false) => Status::Degraded,
            (None, true) => Status::Ok,
        };
        Standing { status, tripped, suspended }
    }
}

fn suspended_of(connection_id: Uuid, suspension: &Suspension) -> Suspended {
    let Suspension { since, until, failures, reason } = suspension.clone();
    Suspended { connection_id, since, until, failures, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes() -> (Lanes, Clock) {
        let clock = Clock::fixed(DateTime::UNIX_EPOCH, 1);
        let bounds = Bounds { trip_failures: 3, trip_pause: Duration::from_secs(10), ..Bounds::default() };
        (Lanes::new(clock.clone(), Arc::new(bounds)), clock)
    }

    fn connection(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// Whether the call was let through; it ends so.
    fn call(lanes: &Lanes, number: u128, verdict: Verdict) -> bool {
        let Ok(pass) = lanes.admit(connection(number), false) else { return false };
        pass.ended(verdict, "it broke");
        true
    }

    #[test]
    fn the_schema_lists_as_many_suspended_connections_as_the_server() {
        let schema = serde_json::to_value(<Standing as utoipa::PartialSchema>::schema()).unwrap();
        assert_eq!(schema["properties"]["suspended"]["maxItems"], LISTED);
    }

    #[test]
    fn one_connection_does_not_suspend_another() {
        let (lanes, clock) = lanes();
        for _ in 0..20 {
            call(&lanes, 1, Verdict::Defect);
        }
        assert!(!call(&lanes, 1, Verdict::Works), "suspended");
        assert!(call(&lanes, 2, Verdict::Works));
        let view = lanes.standing(|_| true);
        assert_eq!((view.status, view.suspended.len()), (Status::Degraded, 1));
        assert_eq!((view.suspended[0].failures, view.suspended[0].reason.as_str()), (3, "it broke"));
        let other = lanes.standing(|id| id == connection(2));
        assert_eq!((other.status, other.suspended.len()), (Status::Ok, 0));
        clock.advance(chrono::TimeDelta::seconds(10));
        assert!(call(&lanes, 1, Verdict::Works), "tried again by itself");
        assert_eq!(lanes.standing(|_| true).status, Status::Ok);
    }

    #[test]
    fn a_plugin_is_tripped_by_defects_of_several_connections_and_what_works_ends_it() {
        let (lanes, _) = lanes();
        for number in [1, 2, 1, 2, 3] {
            call(&lanes, number, Verdict::Defect);
        }
        assert_ne!(lanes.standing(|_| true).status, Status::Tripped);
        call(&lanes, 3, Verdict::Defect);
        let reason = |number| lanes.standing(|id| id == connection(number)).tripped.map(|tripped| tripped.reason);
        assert_eq!(reason(3).as_deref(), Some("it broke"));
        assert_eq!(reason(1).as_deref(), Some("calls of several connections failed"), "it was another's call");
        // From now on a first defect suspends; but a connection that works is not harmed.
        assert!(call(&lanes, 4, Verdict::Defect) && !call(&lanes, 4, Verdict::Defect));
        assert!(call(&lanes, 5, Verdict::Works));
        assert_ne!(lanes.standing(|_| true).status, Status::Tripped);
        assert!(call(&lanes, 6, Verdict::Defect) && call(&lanes, 6, Verdict::Defect));
    }

    #[test]
    fn a_far_side_that_is_away_does_not_trip_the_plugin() {
        let (lanes, _) = lanes();
        for number in 0..50 {
            call(&lanes, number, Verdict::Away(None));
        }
        assert_eq!(lanes.standing(|_| true).status, Status::Ok);
    }

    #[test]
    fn an_upgrade_forgets_nothing_and_a_plugin_that_is_gone_leaves_nothing() {
        let (_, clock) = lanes();
        let bounds = Bounds { trip_failures: 3, checks_per_minute: 2, ..Bounds::default() };
        let shares = Shares::new(clock.clone(), Arc::new(bounds));
        let sink = || shares.of(Kind::AuditSink, "webhook");
        for _ in 0..3 {
            call(&sink(), 1, Verdict::Defect);
        }
        assert!(!call(&sink(), 1, Verdict::Works), "suspended, whatever version it runs by now");
        assert!(call(&shares.of(Kind::DeploymentTarget, "webhook"), 1, Verdict::Works), "another plugin");
        shares.keep(|kind, _| kind == Kind::AuditSink);
        assert_eq!(shares.of.lock().len(), 1);

        let held = sink().check(connection(1));
        assert!(held.is_some() && sink().check(connection(1)).is_none(), "one check at a time");
        assert!(sink().check(connection(2)).is_some());
        drop(held);
        assert!(sink().check(connection(1)).is_some());
        let (one, other) = (OrganizationId::from(connection(1)), OrganizationId::from(connection(2)));
        assert_eq!([shares.count_check(one), shares.count_check(one)], [Ok(()), Ok(())]);
        clock.advance(chrono::TimeDelta::seconds(50));
        assert_eq!(shares.count_check(one), Err(Duration::from_secs(10)));
        assert_eq!(shares.count_check(other), Ok(()));
        clock.advance(chrono::TimeDelta::seconds(10));
        assert_eq!(shares.count_check(one), Ok(()));
    }

    #[test]
    fn connections_that_were_deleted_or_are_called_no_more_are_forgotten() {
        let (lanes, clock) = lanes();
        let failed = |number| {
            call(&lanes, number, Verdict::Defect);
        };
        // Each fails, and is deleted or called no more.
        (0..20_000).for_each(failed);
        assert!(lanes.state.lock().lanes.len() >= 20_000, "whose failures are fresh is remembered");
        clock.advance(chrono::TimeDelta::seconds(UNUSED_SECONDS + 1));
        (20_000..40_000).for_each(failed);
        let known = lanes.state.lock().lanes.len();
        assert!(known <= 20_000 + 1, "{known}: those of before are gone");
        clock.advance(chrono::TimeDelta::seconds(UNUSED_SECONDS + 1));
        assert_eq!((lanes.standing(|_| true).status, lanes.state.lock().lanes.len()), (Status::Tripped, 0));

        let shares = Shares::new(clock, Arc::new(Bounds::default()));
        call(&shares.of(Kind::AuditSink, "webhook"), 1, Verdict::Defect);
        shares.forget(Kind::AuditSink, "webhook", connection(1));
        shares.forget(Kind::AuditSink, "unknown", connection(1));
        assert!(shares.of(Kind::AuditSink, "webhook").state.lock().lanes.is_empty());
    }

    #[test]
    fn connections_with_nothing_to_remember_are_forgotten() {
        let (lanes, _) = lanes();
        for _ in 0..3 {
            call(&lanes, 0, Verdict::Defect);
        }
        let running = lanes.admit(connection(1), false).unwrap_or_else(|_| panic!("let through"));
        for number in 2..20_000 {
            call(&lanes, number, Verdict::Works);
        }
        let state = lanes.state.lock();
        assert!(state.lanes.len() <= LANES, "{}", state.lanes.len());
        assert!(state.lanes.contains_key(&connection(0)) && state.lanes.contains_key(&connection(1)));
        drop(state);
        drop(running);
    }
}
