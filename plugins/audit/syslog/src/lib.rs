//! Sends audit events to a syslog server: RFC 5424 messages over TCP, in frames of RFC 6587.
//!
//! | setting | | |
//! |---|---|---|
//! | `host` | needed | The server's name or address. |
//! | `port` | needed | Its TCP port: often 514 or 601. |
//! | `facility` | `13` | 0 to 23; 13 is "log audit". |
//! | `hostname` | `-` | What messages have as HOSTNAME: the public name of this installation. |
//! | `app_name` | `kaizen` | APP-NAME. |
//! | `enterprise_number` | `32473` | The IANA private enterprise number in the structured data's name, `kaizen@NUMBER`. 32473 is reserved for examples (RFC 5612); set your organization's own if it has one. |
//! | `message` | `json` | The free text after the structured data: `json`, the whole event as the other sinks write it, or `text`, one sentence for people. |
//! | `bom` | `true` | Whether the text begins with a byte order mark. RFC 5424, section 6.4, wants it before UTF-8; parsers that expect `{` first may not. |
//! | `framing` | `octet_counting` | How messages are told apart: `octet_counting`, each with its length before it (RFC 6587, section 3.4.1), which rsyslog and syslog-ng read; or `lf`, each on a line of its own (section 3.4.2), for receivers that split by lines, e.g. OpenTelemetry's and OpenObserve's unless told otherwise. |
//! | `max_bytes` | `8192` | The longest message. Of a longer one, the JSON has `{"truncated":true,"bytes":…}` in place of its details, or is left out where that is not enough; a sentence is cut. Its structured data says `truncated="true"` and is never cut. rsyslog takes 8192 unless told otherwise (`maxMessageSize`). |
//!
//! There is no secret and no TLS: a plugin's `wasi:sockets` are plain TCP. Over a network that others share, send to a relay
//! on this machine that forwards by TLS (RFC 5425), e.g. rsyslog's `omfwd` with `StreamDriver="ossl"`.
//!
//! A message looks so (one line):
//! ```text
//! <110>1 2026-11-02T10:00:00.123456Z - kaizen - agent.deploy [kaizen@32473 id="0192…" sequence="7"
//!   organization="0192…" actor="user/0192…" action="agent.deploy" target="agent/0192…" outcome="success" hash="9f…"] BOM{…}
//! ```
//! The severity is informational (6) for what was done, warning (4) for what was denied and error (3) for what failed.
//!
//! **Delivery**: syslog over TCP has no acknowledgement. The connection is closed in one direction after a batch, and only
//! when the server closes it too, having read everything, does the batch count as stored; where the connection breaks
//! before, the whole batch comes again (`id` tells repeats). A server that takes a message and loses it afterwards is not
//! noticed: `splunk-hec` and `webhook` can.

mod message;

use std::time::Duration;

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::sink::Event;
use kaizen_plugin::tcp::Connection;
use kaizen_plugin::{AuditSink, Call, Capability, Manifest, Plugin, Result, log};
use serde::Deserialize;

/// A syslog server and what messages look like.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The server's name or address.
    #[schemars(length(min = 1, max = 255))]
    host: String,
    /// Its TCP port, often 514 or 601.
    #[schemars(range(min = 1))]
    port: u16,
    /// The facility, 0 to 23 (RFC 5424, section 6.2.1); 13 is "log audit".
    #[serde(default = "default_facility")]
    #[schemars(range(max = 23))]
    facility: u8,
    /// What messages have as HOSTNAME: the public name of this installation.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[!-~]{1,255}$"))]
    hostname: Option<String>,
    /// What messages have as APP-NAME.
    #[serde(default = "default_app_name")]
    #[schemars(regex(pattern = r"^[!-~]{1,48}$"))]
    app_name: String,
    /// The IANA private enterprise number in the structured data's name. The default is reserved for examples; set your
    /// organization's own if it has one.
    #[serde(default = "default_enterprise_number")]
    #[schemars(range(min = 1))]
    enterprise_number: u32,
    /// What comes after the structured data.
    #[serde(default)]
    message: Text,
    /// Whether the text begins with a byte order mark, as RFC 5424 wants it before UTF-8.
    #[serde(default = "yes")]
    bom: bool,
    /// How messages are told apart.
    #[serde(default)]
    framing: Framing,
    /// The longest message in bytes; a longer one loses its details, or the end of its sentence.
    #[serde(default = "default_max_bytes")]
    #[schemars(range(min = 2048, max = 1_048_576))]
    max_bytes: u32,
}

/// How messages are told apart on the connection (RFC 6587).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(crate = "schemars")]
pub enum Framing {
    /// Each has its length before it (section 3.4.1).
    #[default]
    OctetCounting,
    /// Each is a line (section 3.4.2).
    Lf,
}

/// The free text of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(crate = "schemars")]
pub enum Text {
    /// The whole event, as the other sinks write it.
    #[default]
    Json,
    /// One sentence for people.
    Text,
}

fn default_facility() -> u8 {
    13
}

fn default_app_name() -> String {
    "kaizen".to_owned()
}

fn default_enterprise_number() -> u32 {
    32473
}

fn yes() -> bool {
    true
}

fn default_max_bytes() -> u32 {
    8192
}

struct Syslog;

impl Plugin for Syslog {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "syslog",
        version: env!("CARGO_PKG_VERSION"),
        title: "Syslog",
        description: "Sends audit events to a syslog server over TCP, as RFC 5424 messages.",
        secrets: &[],
        capabilities: &[Capability::Tcp("{config.host}:{config.port}")],
    };
}

/// From the name's resolution until the server has read a batch.
const PATIENCE: Duration = Duration::from_secs(20);

impl AuditSink for Syslog {
    /// Connects and says nothing.
    fn check(call: &Call<Config>) -> Result<String> {
        send(&call.config, &[])?;
        Ok(format!("{}:{} takes connections.", call.config.host, call.config.port))
    }

    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        let mut frames = Vec::new();
        let mut count = 0;
        for event in events {
            match message::frame(&call.config, event, &mut frames) {
                Ok(()) => count += 1,
                Err(error) if count == 0 => return Err(error),
                // Those before it are sent; it comes again as the first, and then tells why.
                Err(error) => {
                    log::warn!("{error}");
                    break;
                }
            }
        }
        send(&call.config, &frames)?;
        Ok(count)
    }
}

fn send(config: &Config, frames: &[u8]) -> Result<()> {
    let mut connection = Connection::open(&config.host, config.port, PATIENCE)?;
    connection.write_all(frames)?;
    Ok(connection.finish()?)
}

kaizen_plugin::audit_sink!(Syslog);

#[cfg(test)]
mod tests;
