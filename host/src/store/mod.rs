//! SQL, one resource a file, one text for both databases.
//!
//! Functions take a [`Connection`] (a [`Conn`] to read, a [`Tx`] to change) and, always, the organization they act in:
//! tenant isolation is in the query, not around it.

pub mod agents;
pub mod audit;
pub mod canvas;
pub mod connections;
mod db;
pub mod delivery;
pub mod deployments;
#[cfg(test)]
pub(crate) mod fixture;
pub mod idempotency;
pub mod identities;
pub mod jobs;
pub mod memberships;
pub mod organizations;
pub mod plugins;
pub mod policies;
mod pool;
pub mod presence;
pub mod sessions;
pub mod signing_keys;
pub mod sso;
pub mod users;
pub mod versions;
pub mod workspaces;

use std::sync::Arc;

use db::Db;
pub use db::{Conn, Connection, Handle, Tx};
use sqlx::migrate::{MigrateError, Migrator};

static SQLITE: Migrator = sqlx::migrate!("../migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("../migrations/postgres");

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
    /// The database is away, or all connections stayed busy.
    #[error("database unavailable: {0}")]
    Unavailable(sqlx::Error),
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
        if matches!(error, StoreError::Unavailable(_)) {
            pool::trouble();
        }
        error
    }
}

impl StoreError {
    /// An error that several wait for and that cannot be taken apart, for one of them.
    pub fn shared(error: Arc<Self>) -> Self {
        Arc::try_unwrap(error).unwrap_or_else(|error| StoreError::Unavailable(sqlx::Error::Protocol(error.to_string())))
    }

    fn of(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(e) => match e.kind() {
                ErrorKind::UniqueViolation => StoreError::Duplicate(e.constraint().unwrap_or(e.message()).to_owned()),
                ErrorKind::ForeignKeyViolation => {
                    StoreError::Reference(e.constraint().unwrap_or(e.message()).to_owned())
                }
                // 57P: the server is going away; 53: out of connections or memory; 08: connection; SQLite 5: busy.
                _ if e.code().is_some_and(|c| {
                    c.starts_with("57P") || c.starts_with("53") || c.starts_with("08") || c == "5"
                }) =>
                {
                    StoreError::Unavailable(error)
                }
                _ => StoreError::Database(error),
            },
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                StoreError::Unavailable(error)
            }
            _ => StoreError::Database(error),
        }
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
}

impl Store {
    /// Connects; does not migrate.
    ///
    /// # Errors
    /// As [`Db::connect`].
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        Ok(Self { db: Db::connect(url, max_connections).await?, heads: audit::Heads::default() })
    }

    /// Brings the schema up to this binary's version. Several hosts may do so at once: PostgreSQL's advisory lock orders them.
    ///
    /// # Errors
    /// [`StoreError::Newer`] where a migration is known to the database but not to this binary; nothing is changed then.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let result = match &self.db {
            Db::Sqlite { write, .. } => migrator(&SQLITE).run(write.get().await?.connection()).await,
            Db::Postgres(pool) => migrator(&POSTGRES).run(pool.get().await?.connection()).await,
        };
        result.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer(version),
            other => StoreError::Migration(other),
        })
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

    /// Whether the database answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
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
