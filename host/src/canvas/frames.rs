//! The text frames of `kaizen.canvas.v1`: what clients may send, and what they get.
//!
//! ```text
//! → {"type":"ops","ref":"c1","ops":[…]}           → {"type":"presence",…}        any JSON object, at most PRESENCE bytes
//! ← {"type":"snapshot","seq":41,"nodes":[…],"edges":[…],"access":"edit","you":"…","peers":[…]}
//! ← {"type":"ops","seq":42,"actor":"user/…","peer":"…","ops":[…]}
//! ← {"type":"resumed","seq":42,"access":"edit","you":"…","peers":[…]}     after the messages missed since `?since=`
//! ← {"type":"access","access":"view"}             what may be done changed while the socket was open
//! ← {"type":"ack","ref":"c1","seq":43}            ← {"type":"reject","ref":"c1","code":"…","detail":"…","op":0}
//! ← {"type":"presence","peer":"…","actor":"user/…","name":"…",…}           ← {"type":"presence","peer":"…","actor":"…","left":true}
//! ```

use axum::extract::ws::Utf8Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};

use super::access::Access;
use crate::domain::canvas::{Code, Graph, Limits, Op, Rejection};

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
}

impl Refusal {
    /// A refusal of a whole message.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), op: None }
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
        Self { code, detail: rejection.to_string(), op: Some(rejection.op) }
    }
}

/// Reads a message.
///
/// # Errors
/// The `ref`, if one could be made out, and why the message is refused.
pub fn read(text: &str) -> Result<Incoming, (Option<String>, Refusal)> {
    let malformed = |detail: String| (None, Refusal::new("malformed", detail));
    let mut message: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| malformed(format!("not a JSON object: {error}")))?;
    match message.remove("type").as_ref().and_then(Value::as_str) {
        Some("ops") => {
            let reference = match message.remove("ref") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) if text.len() <= REFERENCE && !text.chars().any(char::is_control) => {
                    Some(text)
                }
                Some(_) => {
                    let detail =
                        format!("`ref` must be a string of at most {REFERENCE} bytes without control characters");
                    return Err(malformed(detail));
                }
            };
            match operations(message.remove("ops")) {
                Ok(ops) => Ok(Incoming::Ops { reference, ops }),
                Err(refusal) => Err((reference, refusal)),
            }
        }
        Some("presence") if text.len() > PRESENCE => {
            Err((None, Refusal::new("limit", format!("a presence message may have {PRESENCE} bytes"))))
        }
        Some("presence") => Ok(Incoming::Presence(message)),
        _ => Err(malformed("`type` must be `ops` or `presence`".into())),
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
            code: "malformed",
            detail: format!("operation {index}: {error}"),
            op: Some(index),
        })
    };
    ops.into_iter().enumerate().map(read).collect()
}

fn frame(message: &impl Serialize) -> Frame {
    // Only a map with keys that are not strings could fail, and there is none.
    serde_json::to_string(message).unwrap_or_default().into()
}

/// The whole canvas, for one who joins.
pub fn snapshot(seq: i64, graph: &Graph, access: Access, you: &str, peers: &[Value]) -> Frame {
    #[derive(Serialize)]
    struct Snapshot<'a> {
        r#type: &'static str,
        seq: i64,
        #[serde(flatten)]
        graph: &'a Graph,
        access: Access,
        you: &'a str,
        peers: &'a [Value],
    }
    frame(&Snapshot { r#type: "snapshot", seq, graph, access, you, peers })
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

/// The message is on disk.
pub fn ack(reference: Option<&str>, seq: i64) -> Frame {
    frame(&json!({ "type": "ack", "ref": reference, "seq": seq }))
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
