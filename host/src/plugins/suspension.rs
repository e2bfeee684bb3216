//! Each connection's share of a plugin, and whether its calls are suspended. In memory, on each host, for each version.
//!
//! Every connection has a [`Breaker`]. A plugin as a whole is *tripped* when its own defects (traps, limits, errors it
//! calls internal) come in a row, from several connections and with nothing working in between. That suspends nobody by
//! itself, or one tenant's hostile far side could keep a plugin from all others; but from then on a connection's first defect
//! suspends it. The first call that works, of whatever connection, ends it.

mod breaker;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub use breaker::{Admitted, Breaker, Suspension, Verdict};

use crate::{
    clock::Clock,
    sandbox::{
        limits::{Bounds, LogRate},
        turns::Turns,
    },
};

/// Suspended connections that are listed.
const LISTED: usize = 100;
/// Connections that are remembered before those without anything to remember are forgotten.
const LANES: usize = 1024;
/// Calls of one connection that may wait.
const WAITING: u32 = 64;
/// Defects in a row that trip a plugin, for each failure that suspends a connection.
const TRIPS: u32 = 2;
/// Connections that these must come from.
const WITNESSES: usize = 2;

/// One connection's share of a plugin.
pub(super) struct Lane {
    /// Its calls at once.
    pub(super) turns: Turns,
    /// Its lines in the log.
    pub(super) lines: Arc<LogRate>,
    breaker: Mutex<Breaker>,
}

/// The connections of one plugin, in one version.
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

/// Whether a plugin's calls are let through on this host.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Standing {
    /// `ok`; `degraded` while calls of some connections are suspended; `tripped` while it fails whatever the connection.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Since when it fails whatever the connection, and how.
    pub tripped: Option<Tripped>,
    /// Connections whose calls are suspended, up to 100: of the caller's own, or of all for platform administrators.
    pub suspended: Vec<Suspended>,
}

/// A plugin that fails whatever the connection: from then on a connection's first failure suspends its calls.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Tripped {
    /// Since when.
    #[serde(serialize_with = "crate::clock::micros")]
    pub since: DateTime<Utc>,
    /// What the last failure before said.
    pub reason: String,
}

/// A connection whose calls are suspended.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Suspended {
    /// Which.
    pub connection_id: Uuid,
    /// Since when.
    #[serde(serialize_with = "crate::clock::micros")]
    pub since: DateTime<Utc>,
    /// When the next call is let through, to see whether it works again.
    #[serde(serialize_with = "crate::clock::micros")]
    pub until: DateTime<Utc>,
    /// Failures in a row.
    pub failures: u32,
    /// What the last of them said.
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

    /// How long until then.
    pub(super) fn wait(&self, until: DateTime<Utc>) -> Duration {
        (until - self.clock.now()).to_std().unwrap_or_default()
    }

    fn lane(&self, connection: Uuid) -> Arc<Lane> {
        let mut state = self.state.lock();
        if let Some(lane) = state.lanes.get(&connection) {
            return lane.clone();
        }
        if state.lanes.len() >= state.sweep_at {
            // Those in use, and those with something to remember, stay.
            state.lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.breaker.lock().is_clean());
            state.sweep_at = LANES.max(state.lanes.len() * 2);
        }
        let lane = Arc::new(Lane {
            turns: Turns::new(self.bounds.calls_per_connection, WAITING),
            lines: Arc::new(LogRate::new(self.bounds.log_lines_per_second, self.clock.clone())),
            breaker: Mutex::default(),
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
        let state = self.state.lock();
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
            (Some(_), _) => "tripped",
            (None, false) => "degraded",
            (None, true) => "ok",
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
    fn one_connection_does_not_suspend_another() {
        let (lanes, clock) = lanes();
        for _ in 0..20 {
            call(&lanes, 1, Verdict::Defect);
        }
        assert!(!call(&lanes, 1, Verdict::Works), "suspended");
        assert!(call(&lanes, 2, Verdict::Works));
        let view = lanes.standing(|_| true);
        assert_eq!((view.status, view.suspended.len()), ("degraded", 1));
        assert_eq!((view.suspended[0].failures, view.suspended[0].reason.as_str()), (3, "it broke"));
        let other = lanes.standing(|id| id == connection(2));
        assert_eq!((other.status, other.suspended.len()), ("ok", 0));
        clock.advance(chrono::TimeDelta::seconds(10));
        assert!(call(&lanes, 1, Verdict::Works), "tried again by itself");
        assert_eq!(lanes.standing(|_| true).status, "ok");
    }

    #[test]
    fn a_plugin_is_tripped_by_defects_of_several_connections_and_what_works_ends_it() {
        let (lanes, _) = lanes();
        for number in [1, 2, 1, 2, 3] {
            call(&lanes, number, Verdict::Defect);
        }
        assert_ne!(lanes.standing(|_| true).status, "tripped");
        call(&lanes, 3, Verdict::Defect);
        let reason = |number| lanes.standing(|id| id == connection(number)).tripped.map(|tripped| tripped.reason);
        assert_eq!(reason(3).as_deref(), Some("it broke"));
        assert_eq!(reason(1).as_deref(), Some("calls of several connections failed"), "it was another's call");
        // From now on a first defect suspends; but a connection that works is not harmed.
        assert!(call(&lanes, 4, Verdict::Defect) && !call(&lanes, 4, Verdict::Defect));
        assert!(call(&lanes, 5, Verdict::Works));
        assert_ne!(lanes.standing(|_| true).status, "tripped");
        assert!(call(&lanes, 6, Verdict::Defect) && call(&lanes, 6, Verdict::Defect));
    }

    #[test]
    fn a_far_side_that_is_away_does_not_trip_the_plugin() {
        let (lanes, _) = lanes();
        for number in 0..50 {
            call(&lanes, number, Verdict::Away(None));
        }
        assert_eq!(lanes.standing(|_| true).status, "ok");
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
