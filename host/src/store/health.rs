//! Whether the database takes changes: remembered from the statements that failed, so that `/readyz` can say so and the log
//! names it once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use super::StoreError;

/// For how long what a try to write found is not tried again.
const HOLDS: Duration = Duration::from_millis(500);

/// Why nothing can be changed for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Unwritable {
    /// PostgreSQL is a standby or has `default_transaction_read_only`; SQLite's file or folder is write-protected.
    ReadOnly = 1,
    /// No space is left, or the operating system refuses to write.
    DiskFull = 2,
}

impl Unwritable {
    /// For the operator.
    pub fn sentence(self) -> &'static str {
        match self {
            Unwritable::ReadOnly => "the database is read-only",
            Unwritable::DiskFull => "the database's disk is full or cannot be written",
        }
    }

    /// The class of a database's error code (PostgreSQL's SQLSTATE, SQLite's extended result code); nothing for the others.
    pub(super) fn of(code: &str) -> Option<Self> {
        match code {
            // read_only_sql_transaction
            "25006" => return Some(Unwritable::ReadOnly),
            // disk_full, io_error
            "53100" | "58030" => return Some(Unwritable::DiskFull),
            _ => {}
        }
        // Extended codes have the primary one in their low byte: https://sqlite.org/rescode.html
        match sqlite(code)? {
            8 => Some(Unwritable::ReadOnly),
            10 | 13 => Some(Unwritable::DiskFull),
            _ => None,
        }
    }
}

/// The primary result code of SQLite in a code of its own; PostgreSQL's have five characters.
pub(super) fn sqlite(code: &str) -> Option<u32> {
    if code.len() == 5 { None } else { code.parse::<u32>().ok().map(|code| code & 0xff) }
}

/// What the last statement that had to do with it said. One database a process.
static STATE: AtomicU8 = AtomicU8::new(0);

/// A statement failed for this reason.
pub(super) fn failed(why: Unwritable, error: &sqlx::Error) {
    if STATE.swap(why as u8, Ordering::Relaxed) != why as u8 {
        tracing::error!(%error, "{}: changes are answered with 503 until it can be written again", why.sentence());
    }
}

/// A try to write was committed. Other commits do not tell: a transaction that changed nothing needs neither space nor leave.
pub(super) fn wrote() {
    if STATE.load(Ordering::Relaxed) != 0 && STATE.swap(0, Ordering::Relaxed) != 0 {
        tracing::info!("the database can be written again");
    }
}

/// Why nothing can be changed, as far as is known.
pub(super) fn unwritable() -> Option<Unwritable> {
    match STATE.load(Ordering::Relaxed) {
        1 => Some(Unwritable::ReadOnly),
        2 => Some(Unwritable::DiskFull),
        _ => None,
    }
}

/// Tries to write: one at a time, however many ask whether it could be done again.
#[derive(Clone, Default)]
pub(super) struct Tries(Arc<Mutex<Option<Found>>>);

/// When it was tried last, and what came of it.
type Found = (Instant, Result<(), Unwritable>);

impl Tries {
    /// Tries, or says what was found just now.
    ///
    /// # Errors
    /// As the database says.
    pub(super) async fn once(&self, attempt: impl Future<Output = Result<(), StoreError>>) -> Result<(), StoreError> {
        let mut last = self.0.lock().await;
        if let Some((at, found)) = *last
            && at.elapsed() < HOLDS
        {
            let why = |why| StoreError::Unwritable(why, sqlx::Error::Protocol("as found a moment ago".into()));
            return found.map_err(why);
        }
        let result = attempt.await;
        *last = match &result {
            Ok(()) => Some((Instant::now(), Ok(()))),
            Err(StoreError::Unwritable(why, _)) => Some((Instant::now(), Err(*why))),
            Err(_) => None,
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_databases_are_told_apart() {
        for (code, expected) in [
            ("25006", Some(Unwritable::ReadOnly)),
            ("53100", Some(Unwritable::DiskFull)),
            ("8", Some(Unwritable::ReadOnly)),
            ("1032", Some(Unwritable::ReadOnly)),
            ("13", Some(Unwritable::DiskFull)),
            ("778", Some(Unwritable::DiskFull)),
            ("5", None),
            ("23505", None),
            ("2067", None),
        ] {
            assert_eq!(Unwritable::of(code), expected, "{code}");
        }
    }
}
