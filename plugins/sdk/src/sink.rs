//! Audit sinks: where audit events go.

use std::marker::PhantomData;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::bindings::audit_sink::exports::kaizen::audit_sink::sink as raw;
use crate::{Call, Plugin, Result, call};

/// Takes audit events away. Delivery is at least once and in order: the far side drops repeats by [`Event::id`].
pub trait AuditSink: Plugin {
    /// Does the sink take events? Returns a sentence for the operator.
    ///
    /// # Errors
    /// What to change, or that it is away.
    fn check(call: &Call<Self::Config>) -> Result<String>;

    /// Stores events. Returns how many, from the first, the far side has stored; the rest comes again.
    ///
    /// # Errors
    /// If it stored none; [`Error::Unavailable`](crate::Error::Unavailable) is tried again.
    fn deliver(call: &Call<Self::Config>, events: &[Event]) -> Result<u32>;
}

/// One event of an organization's audit chain. It serializes to a JSON object with these names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// UUIDv7; the same on every delivery.
    pub id: String,
    /// Position in the organization's chain, from 1, without gaps.
    pub sequence: u64,
    /// RFC 3339.
    pub occurred_at: String,
    /// Whose chain.
    pub organization_id: String,
    /// Who did it, e.g. `user/0192…`.
    pub actor: String,
    /// e.g. `agent.deploy`.
    pub action: String,
    /// e.g. `agent/0192…`.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// JSON: request, changes, the deciding policies. The hash covers exactly this text, so it is embedded unchanged.
    #[serde(serialize_with = "embedded")]
    pub details: String,
    /// SHA-256 over this event and the previous hash, hexadecimal.
    pub hash: String,
}

/// How what was asked for ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was not allowed.
    Denied,
    /// It was allowed and did not work.
    Failure,
}

/// Embeds JSON text as it is; anything that isn't JSON on one line goes as a string, so that an event stays one line.
fn embedded<S: Serializer>(details: &str, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match serde_json::from_str::<&RawValue>(details) {
        Ok(json) if !details.contains(['\n', '\r']) => json.serialize(serializer),
        _ => serializer.serialize_str(details),
    }
}

/// Connects an [`AuditSink`] to the world's exports.
pub struct Adapter<P>(PhantomData<P>);

impl<P: AuditSink> raw::Guest for Adapter<P> {
    fn check(call: raw::Call) -> Result<String, raw::Error> {
        call::run::<P, _>(call, P::check)
    }

    fn deliver(call: raw::Call, events: Vec<raw::Event>) -> Result<u32, raw::Error> {
        call::run::<P, _>(call, |call| {
            let events: Vec<Event> = events.into_iter().map(Event::from).collect();
            P::deliver(call, &events)
        })
    }
}

impl From<raw::Event> for Event {
    fn from(event: raw::Event) -> Self {
        Self {
            id: event.id,
            sequence: event.sequence,
            occurred_at: event.occurred_at,
            organization_id: event.organization_id,
            actor: event.actor,
            action: event.action,
            target: event.target,
            outcome: match event.outcome {
                raw::Outcome::Success => Outcome::Success,
                raw::Outcome::Denied => Outcome::Denied,
                raw::Outcome::Failure => Outcome::Failure,
            },
            details: event.details,
            hash: event.hash,
        }
    }
}

/// Exports an [`AuditSink`] as the component's audit sink: `kaizen_plugin::audit_sink!(MyPlugin);`
#[macro_export]
macro_rules! audit_sink {
    ($plugin:ty) => {
        // On the machine itself there is nothing to export; this keeps the plugin from counting as unused.
        const _: ::core::marker::PhantomData<$plugin> = ::core::marker::PhantomData;
        #[cfg(target_os = "wasi")]
        const _: () = {
            type Manifest = $crate::manifest::Adapter<$plugin>;
            type Exported = $crate::sink::Adapter<$plugin>;
    $crate::bindings::shared::export!(Manifest with_types_in $crate::bindings::shared);
    $crate::bindings::audit_sink::export!(Exported with_types_in $crate::bindings::audit_sink);
        };
    };
}

#[cfg(test)]
mod tests {
    use crate::testing::event;

    #[test]
    fn details_keep_their_text_and_an_event_stays_one_line() {
        let mut event = event(7);
        event.details = r#"{"z": 1.50, "a":[ ]}"#.to_owned();
        assert!(serde_json::to_string(&event).unwrap().contains(r#""details":{"z": 1.50, "a":[ ]},"#));
        for odd in ["{\n}", "not json", ""] {
            event.details = odd.to_owned();
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["details"], odd);
        }
    }

    #[test]
    fn an_outcome_is_one_lower_case_word() {
        assert_eq!(serde_json::to_value(event(1)).unwrap()["outcome"], "success");
    }
}
