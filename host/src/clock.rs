//! Time and randomness: the only place the server takes either from, so that tests can set both.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serializer;
use uuid::Uuid;

/// RFC 3339 in UTC with six digits of a second, always: as times are shown, hashed and handed to plugins, in the order of
/// their text.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// For `#[serde(serialize_with)]`: a time, or one that may be absent, as [`rfc3339`] writes it. Serde's own way leaves out
/// zeros at the end.
///
/// # Errors
/// As the serializer's.
pub fn micros<T: Copy + Into<Option<DateTime<Utc>>>, S: Serializer>(time: &T, to: S) -> Result<S::Ok, S::Error> {
    match (*time).into() {
        Some(time) => to.serialize_str(&rfc3339(time)),
        None => to.serialize_none(),
    }
}

/// A source of time and randomness, cheap to clone.
#[derive(Clone)]
pub struct Clock {
    source: Arc<Source>,
}

enum Source {
    System,
    Shifted(chrono::TimeDelta),
    Fixed { now: Mutex<DateTime<Utc>>, random: Box<Mutex<StdRng>> },
}

impl Clock {
    /// The machine's clock and the operating system's randomness.
    pub fn system() -> Self {
        Self { source: Arc::new(Source::System) }
    }

    /// The machine's clock, wrong by `by`, and the operating system's randomness: for tests of what a wrong clock breaks.
    pub fn shifted(by: chrono::TimeDelta) -> Self {
        Self { source: Arc::new(Source::Shifted(by)) }
    }

    /// For tests: stands at `now` until [`Clock::advance`], and always draws the same numbers. Never for secrets.
    pub fn fixed(now: DateTime<Utc>, seed: u64) -> Self {
        let random = Box::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { source: Arc::new(Source::Fixed { now: Mutex::new(now.trunc_subsecs(6)), random }) }
    }

    /// Moves a fixed clock; others ignore it.
    pub fn advance(&self, by: chrono::TimeDelta) {
        if let Source::Fixed { now, .. } = &*self.source {
            *now.lock() += by;
        }
    }

    /// Now, in whole microseconds: what both databases can hold.
    pub fn now(&self) -> DateTime<Utc> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
        let system = || Utc::now().trunc_subsecs(6);
        match &*self.source {
            Source::System => system(),
            Source::Shifted(by) => system() + *by,
            Source::Fixed { now, .. } => *now.lock(),
        }
    }

    /// A new identifier: UUIDv7 of the present.
    pub fn id<T: From<Uuid>>(&self) -> T {
        let millis = u64::try_from(self.now().timestamp_millis()).unwrap_or_default();
        let random: [u8; 10] = self.bytes();
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().into()
    }

    /// Random bytes, fit for keys and tokens when the source is the system.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match &*self.source {
            #[expect(clippy::disallowed_methods, reason = "the one place that draws randomness")]
            Source::System | Source::Shifted(_) => rand::rng().fill(&mut bytes[..]),
            Source::Fixed { random, .. } => random.lock().fill(&mut bytes[..]),
        }
        bytes
    }
}
