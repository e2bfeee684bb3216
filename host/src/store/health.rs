//! Whether the database takes changes: remembered from the statements that failed, so that `/readyz` can say so and the log
//! names it once.

use std::sync::atomic::{AtomicU8, Ordering};

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

/// A change was made that the database has on its disk. That a transaction ended well does not tell that: it may have changed nothing.
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
