//! The collector's API.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use kaizen_plugin::http::{Method, Request, Response};
use kaizen_plugin::sink::Event;
use kaizen_plugin::{Call, Error, Result, Secret, Url, signature};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use crate::Config;

/// How long one answer about acknowledgements may take: a call asks before and after it sends.
const ACK_TIMEOUT: Duration = Duration::from_secs(8);

/// One event as HEC takes it.
#[derive(Serialize)]
struct Envelope<'a> {
    /// Seconds since 1970, as a number with the event's own fraction; absent where the time can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    source: &'a str,
    sourcetype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a str>,
    event: &'a Event,
}

#[derive(Deserialize)]
struct Taken {
    code: i64,
    #[serde(rename = "ackId")]
    ack: Option<u64>,
}

#[derive(Deserialize)]
struct Acknowledged {
    acks: BTreeMap<String, bool>,
}

/// What an error's body has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: i64,
    text: String,
    #[serde(rename = "invalid-event-number")]
    event: Option<u64>,
}

/// A collector, spoken to for one connection.
pub struct Collector<'a> {
    config: &'a Config,
    channel: String,
}

impl<'a> Collector<'a> {
    /// A channel for these events: every attempt at them has the same, and no other does.
    pub fn for_batch(call: &'a Call<Config>, first: &Event, last: &Event) -> Self {
        Self::on(call, &format!("{}-{}", first.id, last.id))
    }

    /// A channel of its own: to ask for an acknowledgement is to take it away from whoever waits for it.
    pub fn to_check(call: &'a Call<Config>) -> Self {
        Self::on(call, "check")
    }

    fn on(call: &'a Call<Config>, what: &str) -> Self {
        Self { config: &call.config, channel: guid(&format!("{}/{what}", call.connection_id)) }
    }

    fn url(&self, last: &str) -> Result<Url> {
        Ok(self.config.url.join(&["services", "collector", last])?)
    }

    fn request(&self, method: Method, url: &Url) -> Request {
        Request::new(method, url)
            .header("authorization", format!("Splunk {}", Secret::named("token").placeholder()))
            .header("x-splunk-request-channel", &self.channel)
    }

    /// Can it take events at all? Not every collector says so: where there is no such route, only events tell.
    pub fn health(&self) -> Result<()> {
        let response = self.request(Method::Get, &self.url("health")?).send()?;
        if matches!(response.status, 404 | 405) {
            return Ok(());
        }
        understood(self.config, response).map_err(|error| error.context("the collector's health")).map(|_| ())
    }

    /// Does it take the token? An empty body is refused for being empty only after the token was looked at.
    pub fn token(&self) -> Result<()> {
        let response = self.request(Method::Post, &self.url("event")?).send()?;
        let refusal: Refusal = response.json().unwrap_or_default();
        // 5: no data.
        if response.status == 400 && refusal.code == 5 {
            return Ok(());
        }
        // What takes nothing for an event would take events just so: delivery must come to the same verdict.
        taken(self.config, &understood(self.config, response)?).map(|_| ())
    }

    /// Sends events.
    pub fn send(&self, events: &[Event]) -> Result<Sent> {
        let mut body = Vec::new();
        for event in events {
            let envelope = Envelope {
                time: epoch(&event.occurred_at),
                host: self.config.host.as_deref(),
                source: &self.config.source,
                sourcetype: &self.config.sourcetype,
                index: self.config.index.as_deref(),
                event,
            };
            serde_json::to_writer(&mut body, &envelope)?;
            body.push(b'\n');
        }
        let response = self
            .request(Method::Post, &self.url("event")?)
            .header("content-type", "application/json")
            .body(body)
            .send()?;
        let refusal: Refusal = response.json().unwrap_or_default();
        if let (400, 6 | 12 | 13, Some(number)) = (response.status, refusal.code, refusal.event) {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            if let Some(event) = events.get(number) {
                let why = format!(
                    "the collector refuses the event {} (sequence {}): {}",
                    event.id,
                    event.sequence,
                    brief(&refusal.text)
                );
                return Ok(Sent::Refused { before: number, why });
            }
        }
        taken(self.config, &understood(self.config, response)?).map(Sent::All)
    }

    /// Whether one of these ids of the channel is acknowledged. An id is told of once: asking again says no.
    pub fn any_acknowledged(&self, acks: RangeInclusive<u64>) -> Result<bool> {
        let asked: Vec<u64> = acks.collect();
        let response = self
            .request(Method::Post, &self.url("ack")?)
            .timeout(ACK_TIMEOUT)
            .json(&json!({ "acks": asked }))?
            .send()?;
        let response =
            understood(self.config, response).map_err(|error| error.context("asking for the acknowledgement"))?;
        let answer: Acknowledged = response.json().map_err(not_hec)?;
        Ok(asked.iter().any(|ack| answer.acks.get(&ack.to_string()) == Some(&true)))
    }
}

