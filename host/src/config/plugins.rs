//! The settings `plugin_…`: what plugins may take.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{ConfigError, Layers, fault};
use crate::sandbox::limits::{Bounds, Limits};

/// The bounds as set.
pub(super) fn bounds(layers: &Layers) -> Result<Bounds, ConfigError> {
    let default = Bounds::default();
    let seconds =
        |name, default: Duration, range| number(layers, name, default.as_secs(), range).map(Duration::from_secs);
    // No number may overflow when it becomes bytes, nor reserve more addresses than a process has.
    let bytes = |name, default: usize, unit: usize, range| {
        number(layers, name, default / unit, range).map(|count: usize| count * unit)
    };
    let calls = number(layers, "plugin_calls", default.calls, 1..=1000)?;
    let calls_per_plugin =
        within(layers, ("plugin_calls_per_plugin", default.calls_per_plugin), ("plugin_calls", calls))?;
    let calls_per_connection = within(
        layers,
        ("plugin_calls_per_connection", default.calls_per_connection),
        ("plugin_calls_per_plugin", calls_per_plugin),
    )?;
    let call = Limits {
        memory_bytes: bytes("plugin_memory_mib", default.call.memory_bytes, 1 << 20, 2..=4096)?,
        table_elements: number(layers, "plugin_table_elements", default.call.table_elements, 100..=10_000_000)?,
        cpu: number(layers, "plugin_cpu_ms", 5000, 10..=600_000).map(Duration::from_millis)?,
        wall: seconds("plugin_call_seconds", default.call.wall, 1..=600)?,
        http_requests: number(layers, "plugin_http_requests", default.call.http_requests, 0..=100_000)?,
        http_out_bytes: number(layers, "plugin_http_out_kib", default.call.http_out_bytes >> 10, 0..=1 << 20)? << 10,
        http_in_bytes: number(layers, "plugin_http_in_kib", default.call.http_in_bytes >> 10, 0..=1 << 20)? << 10,
        http_exchange: seconds("plugin_http_seconds", default.call.http_exchange, 1..=600)?,
        transfer_bytes: bytes("plugin_result_kib", default.call.transfer_bytes, 1 << 10, 64..=1 << 20)?,
        ..default.call
    };
    Ok(Bounds {
        call,
        deploy: seconds("plugin_deploy_seconds", default.deploy, 1..=3600)?,
        stack_bytes: bytes("plugin_stack_kib", default.stack_bytes, 1 << 10, 64..=16 << 10)?,
        instances: number(layers, "plugin_instances", default.instances, 1..=100)?,
        calls,
        calls_per_plugin,
        calls_per_connection,
        log_lines_per_second: number(layers, "plugin_log_lines_per_second", default.log_lines_per_second, 0..=10_000)?,
        trip_failures: number(layers, "plugin_trip_failures", default.trip_failures, 1..=1000)?,
        trip_pause: seconds("plugin_trip_seconds", default.trip_pause, 1..=300)?,
    })
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

/// A number that cannot be more than another's; its default gives way to a small one.
fn within(layers: &Layers, (name, default): (&str, u32), (outer_name, outer): (&str, u32)) -> Result<u32, ConfigError> {
    let number = number(layers, name, default.min(outer), 1..=1000)?;
    if number > outer {
        let source = layers.source(name);
        return Err(fault(
            source,
            format!("`{name}` is {number}, but `{outer_name}` allows {outer}: lower it, or raise that"),
        ));
    }
    Ok(number)
}
