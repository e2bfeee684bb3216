//! A circuit breaker: what keeps failing is left alone for a while, then tried again by itself.
//!
//! ```text
//!            `failures` in a row               `until` is over: one call is let through
//!   closed ─────────────────────▶ open ──────────────────────────────────────▶ trying
//!     ▲                            ▲   it fails: for twice as long as last time   │
//!     │                            └──────────────────────────────────────────────┤
//!     └───────────────────────────────────────────────────────────────────────────┘ it works
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(300);
/// While one call tries, the others come back after this.
const SOON: Duration = Duration::from_secs(1);

/// How a call ended, as far as the breaker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Plugin and far side did their part, be it by refusing.
    Works,
    /// The far side could not be used; how long it asked to be left alone, if it did.
    Away(Option<Duration>),
    /// The plugin failed.
    Defect,
}

/// Why calls are suspended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// Since when.
    pub since: DateTime<Utc>,
    /// When the next call is let through.
    pub until: DateTime<Utc>,
    /// Failures in a row before.
    pub failures: u32,
    /// What the last of them said.
    pub reason: String,
}

/// What a call was let through for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Nothing is the matter.
    Freely,
    /// To see whether it works again.
    AsTry,
}

/// The breaker of one connection. Knows no clock: each call brings the time along.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    /// How often it opened since it last worked.
    opened: u32,
    open: Option<Suspension>,
    /// A call is under way that tries.
    trying: bool,
}

impl Breaker {
    /// Whether a call may begin. `forced` calls always may: somebody asks how it is.
    ///
    /// # Errors
    /// Why not, and when the next may.
    pub fn admit(&mut self, now: DateTime<Utc>, forced: bool) -> Result<Admitted, Suspension> {
        let Some(open) = &self.open else { return Ok(Admitted::Freely) };
        if forced {
            return Ok(Admitted::AsTry);
        }
        if now < open.until {
            return Err(open.clone());
        }
        if self.trying {
            return Err(Suspension { until: now + SOON, ..open.clone() });
        }
        self.trying = true;
        Ok(Admitted::AsTry)
    }

    /// Writes down how a call ended; `after` failures in a row suspend what follows, for `pause` the first time. Returns
    /// whether this call did so.
    pub fn record(
        &mut self,
        now: DateTime<Utc>,
        admitted: Admitted,
        verdict: Verdict,
        message: &str,
        (after, pause): (u32, Duration),
    ) -> bool {
        if verdict == Verdict::Works {
            *self = Self::default();
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let again = admitted == Admitted::AsTry;
        if again {
            self.trying = false;
        }
        // Calls that began before it opened have nothing to add.
        if (self.open.is_some() && !again) || (self.open.is_none() && self.failures < after) {
            return false;
        }
        let pause = pause.saturating_mul(1 << self.opened.min(16)).min(LONGEST);
        let asked = match verdict {
            Verdict::Away(Some(wait)) => wait.min(LONGEST),
            _ => Duration::ZERO,
        };
        self.opened = self.opened.saturating_add(1);
        let since = self.open.as_ref().map_or(now, |open| open.since);
        let until = now + pause.max(asked);
        self.open = Some(Suspension { since, until, failures: self.failures, reason: message.to_owned() });
        true
    }

    /// A call ended without telling anything, e.g. because nobody waited for it any more.
    pub fn abandon(&mut self, admitted: Admitted) {
        if admitted == Admitted::AsTry {
            self.trying = false;
        }
    }

    /// Why calls are suspended, where they are.
    pub fn suspension(&self) -> Option<&Suspension> {
        self.open.as_ref()
    }

    /// Whether there is nothing to remember.
    pub fn is_clean(&self) -> bool {
        self.failures == 0 && self.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: (u32, Duration) = (3, Duration::from_secs(10));
    const AWAY: Verdict = Verdict::Away(None);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }

    fn fail(breaker: &mut Breaker, now: i64) -> bool {
        let admitted = breaker.admit(at(now), false).unwrap();
        breaker.record(at(now), admitted, AWAY, "down", RULES)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_tries_again_by_itself() {
        let mut breaker = Breaker::default();
        assert!(!fail(&mut breaker, 0) && !fail(&mut breaker, 1));
        breaker.record(at(1), Admitted::Freely, Verdict::Works, "", RULES);
        assert!(!fail(&mut breaker, 2) && !fail(&mut breaker, 3) && fail(&mut breaker, 4), "in a row");
        let suspended = breaker.admit(at(13), false).unwrap_err();
        assert_eq!((suspended.since, suspended.until, suspended.failures), (at(4), at(14), 3));
        assert_eq!(suspended.reason, "down");

        // One call tries; the others wait for how it ends.
        assert_eq!(breaker.admit(at(14), false), Ok(Admitted::AsTry));
        assert_eq!(breaker.admit(at(14), false).unwrap_err().until, at(15));
        assert!(breaker.record(at(14), Admitted::AsTry, AWAY, "still down", RULES));
        let suspended = breaker.admit(at(33), false).unwrap_err();
        assert_eq!((suspended.since, suspended.until), (at(4), at(34)), "twice as long");
        assert_eq!(breaker.admit(at(34), false), Ok(Admitted::AsTry));
        breaker.record(at(34), Admitted::AsTry, Verdict::Works, "", RULES);
        assert!(breaker.is_clean());
        assert_eq!(breaker.admit(at(34), false), Ok(Admitted::Freely));
    }

    #[test]
    fn the_pause_has_an_end_and_heeds_the_far_side() {
        let mut breaker = Breaker::default();
        let mut now = at(0);
        for _ in 0..40 {
            if let Ok(admitted) = breaker.admit(now, false) {
                breaker.record(now, admitted, AWAY, "down", RULES);
            }
            now = breaker.suspension().map_or(now, |open| open.until);
        }
        let open = breaker.suspension().unwrap().until;
        breaker.admit(open, false).unwrap();
        breaker.record(open, Admitted::AsTry, Verdict::Defect, "down", RULES);
        assert_eq!(breaker.suspension().unwrap().until, open + LONGEST);

        let mut breaker = Breaker::default();
        let asked = Verdict::Away(Some(Duration::from_secs(60)));
        for _ in 0..3 {
            breaker.record(at(0), Admitted::Freely, asked, "too many", RULES);
        }
        assert_eq!(breaker.suspension().unwrap().until, at(60));
    }

    #[test]
    fn what_began_before_or_was_given_up_decides_nothing() {
        let mut breaker = Breaker::default();
        assert!((0..3).any(|_| fail(&mut breaker, 0)));
        assert!(!breaker.record(at(9), Admitted::Freely, AWAY, "late", RULES));
        assert_eq!(breaker.suspension().unwrap().until, at(10));
        let admitted = breaker.admit(at(10), false).unwrap();
        breaker.abandon(admitted);
        assert_eq!(breaker.admit(at(10), false), Ok(Admitted::AsTry), "the next may try");
        // Asking by hand goes ahead of the pause, and what it finds counts.
        breaker.record(at(10), Admitted::AsTry, AWAY, "down", RULES);
        assert!(breaker.admit(at(11), false).is_err());
        let forced = breaker.admit(at(11), true).unwrap();
        breaker.record(at(11), forced, Verdict::Works, "", RULES);
        assert_eq!(breaker.admit(at(11), false), Ok(Admitted::Freely));
    }
}
