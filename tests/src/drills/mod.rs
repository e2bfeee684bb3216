//! Drills: what others notice while something goes wrong or somebody does their worst, measured and printed as a table.
//!
//! The suite leaves them out; each has a command in `tests/drills`. They measure for a time, where tests wait for conditions.

mod attacks;
mod policies;
mod stalled;

use std::{collections::BTreeMap, time::Duration};

use reqwest::{Method, RequestBuilder};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::{harness::Client, kills::setting};

/// A time in seconds that the drill's caller may set.
fn seconds(name: &str, default: u64) -> Duration {
    Duration::from_secs(setting(name, default))
}

/// Ticks at which a load asks: as often as its last answer allows.
fn pace(millis: u64) -> Interval {
    let mut pace = interval(Duration::from_millis(millis));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// A request of this caller's.
fn request(client: &Client, method: Method, path: &str) -> RequestBuilder {
    let request = client.http.request(method, format!("{}{path}", client.base));
    request.bearer_auth(client.token.as_deref().unwrap_or_default())
}

/// One answer: what it was, when it was asked for, and when it came.
#[derive(Clone)]
struct Sample {
    what: String,
    asked: Instant,
    came: Instant,
}

/// The answers that somebody got.
#[derive(Clone, Default)]
struct Answers(Vec<Sample>);

impl Answers {
    /// Sends a request and reads its answer to the end; notes the status, or that there was none, and returns it.
    async fn ask(&mut self, request: RequestBuilder) -> Option<u16> {
        let asked = Instant::now();
        let answering = async {
            let answer = request.send().await.ok()?;
            let status = answer.status().as_u16();
            answer.bytes().await.ok()?;
            Some(status)
        };
        let status = answering.await;
        self.note(status.map_or_else(|| "none".to_owned(), |status| status.to_string()), asked);
        status
    }

    /// Notes an answer that came just now.
    fn note(&mut self, what: impl Into<String>, asked: Instant) {
        self.0.push(Sample { what: what.into(), asked, came: Instant::now() });
    }

    fn of_all(parts: impl IntoIterator<Item = Self>) -> Self {
        Self(parts.into_iter().flat_map(|part| part.0).collect())
    }

    /// Those that satisfy a condition.
    fn only(&self, wanted: impl Fn(&Sample) -> bool) -> Self {
        Self(self.0.iter().filter(|sample| wanted(sample)).cloned().collect())
    }

    /// How many there were of each.
    fn counts(&self) -> String {
        let mut counts = BTreeMap::new();
        for sample in &self.0 {
            *counts.entry(sample.what.as_str()).or_insert(0) += 1;
        }
        let counts: Vec<String> =
            counts.into_iter().map(|(what, count): (_, u64)| format!("{what} x {count}")).collect();
        counts.join(", ")
    }

    /// The median and the longest time.
    fn times(&self) -> (Duration, Duration) {
        let mut times: Vec<Duration> = self.0.iter().map(|sample| sample.came - sample.asked).collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        (median, times.last().copied().unwrap_or_default())
    }

    /// How long after this moment the first answer of this kind came.
    fn first(&self, what: &str, after: Instant) -> Option<Duration> {
        let good = self.0.iter().filter(|sample| sample.what == what && sample.came >= after);
        good.map(|sample| sample.came - after).min()
    }

    /// A line of the table.
    fn print(&self, of: &str, when: &str) {
        let (median, longest) = self.times();
        line(of, when, &self.counts(), &millis(median), &millis(longest));
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn heading() {
    line("", "", "answers", "median", "longest");
}

fn line(of: &str, when: &str, answers: &str, median: &str, longest: &str) {
    eprintln!("{of:<28} {when:<10} {answers:<38} {median:>11} {longest:>11}");
}