/// What became of events that were sent.
pub enum Sent {
    /// All were taken; the id under which they will be acknowledged, where that is waited for.
    All(Option<u64>),
    /// One was refused. HEC reads a request event by event: it has taken those before it and none from it on.
    Refused {
        /// How many were taken before it.
        before: usize,
        /// Which it was, and why.
        why: String,
    },
}

/// What a 2xx answer to events says: the id under which they will be acknowledged, where that is waited for. Where it is
/// not, the status counts whatever the body is (receivers other than Splunk's answer `OK` or nothing), unless it is a page
/// of something in between, or says otherwise.
fn taken(config: &Config, response: &Response) -> Result<Option<u64>> {
    let taken: Taken = match response.json() {
        Ok(taken) => taken,
        Err(error) => {
            let text = String::from_utf8_lossy(&response.body);
            let page = text.trim_start_matches('\u{feff}').trim_start().starts_with('<')
                || response.header("content-type").is_some_and(|media| media.contains("html"));
            if page || response.json::<serde_json::Value>().is_ok() {
                return Err(not_hec(error));
            }
            Taken { code: 0, ack: None }
        }
    };
    if taken.code != 0 {
        return Err(Error::unavailable(format!("the collector answers 200 with the code {}", taken.code)));
    }
    if config.acknowledgement && taken.ack.is_none() {
        return Err(Error::Config(
            "the collector gives no `ackId`: enable indexer acknowledgement on the HEC token, or set `acknowledgement` to \
             false"
                .to_owned(),
        ));
    }
    Ok(taken.ack.filter(|_| config.acknowledgement))
}

/// Fit for an operator's screen.
fn brief(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A 2xx answer that is not HEC's comes from something in between; whether events were stored is not known.
fn not_hec(error: kaizen_plugin::http::Error) -> Error {
    Error::unavailable(format!("this is not how a Splunk collector answers: {error}"))
}

/// A 2xx answer; or who has to act, by HEC's own codes where they tell more than the status.
fn understood(config: &Config, response: Response) -> Result<Response> {
    if response.is_success() {
        return Ok(response);
    }
    let refusal: Refusal = response.json().unwrap_or_default();
    let text = brief(&refusal.text);
    let status = response.status;
    let error = match response.success() {
        Ok(response) => return Ok(response),
        Err(error) => Error::from(error),
    };
    Err(match (status, refusal.code) {
        (404 | 405, _) => {
            Error::Config(format!("url: there is no event collector, {} answers {status}", config.url.origin()))
        }
        // 21 and 22 are how the collector's health says what 4 and 1 are elsewhere.
        (400, 21 | 22) => Error::Config(format!("secret `token`: {text}")),
        (400, 7) => Error::Config(
            "index: the token may not write to this index, or it does not exist; change `index` or the token"
                .to_owned(),
        ),
        (400, 10 | 11 | 14) => Error::Config(format!(
            "indexer acknowledgement does not work with this token ({text}): enable it on the token, or set `acknowledgement` \
             to false"
        )),
        _ => error,
    })
}

/// A GUID, always the same for the same text.
fn guid(text: &str) -> String {
    let hash = signature::sha256_hex(text.as_bytes());
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hash.get(range).unwrap_or_default().to_owned());
    parts.join("-")
}

/// An RFC 3339 time in UTC as seconds since 1970, with its fraction as it is written: a floating-point number would round
/// it.
fn epoch(time: &str) -> Option<Box<RawValue>> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, years beginning in March, so that the odd day is the last.
    let (shifted, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    RawValue::from_string(format!("{seconds}.{fraction}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_fraction() {
        for (time, expected) in [
            ("1970-01-01T00:00:00Z", Some("0.0")),
            ("2026-11-02T10:00:00.123456Z", Some("1793613600.123456")),
            ("2024-02-29T23:59:59.5Z", Some("1709251199.5")),
            ("2000-03-01T00:00:00.000001Z", Some("951868800.000001")),
            ("2026-11-02T10:00:00+01:00", None),
            ("2026-11-02T10:00:00.Z", None),
            ("soon", None),
        ] {
            assert_eq!(epoch(time).map(|raw| raw.get().to_owned()).as_deref(), expected, "{time}");
        }
    }

    #[test]
    fn a_channel_is_a_guid_and_stays_the_same() {
        let one = guid("west/7");
        assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(one == guid("west/7") && one != guid("west/8"));
    }
}
