//! One event as an RFC 5424 message in a frame of RFC 6587.

use std::fmt::Write as _;

use kaizen_plugin::sink::{Event, Outcome};
use kaizen_plugin::{Error, Result};

use crate::{Config, Framing, Text};

/// UTF-8's byte order mark.
const BOM: &str = "\u{feff}";
/// RFC 5424, section 6: MSGID is at most this long.
const LONGEST_MSGID: usize = 32;

/// Adds an event's frame: `LENGTH SP MESSAGE`, the length in bytes (RFC 6587, section 3.4.1), or `MESSAGE LF` (section
/// 3.4.2); there is no line end within a message.
pub fn frame(config: &Config, event: &Event, frames: &mut Vec<u8>) -> Result<()> {
    let message = message(config, event)?;
    if config.framing == Framing::OctetCounting {
        frames.extend_from_slice(format!("{} ", message.len()).as_bytes());
    }
    frames.extend_from_slice(message.as_bytes());
    if config.framing == Framing::Lf {
        frames.push(b'\n');
    }
    Ok(())
}

/// The message. Of one that is too long, JSON loses its details and stays JSON, or is left out; a sentence loses its end.
/// The structured data is never cut.
fn message(config: &Config, event: &Event) -> Result<String> {
    let text = match config.message {
        Text::Json => serde_json::to_string(event)?,
        Text::Text => sentence(event),
    };
    let bom = if config.bom { BOM } else { "" };
    let most = usize::try_from(config.max_bytes).unwrap_or(usize::MAX);
    let whole = format!("{} {bom}{text}", head(config, event, false));
    if whole.len() <= most {
        return Ok(whole);
    }
    let head = head(config, event, true);
    let Some(room) = most.checked_sub(head.len() + 1 + bom.len()) else {
        return Err(Error::Rejected(format!(
            "the event {} (sequence {}) needs {} bytes without any text; `max_bytes` allows {most}",
            event.id,
            event.sequence,
            head.len()
        )));
    };
    let text = match config.message {
        Text::Json => serde_json::to_string(&without_details(event))?,
        Text::Text => text.get(..text.floor_char_boundary(room)).unwrap_or_default().to_owned(),
    };
    // Half a JSON document is none: receivers would drop the message, or index it as text.
    Ok(if text.len() <= room { format!("{head} {bom}{text}") } else { head })
}

/// The event with a note of how long its details are, in their place.
fn without_details(event: &Event) -> Event {
    let details = format!(r#"{{"truncated":true,"bytes":{}}}"#, event.details.len());
    Event { details, ..event.clone() }
}

/// Everything before the text.
fn head(config: &Config, event: &Event, truncated: bool) -> String {
    let severity = match event.outcome {
        Outcome::Success => 6,
        Outcome::Denied => 4,
        Outcome::Failure => 3,
    };
    let mut head = format!(
        "<{}>1 {} {} {} - {} [kaizen@{}",
        u16::from(config.facility) * 8 + severity,
        timestamp(&event.occurred_at),
        config.hostname.as_deref().unwrap_or("-"),
        config.app_name,
        printable(&event.action, LONGEST_MSGID),
        config.enterprise_number,
    );
    let sequence = event.sequence.to_string();
    let outcome = outcome(event);
    for (name, value) in [
        ("id", event.id.as_str()),
        ("sequence", &sequence),
        ("organization", &event.organization_id),
        ("actor", &event.actor),
        ("action", &event.action),
        ("target", &event.target),
        ("outcome", outcome),
        ("hash", &event.hash),
    ] {
        let _ = write!(head, " {name}=\"");
        escape(value, &mut head);
        head.push('"');
    }
    if truncated {
        head.push_str(" truncated=\"true\"");
    }
    head.push(']');
    head
}

fn outcome(event: &Event) -> &'static str {
    match event.outcome {
        Outcome::Success => "success",
        Outcome::Denied => "denied",
        Outcome::Failure => "failure",
    }
}

