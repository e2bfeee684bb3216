//! The settings `plugin_…` as the sandbox takes them.

use std::time::Duration;

use super::{
    ConfigError, Layers,
    limits::{ServerLimits, within},
};
use crate::sandbox::limits::{Bounds, Limits};

/// The bounds as set.
pub(super) fn bounds(layers: &Layers, set: &ServerLimits) -> Result<Bounds, ConfigError> {
    let calls = set.plugin_calls;
    let per_plugin = ("plugin_calls_per_plugin", set.plugin_calls_per_plugin);
    let calls_per_plugin = within(layers, per_plugin, ("plugin_calls", calls))?;
    let per_connection = ("plugin_calls_per_connection", set.plugin_calls_per_connection);
    let calls_per_connection = within(layers, per_connection, ("plugin_calls_per_plugin", calls_per_plugin))?;
    let per_organization = ("plugin_calls_per_organization", set.plugin_calls_per_organization);
    let calls_per_organization = within(layers, per_organization, ("plugin_calls", calls))?;
    // Of few places, few are kept.
    let calls_for_sign_in = if layers.given().contains("plugin_calls_for_sign_in") {
        within(layers, ("plugin_calls_for_sign_in", set.plugin_calls_for_sign_in), ("plugin_calls", calls))?
    } else {
        set.plugin_calls_for_sign_in.min(calls / 4)
    };
    let memory = ("plugin_memory_mib", set.plugin_memory_mib);
    let of_organization = ("plugin_memory_per_organization_mib", set.plugin_memory_per_organization_mib);
    let total = ("plugin_memory_total_mib", set.plugin_memory_total_mib);
    let memory_per_organization = within(layers, of_organization, total)?;
    let memory = within(layers, memory, (of_organization.0, memory_per_organization))?;
    let call = Limits {
        memory_bytes: memory << 20,
        table_elements: set.plugin_table_elements,
        cpu: Duration::from_millis(set.plugin_cpu_ms),
        wall: Duration::from_secs(set.plugin_call_seconds),
        http_requests: set.plugin_http_requests,
        http_out_bytes: set.plugin_http_out_kib << 10,
        http_in_bytes: set.plugin_http_in_kib << 10,
        http_exchange: Duration::from_secs(set.plugin_http_seconds),
        transfer_bytes: set.plugin_result_kib << 10,
        resources: set.plugin_resources,
        header_bytes: set.plugin_header_kib << 10,
        descriptors: set.plugin_descriptors,
        refusals: set.plugin_refusals,
        ..Limits::default()
    };
    Ok(Bounds {
        call,
        deploy: Duration::from_secs(set.plugin_deploy_seconds),
        stack_bytes: set.plugin_stack_kib << 10,
        instances: set.plugin_instances,
        calls,
        calls_per_plugin,
        calls_per_organization,
        calls_per_connection,
        calls_for_sign_in,
        calls_for_newcomers_percent: set.plugin_calls_for_newcomers_percent,
        waiting: set.plugin_waiting,
        waiting_per_organization: set.plugin_waiting_per_organization,
        waiting_per_connection: set.plugin_waiting_per_connection,
        queue: Duration::from_secs(set.plugin_queue_seconds),
        check: Duration::from_secs(set.plugin_check_seconds),
        checks_per_minute: set.plugin_checks_per_minute,
        memory_total_bytes: set.plugin_memory_total_mib << 20,
        memory_per_organization_bytes: memory_per_organization << 20,
        descriptors_total: set.plugin_descriptors_total,
        compile_memory_bytes: set.plugin_compile_memory_mib << 20,
        compile_cpu: Duration::from_secs(set.plugin_compile_cpu_seconds),
        compile_wall: Duration::from_secs(set.plugin_compile_seconds),
        schema_patterns: set.plugin_schema_patterns,
        schema_patterns_bytes: set.plugin_schema_patterns_kib << 10,
        schema_time: Duration::from_millis(set.plugin_schema_ms),
        config_bytes: set.plugin_config_kib << 10,
        secret_bytes: set.plugin_secret_kib << 10,
        folder_bytes: set.plugin_folder_mib << 20,
        folder_files: set.plugin_folder_files,
        folders_per_organization: set.plugin_folders_per_organization,
        folder_threads: set.plugin_folder_threads,
        folder_threads_per_organization: set.plugin_folder_threads_per_organization,
        log_lines_per_second: set.plugin_log_lines_per_second,
        trip_failures: set.plugin_trip_failures,
        trip_pause: Duration::from_secs(set.plugin_trip_seconds),
    })
}
