//! Posts audit events to an address of one's own.
//!
//! | setting | | |
//! |---|---|---|
//! | `url` | needed | The address that takes the events. |
//! | `max_events` | `500` | How many events at most go into one request. |
//!
//! Secret `signing-key`: shared with the receiver, at least 16 characters; after `whsec_` it is base64.
//!
//! The body is `{"events":[…]}`, the events in order, each as [`Event`] serializes. The header `Kaizen-Signature:
//! t=SECONDS,v1=HEX` has HMAC-SHA256, with the secret `signing-key`, over `SECONDS.BODY`. A receiver computes the same,
//! compares in constant time, and refuses timestamps that are more than a few minutes off. Receivers that know Standard
//! Webhooks check `Webhook-Id`, `Webhook-Timestamp` and `Webhook-Signature` in its place. `Idempotency-Key` is the same for
//! every attempt at the same events, and another one for others. How a receiver checks all this, ready to copy:
//! [`README.md`](../README.md).
//!
//! Any 2xx means that all events are stored, unless the body is JSON with `stored`: then that many are, from the first.

use std::time::{SystemTime, UNIX_EPOCH};

use kaizen_plugin::http::{Request, Response};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::serde_json::{self, Value};
use kaizen_plugin::signature;
use kaizen_plugin::sink::Event;
use kaizen_plugin::{AuditSink, Call, Capability, Error, Manifest, Plugin, Result, Secret, SecretSlot, Url, log};
use serde::{Deserialize, Serialize};

/// Where to post events.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The address that takes the events.
    url: Url,
    /// How many events at most go into one request.
    #[serde(default = "default_max_events")]
    #[schemars(range(min = 1, max = 1000))]
    max_events: u16,
}

fn default_max_events() -> u16 {
    500
}

#[derive(Serialize)]
struct Batch<'a> {
    events: &'a [Event],
}

struct Webhook;

impl Plugin for Webhook {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "webhook",
        version: env!("CARGO_PKG_VERSION"),
        title: "Webhook",
        description: "Posts audit events to an address, signed with HMAC-SHA256.",
        secrets: &[SecretSlot {
            name: "signing-key",
            description: "The key shared with the receiver, at least 16 characters. Each request is signed with it; it is never sent.",
            hosts: &[],
        }],
        capabilities: &[Capability::Http("{config.url}"), Capability::RevealSecret("signing-key")],
    };
}

impl AuditSink for Webhook {
    /// Posts a batch without events.
    fn check(call: &Call<Config>) -> Result<String> {
        post(call, &[], &call.idempotency_key)?;
        Ok(format!("{} takes signed requests.", call.config.url.authority()))
    }

    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        let mut stored = 0;
        for chunk in events.chunks(usize::from(call.config.max_events.max(1))) {
            let key = chunk_key(call, chunk);
            let response = match post(call, chunk, &key) {
                Ok(response) => response,
                // The first chunks are stored: the rest comes again, and then tells why.
                Err(error) if stored > 0 => {
                    log::warn!("stored {stored} of {} events: {error}", events.len());
                    break;
                }
                Err(error) => return Err(error),
            };
            let now = stored_of(&response, chunk.len())?;
            stored += now;
            if now < chunk.len() {
                log::warn!("{} stored {now} of {} events", call.config.url.authority(), chunk.len());
                break;
            }
        }
        u32::try_from(stored).map_err(|_| Error::Internal("more events than a batch can have".to_owned()))
    }
}

/// Names what is in a request: had it only a place in the batch, a receiver that drops repeats would drop events that are
/// new to it once `max_events` is raised.
fn chunk_key(call: &Call<Config>, chunk: &[Event]) -> String {
    let end = |event: Option<&Event>| event.map_or(0, |event| event.sequence);
    format!("{}/{}-{}", call.idempotency_key, end(chunk.first()), end(chunk.last()))
}

fn post(call: &Call<Config>, events: &[Event], idempotency_key: &str) -> Result<Response> {
    let body = serde_json::to_vec(&Batch { events })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut request = Request::post(&call.config.url)
        .header("content-type", "application/json")
        .header("idempotency-key", idempotency_key);
    for (name, value) in signature::webhook(Secret::named("signing-key"), idempotency_key, now, &body)? {
        request = request.header(name, value);
    }
    let response = request.body(body).send()?;
    // Refused events would never be delivered: that the address is wrong is for the operator to see.
    if matches!(response.status, 404 | 405 | 410) {
        return Err(Error::Config(format!("url: {} answers {}", call.config.url, response.status)));
    }
    Ok(response.success()?)
}

/// How many of `sent` the receiver says it stored.
fn stored_of(response: &Response, sent: usize) -> Result<usize> {
    let Ok(Value::Object(answer)) = response.json::<Value>() else { return Ok(sent) };
    match answer.get("stored") {
        None | Some(Value::Null) => Ok(sent),
        Some(stored) => {
            match stored.as_u64().and_then(|stored| usize::try_from(stored).ok()).filter(|&stored| stored <= sent) {
                Some(stored) => Ok(stored),
                None => Err(Error::Rejected(format!("the receiver says it stored {stored} of {sent} events"))),
            }
        }
    }
}

