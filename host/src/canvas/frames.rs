//! The text frames of `kaizen.canvas.v1`: what clients may send, and what they get.
//!
//! ```text
//! → {"type":"ops","ref":"c1","ops":[…]}           → {"type":"presence",…}        any JSON object, at most PRESENCE bytes
//! ← {"type":"snapshot","seq":41,"nodes":[…],"edges":[…],"access":"edit","you":"…","peers":[…]}
//! ← {"type":"ops","seq":42,"actor":"user/…","peer":"…","ops":[…]}
//! ← {"type":"resumed","seq":42,"access":"edit","you":"…","peers":[…]}     after the messages missed since `?since=`
//! ← {"type":"access","access":"view"}             what may be done changed while the socket was open
//! ← {"type":"ack","ref":"c1","seq":43}            with `ops` where more was stored than was sent
//! ← {"type":"reject","ref":"c1","code":"…","detail":"…","op":0}            with `retry_after_ms` where the code is `rate`
//! ← {"type":"status","writable":false,"detail":"…"}       and `true` once messages are stored again
//! ← {"type":"presence","peer":"…","actor":"user/…","name":"…",…}           ← {"type":"presence","peer":"…","actor":"…","left":true}
//! ```

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::access::Access;
use crate::domain::canvas::{Code, Limits, Op, Rejection};

/// The subprotocol.
pub const PROTOCOL: &str = "kaizen.canvas.v1";
/// Bytes of a message from a client, at the most; more closes the socket with 4413.
pub const MESSAGE: usize = 256 * 1024;
/// Bytes of a presence message, at the most.
pub const PRESENCE: usize = 4 * 1024;
/// Bytes of a `ref`, at the most.
pub const REFERENCE: usize = 128;

/// A frame, encoded once and shared by all who get it.
pub type Frame = Utf8Bytes;

/// A message from a client.
#[derive(Debug)]
pub enum Incoming {
    /// Operations.
    Ops {
        /// What the client calls the message.
        reference: Option<String>,
        /// At least one.
        ops: Vec<Op>,
    },
    /// The client's presence: without `type`.
    Presence(Map<String, Value>),
}

/// Why a message was refused, for the sender.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// For programs.
    pub code: &'static str,
    /// What to change.
    pub detail: String,
    /// Which operation, from 0, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<usize>,
    /// After how many milliseconds to send it again, where it came too soon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal of a whole message.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), op: None, retry_after_ms: None }
    }

    /// A refusal of a message that came too soon.
    pub fn rate(whose: &str, wait: Duration) -> Self {
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let detail = format!("too many messages {whose}: send this one again in {wait} ms");
        Self { retry_after_ms: Some(wait), ..Self::new("rate", detail) }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection.code {
            Code::Invalid => "invalid",
            Code::NotFound => "not_found",
            Code::MissingNode => "missing_node",
            Code::MissingParent => "missing_parent",
            Code::ParentCycle => "parent_cycle",
            Code::Immutable => "immutable",
            Code::Limit => "limit",
        };
        Self { op: Some(rejection.op), ..Self::new(code, rejection.to_string()) }
    }
}

/// The `ref` of a message that is not read otherwise, if it has one.
pub fn reference(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, rename = "ref")]
        reference: Option<Cow<'a, str>>,
    }
    let named: Named<'_> = serde_json::from_str(text).ok()?;
    named.reference.filter(|reference| is_reference(reference)).map(Cow::into_owned)
}

fn is_reference(text: &str) -> bool {
    text.len() <= REFERENCE && !text.chars().any(char::is_control)
}

/// Reads a message.
///
/// # Errors
/// The `ref`, if one could be made out, and why the message is refused.
pub fn read(text: &str) -> Result<Incoming, (Option<String>, Refusal)> {
    let malformed = |reference, detail: String| (reference, Refusal::new("malformed", detail));
    let mut message: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| malformed(reference(text), format!("not a JSON object: {error}")))?;
    let named = match message.get("ref") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_reference(text) => Ok(Some(text.clone())),
        Some(_) => Err(format!("`ref` must be a string of at most {REFERENCE} bytes without control characters")),
    };
    match message.remove("type").as_ref().and_then(Value::as_str) {
        Some("ops") => {
            let reference = named.map_err(|detail| malformed(None, detail))?;
            match operations(message.remove("ops")) {
                Ok(ops) => Ok(Incoming::Ops { reference, ops }),
                Err(refusal) => Err((reference, refusal)),
            }
        }
        Some("presence") if text.len() > PRESENCE => {
            let refusal = Refusal::new("limit", format!("a presence message may have {PRESENCE} bytes"));
            Err((named.ok().flatten(), refusal))
        }
        Some("presence") => Ok(Incoming::Presence(message)),
        _ => Err(malformed(named.ok().flatten(), "`type` must be `ops` or `presence`".into())),
    }
}

