//! Bounds that are no settings, and why: the second part of `host/docs/limits.md`.
//!
//! Each row names the constants that it tells of as they are written in the code, and where; a test looks for them there, so that the
//! page does not go on telling of what has changed.

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
    /// In which file below `src`, and the whole line there, but for who may use it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the test that looks for them"))]
    declared: &'static [(&'static str, &'static str)],
}

const GROUPS: &[Group] = &[
    Group {
        title: "Formats and protocols",
        why: "Clients, plugins and policies are written for these, and what is stored keeps to them.",
        rows: &[
            Row {
                what: "one message to a canvas; a presence message; a `ref`",
                bound: "256 KiB; 4 KiB; 128 bytes",
                declared: &[
                    ("canvas/frames.rs", "const MESSAGE: usize = 256 * 1024;"),
                    ("canvas/frames.rs", "const PRESENCE: usize = 4 * 1024;"),
                    ("canvas/frames.rs", "const REFERENCE: usize = 128;"),
                ],
            },
            Row {
                what: "one node or edge; levels of nesting in it; its id",
                bound: "64 KiB; 64; 512 bytes",
                declared: &[
                    ("domain/canvas/mod.rs", "object: 64 * 1024,"),
                    ("domain/canvas/mod.rs", "const DEPTH: usize = 64;"),
                    ("domain/canvas/mod.rs", "const ID: usize = 512;"),
                ],
            },
            Row {
                what: "operations of one message; nodes and edges that these write or visit",
                bound: "1,000; 20,000",
                declared: &[("domain/canvas/mod.rs", "ops: 1_000,"), ("domain/canvas/mod.rs", "work: 20_000,")],
            },
            Row {
                what: "messages since which a canvas client may resume",
                bound: "256, and 1 MiB of them",
                declared: &[("canvas/join.rs", "const RESUME: (i64, i64) = (256, 1024 * 1024);")],
            },
            Row {
                what: "a name; an environment",
                bound: "200 characters; 63 characters",
                declared: &[
                    ("domain/name.rs", "const NAME_CHARACTERS: usize = 200;"),
                    ("domain/environment.rs", "const ENVIRONMENT_CHARACTERS: usize = 63;"),
                ],
            },
            Row {
                what: "a password",
                bound: "8 to 128 characters",
                declared: &[("identity/password.rs", "const LENGTH: std::ops::RangeInclusive<usize> = 8..=128;")],
            },
            Row {
                what: "an identity provider's name for somebody; its issuer; claims that a connection requires",
                bound: "255 bytes; 2,048 bytes; 32",
                declared: &[
                    ("identity/provision.rs", "const SUBJECT_BYTES: usize = 255;"),
                    ("identity/sso/course.rs", "const ISSUER_BYTES: usize = 2048;"),
                    ("identity/claims.rs", "const MOST: usize = 32;"),
                ],
            },
            Row {
                what: "the provider's clock may be off; an ID token may be dated ahead; an RSA key has at least",
                bound: "5 min; 60 s; 2,048 bits",
                declared: &[
                    ("identity/oidc.rs", "const SKEW: TimeDelta = TimeDelta::minutes(5);"),
                    ("identity/oidc.rs", "const ISSUED_AHEAD: TimeDelta = TimeDelta::seconds(60);"),
                    ("identity/oidc.rs", "const RSA_BITS: usize = 2048;"),
                ],
            },
            Row {
                what: "a ticket for a canvas holds; the name that a canvas client gives itself",
                bound: "30 s; 64 bytes",
                declared: &[
                    ("api/canvas.rs", "const TICKET: i64 = 30;"),
                    ("api/canvas.rs", "const CLIENT: usize = 64;"),
                ],
            },
            Row {
                what: "why a version of a plugin is in quarantine",
                bound: "500 characters",
                declared: &[("api/plugin_quarantine.rs", "const REASON: usize = 500;")],
            },
            Row {
                what: "settings of one agent; attributes of one user",
                bound: "64 KiB; 8 KiB",
                declared: &[
                    ("domain/agent.rs", "const SETTINGS_BYTES: usize = 64 * 1024;"),
                    ("domain/user.rs", "const ATTRIBUTES_BYTES: usize = 8 * 1024;"),
                ],
            },
            Row {
                what: "nesting of a policy; operators and brackets in it",
                bound: "200; 2,000",
                declared: &[
                    ("authz/text.rs", "const MAX_DEPTH: usize = 200;"),
                    ("authz/text.rs", "const MAX_OPERATORS: usize = 2000;"),
                ],
            },
            Row {
                what: "secrets of a plugin, and places that one of them may be sent to; capabilities; the text of each",
                bound: "32; 64; 1,000 bytes",
                declared: &[
                    ("plugins/manifest.rs", "const SLOTS: usize = 32;"),
                    ("plugins/manifest.rs", "const CAPABILITIES: usize = 64;"),
                    ("plugins/manifest.rs", "const TEXT: usize = 1000;"),
                ],
            },
            Row {
                what: "a plugin's configuration schema; objects in it, with every `$ref` followed; `$ref`s in a row",
                bound: "256 KiB; 2,000; 32",
                declared: &[
                    ("plugins/schema.rs", "const BYTES: usize = 256 << 10;"),
                    ("plugins/schema.rs", "const WEIGHT: usize = 2000;"),
                    ("plugins/schema.rs", "const DEPTH: usize = 32;"),
                ],
            },
            Row {
                what: "the signature of an uploaded plugin",
                bound: "1,024 bytes",
                declared: &[("plugins/arrivals.rs", "const SIGNATURE: usize = 1024;")],
            },
            Row {
                what: "memories of one core instance; its tables",
                bound: "2; 6",
                declared: &[
                    ("sandbox/engine.rs", "const MEMORIES: u32 = 2;"),
                    ("sandbox/engine.rs", "const TABLES: u32 = 6;"),
                ],
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
                declared: &[("store/pool.rs", "const ACQUIRE: Duration = Duration::from_secs(5);")],
            },
            Row {
                what: "hops of `Forwarded` and the like that are looked at",
                bound: "64, within `request_head_kib`",
                declared: &[("api/client.rs", "const HOPS: usize = 64;")],
            },
            Row {
                what: "of a body that is too large, so many times what it may have is read",
                bound: "8, within `request_body_kib`, `signin_body_kib`",
                declared: &[("api/extract.rs", "const DRAINED: usize = 8;")],
            },
            Row {
                what: "uploads of plugins that are looked at, at once; what is read of one that is refused",
                bound: "2; 8 MiB within 10 s, within `plugins_max_bytes`",
                declared: &[
                    ("api/plugin_upload.rs", "static UPLOADS: Semaphore = Semaphore::const_new(2);"),
                    ("api/plugin_upload.rs", "const DRAINED: usize = 8 << 20;"),
                    ("api/plugin_upload.rs", "const PATIENCE: Duration = Duration::from_secs(10);"),
                ],
            },
            Row {
                what: "connections that are told that there is no room, at once",
                bound: "64, for 2 s, within `connections`",
                declared: &[
                    ("api/server.rs", "const SHEDDING: usize = 64;"),
                    ("api/server.rs", "const SHED_TIME: Duration = Duration::from_secs(2);"),
                ],
            },
            Row {
                what: "an IPv6 /48 counts as",
                bound: "16 clients, within `lookup_burst` and the other limits of one client; of connections and requests, a quarter of all at the most",
                declared: &[("domain/client.rs", "const CLIENTS_PER_SITE: u32 = 16;")],
            },
            Row {
                what: "of the requests that are free where less than half are, one client has at most; an IPv6 /48",
                bound: "an eighth; a quarter, within `requests_per_client`",
                declared: &[
                    ("api/requests.rs", "const PART: u32 = 8;"),
                    ("api/requests.rs", "const PART_OF_SITE: u32 = 4;"),
                ],
            },
            Row {
                what: "of an answer, what is handed over to a connection at once; over HTTP/2, what waits there to be sent",
                bound: "16 KiB; 16 KiB, within `requests`",
                declared: &[
                    ("api/server/body.rs", "const PIECE: usize = 16 * 1024;"),
                    ("api/server.rs", ".max_send_buf_size(body::PIECE)"),
                ],
            },
            Row {
                what: "an access token; a browser's name of itself, as kept; what a provider says of a failure, as kept",
                bound: "4 KiB; 200 bytes; 300 characters, within `request_head_kib`",
                declared: &[
                    ("identity/token.rs", "const MAX_BYTES: usize = 4096;"),
                    ("identity/session.rs", "const USER_AGENT: usize = 200;"),
                    ("identity/code.rs", "const DESCRIPTION: usize = 300;"),
                ],
            },
            Row {
                what: "attributes of one sign-in that are left out, as named in the log and the trail; characters of each name",
                bound: "16; 64",
                declared: &[("identity/provision.rs", "const LEFT_OUT: (usize, usize) = (16, 64);")],
            },
            Row {
                what: "errors of policies in one answer",
                bound: "100, within `policy_errors_per_version`",
                declared: &[("api/policies.rs", "const ERRORS: i64 = 100;")],
            },
            Row {
                what: "frames that wait to be sent to one canvas socket",
                bound: "512, within `canvas_outbox_kib`",
                declared: &[("canvas/outbox.rs", "const FRAMES: usize = 512;")],
            },
            Row {
                what: "a canvas socket stays open that takes less than the next 48 KiB of what is sent to it; that is not heard of; that does not send the rest of a message",
                bound: "30 s; 60 s; 30 s, within `canvas_sockets`",
                declared: &[
                    ("canvas/socket.rs", "const STALL: Duration = Duration::from_secs(30);"),
                    ("canvas/socket.rs", "const SILENCE: Duration = Duration::from_secs(60);"),
                    ("canvas/fragments.rs", "const MESSAGE_TIME: Duration = Duration::from_secs(30);"),
                ],
            },
            Row {
                what: "looking up a plugin's host name; connecting; addresses tried; the head of an answer",
                bound: "5 s; 10 s; 4; 64 KiB, within `plugin_http_seconds`",
                declared: &[
                    ("sandbox/egress.rs", "const RESOLVE: Duration = Duration::from_secs(5);"),
                    ("sandbox/egress/connect.rs", "const CONNECT: Duration = Duration::from_secs(10);"),
                    ("sandbox/egress.rs", "const ADDRESSES: usize = 4;"),
                    ("sandbox/egress.rs", "const HEADER_BYTES: usize = 64 << 10;"),
                ],
            },
            Row {
                what: "one line that a plugin logs; one that it prints",
                bound: "4 KiB; 1 KiB, within `plugin_log_lines_per_second`",
                declared: &[
                    ("sandbox/limits.rs", "log_line_bytes: 4 << 10,"),
                    ("sandbox/stdio.rs", "const LINE: usize = 1024;"),
                ],
            },
            Row {
                what: "groups, and attributes, of an identity that a plugin returns; each text of it",
                bound: "2,000; 2,000 bytes, within `plugin_result_kib`",
                declared: &[
                    ("plugins/calls.rs", "const ENTRIES: usize = 2000;"),
                    ("plugins/calls.rs", "const TEXT: usize = 2000;"),
                ],
            },
            Row {
                what: "scopes, and parameters, that a plugin asks a provider for; one word of a protocol; a text that is shown",
                bound: "100; 500 bytes; 2,000 bytes, within `plugin_result_kib`",
                declared: &[
                    ("plugins/results.rs", "const ENTRIES: usize = 100;"),
                    ("plugins/results.rs", "const WORD: usize = 500;"),
                    ("plugins/results.rs", "const TEXT: usize = 2000;"),
                ],
            },
            Row {
                what: "a version is read anew because its agent is changed meanwhile",
                bound: "8 times, within `versions_waiting_per_organization`",
                declared: &[("api/versions.rs", "const TRIES: usize = 8;")],
            },
            Row {
                what: "plugins compiled at once on a host",
                bound: "4, within `plugin_compile_memory_mib` and the like, for each",
                declared: &[("plugins/check.rs", "static COMPILING: Semaphore = Semaphore::const_new(4);")],
            },
            Row {
                what: "configuration schemas compiled or applied at once on a host",
                bound: "4, within `plugin_schema_ms`",
                declared: &[("plugins/schema.rs", "static WORKING: Semaphore = Semaphore::const_new(4);")],
            },
            Row {
                what: "canvases whose graph is put together at once on a host",
                bound: "4, within `canvas_join_seconds`, `request_seconds`",
                declared: &[("store/canvas/graph.rs", "static LOADING: Semaphore = Semaphore::const_new(4);")],
            },
            Row {
                what: "events that tell of a deployment's progress: of one attempt; of all",
                bound: "200, one in 250 ms; 2,000, within `jobs_running`",
                declared: &[
                    ("jobs/deploy.rs", "const PROGRESS_EVENTS: usize = 200;"),
                    ("store/deployments/events.rs", "const EVENTS: i64 = 2_000;"),
                    ("jobs/deploy.rs", "const PROGRESS_EVERY: Duration = Duration::from_millis(250);"),
                ],
            },
            Row {
                what: "attempts to deploy; to undeploy",
                bound: "5; 10, within `jobs_waiting_per_organization`",
                declared: &[("jobs/mod.rs", "JobKind::Deploy => 5,"), ("jobs/mod.rs", "JobKind::Undeploy => 10,")],
            },
            Row {
                what: "a job's error, or a sink's, as it is kept",
                bound: "2,000 characters",
                declared: &[
                    ("audit/dispatcher.rs", "const ERROR_LENGTH: usize = 2000;"),
                    ("jobs/attempt.rs", "const ERROR_LENGTH: usize = 2000;"),
                ],
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
                    ("identity/session.rs", "const LIFETIME: TimeDelta = TimeDelta::days(30);"),
                    ("identity/session.rs", "const IDLE: TimeDelta = TimeDelta::days(14);"),
                    ("identity/token.rs", "const LIFETIME: TimeDelta = TimeDelta::minutes(15);"),
                    ("identity/session.rs", "const GRACE: TimeDelta = TimeDelta::seconds(10);"),
                ],
            },
            Row {
                what: "a browser is known to an account; accounts of one browser; a client is known to an account",
                bound: "180 days; 4; 30 days",
                declared: &[
                    ("identity/device.rs", "const LIFETIME: TimeDelta = TimeDelta::days(180);"),
                    ("identity/device.rs", "const ACCOUNTS: usize = 4;"),
                    ("identity/throttle.rs", "const KNOWN: Duration = Duration::from_secs(30 * 24 * 3600);"),
                ],
            },
            Row {
                what: "a signing key of a host that is gone; verified tokens that are remembered",
                bound: "48 h; 20,000, for 300 s",
                declared: &[
                    ("identity/token.rs", "const PUBLISHED: TimeDelta = TimeDelta::hours(48);"),
                    ("identity/token.rs", "const REMEMBERED: u64 = 20_000;"),
                    ("identity/token.rs", "const REMEMBERED_FOR: Duration = Duration::from_secs(300);"),
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
                    ("audit/dispatcher.rs", "const BATCH_EVENTS: i64 = 100;"),
                    ("audit/dispatcher.rs", "const BATCH_BYTES: usize = 512 * 1024;"),
                    ("audit/dispatcher.rs", "const BATCHES: usize = 20;"),
                    ("audit/dispatcher.rs", "const TURN: Duration = Duration::from_secs(10);"),
                ],
            },
            Row {
                what: "callers that are looked up with one statement; such statements at once",
                bound: "16; 2",
                declared: &[
                    ("store/sessions.rs", "const TOGETHER: usize = 16;"),
                    ("identity/callers.rs", "const LOADERS: usize = 2;"),
                ],
            },
            Row {
                what: "rows of a list that are read with one statement",
                bound: "201",
                declared: &[("api/page.rs", "const BATCH: usize = 201;")],
            },
            Row {
                what: "an issuer's keys, and another host's, are fetched again for an unknown one",
                bound: "once in 30 s; once in 5 s",
                declared: &[
                    ("identity/oidc.rs", "const COOL_DOWN: TimeDelta = TimeDelta::seconds(30);"),
                    ("identity/token.rs", "const COOL_DOWN: TimeDelta = TimeDelta::seconds(5);"),
                ],
            },
            Row {
                what: "connections and refusals whose failed sign-ins are counted; organizations whose room for rows is remembered",
                bound: "10,000; 10,000",
                declared: &[
                    ("identity/failures.rs", "const COUNTERS: u64 = 10_000;"),
                    ("store/quota.rs", "const ALLOWANCES: u64 = 10_000;"),
                ],
            },
            Row {
                what: "longest pause between attempts of a job; of deliveries to a sink; of a suspended connection",
                bound: "60 s; 300 s; 300 s",
                declared: &[
                    ("jobs/attempt.rs", "const LONGEST_PAUSE: Duration = Duration::from_secs(60);"),
                    ("audit/dispatcher.rs", "const LONGEST_PAUSE: Duration = Duration::from_secs(300);"),
                    ("plugins/suspension/breaker.rs", "const LONGEST: Duration = Duration::from_secs(300);"),
                ],
            },
            Row {
                what: "longest pause that a far side can ask for by `Retry-After`",
                bound: "3,600 s and a tenth",
                declared: &[
                    ("plugins/call.rs", "const LONGEST_WAIT: Duration = Duration::from_secs(3600);"),
                    ("domain/job.rs", "const LONGEST_ASKED: Duration = Duration::from_secs(3600);"),
                ],
            },
            Row {
                what: "a host name that could not be looked up is not asked for again; one whose servers took longer than 5 s",
                bound: "for 5 s; for 60 s",
                declared: &[
                    ("sandbox/egress/resolver.rs", "const FAILED: Duration = Duration::from_secs(5);"),
                    ("sandbox/egress/resolver.rs", "const TARPIT: Duration = Duration::from_secs(60);"),
                    ("sandbox/egress/resolver.rs", "const SLOW: Duration = Duration::from_secs(5);"),
                ],
            },
            Row {
                what: "sessions of one user that a sign-in ends, or forgets, at once; exchanged refresh tokens that an exchange forgets; they are kept",
                bound: "20; 20; 1 min",
                declared: &[
                    ("store/sessions.rs", "const AT_ONCE: i64 = 20;"),
                    ("identity/session.rs", "const FORGOTTEN: i64 = 20;"),
                    ("identity/session.rs", "const USED_KEPT: TimeDelta = TimeDelta::minutes(1);"),
                ],
            },
            Row {
                what: "what a migration leaves to the server is looked at again with each start",
                bound: "for 7 days",
                declared: &[("store/data_migrations.rs", "const UPGRADE: TimeDelta = TimeDelta::days(7);")],
            },
            Row {
                what: "rows that a sweep removes in one transaction; pause between sweeps of jobs",
                bound: "1,000; 600 s",
                declared: &[
                    ("store/mod.rs", "const SWEEP_BATCH: i64 = 1000;"),
                    ("jobs/mod.rs", "const PRUNING: Duration = Duration::from_secs(600);"),
                ],
            },
            Row {
                what: "part of the room for an organization's rows that a host takes before it counts again, and for how long",
                bound: "1/64, 60 s",
                declared: &[
                    ("store/quota.rs", "const SHARE: i64 = 64;"),
                    ("store/quota.rs", "const ALLOWANCE_TIME: Duration = Duration::from_secs(60);"),
                ],
            },
            Row {
                what: "messages of a canvas, and bytes of them, after which a snapshot is made",
                bound: "512; 1 MiB",
                declared: &[
                    ("canvas/journal.rs", "const SNAPSHOT_MESSAGES: i64 = 512;"),
                    ("canvas/journal.rs", "const SNAPSHOT_BYTES: usize = 1024 * 1024;"),
                ],
            },
            Row {
                what: "hints between hosts that wait to be sent, or to be read",
                bound: "4,096; what is beyond is looked for in the database",
                declared: &[("bus.rs", "const LOCAL: usize = 4096;"), ("bus.rs", "const OUTGOING: usize = 4096;")],
            },
            Row {
                what: "a connection to PostgreSQL is replaced; is asked whether it lives where it was not used",
                bound: "after 30 min; after 10 s",
                declared: &[
                    ("store/pool.rs", "const LIFETIME: Duration = Duration::from_secs(30 * 60);"),
                    ("store/pool/manager.rs", "const QUIET: Duration = Duration::from_secs(10);"),
                ],
            },
            Row {
                what: "stack of a thread that reads or validates policies",
                bound: "64 MiB, enough for each that is within the bounds above",
                declared: &[("authz/text.rs", "const STACK: usize = 64 * 1024 * 1024;")],
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
    use std::{collections::BTreeMap, fs, path::Path};

    /// A line without what says who may use what it declares.
    fn declaration(line: &str) -> &str {
        let line = line.trim();
        ["pub ", "pub(crate) ", "pub(super) "].iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line)
    }

    #[test]
    fn what_the_page_says_is_fixed_is_in_the_code() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        for (file, declared) in super::GROUPS.iter().flat_map(|group| group.rows).flat_map(|row| row.declared) {
            let text = files.entry(*file).or_insert_with(|| {
                fs::read_to_string(source.join(file)).unwrap_or_else(|error| panic!("{file} is not there: {error}"))
            });
            assert!(
                text.lines().any(|line| declaration(line) == *declared),
                "`{declared}` is not in {file} any more: mend its row, or make it a setting"
            );
        }
    }

    #[test]
    fn a_declaration_is_a_whole_line() {
        assert_eq!(declaration("    pub(super) const BYTES: usize = 256 << 10;"), "const BYTES: usize = 256 << 10;");
        assert_ne!(declaration("const PATTERN_BYTES: usize = 256 << 10;"), "const BYTES: usize = 256 << 10;");
    }
}