fn sentence(event: &Event) -> String {
    let how = match event.outcome {
        Outcome::Success => "",
        Outcome::Denied => " (denied)",
        Outcome::Failure => " (failed)",
    };
    let line = format!("{}: {} {}{how}", event.actor, event.action, event.target);
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// RFC 5424, section 6.3.3: `"`, `\` and `]` are escaped. Control characters may be there, but receivers turn them into
/// something of their own; a space is what all of them agree on.
fn escape(value: &str, into: &mut String) {
    for c in value.chars() {
        match c {
            '"' | '\\' | ']' => into.extend(['\\', c]),
            c if c.is_control() => into.push(' '),
            c => into.push(c),
        }
    }
}

/// A field of visible ASCII characters; `-` where nothing is left.
fn printable(text: &str, most: usize) -> String {
    let kept: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if kept.is_empty() { "-".to_owned() } else { kept }
}

/// RFC 5424, section 6.2.3: RFC 3339 with at most six digits of a second, in upper case; else the time is said to be
/// unknown, for a receiver refuses the whole message otherwise.
fn timestamp(time: &str) -> &str {
    let mut rest = time.bytes();
    let mut shape = "dddd-dd-ddTdd:dd:dd".bytes();
    let fits = shape.all(|wanted| match rest.next() {
        Some(byte) if wanted == b'd' => byte.is_ascii_digit(),
        other => other == Some(wanted),
    });
    let tail = time.get(19..).unwrap_or_default();
    let tail = match tail.strip_prefix('.') {
        None => tail,
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if (1..=6).contains(&digits) { fraction.get(digits..).unwrap_or_default() } else { "" }
        }
    };
    if fits && tail == "Z" { time } else { "-" }
}

#[cfg(test)]
mod tests {
    use kaizen_plugin::testing::{call, event};
    use serde_json::{Value, from_str, json};

    use super::*;
    use crate::Syslog;

    fn config(more: Value) -> Config {
        let mut config = json!({"host": "logs.example.com", "port": 601});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        call::<Syslog>(&config.to_string()).config
    }

    #[test]
    fn a_message_is_as_rfc_5424_has_it() {
        let message = message(&config(json!({"hostname": "studio.example.com"})), &event(7)).unwrap();
        let (head, text) = message.split_once(BOM).unwrap();
        assert_eq!(
            head,
            format!(
                "<110>1 2026-11-02T10:00:00.000000Z studio.example.com kaizen - agent.deploy [kaizen@32473 \
                 id=\"01920000-0000-7000-8000-000000000007\" sequence=\"7\" organization=\"01920000-0000-7000-8000-00000000000a\" \
                 actor=\"user/01920000-0000-7000-8000-00000000000b\" action=\"agent.deploy\" \
                 target=\"agent/01920000-0000-7000-8000-00000000000c\" outcome=\"success\" hash=\"{}\"] ",
                "0".repeat(64)
            )
        );
        assert_eq!(from_str::<Value>(text).unwrap()["sequence"], 7);
    }

    #[test]
    fn settings_show_in_the_message() {
        let mut denied = event(1);
        denied.outcome = Outcome::Denied;
        let settings =
            json!({"facility": 4, "app_name": "studio", "enterprise_number": 99, "message": "text", "bom": false});
        let message = message(&config(settings), &denied).unwrap();
        assert!(
            message.starts_with("<36>1 2026-11-02T10:00:00.000000Z - studio - agent.deploy [kaizen@99 id="),
            "{message}"
        );
        assert!(message.ends_with("] user/01920000-0000-7000-8000-00000000000b: agent.deploy agent/01920000-0000-7000-8000-00000000000c (denied)"), "{message}");
    }

