//! Appends audit events to files in a folder of the server: one JSON object for each event and line.
//!
//! | setting | | |
//! |---|---|---|
//! | `name` | `audit` | The start of the files' names, `{name}-{connection id}.jsonl`. |
//! | `rotate_megabytes` | `100` | The size from which on a new file is begun. |
//!
//! The operator offers the folder under the name `audit` (the server's setting `audit_dir`; by default there is none). Each
//! connection has a folder of its own in it, named by its id, in that of its organization:
//! `AUDIT_DIR/ORGANIZATION/CONNECTION/NAME-CONNECTION.jsonl`. A batch counts as stored once it is on the disk (`fsync`). A file that has grown to `rotate_megabytes` is renamed
//! (`….before-SEQUENCE.jsonl`) and a new one begun. The plugin deletes nothing: once the connection's folder holds
//! `plugin_folder_mib` (1024) or `plugin_folder_files` (1000), delivery stops until the operator moves files away. What is
//! written stays when the connection or its organization is deleted: it is the operator's to remove, and until then it counts
//! towards the folders that an organization may have (`plugin_folders_per_organization`, 16). Delivery is at least
//! once: after a crash or a full disk a line may be cut short and some events come again, with the same `id`; readers skip
//! lines that are no JSON.

mod journal;

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::sink::Event;
use kaizen_plugin::{AuditSink, Call, Capability, Error, Manifest, Plugin, Result, serde_json};
use serde::Deserialize;

use journal::Journal;

/// Where the granted folder is.
const FOLDER: &str = "/audit";

/// How files are named and when a new one begins.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The start of the files' names: `{name}-{connection id}.jsonl`.
    #[serde(default = "default_name")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"))]
    name: String,
    /// The size from which on a new file is begun, in megabytes (1,000,000 bytes).
    #[serde(default = "default_rotate_megabytes")]
    #[schemars(range(min = 1, max = 10_000))]
    rotate_megabytes: u32,
}

fn default_name() -> String {
    "audit".to_owned()
}

fn default_rotate_megabytes() -> u32 {
    100
}

struct File;

impl Plugin for File {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "file",
        version: env!("CARGO_PKG_VERSION"),
        title: "File",
        description: "Appends audit events as JSON lines to files in the folder that the operator offers as `audit`.",
        secrets: &[],
        capabilities: &[Capability::Directory("audit")],
    };
}

impl AuditSink for File {
    fn check(call: &Call<Config>) -> Result<String> {
        let journal = open(call)?;
        journal.append(b"")?;
        Ok(format!("Events go to {} in the folder `audit`.", journal.file_name()))
    }

    fn deliver(call: &Call<Config>, events: &[Event]) -> Result<u32> {
        let Some(first) = events.first() else { return Ok(0) };
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
        }
        let journal = open(call)?;
        journal.rotate(u64::from(call.config.rotate_megabytes) * 1_000_000, first.sequence)?;
        journal.append(&lines)?;
        u32::try_from(events.len()).map_err(|_| Error::Internal("more events than a batch can have".to_owned()))
    }
}

fn open(call: &Call<Config>) -> Result<Journal> {
    // The id is opaque, and it becomes a part of a path.
    if call.connection_id.is_empty()
        || !call.connection_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(Error::Internal("the connection's id can't be a part of a file's name".to_owned()));
    }
    Ok(Journal::new(FOLDER, &format!("{}-{}", call.config.name, call.connection_id)))
}

kaizen_plugin::audit_sink!(File);
