//! SQL, one resource a file, one text for both databases.
//!
//! Functions take a [`Connection`] (a [`Conn`] to read, a [`Tx`] to change) and, always, the organization they act in:
//! tenant isolation is in the query, not around it.

pub mod agents;
mod answer;
pub mod audit;
pub mod canvas;
pub mod connections;
mod data_migrations;
mod db;
pub mod delivery;
pub mod deployments;
pub mod environments;
#[cfg(test)]
pub(crate) mod fixture;
mod health;
mod held;
pub mod idempotency;
pub mod identities;
pub mod jobs;
pub mod memberships;
pub mod organizations;
pub mod plugins;
pub mod policies;
mod pool;
pub mod presence;
pub mod quota;
pub mod sessions;
pub mod signing_keys;
pub mod sso;
pub mod users;
pub mod versions;
pub mod workspaces;

use std::sync::Arc;

use db::Db;
pub use db::{Conn, Connection, Handle, Tx};
use futures::future::BoxFuture;
pub use health::Unwritable;
use sqlx::migrate::{MigrateError, Migrator};
use tokio_util::sync::CancellationToken;

use crate::config::limits::ServerLimits;

static SQLITE: Migrator = sqlx::migrate!("../migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("../migrations/postgres");

/// Rows that a sweep removes in one transaction.
const SWEEP_BATCH: i64 = 1000;

/// Bytes that a try to write stores: as many as the largest message of a canvas.
const WRITE_PROBE: usize = 256 * 1024;

/// Our migrations' own table: sqlx's default one may be another application's in the same database.
const MIGRATIONS: &str = "kaizen_migrations";

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database's address is not usable.
    #[error("database_url: {0}")]
    Url(String),
    /// A unique constraint: the thing is there already. Carries the constraint or columns, for the log.
    #[error("already exists ({0})")]
    Duplicate(String),
    /// A foreign key: something referred to is not there, or something still refers to this.
    #[error("refers to something that does not exist, or is still referred to ({0})")]
    Reference(String),
    /// The row changed since it was read.
    #[error("changed meanwhile")]
    Stale,
    /// The database is away, all connections stayed busy, a lock or a statement took too long, or two transactions got in each
    /// other's way: the same may succeed if it is tried again.
    #[error("database unavailable: {0}")]
    Unavailable(sqlx::Error),
    /// As many of the same organization wait for the database as may.
    #[error("too many requests of this organization wait for the database")]
    Overloaded,
    /// The database answers, but takes no changes.
    #[error("{why}: {1}", why = .0.sentence())]
    Unwritable(Unwritable, sqlx::Error),
    /// The database is of a later version than this program.
    #[error(
        "the database was migrated by a newer kaizen (migration {0} is unknown here): upgrade this binary or restore the backup made before the upgrade"
    )]
    Newer(i64),
    /// A migration did not apply.
    #[error("migrating the database failed: {0}")]
    Migration(MigrateError),
    /// Anything else: a defect.
    #[error(transparent)]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let error = Self::of(error);
        match &error {
            StoreError::Unwritable(why, error) => health::failed(*why, error),
            StoreError::Unavailable(cause) if lost(cause) => pool::trouble(),
            _ => {}
        }
        error
    }
}

impl StoreError {
    /// An error that several wait for and that cannot be taken apart, for one of them: of the same kind, so that a defect is not told
    /// as a database that is away.
    pub fn shared(error: Arc<Self>) -> Self {
        Arc::try_unwrap(error).unwrap_or_else(|error| {
            let said = |error: &dyn std::fmt::Display| sqlx::Error::Protocol(error.to_string());
            match &*error {
                StoreError::Url(why) => StoreError::Url(why.clone()),
                StoreError::Duplicate(what) => StoreError::Duplicate(what.clone()),
                StoreError::Reference(what) => StoreError::Reference(what.clone()),
                StoreError::Stale => StoreError::Stale,
                StoreError::Overloaded => StoreError::Overloaded,
                StoreError::Unavailable(error) => StoreError::Unavailable(said(error)),
                StoreError::Unwritable(why, error) => StoreError::Unwritable(*why, said(error)),
                StoreError::Newer(migration) => StoreError::Newer(*migration),
                StoreError::Migration(error) => StoreError::Database(said(error)),
                StoreError::Database(error) => StoreError::Database(said(error)),
            }
        })
    }

