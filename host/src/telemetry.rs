//! Traces, logs, metrics.