fn operations(ops: Option<Value>) -> Result<Vec<Op>, Refusal> {
    let Some(Value::Array(ops)) = ops else {
        return Err(Refusal::new("malformed", "`ops` must be an array of operations"));
    };
    if ops.is_empty() {
        return Err(Refusal::new("malformed", "`ops` is empty"));
    }
    if ops.len() > Limits::CANVAS.ops {
        return Err(Refusal::new("limit", format!("at most {} operations in one message", Limits::CANVAS.ops)));
    }
    let read = |(index, op)| {
        Op::deserialize(op).map_err(|error| Refusal {
            op: Some(index),
            ..Refusal::new("malformed", format!("operation {index}: {error}"))
        })
    };
    ops.into_iter().enumerate().map(read).collect()
}

fn frame(message: &impl Serialize) -> Frame {
    // Only a map with keys that are not strings could fail, and there is none.
    serde_json::to_string(message).unwrap_or_default().into()
}

/// The whole canvas, for one who joins: the text of a frame in three parts. The graph, in the middle, is shared by all who are
/// sent the same.
#[derive(Debug)]
pub struct Snapshot {
    /// One after the other.
    pub parts: [Bytes; 3],
}

/// The members of an object, without its braces.
pub fn members(object: &impl Serialize) -> Bytes {
    // Only a map with keys that are not strings could fail, and there is none.
    let mut text = serde_json::to_string(object).unwrap_or_default();
    text.pop();
    let mut members = Bytes::from(text);
    drop(members.split_to(members.len().min(1)));
    members
}

/// The whole canvas. `graph` are the [`members`] of a [`Graph`](crate::domain::canvas::Graph).
pub fn snapshot(seq: i64, graph: Bytes, access: Access, you: &str, peers: &[Value]) -> Snapshot {
    #[derive(Serialize)]
    struct Rest<'a> {
        access: Access,
        you: &'a str,
        peers: &'a [Value],
    }
    let before = format!(r#"{{"type":"snapshot","seq":{seq},"#).into();
    let rest = serde_json::to_string(&Rest { access, you, peers }).unwrap_or_default();
    let after = rest.replacen('{', ",", 1).into();
    Snapshot { parts: [before, graph, after] }
}

/// The end of what one who resumes had missed.
pub fn resumed(seq: i64, access: Access, you: &str, peers: &[Value]) -> Frame {
    frame(&json!({ "type": "resumed", "seq": seq, "access": access, "you": you, "peers": peers }))
}