    #[test]
    fn nothing_in_an_event_can_end_its_field_or_begin_another() {
        let mut event = event(1);
        event.actor = "user/a\"] [evil@1 x=\"\\\n<0>1 - - - - - -".to_owned();
        event.action = "agent deploy\né".to_owned();
        event.target = "agent/Grüße ]".to_owned();
        let message = message(&config(json!({"message": "text", "bom": false})), &event).unwrap();
        assert!(
            message.contains(r#"actor="user/a\"\] [evil@1 x=\"\\ <0>1 - - - - - -" action="agent deploy é""#),
            "{message}"
        );
        assert!(message.contains(r#"target="agent/Grüße \]""#), "{message}");
        assert!(message.contains(" - agentdeploy [kaizen@"), "{message}");
        assert!(!message.contains('\n'));
    }

    #[test]
    fn frames_are_counted_in_bytes() {
        let mut event = event(1);
        event.details = r#"{"name":"Grüße"}"#.to_owned();
        let mut frames = Vec::new();
        for _ in 0..2 {
            frame(&config(json!({})), &event, &mut frames).unwrap();
        }
        let (length, rest) = std::str::from_utf8(&frames).unwrap().split_once(' ').unwrap();
        let length: usize = length.parse().unwrap();
        assert_eq!(&rest.as_bytes()[..length], message(&config(json!({})), &event).unwrap().as_bytes());
        assert!(rest[length..].starts_with(&format!("{length} <110>1 ")));
    }

    #[test]
    fn lines_end_with_a_line_feed_and_have_none_within() {
        let mut event = event(1);
        event.details = "{\n\"a\": 1}".to_owned();
        event.actor = "user/a\nb".to_owned();
        for message in ["json", "text"] {
            let mut frames = Vec::new();
            for _ in 0..2 {
                frame(&config(json!({"framing": "lf", "message": message})), &event, &mut frames).unwrap();
            }
            let text = String::from_utf8(frames).unwrap();
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.ends_with('\n') && text.lines().all(|line| line.starts_with("<110>1 ")), "{text}");
        }
    }

    #[test]
    fn json_that_is_too_long_loses_its_details_and_stays_json() {
        let mut event = event(1);
        event.details = serde_json::to_string(&"ü".repeat(20_000)).unwrap();
        for max_bytes in [2048, 2049, 8192] {
            let message = message(&config(json!({ "max_bytes": max_bytes })), &event).unwrap();
            assert!(message.len() <= max_bytes, "{}", message.len());
            let (head, text) = message.split_once(BOM).unwrap();
            assert!(head.ends_with(&format!("hash=\"{}\" truncated=\"true\"] ", "0".repeat(64))), "{head}");
            let text: Value = from_str(text).unwrap();
            assert_eq!(text["details"], json!({"truncated": true, "bytes": 40_002}));
            assert_eq!((&text["sequence"], &text["hash"]), (&1.into(), &"0".repeat(64).into()));
        }
        // Not even that has room beside the structured data: what is in there is all that is said.
        event.target = "x".repeat(1000);
        let message = message(&config(json!({ "max_bytes": 2048 })), &event).unwrap();
        assert!(message.ends_with("truncated=\"true\"]"), "{message}");
        event.target = "x".repeat(5000);
        let outcome = super::message(&config(json!({"max_bytes": 2048})), &event);
        assert!(matches!(outcome, Err(Error::Rejected(why)) if why.contains("`max_bytes`") && why.contains(&event.id)));
    }

    #[test]
    fn a_sentence_that_is_too_long_loses_its_end() {
        let mut event = event(1);
        event.target = "ü".repeat(450);
        let message = message(&config(json!({"max_bytes": 2048, "message": "text"})), &event).unwrap();
        assert!(
            (2040..=2048).contains(&message.len()) && message.contains(" truncated=\"true\"] "),
            "{}",
            message.len()
        );
    }

    #[test]
    fn a_time_that_a_receiver_would_refuse_is_left_out() {
        for good in ["2026-11-02T10:00:00Z", "2026-11-02T10:00:00.1Z", "2026-11-02T10:00:00.123456Z"] {
            assert_eq!(timestamp(good), good);
        }
        for bad in [
            "",
            "soon",
            "2026-11-02t10:00:00Z",
            "2026-11-02T10:00:00.1234567Z",
            "2026-11-02T10:00:00.Z",
            "2026-11-02T10:00:00",
            "2026-11-02T10:00:00Z x",
        ] {
            assert_eq!(timestamp(bad), "-", "{bad}");
        }
    }
}
