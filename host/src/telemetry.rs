//! Traces, logs, metrics.

use std::io::IsTerminal;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Upper bounds in seconds: from a cached read to the time limit of a request.
const BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds in bytes: from a small Rust plugin to the default limit of a call, and beyond.
const SIZES: &[f64] = &[
    65_536.0,
    262_144.0,
    1_048_576.0,
    2_097_152.0,
    4_194_304.0,
    8_388_608.0,
    16_777_216.0,
    33_554_432.0,
    67_108_864.0,
    134_217_728.0,
    536_870_912.0,
];

/// Logs to standard error: text for people, JSON lines for machines.
///
/// # Errors
/// If a subscriber is installed already.
pub fn logs(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)?;
    // A log that cannot be written, because its disk is full or its reader gone, would be told on standard error: that panics there.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let json = config.log_json.unwrap_or(!std::io::stderr().is_terminal());
    let installed = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_target(false).try_init()
    };
    installed.map_err(|error| anyhow::anyhow!("logging: {error}"))
}

/// Collects metrics for `/metrics`.
///
/// # Errors
/// If a recorder is installed already.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), SIZES)?
        .install_recorder()
        .context("metrics")
}
