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
//! | `ack_seconds` | `150` | How long to wait for it before events are sent again. |
//!
//! Secret `token`: the HEC token.
//!
//! **Acknowledgement**: HEC answers 200 as soon as it has taken events into memory; an indexer that crashes then loses
//! them. With *Enable indexer acknowledgement* on the token, each request gets an id, and `/services/collector/ack` says of
//! an id whether its events are written and replicated. A batch counts as stored only then, and the next one waits for it.
//! Splunk may keep a few events in its buffers for two minutes: a shorter `ack_seconds` has them sent, and stored, again
//! and again. A call asks for some seconds and gives up; later calls ask once more before they send anything. Delivery is at
//! least once: after a wait that was too short, or a collector that was restarted, Splunk has some events twice, with the
//! same `id` (`| dedup id`). Where a token can't have acknowledgement (Splunk Cloud has it for some inputs only), set
//! `acknowledgement` to false, and a 200 counts.
//!
//! Each batch has a channel of its own, made of the connection's id and the batch, so that a later call finds its ids, which
//! count from 0 in each channel. Splunk forgets channels that were idle for ten minutes; on versions before 8, set
//! `ackIdleCleanup = true` for the token in `inputs.conf`. Behind a load balancer the requests of a channel have to reach
//! the same collector: sticky sessions by source address, or by the header `X-Splunk-Request-Channel`.
//!
//! With `acknowledgement` false the status alone counts, so receivers that take HEC's events and answer `OK` or nothing
//! work too; only a page of HTML is taken for that of a portal in between, by the check as by the delivery.
//!
//! **An event that the collector refuses** stops the sink at that event, and the error names it by its `id`. The events
//! before it in the same request are stored by then and not sent again; with acknowledgement they are sent once more, by
//! themselves, since HEC gives no id to ask for them.
//!
//! Each event is as the audit trail has it, its `occurred_at` also being Splunk's `time`.

mod collector;

use std::time::{Duration, Instant};

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::sink::Event;
use kaizen_plugin::{AuditSink, Call, Capability, Error, Manifest, Plugin, Result, SecretSlot, Url, log};
use serde::Deserialize;

use collector::{Collector, Sent};

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
    /// How many seconds to wait for the acknowledgement before events are sent again. Splunk may take two minutes.
    #[serde(default = "default_ack_seconds")]
    #[schemars(range(min = 1, max = 500))]
    ack_seconds: u16,
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

fn default_ack_seconds() -> u16 {
    150
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

/// When a call stops asking, from its beginning: with one last question it stays under the 30 s that calls have, and it
/// holds one of the server's few places for deliveries.
const PATIENCE: Duration = Duration::from_secs(18);
/// The first pause before asking for an acknowledgement again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: an indexer takes seconds, and a call has few requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Requests of earlier attempts that are asked for at the most.
const MOST_ATTEMPTS: u32 = 50;

impl AuditSink for SplunkHec {
    /// Is the collector healthy, and does it take this token? Asking for the state of a request that never was tells, and
    /// writes nothing.
    fn check(call: &Call<Config>) -> Result<String> {
        let collector = Collector::to_check(call);
        collector.health()?;
        let far = call.config.url.authority();
        if call.config.acknowledgement {
            collector.any_acknowledged(0..=0)?;
            return Ok(format!("{far} takes the token and acknowledges."));
        }
        collector.token()?;
        Ok(format!("{far} takes the token. Events are not acknowledged."))
    }

    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(0) };
        let all =
            u32::try_from(events.len()).map_err(|_| Error::Internal("more events than a batch can have".to_owned()))?;
        let began = Instant::now();
        let collector = Collector::for_batch(call, first, last);
        // What an earlier attempt sent may be stored by now.
        let earlier = call.attempt.saturating_sub(1).min(MOST_ATTEMPTS);
        if call.config.acknowledgement && earlier > 0 && collector.any_acknowledged(0..=u64::from(earlier - 1))? {
            return Ok(all);
        }
        let wait = Duration::from_secs(call.config.ack_seconds.into());
        match collector.send(events)? {
            Sent::All(None) => Ok(all),
            Sent::All(Some(ack)) => {
                await_acknowledgement(&collector, ack, began, wait)?;
                Ok(all)
            }
            Sent::Refused { before: 0, why } => Err(Error::Rejected(why)),
            Sent::Refused { before, why } => {
                log::warn!("{why}; the {before} before it are stored");
                let before = events.get(..before).unwrap_or_default();
                if call.config.acknowledgement {
                    confirm(call, before, began, wait)?;
                }
                Ok(u32::try_from(before.len()).unwrap_or(all))
            }
        }
    }
}

/// Has events acknowledged that were taken before another one of their request was refused: for such a request there is no
/// id to ask for. They are sent once more as a batch of their own, unless an earlier attempt did so and they are
/// acknowledged by now.
fn confirm(call: &Call<Config>, events: &[Event], began: Instant, wait: Duration) -> Result<()> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
    let collector = Collector::for_batch(call, first, last);
    let earlier = call.attempt.saturating_sub(1).min(MOST_ATTEMPTS);
    if earlier > 0 && collector.any_acknowledged(0..=u64::from(earlier - 1))? {
        return Ok(());
    }
    match collector.send(events)? {
        Sent::All(None) => Ok(()),
        Sent::All(Some(ack)) => await_acknowledgement(&collector, ack, began, wait),
        Sent::Refused { why, .. } => Err(Error::Rejected(why)),
    }
}

/// Asks until the request is acknowledged, or one of the earlier ones with the same events.
fn await_acknowledgement(collector: &Collector<'_>, ack: u64, began: Instant, wait: Duration) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    while !collector.any_acknowledged(ack.saturating_sub(MOST_ATTEMPTS.into())..=ack)? {
        let left = wait.min(PATIENCE).saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Error::Unavailable {
                message: format!(
                    "the indexer has not acknowledged the events yet; they are sent again after {} s (`ack_seconds`)",
                    wait.as_secs()
                ),
                retry_after: Some(wait.saturating_sub(began.elapsed())).filter(|rest| !rest.is_zero()),
            });
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

kaizen_plugin::audit_sink!(SplunkHec);

#[cfg(test)]
mod tests;