/// A stored message, for everyone but its sender. `ops` is JSON, as stored; the peer is known where it was sent just now.
pub fn ops(seq: i64, actor: &str, peer: Option<&str>, ops: &str) -> Frame {
    #[derive(Serialize)]
    struct Ops<'a> {
        r#type: &'static str,
        seq: i64,
        actor: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<&'a str>,
        ops: &'a RawValue,
    }
    let ops = serde_json::from_str(ops).unwrap_or(RawValue::NULL);
    frame(&Ops { r#type: "ops", seq, actor, peer, ops })
}

/// The message is on disk; `ops`, as JSON, is what was stored where that is more than was sent.
pub fn ack(reference: Option<&str>, seq: i64, ops: Option<&str>) -> Frame {
    #[derive(Serialize)]
    struct Ack<'a> {
        r#type: &'static str,
        r#ref: Option<&'a str>,
        seq: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        ops: Option<&'a RawValue>,
    }
    let ops = ops.and_then(|ops| serde_json::from_str(ops).ok());
    frame(&Ack { r#type: "ack", r#ref: reference, seq, ops })
}

/// Whether messages are stored at present.
pub fn status(writable: bool) -> Frame {
    if writable {
        return frame(&json!({ "type": "status", "writable": true }));
    }
    let detail = "nothing can be stored: what is sent is refused as `unavailable` until `writable` is true again";
    frame(&json!({ "type": "status", "writable": false, "detail": detail }))
}

/// Nothing of the message was applied.
pub fn reject(reference: Option<&str>, refusal: &Refusal) -> Frame {
    #[derive(Serialize)]
    struct Reject<'a> {
        r#type: &'static str,
        r#ref: Option<&'a str>,
        #[serde(flatten)]
        refusal: &'a Refusal,
    }
    frame(&Reject { r#type: "reject", r#ref: reference, refusal })
}

/// What may be done changed.
pub fn access(access: Access) -> Frame {
    frame(&json!({ "type": "access", "access": access }))
}

/// Presence of a peer: what it sent, with who it is.
pub fn presence(peer: &Value) -> Frame {
    let mut message = json!({ "type": "presence" });
    if let (Some(message), Some(peer)) = (message.as_object_mut(), peer.as_object()) {
        message.extend(peer.iter().filter(|(key, _)| *key != "type").map(|(key, value)| (key.clone(), value.clone())));
    }
    frame(&message)
}

/// A peer is gone.
pub fn left(peer: &str, actor: Option<&Value>) -> Frame {
    frame(&json!({ "type": "presence", "peer": peer, "actor": actor, "left": true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_with_the_operation_and_the_reference() {
        let cases = [
            ("", None, "malformed", None),
            ("[]", None, "malformed", None),
            (r#"{"type":"hello"}"#, None, "malformed", None),
            (r#"{"type":"hello","ref":"c"}"#, Some("c"), "malformed", None),
            (r#"{"ref":"c","type":7,"ops":[{}]}"#, Some("c"), "malformed", None),
            (r#"{"ref":"c\u0000","type":7}"#, None, "malformed", None),
            (r#"{"type":"ops","ref":7,"ops":[]}"#, None, "malformed", None),
            (r#"{"type":"ops","ref":"c","ops":[]}"#, Some("c"), "malformed", None),
            (r#"{"type":"ops","ref":"c"}"#, Some("c"), "malformed", None),
            (
                r#"{"type":"ops","ref":"c","ops":[{"op":"node.remove","id":"a"},{"op":"node.explode"}]}"#,
                Some("c"),
                "malformed",
                Some(1),
            ),
            (r#"{"type":"ops","ref":"c","ops":[{"op":"node.patch","id":"a"}]}"#, Some("c"), "malformed", Some(0)),
        ];
        for (text, reference, code, op) in cases {
            let (at, refusal) = read(text).unwrap_err();
            assert_eq!((at.as_deref(), refusal.code, refusal.op), (reference, code, op), "{text}");
        }
        let long = format!(r#"{{"type":"presence","x":"{}"}}"#, "x".repeat(PRESENCE));
        assert_eq!(read(&long).unwrap_err().1.code, "limit");
    }

    #[test]
    fn a_snapshot_is_the_graph_with_who_is_there() {
        let graph = members(&json!({ "nodes": [{ "id": "a" }], "edges": [] }));
        let frame = snapshot(3, graph.clone(), Access::View, "p", &[]);
        assert_eq!(frame.parts[1].as_ptr(), graph.as_ptr(), "not copied");
        let expected = json!({ "type": "snapshot", "seq": 3, "nodes": [{ "id": "a" }], "edges": [], "access": "view", "you": "p", "peers": [] });
        assert_eq!(serde_json::from_slice::<Value>(&frame.parts.concat()).unwrap(), expected);
        assert_eq!(members(&json!({})), "");
    }

    #[test]
    fn stored_operations_go_out_as_they_are() {
        let frame = ops(7, "user/1", None, r#"[{"op":"node.put","node":{"id":"n","x":1.0}}]"#);
        assert_eq!(
            frame.as_str(),
            r#"{"type":"ops","seq":7,"actor":"user/1","ops":[{"op":"node.put","node":{"id":"n","x":1.0}}]}"#
        );
    }

    #[test]
    fn a_client_cannot_pretend_to_be_another_message() {
        let frame = presence(&json!({ "type": "snapshot", "peer": "p", "cursor": 1 }));
        assert_eq!(frame.as_str(), r#"{"type":"presence","peer":"p","cursor":1}"#);
    }
}
