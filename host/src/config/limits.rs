//! How much a caller, a tenant, a plugin or a server elsewhere may take: every bound in one table, each a setting. The few that are no
//! settings are told of in [`super::fixed`].
//!
//! A bound is one line of [`limits!`] below. The settings, `kaizen --help`, [`ServerLimits`] and `host/docs/limits.md` come
//! from it; a test writes that page anew when it is out of date.

use std::{
    fmt::{Display, Write},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use super::{ConfigError, Layers, Setting, fault, fixed};

/// One line of the table, as documentation shows it.
struct Bound {
    section: &'static str,
    name: &'static str,
    help: &'static str,
    default: &'static str,
    range: &'static str,
}

/// `"Section" { name: type = default, smallest..=largest, "what it bounds, with its unit"; … }`
macro_rules! limits {
    ($($section:literal { $($name:ident: $kind:ty = $default:literal, $min:literal..=$max:literal, $help:literal;)* })*) => {
        /// What each caller, tenant, plugin and server elsewhere may take; in the unit that a name ends in, otherwise a count.
        #[derive(Debug, Clone)]
        pub struct ServerLimits { $($(#[doc = $help] pub $name: $kind,)*)* }

        impl Default for ServerLimits {
            fn default() -> Self {
                Self { $($($name: $default,)*)* }
            }
        }

        impl ServerLimits {
            pub(super) fn parse(layers: &Layers) -> Result<Self, ConfigError> {
                Ok(Self { $($($name: number(layers, stringify!($name), $default, $min..=$max)?,)*)* })
            }
        }

        /// A setting for each bound.
        pub(super) const SETTINGS: &[Setting] = &[
            $($(Setting { name: stringify!($name), help: concat!($help, " (", $default, ")") },)*)*
        ];

        const BOUNDS: &[Bound] = &[
            $($(Bound {
                section: $section,
                name: stringify!($name),
                help: $help,
                default: concat!($default),
                range: concat!($min, " to ", $max),
            },)*)*
        ];
    };
}

limits! {
    "Connections and requests" {
        connections: u32 = 10_000, 16..=1_000_000, "open connections to the API; fewer where the limit of file descriptors (`ulimit -n`) leaves less";
        connections_per_client: u32 = 1_000, 1..=1_000_000, "open connections of one client (an IPv4 address or an IPv6 /64); not of trusted proxies";
        ops_connections: u32 = 64, 4..=10_000, "open connections to the listener of metrics and health";
        requests: u32 = 4_096, 1..=1_000_000, "requests under way at once, until the client has taken the answer, but for what is left in the buffers of its connection; event streams and WebSockets are counted by themselves";
        requests_per_client: u32 = 512, 1..=1_000_000, "the same of one client; fewer where less than half of all are free";
        http2_streams: u32 = 200, 1..=10_000, "requests at once over one HTTP/2 connection";
        request_head_kib: usize = 64, 8..=1_024, "request line and headers, KiB";
        request_head_seconds: u64 = 10, 1..=600, "how long the head of a request may take to arrive, from the connection's beginning or its own first byte, seconds";
        request_body_kib: usize = 1_024, 64..=8_192, "a JSON body, but for those of sign-in, KiB; of a larger one, eight times as much is read and dropped, so that its client reads why";
        request_body_seconds: u64 = 20, 1..=600, "how long a JSON body may take to arrive, seconds";
        request_seconds: u64 = 30, 1..=600, "until an answer begins, seconds";
        plugin_upload_seconds: u64 = 300, 1..=3_600, "until the answer to an uploaded plugin begins, seconds";
        keep_alive_seconds: u64 = 75, 1..=3_600, "how long a connection stays open without a request under way, seconds";
        write_stall_seconds: u64 = 30, 1..=600, "how long a client may take nothing of what is sent to it; over HTTP/2, nothing of one answer, but on connections of trusted proxies, seconds";
        stop_seconds: u64 = 20, 1..=600, "how long requests under way may take to end once the server stops, seconds; connections without one are closed after two";
    }
    "Sign-in" {
        sign_in_seconds: u64 = 25, 1..=28, "how long a provider and its plugin may take to begin a sign-in, or to finish one, seconds";
        sso_state_seconds: i64 = 600, 60..=3_600, "how long somebody may take at an identity provider before the sign-in has to be begun anew, seconds";
        sign_in_failures_recorded: u32 = 200, 1..=1_000_000, "failed sign-ins of one identity connection that a host logs and writes into the audit trail in an hour, and as many for each code of a refusal by the server itself; all are counted";
        sign_in_organizations: i64 = 8, 1..=100, "organizations in which a password is tried where a sign-in names none";
        sessions_per_user: i64 = 100, 1..=10_000, "sessions of one user; the next sign-in ends the one that was used least recently";
        sign_in_connections: i64 = 20, 1..=200, "identity connections that are offered to one address";
        identity_providers_kept: u64 = 1_000, 10..=100_000, "issuers whose discovery document and keys a host keeps";
        discovery_seconds: u64 = 600, 10..=86_400, "how long it keeps them, seconds";
        discovery_kib: u64 = 256, 16..=4_096, "a discovery document, or a set of keys, KiB";
        discovery_cool_down_seconds: u64 = 10, 1..=600, "how long an issuer is left alone whose discovery failed, seconds";
        signin_body_kib: usize = 8, 1..=1_024, "the body of a sign-in or of a token exchange, KiB";
        lookup_burst: u32 = 300, 1..=1_000_000, "requests of one client that anybody may make, such as where an address signs in, at once";
        lookups_per_minute: u32 = 600, 1..=1_000_000, "the same, one after the other";
        password_burst: u32 = 600, 1..=1_000_000, "attempts to sign in by password of one client at once";
        passwords_per_minute: u32 = 1_200, 1..=1_000_000, "the same, one after the other";
        password_failure_burst: u32 = 100, 1..=1_000_000, "wrong passwords of one client, over all accounts, at once";
        password_failures_per_minute: u32 = 60, 1..=1_000_000, "the same, one after the other";
        account_failure_burst: u32 = 10, 1..=1_000_000, "wrong passwords for one account from one client, or with one browser that it signed in with before, at once";
        account_failures_per_minute: u32 = 2, 1..=1_000_000, "the same, one after the other";
        account_total_failure_burst: u32 = 100, 1..=1_000_000, "wrong passwords for one account from everywhere, at once; beyond, only browsers and clients that it signed in with before may try";
        account_total_failures_per_minute: u32 = 1, 1..=1_000_000, "the same, one after the other";
        refresh_burst: u32 = 60, 1..=1_000_000, "token exchanges of one session at once";
        refreshes_per_minute: u32 = 30, 1..=1_000_000, "the same, one after the other";
        sso_callback_burst: u32 = 300, 1..=1_000_000, "returns of one client from identity providers at once";
        sso_callbacks_per_minute: u32 = 600, 1..=1_000_000, "the same, one after the other";
        canvas_ticket_burst: u32 = 600, 1..=1_000_000, "canvas sockets that one client opens with a ticket at once";
        canvas_tickets_per_minute: u32 = 1_200, 1..=1_000_000, "the same, one after the other";
        throttle_keys: u64 = 50_000, 1_000..=10_000_000, "clients and accounts that each of these limits remembers; the least recently seen is forgotten first";
        password_queue: usize = 64, 1..=10_000, "passwords that wait to be hashed, and as many again of people who are known; where few have taken all places, they make room for others";
        password_queue_per_client: usize = 32, 1..=10_000, "of one client";
        password_queue_seconds: u64 = 5, 1..=60, "how long a password may wait to be hashed, seconds";
    }
    "Database and jobs" {
        database_connections: u32 = 20, 2..=1000, "connections to the database at the most";
        database_statement_seconds: u64 = 25, 1..=3600, "time of one statement on PostgreSQL, but for migrations, seconds";
        database_lock_seconds: u64 = 5, 1..=3600, "how long a statement waits for another transaction's lock on PostgreSQL, seconds";
        database_idle_transaction_seconds: u64 = 15, 1..=3600, "how long PostgreSQL keeps a transaction whose host has fallen silent, seconds";
        database_answer_seconds: u64 = 27, 1..=3600, "how long an answer of PostgreSQL is waited for before its connection is given up, seconds; more than a statement may take there, and two seconds more where only that is set";
        caller_lookup_seconds: u64 = 5, 1..=60, "how long it may take to look up who is asking, seconds";
        caller_lookups_per_organization: usize = 512, 1..=100_000, "requests of one organization that wait for that at once";
        job_lease_seconds: u64 = 30, 1..=3600, "how long a host that died keeps its jobs and sinks before another takes them over, seconds";
        jobs_running: usize = 16, 1..=1_000, "jobs that one host runs at once";
        jobs_running_per_organization: i64 = 8, 1..=100_000, "jobs of one organization that run at once, on all hosts together";
        event_streams: usize = 1_000, 1..=1_000_000, "streams of deployments' events open on one host";
        event_streams_per_organization: usize = 250, 1..=1_000_000, "one organization's among them";
        event_streams_per_person: usize = 20, 1..=1_000_000, "one person's among them";
        audit_deliveries: usize = 8, 1..=1_000, "audit sinks that one host delivers to at once";
        audit_deliveries_per_organization: i64 = 3, 1..=100_000, "audit sinks of one organization that are delivered to at once, by all hosts together";
        audit_stop_seconds: u64 = 10, 1..=600, "how long batches that are being delivered may take to end once the server stops, seconds; they are delivered again by another host";
        job_stop_seconds: u64 = 20, 1..=600, "how long jobs under way may take to end once the server stops, seconds; others go back to the queue";
    }
    "Lists, checks and denials" {
        list_rows: usize = 10_000, 201..=1_000_000, "rows looked at for one page of a list, or one count, in search of what the caller may see";
        audit_list_events: i64 = 20_000, 10..=1_000_000, "events of the audit trail looked at for one page of a list, in search of those that the filter wants";
        authz_check_questions: usize = 100, 1..=1000, "questions in one request to /api/v1/authz/check";
        denial_window_seconds: u64 = 60, 1..=3600, "time within which one person's repeated denials of one action on one target become one event of the audit trail, seconds";
        denials_per_person: usize = 20, 1..=10_000, "targets and actions of one person whose denials are recorded one by one within that time; further ones are counted by action";
        denials_per_organization: usize = 500, 1..=100_000, "the same of all people of an organization together";
    }
    "Canvas" {
        canvas_sockets: usize = 8_000, 1..=1_000_000, "canvas sockets open on one host";
        canvas_sockets_per_organization: usize = 2_000, 1..=1_000_000, "one organization's among them";
        canvas_sockets_per_person: usize = 64, 1..=1_000_000, "one person's among them";
        canvas_sockets_per_person_and_canvas: usize = 16, 1..=1_000_000, "one person's on one canvas";
        canvas_sockets_per_canvas: usize = 256, 1..=1_000_000, "everyone's on one canvas of one host";
        canvas_messages_per_second: u32 = 500, 1..=1_000_000, "messages in a second of one person on one host, all sockets together; a message counts once for each 16 KiB begun";
        canvas_messages_burst: u32 = 2_000, 1..=1_000_000, "messages of one person at once after a pause";
        canvas_room_messages_per_second: u32 = 2_000, 1..=1_000_000, "messages with operations in a second on one canvas of one host, counted so too";
        canvas_room_messages_burst: u32 = 4_000, 1..=1_000_000, "messages with operations at once on one canvas after a pause";
        canvas_rate_refusals: u32 = 100, 1..=1_000_000, "messages of one socket refused with `rate`, beyond one in a second, before it is closed with 4429";
        canvas_inbox_kib: usize = 4_096, 256..=1_048_576, "messages with operations that wait for one canvas of one host, each counted as its JSON and 128 bytes a value, KiB";
        canvas_outbox_kib: usize = 8_192, 256..=1_048_576, "what waits to be sent to one socket before it is closed with 4408, KiB; what it is sent as it joins does not count, and a larger frame may wait where nothing else does";
        canvas_nodes: usize = 2_000, 1..=10_000, "nodes of one canvas; what is beyond a lowered limit stays, and can be changed and removed";
        canvas_edges: usize = 5_000, 1..=10_000, "edges of one canvas, likewise";
        canvas_graph_kib: usize = 4_096, 64..=8_192, "nodes and edges of one canvas as JSON, KiB, likewise";
        canvas_values: usize = 200_000, 1_000..=10_000_000, "numbers, texts, lists and objects in the nodes and edges of one canvas, likewise; what a list or an object holds counts as four at least";
        canvas_rooms_mib: usize = 2_048, 1..=1_048_576, "memory of the canvases open on one host, each counted as twice its JSON, 128 bytes a value and 64 KiB, MiB";
        canvas_rooms_mib_per_organization: usize = 512, 1..=1_048_576, "one organization's among it; beyond either, sockets for further canvases are closed with 1013, and open ones only become smaller";
        canvas_database_ms: u64 = 3_000, 100..=60_000, "time of one exchange of a canvas with the database, after which its result is unknown, milliseconds";
        canvas_join_seconds: u64 = 15, 1..=600, "time to join a canvas, reading it from the database included, seconds";
        canvas_unconfirmed_seconds: u64 = 30, 2..=3_600, "how long sockets stay open while the database does not confirm that they may, seconds";
        canvas_stop_seconds: u64 = 10, 1..=600, "how long a canvas may take to store and answer what was received when the server stops, seconds";
        canvas_presence_kib: usize = 256, 8..=16_384, "what people on one canvas tell of themselves, of one host's people and of all other hosts' together, KiB";
        canvas_journal_kib: i64 = 16_384, 1_024..=1_048_576, "messages of one canvas that the database keeps, for clients that come back, KiB";
        canvas_storage_mib_per_organization: i64 = 10_240, 1..=10_485_760, "canvases of one organization in the database, messages included, MiB; each open canvas may go beyond by 1 MiB and one transaction's 2 MiB";
    }
    "Rows of a tenant" {
        users_per_organization: i64 = 100_000, 1..=10_000_000, "users of one organization; of these and the next, requests at the same moment may add more on PostgreSQL, at the most one for each connection to the database, and each host but one may go beyond by one part in 64";
        workspaces_per_organization: i64 = 2_000, 1..=1_000_000, "workspaces of one organization";
        memberships_per_user: i64 = 500, 1..=100_000, "roles of one user, in the organization and in its workspaces together";
        agents_per_organization: i64 = 100_000, 1..=10_000_000, "agents of one organization";
        versions_per_agent: i64 = 10_000, 1..=1_000_000, "versions of one agent";
        version_storage_mib_per_organization: i64 = 10_240, 1..=10_485_760, "versions of all agents of one organization in the database, MiB; each host but one may go beyond by one version";
        versions_waiting_per_organization: usize = 32, 0..=100_000, "versions of one organization that wait on a host until another one is cut; further ones are refused with 429";
        connections_per_organization: i64 = 500, 1..=100_000, "identity connections, gateways and audit sinks of one organization, of each kind";
        jobs_waiting_per_organization: i64 = 10_000, 1..=1_000_000, "jobs of one organization that wait for a worker";
    }
    "Retention" {
        job_days: u64 = 30, 1..=3650, "how long a finished job is kept, days; a failed one at least until its deployment is over";
        deployment_days: u64 = 365, 1..=3650, "how long a deployment is kept after it is over, days; one that was active until its agent or gateway is removed, unless the next one there was of the same version, since a rollback may lead to it";
        deployment_event_days: u64 = 90, 1..=3650, "how long the events of a deployment are kept after it is over, days";
    }
    "Policies" {
        policy_sets: i64 = 100, 1..=10_000, "policy sets of an organization";
        policy_versions: i64 = 10_000, 1..=1_000_000, "versions of one policy set";
        policy_text_kib: usize = 256, 1..=1000, "text of a version, KiB; a request's body has its own bound";
        policies_per_set: usize = 2000, 1..=10_000, "policies in a version";
        policy_elements: usize = 2000, 10..=20_000, "elements of the lists and records in one policy";
        policy_string_bytes: usize = 2048, 64..=65_536, "one string or name in a policy, bytes";
        policy_checks: u64 = 2_000_000, 10_000..=100_000_000, "expressions that validating a version looks at, each for every action and type of resource that its policy can match; an `if` doubles those within it";
        policy_faults: usize = 100, 1..=1000, "faults, or warnings, told of one version";
        policy_validations: usize = 1, 1..=64, "versions validated at once on a host; of one organization it is one";
        policy_validations_waiting: usize = 3, 0..=100, "versions of one organization that wait to be validated on a host; further ones are refused with 429";
        policy_loads: usize = 4, 1..=64, "versions in force that are compiled at once on a host";
        policy_cache_mib: u64 = 256, 64..=65_536, "memory for compiled versions in force on a host, MiB; of one organization the last one is kept";
        policy_error_seconds: u64 = 10, 1..=3600, "how often a host writes down which policies could not be evaluated, seconds";
        policy_error_log_lines: usize = 10, 0..=1000, "organizations whose policies that could not be evaluated are logged, each time";
        policy_errors_per_version: usize = 100, 1..=10_000, "policies of one version whose errors a host keeps until then";
        policy_errors_waiting: usize = 10_000, 1..=1_000_000, "the same of all organizations together";
    }
    "Plugins" {
        plugins_max_bytes: usize = 67_108_864, 1_024..=1_073_741_824, "bytes that an installed plugin may have";
        plugin_load_retry_seconds: u64 = 300, 1..=86_400, "longest pause before a version that does not load on a host is loaded again, seconds";
        plugin_errors_kept: usize = 20, 1..=1000, "last errors of one organization that a host remembers for each version of a plugin";
        plugin_errors_organizations: usize = 500, 1..=100_000, "organizations whose last errors a host remembers for each version of a plugin";
        plugin_memory_mib: usize = 128, 2..=4096, "memory of one plugin call, all memories together, MiB";
        plugin_table_elements: usize = 200_000, 100..=10_000_000, "elements of tables of one call, all tables together";
        plugin_instances: u32 = 20, 1..=100, "core instances of one plugin's component";
        plugin_stack_kib: usize = 1024, 64..=16_384, "stack of one call, KiB";
        plugin_cpu_ms: u64 = 5000, 10..=600_000, "processor time of one call, milliseconds";
        plugin_call_seconds: u64 = 25, 1..=600, "time of one call, waiting for servers elsewhere included, seconds";
        plugin_deploy_seconds: u64 = 120, 1..=3600, "the same for a deployment, which may take longer, seconds";
        plugin_http_requests: u64 = 64, 0..=100_000, "HTTP requests of one call";
        plugin_http_seconds: u64 = 20, 1..=600, "time of one request with its whole answer, seconds";
        plugin_http_out_kib: u64 = 16_384, 0..=1_048_576, "headers and bodies of one call's requests, KiB";
        plugin_http_in_kib: u64 = 16_384, 0..=1_048_576, "bodies of the answers to one call, KiB";
        plugin_result_kib: usize = 4096, 64..=1_048_576, "one result, or one argument to a host function, KiB";
        plugin_log_lines_per_second: u32 = 50, 0..=10_000, "log lines of one connection in a second";
        plugin_calls: u32 = 64, 1..=1000, "calls at once of all plugins together";
        plugin_calls_per_plugin: u32 = 32, 1..=1000, "calls at once of one plugin";
        plugin_calls_per_organization: u32 = 16, 1..=1000, "calls at once of one organization";
        plugin_calls_per_connection: u32 = 8, 1..=1000, "calls at once of one connection";
        plugin_calls_for_sign_in: u32 = 8, 0..=1000, "of all calls at once, the places that only sign-in may take";
        plugin_calls_for_newcomers_percent: u32 = 25, 0..=90, "of the places of one plugin, and of those of all plugins that are not kept for sign-in, the share that only organizations may take which have no call there, percent";
        plugin_waiting: u32 = 1024, 0..=100_000, "calls of all plugins together that may wait for a place";
        plugin_waiting_per_organization: u32 = 128, 0..=100_000, "calls of one organization that may wait for a place";
        plugin_waiting_per_connection: u32 = 64, 0..=100_000, "calls of one connection that may wait for a place";
        plugin_queue_seconds: u64 = 10, 1..=600, "how long a call waits for its place, seconds";
        plugin_check_seconds: u64 = 15, 1..=600, "time of one check of a connection; with the wait for its place below what a request may take, seconds";
        plugin_checks_per_minute: u32 = 60, 1..=100_000, "checks of one organization's connections in a minute";
        plugin_memory_total_mib: usize = 2048, 2..=1_048_576, "memory of all plugin calls together, of which an eighth is kept for sign-in, MiB";
        plugin_memory_per_organization_mib: usize = 512, 2..=1_048_576, "memory of one organization's plugin calls, MiB";
        plugin_resources: usize = 128, 16..=10_000, "streams, requests, files and the like that one call holds at once; each may hold 128 KiB on the host";
        plugin_header_kib: usize = 32, 4..=1024, "one set of HTTP headers of a call, as it lies in memory, KiB";
        plugin_descriptors: usize = 16, 1..=1000, "sockets and files that one call may open, and its requests under way at once";
        plugin_descriptors_total: usize = 1024, 1..=1_000_000, "sockets and files of all plugin calls together";
        plugin_refusals: u32 = 100, 1..=100_000, "refusals after which a call is stopped";
        plugin_compile_memory_mib: u64 = 4096, 2_048..=1_048_576, "address space of the process that compiles one plugin, MiB";
        plugin_compile_cpu_seconds: u64 = 300, 1..=36_000, "processor time to compile one plugin, seconds";
        plugin_compile_seconds: u64 = 240, 1..=36_000, "time to compile one plugin, seconds";
        plugin_schema_patterns: usize = 64, 1..=10_000, "patterns of a plugin's configuration schema, with every `$ref` followed";
        plugin_schema_patterns_kib: usize = 2048, 64..=1_048_576, "these patterns compiled, KiB";
        plugin_schema_ms: u64 = 5000, 100..=60_000, "time to compile such a schema, or to apply it to one configuration, milliseconds";
        plugin_config_kib: usize = 64, 1..=512, "configuration of one connection, KiB";
        plugin_secret_kib: usize = 16, 1..=512, "one secret of a connection, KiB";
        name_lookups: usize = 64, 1..=1_000, "host names that are looked up at once for plugins and sign-in; each takes a thread";
        name_lookups_for_sign_in: usize = 8, 0..=1_000, "of these, the ones that serve sign-in only; of one organization's sign-ins at the most half of them; one at least serves the others";
        name_lookups_per_organization: usize = 8, 1..=1_000, "names of one organization's plugins among them";
        name_lookups_per_domain: usize = 4, 1..=1_000, "names of one domain among them, and as many again for sign-in";
        plugin_folder_mib: u64 = 1024, 1..=1_048_576, "what one connection's folder may hold, MiB";
        plugin_folder_files: u64 = 1000, 1..=100_000, "files and folders in one connection's folder";
        plugin_folders_per_organization: u64 = 16, 1..=100_000, "folders of one organization's connections on the disk, those of deleted connections included until the operator removes them";
        plugin_folder_threads: usize = 32, 2..=512, "threads that wait for the disk that these folders lie on";
        plugin_folder_threads_per_organization: usize = 8, 1..=512, "calls of one organization among those that wait for their folders before they begin";
        plugin_trip_failures: u32 = 5, 1..=1000, "failures in a row that suspend a connection's calls";
        plugin_trip_seconds: u64 = 10, 1..=300, "how long they are suspended at first; each time in a row twice as long, up to 300, seconds";
    }
}

impl ServerLimits {
    /// How long an answer of the database is waited for.
    pub fn database_answer(&self) -> Duration {
        Duration::from_secs(self.database_answer_seconds)
    }

    /// How long a job or an audit sink stays with the host that took it, unless renewed.
    pub fn job_lease(&self) -> Duration {
        Duration::from_secs(self.job_lease_seconds)
    }
}

fn number<T: FromStr + Display + PartialOrd>(
    layers: &Layers,
    name: &str,
    default: T,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError> {
    layers.parse(name, default, |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {} to {}", range.start(), range.end())),
    })
}

/// A bound that lies within another: its default gives way to a smaller outer one, a value that was set does not.
///
/// # Errors
/// The value that was set and is larger than the outer bound.
pub(super) fn within<T: Display + PartialOrd>(
    layers: &Layers,
    inner: (&str, T),
    outer: (&str, T),
) -> Result<T, ConfigError> {
    let ((name, value), (outer_name, most)) = (inner, outer);
    if value <= most {
        return Ok(value);
    }
    if !layers.given().contains(name) {
        return Ok(most);
    }
    let why = format!("`{name}` is {value}, but `{outer_name}` allows {most}: lower it, or raise that");
    Err(fault(layers.source(name), why))
}

impl ServerLimits {
    /// An answer of PostgreSQL has to be waited for longer than a statement may take there: otherwise its connection is given up
    /// while PostgreSQL would still have said what became of it. Of the two, the one that was not set gives way.
    ///
    /// # Errors
    /// Both were set, and do not fit.
    pub(super) fn settle_database_times(&mut self, layers: &Layers) -> Result<(), ConfigError> {
        let (answer, statement) = (self.database_answer_seconds, self.database_statement_seconds);
        if answer > statement {
            return Ok(());
        }
        let given = layers.given();
        if !given.contains("database_answer_seconds") {
            self.database_answer_seconds = statement + 2;
        } else if !given.contains("database_statement_seconds") && answer > 1 {
            self.database_statement_seconds = answer - 1;
        } else {
            let why = format!(
                "`database_answer_seconds` is {answer}, and `database_statement_seconds` {statement}: it must be more than that"
            );
            return Err(fault(layers.source("database_answer_seconds"), why));
        }
        Ok(())
    }
}

/// The page `host/docs/limits.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Limits\n\nWhat one caller, tenant, plugin or server elsewhere may take. Each is a setting: a key of `kaizen.toml`, or a variable\n\
         with `KAIZEN_` before its name in capitals; what is no setting is listed under [Fixed](#fixed). This page is written by a test\n\
         from `host/src/config/limits.rs` and `fixed.rs`.\n",
    );
    let mut section = "";
    for bound in BOUNDS {
        if section != bound.section {
            section = bound.section;
            let _ = write!(page, "\n## {section}\n\n| setting | bounds | default | may be |\n|---|---|---:|---|\n");
        }
        let Bound { name, help, default, range, .. } = bound;
        let _ = writeln!(page, "| `{name}` | {help} | {default} | {range} |");
    }
    page.push_str(&fixed::section());
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_of_limits_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/limits.md");
        let page = super::page();
        if std::fs::read_to_string(path).unwrap_or_default() != page {
            std::fs::write(path, page).unwrap();
            panic!("{path} was out of date and has been written anew: commit it");
        }
    }

    #[test]
    fn each_default_lies_within_its_range() {
        assert!(super::ServerLimits::parse(&super::Layers::default()).is_ok());
        for bound in super::BOUNDS {
            let plain = |text: &str| text.parse::<u64>().unwrap();
            let (min, max) = bound.range.split_once(" to ").unwrap();
            assert!((plain(min)..=plain(max)).contains(&plain(bound.default)), "{}", bound.name);
        }
    }
}
