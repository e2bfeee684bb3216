//! Sends audit events to Splunk's HTTP Event Collector (HEC), and counts an event as stored only once an indexer says so.
//!
//! | setting | | |
//! |---|---|---|
//! | `url` | needed | The collector's address, e.g. `https://hec.example.com:8088`; `/services/collector/…` is added to it. |
//! | `index` | the token's | The index to write to. |
//! | `sourcetype` | `kaizen:audit` | |
//! | `source` | `kaizen-studio` | |
//! | `host` | | What events have as `host`; without it Splunk puts in where the request came from. |
//! | `acknowledgement` | `true` | Wait for indexer acknowledgement, see below. |
//! | `ack_seconds` | `15` | How long to wait for it before the rest is sent again. |
//! | `max_events` | `100` | How many events at most go into one request. |
//!
//! Secret `token`: the HEC token.
//!
//! **Acknowledgement**: HEC answers 200 as soon as it has taken events into memory; an indexer that crashes then loses
//! them. With *Enable indexer acknowledgement* on the token, each request gets an id, and `/services/collector/ack` says of
//! an id whether its events are written and replicated. This sink asks until that is so, and reports as stored what is
//! acknowledged from the first event on; the rest comes again. Delivery is at least once: after a wait that was too short
//! Splunk has some events twice, with the same `id` (`| dedup id`). Where a token can't have acknowledgement (Splunk Cloud
//! has it for some inputs only), set `acknowledgement` to false, and a 200 counts.
//!
//! The channel that acknowledgement needs is the connection's own id, so that there is one for each connection, as Splunk
//! wants it. Behind a load balancer the requests of a channel have to reach the same collector (sticky sessions).
//!
//! Each event is as the audit trail has it, its `occurred_at` also being Splunk's `time`.

mod collector;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::sink::Event;
use kaizen_plugin::{AuditSink, Call, Capability, Error, Manifest, Plugin, Result, SecretSlot, Url, log};
use serde::Deserialize;

use collector::Collector;

/// A HEC endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The collector's address, e.g. `https://hec.example.com:8088`. `/services/collector/…` is added to it.
    url: Url,
    /// The index to write to; without it the token's own.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[a-z0-9_][a-z0-9_-]{0,79}$"))]
    index: Option<String>,
    /// What events have as `sourcetype`.
    #[serde(default = "default_sourcetype")]
    #[schemars(length(min = 1, max = 128))]
    sourcetype: String,
    /// What events have as `source`.
    #[serde(default = "default_source")]
    #[schemars(length(min = 1, max = 128))]
    source: String,
    /// What events have as `host`; without it Splunk puts in where the request came from.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    host: Option<String>,
    /// Count events as stored only once an indexer acknowledges them. It has to be enabled on the token too. Without it a
    /// collector that crashes loses what it has just taken.
    #[serde(default = "yes")]
    acknowledgement: bool,
    /// How many seconds to wait for the acknowledgement before events are sent again.
    #[serde(default = "default_ack_seconds")]
    #[schemars(range(min = 1, max = 20))]
    ack_seconds: u8,
    /// How many events at most go into one request.
    #[serde(default = "default_max_events")]
    #[schemars(range(min = 10, max = 1000))]
    max_events: u16,
}

fn default_sourcetype() -> String {
    "kaizen:audit".to_owned()
}

fn default_source() -> String {
    "kaizen-studio".to_owned()
}

fn yes() -> bool {
    true
}

fn default_ack_seconds() -> u8 {
    15
}

fn default_max_events() -> u16 {
    100
}

struct SplunkHec;

impl Plugin for SplunkHec {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "splunk-hec",
        version: env!("CARGO_PKG_VERSION"),
        title: "Splunk HEC",
        description: "Sends audit events to Splunk's HTTP Event Collector and waits for the indexer's acknowledgement.",
        secrets: &[SecretSlot {
            name: "token",
            description: "The HEC token; indexer acknowledgement has to be enabled on it, unless `acknowledgement` is false.",
            hosts: &["{config.url}"],
        }],
        capabilities: &[Capability::Http("{config.url}")],
    };
}

/// The first pause before asking for an acknowledgement again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: an indexer takes seconds, and a call has few requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl AuditSink for SplunkHec {
    /// Is the collector healthy, and does it take this token? Asking for the state of a request that never was tells, and
    /// writes nothing.
    fn check(call: &Call<Config>) -> Result<String> {
        let collector = Collector::to_check(call);
        collector.health()?;
        if call.config.acknowledgement {
            collector.acknowledged(&[0])?;
            return Ok(format!("{} takes the token and acknowledges.", call.config.url.authority()));
        }
        collector.token()?;
        Ok(format!("{} takes the token. Events are not acknowledged.", call.config.url.authority()))
    }

    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        let collector = Collector::new(call);
        let mut sent = Vec::new();
        let mut failure = None;
        for chunk in events.chunks(usize::from(call.config.max_events.max(1))) {
            match collector.send(chunk) {
                Ok(ack) => sent.push((ack, chunk.len())),
                // What was sent before may be stored: that counts. The rest comes again, and then tells why.
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let stored = if call.config.acknowledgement {
            await_acknowledgement(&collector, &sent, Duration::from_secs(call.config.ack_seconds.into()))?
        } else {
            sent.iter().map(|(_, count)| count).sum()
        };
        match failure {
            Some(error) if stored == 0 => Err(error),
            Some(error) => {
                log::warn!("stored {stored} of {} events: {error}", events.len());
                count(stored)
            }
            None => count(stored),
        }
    }
}

fn count(events: usize) -> Result<u32> {
    u32::try_from(events).map_err(|_| Error::Internal("more events than a batch can have".to_owned()))
}

/// Asks until everything sent is acknowledged or the time is over; returns how many events, from the first, are.
fn await_acknowledgement(
    collector: &Collector<'_>,
    sent: &[(Option<u64>, usize)],
    patience: Duration,
) -> Result<usize> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let all: usize = sent.iter().map(|(_, count)| count).sum();
    // From the first request whose acknowledgement is still open; those of later ones are kept, for they are told once.
    let mut open = sent;
    let mut acknowledged = BTreeSet::new();
    let mut stored = 0;
    loop {
        let asked: Vec<u64> =
            open.iter().filter_map(|(ack, _)| *ack).filter(|ack| !acknowledged.contains(ack)).collect();
        if asked.is_empty() {
            return Ok(stored);
        }
        match collector.acknowledged(&asked) {
            Ok(more) => acknowledged.extend(more),
            Err(error) if stored > 0 => {
                log::warn!("stored {stored} of {all} events: {error}");
                return Ok(stored);
            }
            Err(error) => return Err(error),
        }
        while let Some(((Some(ack), count), later)) = open.split_first() {
            if !acknowledged.contains(ack) {
                break;
            }
            stored += count;
            open = later;
        }
        if open.is_empty() {
            return Ok(stored);
        }
        if began.elapsed() + pause > patience {
            if stored > 0 {
                log::warn!("{stored} of {all} events are acknowledged after {} s", patience.as_secs());
                return Ok(stored);
            }
            return Err(Error::unavailable(format!(
                "the indexer did not acknowledge the events within {} s (`ack_seconds`); they will be sent again",
                patience.as_secs()
            )));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

kaizen_plugin::audit_sink!(SplunkHec);

#[cfg(test)]
mod tests;
