//! What the host functions of one call share: what it may do, what it has left, and what it said.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    body::Budget,
    egress::Client,
    grants::Grants,
    limits::{Limits, LogRate, Usage},
    scheduler::Caller,
    secret::Vault,
};

/// How far a call has come; shown to people while they wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// 0 to 100, where it can be told.
    pub percent: Option<u8>,
    /// What is being done.
    pub message: String,
}

/// How important a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For whoever writes the plugin.
    Debug,
    /// Worth a line.
    Info,
    /// Something is odd.
    Warn,
    /// Something does not work.
    Error,
}

/// One call.
pub struct Context {
    /// The plugin, for logs.
    pub plugin: String,
    /// Whom the call is for, for logs; opaque here.
    pub connection: String,
    /// What it may do.
    pub grants: Grants,
    /// Its secrets.
    pub vault: Vault,
    /// Its limits.
    pub limits: Limits,
    /// The way out.
    pub egress: Client,
    /// The arguments hold text that looks like a placeholder: then so may a body, without meaning one.
    pub placeholders_in_arguments: bool,
    /// Where progress goes; only the latest matters.
    pub progress: Option<mpsc::Sender<Progress>>,
    /// Whom it is for, where places are short.
    pub caller: Caller,
    /// What it has used.
    pub usage: Arc<Usage>,
    /// The connection's lines in the log.
    lines: Arc<LogRate>,
    pub(super) requests: AtomicU64,
    pub(super) bytes_out: Arc<Budget>,
    pub(super) bytes_in: Arc<Budget>,
    /// A request's body was cut because no more bytes may go out.
    pub(super) cut_off: AtomicBool,
    dropped: AtomicUsize,
    unsent: Mutex<Option<Progress>>,
    refused: AtomicU32,
    /// Distinct reasons.
    denials: Mutex<Vec<String>>,
    last_words: Mutex<String>,
    #[cfg(test)]
    written: Mutex<String>,
}

/// Control characters, and those that make a terminal show another line or another order than is there.
pub fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Denials that explain a failure.
const DENIALS: usize = 4;
/// Distinct reasons of denials that are logged; those after are counted only.
const DENIALS_LOGGED: usize = 16;
const LAST_WORDS: usize = 500;

impl Context {
    /// A call before its first instruction.
    pub fn new(
        plugin: String,
        connection: String,
        grants: Grants,
        vault: Vault,
        limits: Limits,
        lines: Arc<LogRate>,
        egress: Client,
    ) -> Self {
        Self {
            requests: AtomicU64::new(0),
            bytes_out: Arc::new(Budget::new(limits.http_out_bytes)),
            bytes_in: Arc::new(Budget::new(limits.http_in_bytes)),
            dropped: AtomicUsize::new(0),
            unsent: Mutex::new(None),
            refused: AtomicU32::new(0),
            denials: Mutex::new(Vec::new()),
            cut_off: AtomicBool::new(false),
            last_words: Mutex::new(String::new()),
            #[cfg(test)]
            written: Mutex::default(),
            placeholders_in_arguments: false,
            progress: None,
            caller: Caller::default(),
            usage: Arc::default(),
            lines,
            egress: egress.of_plugin(&plugin),
            plugin,
            connection,
            grants,
            vault,
            limits,
        }
    }

    /// A line for the operator's log: cut, counted, without secrets and control characters.
    pub fn log(&self, level: Level, message: &str) {
        if !self.lines.take() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let message = self.for_people(message, self.limits.log_line_bytes);
        let (plugin, connection) = (self.plugin.as_str(), self.connection.as_str());
        match level {
            Level::Debug => tracing::debug!(target: "kaizen::plugin", plugin, connection, "{message}"),
            Level::Info => tracing::info!(target: "kaizen::plugin", plugin, connection, "{message}"),
            Level::Warn => tracing::warn!(target: "kaizen::plugin", plugin, connection, "{message}"),
            Level::Error => tracing::error!(target: "kaizen::plugin", plugin, connection, "{message}"),
        }
    }

    /// A text of the guest's as it may be shown: at most `bytes` long, without secrets and control characters.
    pub fn for_people(&self, text: &str, bytes: usize) -> String {
        let masked = self.vault.mask_text(text, bytes);
        let (kept, cut) = masked.split_at(masked.floor_char_boundary(bytes));
        let mut shown: String = kept.chars().map(|c| if misleads(c) { ' ' } else { c }).collect();
        if !cut.is_empty() {
            shown.push('…');
        }
        shown
    }

    /// A line that the guest wrote to its standard output or error, without secrets.
    pub(super) fn wrote(&self, line: &str) {
        self.log(Level::Debug, line);
        let mut last = self.last_words.lock();
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(line);
        let excess = last.len().saturating_sub(LAST_WORDS);
        let from = (excess..=last.len()).find(|at| last.is_char_boundary(*at)).unwrap_or_default();
        last.drain(..from);
    }

    /// The last that the guest wrote: where a Rust guest says why it panics.
    pub(super) fn last_words(&self) -> String {
        self.for_people(&self.last_words.lock(), LAST_WORDS)
    }

    /// Something was refused: told to the operator, once for each reason and within the log's limit, and kept to explain
    /// a failure.
    pub(super) fn deny(&self, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut denials = self.denials.lock();
        if denials.len() >= DENIALS_LOGGED {
            return;
        }
        let why = self.for_people(why, self.limits.log_line_bytes);
        if denials.contains(&why) {
            return;
        }
        denials.push(why.clone());
        drop(denials);
        if self.lines.take() {
            tracing::warn!(target: "kaizen::plugin", plugin = self.plugin, connection = self.connection, "refused: {why}");
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether so much was refused that the call is to end.
    pub(super) fn refused_too_often(&self) -> bool {
        self.refused.load(Ordering::Relaxed) > self.limits.refusals
    }

    /// How often something was refused.
    #[cfg(test)]
    pub(super) fn refused(&self) -> u32 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The guest's output as it is, for the tests.
    #[cfg(test)]
    pub(super) fn keep(&self, output: &[u8]) {
        self.written.lock().push_str(&String::from_utf8_lossy(output));
    }

    /// Everything that the guest wrote.
    #[cfg(test)]
    pub(super) fn written(&self) -> String {
        self.written.lock().clone()
    }

    /// Log lines that were over the limit.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What was refused during the call.
    pub fn denials(&self) -> Vec<String> {
        self.denials.lock().iter().take(DENIALS).cloned().collect()
    }

    /// Hands progress on, if there is room; otherwise it is kept until there is, or a newer one replaces it.
    pub(super) fn report(&self, progress: Progress) {
        let Some(sender) = &self.progress else { return };
        let mut unsent = self.unsent.lock();
        *unsent = match sender.try_send(progress) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(progress)) => Some(progress),
        };
    }

    /// After the call: the last progress, and what was dropped.
    pub(super) async fn finish(&self) {
        let unsent = self.unsent.lock().take();
        if let (Some(sender), Some(progress)) = (&self.progress, unsent) {
            // The receiver may be gone; then nobody waits for it.
            drop(sender.send_timeout(progress, std::time::Duration::from_secs(1)).await);
        }
        let dropped = self.dropped.load(Ordering::Relaxed);
        let told = u32::try_from(self.denials.lock().len()).unwrap_or(u32::MAX);
        let repeated = self.refused.load(Ordering::Relaxed).saturating_sub(told);
        if dropped > 0 || repeated > 0 {
            tracing::warn!(target: "kaizen::plugin", plugin = self.plugin, connection = self.connection, dropped, repeated, "log lines over the limit, and refusals after those that were told");
        }
    }
}