    fn of(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(e) => match e.kind() {
                ErrorKind::UniqueViolation => StoreError::Duplicate(e.constraint().unwrap_or(e.message()).to_owned()),
                ErrorKind::ForeignKeyViolation => {
                    StoreError::Reference(e.constraint().unwrap_or(e.message()).to_owned())
                }
                _ => match e.code() {
                    Some(code) => match Unwritable::of(&code) {
                        Some(why) => StoreError::Unwritable(why, error),
                        None if passes(&code) => StoreError::Unavailable(error),
                        None => StoreError::Database(error),
                    },
                    None => StoreError::Database(error),
                },
            },
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                StoreError::Unavailable(error)
            }
            _ => StoreError::Database(error),
        }
    }
}

/// Whether a database's error code tells of what may be over when the same is tried again.
///
/// Sources: <https://www.postgresql.org/docs/current/errcodes-appendix.html>, <https://sqlite.org/rescode.html>.
fn passes(code: &str) -> bool {
    // Classes: 08 connection, 53 out of connections or memory, 57P the server is going away.
    let class = ["08", "53", "57P"].iter().any(|class| code.len() == 5 && code.starts_with(class));
    // serialization_failure, deadlock_detected, lock_not_available, query_canceled (statement_timeout),
    // idle_in_transaction_session_timeout
    let code_of_postgres = matches!(code, "40001" | "40P01" | "55P03" | "57014" | "25P03");
    // SQLITE_BUSY, SQLITE_LOCKED and SQLITE_NOMEM, whatever their extended code.
    let code_of_sqlite = matches!(health::sqlite(code), Some(5..=7));
    class || code_of_postgres || code_of_sqlite
}

/// Whether the connection itself failed, so that others may have as well. That all were in use is no such failure: asking each of them
/// whether it lives would only add to the load.
fn lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut => false,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.len() == 5 && (code.starts_with("57P") || code.starts_with("08") || code == "25P03")
        }),
        _ => true,
    }
}

/// What a statement that names one row must have changed, if nobody was there before.
fn one(changed: u64) -> Result<(), StoreError> {
    if changed == 1 { Ok(()) } else { Err(StoreError::Stale) }
}

/// The database, for everyone. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Db,
    heads: audit::Heads,
    tries: health::Tries,
}

impl Store {
    /// Connects; does not migrate.
    ///
    /// # Errors
    /// As [`Db::connect`].
    pub async fn connect(url: &str, limits: &ServerLimits) -> Result<Self, StoreError> {
        Ok(Self {
            db: Db::connect(url, limits).await?,
            heads: audit::Heads::default(),
            tries: health::Tries::default(),
        })
    }