kaizen_plugin::audit_sink!(Webhook);

/// The receiver's side, as the README hands it out.
#[cfg(test)]
#[path = "../receiver/verify.rs"]
mod receiver;

#[cfg(test)]
mod tests {
    use kaizen_plugin::testing::{self, event};

    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn call(max_events: u16) -> Call<Config> {
        testing::secret("signing-key", KEY);
        testing::call::<Webhook>(&format!(r#"{{"url":"https://hooks.example.com/in","max_events":{max_events}}}"#))
    }

    fn events(count: u64) -> Vec<Event> {
        (1..=count).map(event).collect()
    }

    #[test]
    fn a_batch_is_signed_over_time_and_body() {
        let far_side = testing::answer(|_| Ok(Response::new(202, "")));
        assert_eq!(Webhook::deliver(&call(10), &events(3)), Ok(3));
        let request = &far_side.requests()[0];
        let signature = request.header("kaizen-signature").unwrap();
        let (timestamp, hex) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
        let expected = signature::hmac_sha256_hex(KEY.as_bytes(), &[timestamp.as_bytes(), b".", &request.body]);
        assert_eq!(hex, expected);
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - timestamp.parse::<u64>().unwrap();
        assert!(age < 60);
        assert!(!format!("{request:?}").contains(KEY));
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["events"][2]["sequence"], 3);
        assert_eq!(body["events"][0]["details"]["request_id"], "r");
    }

    #[test]
    fn a_receiver_knows_what_is_genuine() {
        use super::receiver::verify;
        for key in [KEY, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            let far_side = testing::answer(|_| Ok(Response::new(202, "")));
            let call = call(10);
            testing::secret("signing-key", key);
            Webhook::deliver(&call, &events(1)).unwrap();
            let request = &far_side.requests()[0];
            let header = request.header("kaizen-signature").unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!(verify(key, header, &request.body, now));
            assert!(!verify("another key than that", header, &request.body, now));
            assert!(!verify(key, header, b"{}", now));
            assert!(!verify(key, header, &request.body, now + 400) && !verify(key, header, &request.body, now - 400));
            for forged in ["", "t=1", "t=x,v1=00", &header.replace("t=", "t=1"), &header[..header.len() - 2]] {
                assert!(!verify(key, forged, &request.body, now), "{forged}");
            }
        }
    }

    #[test]
    fn the_receiver_says_how_far_it_got() {
        for (body, stored) in [
            ("", Ok(3)),
            ("{}", Ok(3)),
            (r#"{"stored":2}"#, Ok(2)),
            (r#"{"stored":0}"#, Ok(0)),
            (r#"{"stored":null}"#, Ok(3)),
        ] {
            let _far_side = testing::answer(move |_| Ok(Response::new(200, body)));
            assert_eq!(Webhook::deliver(&call(10), &events(3)), stored, "{body}");
        }
        for lie in [r#"{"stored":4}"#, r#"{"stored":-1}"#, r#"{"stored":"all"}"#] {
            let _far_side = testing::answer(move |_| Ok(Response::new(200, lie)));
            assert!(matches!(Webhook::deliver(&call(10), &events(3)), Err(Error::Rejected(_))), "{lie}");
        }
    }

    #[test]
    fn what_was_stored_before_a_failure_counts() {
        let mut answers = [200, 503].into_iter();
        let far_side = testing::answer(move |_| Ok(Response::new(answers.next().unwrap(), "")));
        assert_eq!(Webhook::deliver(&call(2), &events(5)), Ok(2));
        let keys: Vec<_> =
            far_side.requests().iter().map(|sent| sent.header("webhook-id").unwrap().to_owned()).collect();
        assert_eq!(keys, ["the-same-every-time/1-2", "the-same-every-time/3-4"]);
        let _far_side = testing::answer(|_| Ok(Response::new(429, "").with_header("retry-after", "3")));
        assert!(matches!(
            Webhook::deliver(&call(2), &events(5)),
            Err(Error::Unavailable { retry_after: Some(wait), .. }) if wait.as_secs() == 3
        ));
    }

    #[test]
    fn only_the_operator_can_mend_a_wrong_address_or_key() {
        for status in [301, 401, 403, 404, 405, 410] {
            let _far_side = testing::answer(move |_| Ok(Response::new(status, "")));
            assert!(matches!(Webhook::check(&call(1)), Err(Error::Config(_))), "{status}");
        }
        let far_side = testing::answer(|_| Ok(Response::new(200, "")));
        let short = call(1);
        testing::secret("signing-key", "short");
        assert!(matches!(Webhook::check(&short), Err(Error::Config(why)) if !why.contains("short")));
        assert!(far_side.requests().is_empty());
    }
}
