//! Bounds that are no settings, and why: the second part of `host/docs/limits.md`.
//!
//! Each row names the constants that it tells of as they are written in the code; a test looks for them, so that the page does not
//! go on telling of what has changed.

use std::fmt::Write as _;

/// Bounds that have the same reason not to be settings.
struct Group {
    title: &'static str,
    why: &'static str,
    rows: &'static [Row],
}

/// One bound, or several that belong together.
struct Row {
    what: &'static str,
    bound: &'static str,
    /// As in the code.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the test that looks for them"))]
    declared: &'static [&'static str],
}

const GROUPS: &[Group] = &[
    Group {
        title: "Formats and protocols",
        why: "Clients, plugins and policies are written for these, and what is stored keeps to them.",
        rows: &[
            Row {
                what: "one message to a canvas; a presence message; a `ref`",
                bound: "256 KiB; 4 KiB; 128 bytes",
                declared: &["MESSAGE: usize = 256 * 1024;", "PRESENCE: usize = 4 * 1024;", "REFERENCE: usize = 128;"],
            },
            Row {
                what: "one node or edge; levels of nesting in it; its id",
                bound: "64 KiB; 64; 512 bytes",
                declared: &["object: 64 * 1024,", "DEPTH: usize = 64;", "ID: usize = 512;"],
            },
            Row {
                what: "operations of one message; nodes and edges that these write or visit",
                bound: "1,000; 20,000",
                declared: &["ops: 1_000,", "work: 20_000,"],
            },
            Row {
                what: "messages since which a canvas client may resume",
                bound: "256, and 1 MiB of them",
                declared: &["RESUME: (i64, i64) = (256, 1024 * 1024);"],
            },
            Row {
                what: "a name; an environment",
                bound: "200 characters; 63 characters",
                declared: &["NAME_CHARACTERS: usize = 200;", "ENVIRONMENT_CHARACTERS: usize = 63;"],
            },
            Row {
                what: "a password",
                bound: "8 to 128 characters",
                declared: &["LENGTH: std::ops::RangeInclusive<usize> = 8..=128;"],
            },
            Row {
                what: "an identity provider's name for somebody; its issuer; claims that a connection requires",
                bound: "255 bytes; 2,048 bytes; 32",
                declared: &["SUBJECT_BYTES: usize = 255;", "ISSUER_BYTES: usize = 2048;", "MOST: usize = 32;"],
            },
            Row {
                what: "the provider's clock may be off; an ID token may be dated ahead; an RSA key has at least",
                bound: "5 min; 60 s; 2,048 bits",
                declared: &[
                    "SKEW: TimeDelta = TimeDelta::minutes(5);",
                    "ISSUED_AHEAD: TimeDelta = TimeDelta::seconds(60);",
                    "RSA_BITS: usize = 2048;",
                ],
            },
            Row {
                what: "a ticket for a canvas holds; the name that a canvas client gives itself",
                bound: "30 s; 64 bytes",
                declared: &["TICKET: i64 = 30;", "CLIENT: usize = 64;"],
            },
            Row {
                what: "why a version of a plugin is in quarantine",
                bound: "500 characters",
                declared: &["REASON: usize = 500;"],
            },
            Row {
                what: "settings of one agent; attributes of one user",
                bound: "64 KiB; 8 KiB",
                declared: &["SETTINGS_BYTES: usize = 64 * 1024;", "ATTRIBUTES_BYTES: usize = 8 * 1024;"],
            },
            Row {
                what: "nesting of a policy; operators and brackets in it",
                bound: "200; 2,000",
                declared: &["MAX_DEPTH: usize = 200;", "MAX_OPERATORS: usize = 2000;"],
            },
            Row {
                what: "secrets of a plugin, and places that one of them may be sent to; capabilities; the text of each",
                bound: "32; 64; 1,000 bytes",
                declared: &["SLOTS: usize = 32;", "CAPABILITIES: usize = 64;", "TEXT: usize = 1000;"],
            },
            Row {
                what: "a plugin's configuration schema; objects in it, with every `$ref` followed; `$ref`s in a row",
                bound: "256 KiB; 2,000; 32",
                declared: &["BYTES: usize = 256 << 10;", "WEIGHT: usize = 2000;", "DEPTH: usize = 32;"],
            },
            Row {
                what: "memories of one core instance; its tables",
                bound: "2; 6",
                declared: &["MEMORIES: u32 = 2;", "TABLES: u32 = 6;"],
            },
        ],
    },
    Group {
        title: "Within other bounds",
        why: "What all of them may take together is bounded by the setting that is named.",
        rows: &[
            Row {
                what: "a free connection to the database is waited for",
                bound: "5 s, within `request_seconds`",
                declared: &["ACQUIRE: Duration = Duration::from_secs(5);"],
            },
            Row {
                what: "hops of `Forwarded` and the like that are looked at",
                bound: "64, within `request_head_kib`",
                declared: &["HOPS: usize = 64;"],
            },
            Row {
                what: "of a body that is too large, so many times what it may have is read",
                bound: "8, within `request_body_kib`, `signin_body_kib`",
                declared: &["DRAINED: usize = 8;"],
            },
            Row {
                what: "uploads of plugins that are looked at, at once; what is read of one that is refused",
                bound: "2; 8 MiB within 10 s, within `plugins_max_bytes`",
                declared: &[
                    "UPLOADS: Semaphore = Semaphore::const_new(2);",
                    "DRAINED: usize = 8 << 20;",
                    "PATIENCE: Duration = Duration::from_secs(10);",
                ],
            },
            Row {
                what: "connections that are told that there is no room, at once",
                bound: "64, for 2 s, within `connections`",
                declared: &["SHEDDING: usize = 64;", "SHED_TIME: Duration = Duration::from_secs(2);"],
            },
            Row {
                what: "an IPv6 /48 counts as",
                bound: "16 clients, within `lookup_burst` and the other limits of one client; of connections and requests, a quarter of all at the most",
                declared: &["CLIENTS_PER_SITE: u32 = 16;"],
            },
            Row {
                what: "of the requests that are free where less than half are, one client has at most; an IPv6 /48",
                bound: "an eighth; a quarter, within `requests_per_client`",
                declared: &["PART: u32 = 8;", "PART_OF_SITE: u32 = 4;"],
            },
            Row {
                what: "of an answer, what is handed over to a connection at once; over HTTP/2, what waits there to be sent",
                bound: "16 KiB; 16 KiB, within `requests`",
                declared: &["PIECE: usize = 16 * 1024;", "max_send_buf_size(body::PIECE)"],
            },
            Row {
                what: "an access token; a browser's name of itself, as kept; what a provider says of a failure, as kept",
                bound: "4 KiB; 200 bytes; 300 characters, within `request_head_kib`",
                declared: &["MAX_BYTES: usize = 4096;", "USER_AGENT: usize = 200;", "DESCRIPTION: usize = 300;"],
            },
            Row {
                what: "attributes of one sign-in that are left out, as named in the log and the trail; characters of each name",
                bound: "16; 64",
                declared: &["LEFT_OUT: (usize, usize) = (16, 64);"],
            },
            Row {
                what: "errors of policies in one answer",
                bound: "100, within `policy_errors_per_version`",
                declared: &["ERRORS: i64 = 100;"],
            },
            Row {
                what: "frames that wait to be sent to one canvas socket",
                bound: "512, within `canvas_outbox_kib`",
                declared: &["FRAMES: usize = 512;"],
            },
            Row {
                what: "a canvas socket stays open that takes less than the next 48 KiB of what is sent to it; that is not heard of; that does not send the rest of a message",
                bound: "30 s; 60 s; 30 s, within `canvas_sockets`",
                declared: &[
                    "STALL: Duration = Duration::from_secs(30);",
                    "SILENCE: Duration = Duration::from_secs(60);",
                    "MESSAGE_TIME: Duration = Duration::from_secs(30);",
                ],
            },
            Row {
                what: "looking up a plugin's host name; connecting; addresses tried; the head of an answer",
                bound: "5 s; 10 s; 4; 64 KiB, within `plugin_http_seconds`",
                declared: &[
                    "RESOLVE: Duration = Duration::from_secs(5);",
                    "CONNECT: Duration = Duration::from_secs(10);",
                    "ADDRESSES: usize = 4;",
                    "HEADER_BYTES: usize = 64 << 10;",
                ],
            },
            Row {
                what: "one line that a plugin logs; one that it prints",
                bound: "4 KiB; 1 KiB, within `plugin_log_lines_per_second`",
                declared: &["log_line_bytes: 4 << 10,", "LINE: usize = 1024;"],
            },
            Row {
                what: "plugins compiled at once on a host",
                bound: "4, within `plugin_compile_memory_mib` and the like, for each",
                declared: &["COMPILING: Semaphore = Semaphore::const_new(4);"],
            },
            Row {
                what: "configuration schemas compiled or applied at once on a host",
                bound: "4, within `plugin_schema_ms`",
                declared: &["WORKING: Semaphore = Semaphore::const_new(4);"],
            },
            Row {
                what: "canvases whose graph is put together at once on a host",
                bound: "4, within `canvas_join_seconds`, `request_seconds`",
                declared: &["LOADING: Semaphore = Semaphore::const_new(4);"],
            },
            Row {
                what: "events of one deployment that tell of its progress",
                bound: "200, one in 250 ms, within `jobs_running`",
                declared: &["PROGRESS_EVENTS: usize = 200;", "PROGRESS_EVERY: Duration = Duration::from_millis(250);"],
            },
            Row {
                what: "attempts to deploy; to undeploy",
                bound: "5; 10, within `jobs_waiting_per_organization`",
                declared: &["JobKind::Deploy => 5,", "JobKind::Undeploy => 10,"],
            },
            Row {
                what: "a job's error, or a sink's, as it is kept",
                bound: "2,000 characters",
                declared: &["ERROR_LENGTH: usize = 2000;"],
            },
        ],
    },
    Group {
        title: "How long sign-ins hold",
        why: "Each is ended earlier by signing out, by a new password, or by an administrator; what it may do is looked up with each request.",
        rows: &[
            Row {
                what: "a session; one that is not used; an access token; a refresh token that was used, for tabs at the same time",
                bound: "30 days; 14 days; 15 min; 10 s",
                declared: &[
                    "LIFETIME: TimeDelta = TimeDelta::days(30);",
                    "IDLE: TimeDelta = TimeDelta::days(14);",
                    "LIFETIME: TimeDelta = TimeDelta::minutes(15);",
                    "GRACE: TimeDelta = TimeDelta::seconds(10);",
                ],
            },
            Row {
                what: "a browser is known to an account; accounts of one browser; a client is known to an account",
                bound: "180 days; 4; 30 days",
                declared: &[
                    "LIFETIME: TimeDelta = TimeDelta::days(180);",
                    "ACCOUNTS: usize = 4;",
                    "KNOWN: Duration = Duration::from_secs(30 * 24 * 3600);",
                ],
            },
            Row {
                what: "a signing key of a host that is gone; verified tokens that are remembered",
                bound: "48 h; 20,000, for 300 s",
                declared: &[
                    "PUBLISHED: TimeDelta = TimeDelta::hours(48);",
                    "REMEMBERED: u64 = 20_000;",
                    "REMEMBERED_FOR: Duration = Duration::from_secs(300);",
                ],
            },
        ],
    },
    Group {
        title: "Sizes of the server's own work",
        why: "They say in which portions work is done and how much is remembered to do less of it; no caller is refused for them.",
        rows: &[
            Row {
                what: "audit events delivered in one batch; their bytes; batches, and time, before another sink has its turn",
                bound: "100; 512 KiB; 20, 10 s",
                declared: &[
                    "BATCH_EVENTS: i64 = 100;",
                    "BATCH_BYTES: usize = 512 * 1024;",
                    "BATCHES: usize = 20;",
                    "TURN: Duration = Duration::from_secs(10);",
                ],
            },
            Row {
                what: "callers that are looked up with one statement; such statements at once",
                bound: "16; 2",
                declared: &["TOGETHER: usize = 16;", "LOADERS: usize = 2;"],
            },
            Row {
                what: "rows of a list that are read with one statement",
                bound: "201",
                declared: &["BATCH: usize = 201;"],
            },
            Row {
                what: "an issuer's keys, and another host's, are fetched again for an unknown one",
                bound: "once in 30 s; once in 5 s",
                declared: &[
                    "COOL_DOWN: TimeDelta = TimeDelta::seconds(30);",
                    "COOL_DOWN: TimeDelta = TimeDelta::seconds(5);",
                ],
            },
            Row {
                what: "connections and refusals whose failed sign-ins are counted; organizations whose room for rows is remembered",
                bound: "10,000; 10,000",
                declared: &["COUNTERS: u64 = 10_000;", "ALLOWANCES: u64 = 10_000;"],
            },
            Row {
                what: "longest pause between attempts of a job; of deliveries to a sink; of a suspended connection",
                bound: "60 s; 300 s; 300 s",
                declared: &[
                    "LONGEST_PAUSE: Duration = Duration::from_secs(60);",
                    "LONGEST_PAUSE: Duration = Duration::from_secs(300);",
                    "LONGEST: Duration = Duration::from_secs(300);",
                ],
            },
            Row {
                what: "rows that a sweep removes in one transaction; pause between sweeps of jobs",
                bound: "1,000; 600 s",
                declared: &["SWEEP_BATCH: i64 = 1000;", "PRUNING: Duration = Duration::from_secs(600);"],
            },
            Row {
                what: "part of the room for an organization's rows that a host takes before it counts again, and for how long",
                bound: "1/64, 60 s",
                declared: &["SHARE: i64 = 64;", "ALLOWANCE_TIME: Duration = Duration::from_secs(60);"],
            },
            Row {
                what: "messages of a canvas, and bytes of them, after which a snapshot is made",
                bound: "512; 1 MiB",
                declared: &["SNAPSHOT_MESSAGES: i64 = 512;", "SNAPSHOT_BYTES: usize = 1024 * 1024;"],
            },
            Row {
                what: "hints between hosts that wait to be sent, or to be read",
                bound: "4,096; what is beyond is looked for in the database",
                declared: &["LOCAL: usize = 4096;", "OUTGOING: usize = 4096;"],
            },
            Row {
                what: "a connection to PostgreSQL is replaced; is asked whether it lives where it was not used",
                bound: "after 30 min; after 10 s",
                declared: &[
                    "LIFETIME: Duration = Duration::from_secs(30 * 60);",
                    "QUIET: Duration = Duration::from_secs(10);",
                ],
            },
            Row {
                what: "stack of a thread that reads or validates policies",
                bound: "64 MiB, enough for each that is within the bounds above",
                declared: &["STACK: usize = 64 * 1024 * 1024;"],
            },
        ],
    },
];

/// The section "Fixed" of `host/docs/limits.md`.
pub(super) fn section() -> String {
    let mut page = String::from(
        "\n## Fixed\n\nThese are constants: another value would gain nothing, or break what relies on it.\n",
    );
    for Group { title, why, rows } in GROUPS {
        let _ = write!(page, "\n### {title}\n\n{why}\n\n| what | bound |\n|---|---|\n");
        for Row { what, bound, .. } in *rows {
            let _ = writeln!(page, "| {what} | {bound} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// All of the program's text but this file's.
    fn code(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                code(&path, text);
            } else if !path.ends_with("config/fixed.rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn what_the_page_says_is_fixed_is_in_the_code() {
        let mut text = String::new();
        code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        for declared in super::GROUPS.iter().flat_map(|group| group.rows).flat_map(|row| row.declared) {
            assert!(
                text.contains(declared),
                "`{declared}` is not in the code any more: mend its row, or make it a setting"
            );
        }
    }
}
