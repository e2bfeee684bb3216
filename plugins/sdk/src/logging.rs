//! The `log` crate's macros and panics, written to the server's log.

use log::{LevelFilter, Log, Metadata, Record};

struct ServerLog;

impl Log for ServerLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            write(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Called at the start of every call. A second time (in native tests) changes nothing.
pub(crate) fn start() {
    if log::set_logger(&ServerLog).is_ok() {
        log::set_max_level(LevelFilter::Debug);
        // A panic ends the call as a trap, which carries no message of its own.
        #[cfg(target_os = "wasi")]
        std::panic::set_hook(Box::new(|panic| write(log::Level::Error, &panic.to_string())));
    }
}

#[cfg(target_os = "wasi")]
fn write(level: log::Level, message: &str) {
    use crate::bindings::shared::kaizen::plugin::log as raw;
    let level = match level {
        log::Level::Error => raw::Level::Error,
        log::Level::Warn => raw::Level::Warn,
        log::Level::Info => raw::Level::Info,
        log::Level::Debug | log::Level::Trace => raw::Level::Debug,
    };
    raw::write(level, message);
}

#[cfg(not(target_os = "wasi"))]
fn write(level: log::Level, message: &str) {
    crate::testing::logged(level, message);
}