    /// Brings the schema up to this binary's version. Several hosts may do so at once: PostgreSQL's advisory lock orders them.
    ///
    /// # Errors
    /// [`StoreError::Newer`] where a migration is known to the database but not to this binary; nothing is changed then.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let result = match &self.db {
            Db::Sqlite { write, .. } => migrator(&SQLITE).run(write.get().await?.connection()).await,
            Db::Postgres(pool) => {
                let mut lent = pool.get().await?;
                sqlx::raw_sql(db::WITHOUT_TIME_LIMITS).execute(lent.connection()).await?;
                // Left unsettled and not given back: the next one begins with its time limits.
                let result = migrator(&POSTGRES).run(lent.connection().unbounded()).await;
                lent.discard();
                result
            }
        };
        result.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer(version),
            other => StoreError::Migration(other),
        })
    }

    /// The last migration that this binary knows: once [`Store::migrate`] has returned, the database's own.
    fn last_migration(&self) -> i64 {
        let migrations = match &self.db {
            Db::Sqlite { .. } => &SQLITE,
            Db::Postgres(_) => &POSTGRES,
        };
        migrations.iter().map(|migration| migration.version).max().unwrap_or_default()
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn read(&self) -> Result<Conn, StoreError> {
        Ok(match &self.db {
            Db::Sqlite { read, .. } => Conn::Sqlite(read.get().await?),
            Db::Postgres(pool) => Conn::Postgres(pool.get().await?),
        })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(match &self.db {
            Db::Sqlite { write, .. } => Tx::Sqlite(write.begin(self.heads.clone()).await?),
            Db::Postgres(pool) => Tx::Postgres(pool.begin(self.heads.clone()).await?),
        })
    }

    /// Whether other hosts may be on the same database: a file is one host's.
    pub fn is_shared(&self) -> bool {
        matches!(self.db, Db::Postgres(_))
    }

    /// Runs `remove` until it finds fewer rows than it may remove at once, each time in a transaction of its own, so that others get their
    /// turn in between and a sweep keeps up however much there is. Ends early when the server stops. Returns how many were removed.
    ///
    /// # Errors
    /// As the database says; what was removed until then stays removed.
    pub async fn sweep(
        &self,
        stopping: &CancellationToken,
        mut remove: impl for<'a> FnMut(&'a mut Tx, i64) -> BoxFuture<'a, Result<u64, StoreError>>,
    ) -> Result<u64, StoreError> {
        let mut all = 0;
        while !stopping.is_cancelled() {
            let mut tx = self.begin().await?;
            let removed = remove(&mut tx, SWEEP_BATCH).await?;
            tx.commit().await?;
            all += removed;
            if i64::try_from(removed).is_ok_and(|removed| removed < SWEEP_BATCH) {
                break;
            }
            tokio::task::yield_now().await;
        }
        Ok(all)
    }

    /// Whether the database answers and, where a change failed lately because it took none, takes changes again.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let late = |_| Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        tokio::time::timeout(pool::ACQUIRE, self.probe()).await.unwrap_or_else(late)
    }

    /// Whether the database answers, be it that it takes no changes.
    ///
    /// # Errors
    /// As [`Store::ping`].
    pub async fn ping_for_reads(&self) -> Result<(), StoreError> {
        let late = |_| Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        tokio::time::timeout(pool::ACQUIRE, self.probe_reads()).await.unwrap_or_else(late)
    }

    /// Whether changes can be stored, by storing one that needs space, and taking it back.
    ///
    /// # Errors
    /// As the database says: [`StoreError::Unwritable`] where it takes none.
    pub async fn try_writing(&self) -> Result<(), StoreError> {
        self.tries.once(self.write_and_take_back()).await
    }

    async fn write_and_take_back(&self) -> Result<(), StoreError> {
        // In two transactions: what is taken back in the same one may never reach the disk.
        for filler in [Some(vec![0_u8; WRITE_PROBE]), None] {
            let mut tx = self.begin().await?;
            let sql = "INSERT INTO write_probe (id, tries, filler) VALUES (1, 1, $1)
                       ON CONFLICT (id) DO UPDATE SET tries = write_probe.tries + 1, filler = excluded.filler";
            crate::on!(&mut tx, |c| sqlx::query(sql).bind(filler).execute(c).await.map(drop))?;
            tx.commit().await?;
        }
        health::wrote();
        Ok(())
    }

    /// After a change failed because the database took none: whether it takes them again. For whoever keeps an eye on it where nobody asks
    /// [`Store::ping`].
    pub async fn look_again(&self) {
        if health::unwritable().is_some()
            && let Err(error) = self.ping().await
        {
            tracing::debug!(%error, "the database still takes no changes");
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        if health::unwritable().is_some() { self.try_writing().await } else { self.probe_reads().await }
    }

    async fn probe_reads(&self) -> Result<(), StoreError> {
        let mut conn = self.read().await?;
        crate::on!(&mut conn, |c| sqlx::query("SELECT 1").execute(c).await.map(drop))?;
        Ok(())
    }
}

fn migrator(of: &Migrator) -> Migrator {
    let mut migrator = Migrator::with_migrations(of.iter().cloned().collect());
    migrator.dangerous_set_table_name(MIGRATIONS);
    migrator
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
