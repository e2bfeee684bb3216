//! Two databases, one text: a connection to either, and [`on!`] to run the same SQL on both.

use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::StoreError;

/// The database in use, with its pools. Cheap to clone.
#[derive(Clone)]
pub enum Db {
    /// One file. SQLite has one writer, so writing has a pool of one: waiting happens there, in order, not in `SQLITE_BUSY`.
    Sqlite {
        /// For reading; opened so that it cannot write.
        read: SqlitePool,
        /// For everything else.
        write: SqlitePool,
    },
    /// A PostgreSQL server.
    Postgres(PgPool),
}

/// A borrowed connection to either database; what [`on!`] takes apart.
pub enum Handle<'a> {
    /// SQLite.
    Sqlite(&'a mut SqliteConnection),
    /// PostgreSQL.
    Postgres(&'a mut PgConnection),
}

/// Anything SQL can be run on: a pooled connection or a transaction.
pub trait Connection: Send {
    /// The connection inside.
    fn handle(&mut self) -> Handle<'_>;
}

/// Runs one expression on whichever database `$connection` is of. The SQL must mean the same on both.
///
/// ```ignore
/// on!(tx, |c| sqlx::query_as::<_, Agent>("SELECT … WHERE id = $1").bind(id).fetch_optional(c).await)?
/// ```
#[macro_export]
macro_rules! on {
    ($connection:expr, |$c:ident| $body:expr) => {
        match $crate::store::Connection::handle($connection) {
            $crate::store::Handle::Sqlite($c) => $body,
            $crate::store::Handle::Postgres($c) => $body,
        }
    };
}

/// A pooled connection, for reading: each statement stands alone.
pub enum Conn {
    /// SQLite.
    Sqlite(PoolConnection<Sqlite>),
    /// PostgreSQL.
    Postgres(PoolConnection<Postgres>),
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[must_use = "a transaction that is not committed is rolled back"]
pub enum Tx {
    /// SQLite, begun with `BEGIN IMMEDIATE`.
    Sqlite(Transaction<'static, Sqlite>),
    /// PostgreSQL, `READ COMMITTED`.
    Postgres(Transaction<'static, Postgres>),
}

impl Connection for Conn {
    fn handle(&mut self) -> Handle<'_> {
        match self {
            Conn::Sqlite(c) => Handle::Sqlite(&mut *c),
            Conn::Postgres(c) => Handle::Postgres(&mut *c),
        }
    }
}

impl Connection for Tx {
    fn handle(&mut self) -> Handle<'_> {
        match self {
            Tx::Sqlite(c) => Handle::Sqlite(&mut *c),
            Tx::Postgres(c) => Handle::Postgres(&mut *c),
        }
    }
}

impl Tx {
    /// Makes everything done in this transaction durable and visible, at once.
    ///
    /// # Errors
    /// If the database refuses or is away; then nothing of the transaction is kept.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Tx::Sqlite(tx) => tx.commit().await?,
            Tx::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// ` FOR UPDATE` where the database needs it to lock the rows that a `SELECT` reads; SQLite's one writer already has.
    pub fn for_update(&self) -> &'static str {
        match self {
            Tx::Sqlite(_) => "",
            Tx::Postgres(_) => " FOR UPDATE",
        }
    }

    /// ` FOR UPDATE SKIP LOCKED` where rows are shared out among concurrent workers.
    pub fn skip_locked(&self) -> &'static str {
        match self {
            Tx::Sqlite(_) => "",
            Tx::Postgres(_) => " FOR UPDATE SKIP LOCKED",
        }
    }
}

/// How long a statement waits for a free connection before the request fails with 503.
const ACQUIRE: Duration = Duration::from_secs(5);

impl Db {
    /// Connects to `sqlite:PATH` or `postgres://…`; a SQLite file is made if missing.
    ///
    /// # Errors
    /// [`StoreError::Url`] for another scheme; otherwise what the database said.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)
                .map_err(|error| StoreError::Url(error.to_string()))?
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(ACQUIRE)
                .statement_cache_capacity(512);
            let write = SqlitePoolOptions::new()
                .max_connections(1)
                .min_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .acquire_timeout(ACQUIRE)
                .connect_with(options.clone())
                .await?;
            let read = SqlitePoolOptions::new()
                .max_connections(max_connections.max(2))
                .test_before_acquire(false)
                .acquire_timeout(ACQUIRE)
                .connect_with(options.pragma("query_only", "ON"))
                .await?;
            Ok(Db::Sqlite { read, write })
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url)
                .map_err(|error| StoreError::Url(error.to_string()))?
                .application_name("kaizen")
                .statement_cache_capacity(512);
            // The pool would try until its time is over and then say only that; a single attempt says what is wrong.
            PgConnection::connect_with(&options).await?.close().await?;
            // A broken connection is noticed by the statement that meets it; asking first would double each round trip.
            let pool = PgPoolOptions::new()
                .max_connections(max_connections)
                .test_before_acquire(false)
                .acquire_timeout(ACQUIRE)
                .connect_with(options)
                .await?;
            Ok(Db::Postgres(pool))
        } else {
            Err(StoreError::Url("it must begin with `sqlite:` or `postgres://`".into()))
        }
    }
}
