//! Two databases, one text: a connection to either, and [`on!`] to run the same SQL on both.

use std::{str::FromStr, time::Duration};

use sqlx::{
    ConnectOptions as _, Postgres, Sqlite, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::config::limits::ServerLimits;

use super::{
    StoreError,
    answer::Patient,
    audit::Heads,
    pool::{ACQUIRE, Lent, Open, Pool, Session},
};

/// The database in use, with its pools. Cheap to clone.
#[derive(Clone)]
pub enum Db {
    /// One file. SQLite has one writer, so writing has a pool of one: waiting happens there, in order, not in `SQLITE_BUSY`.
    Sqlite {
        /// For reading; opened so that it cannot write.
        read: Pool<Sqlite>,
        /// For everything else.
        write: Pool<Sqlite>,
    },
    /// A PostgreSQL server.
    Postgres(Pool<Postgres>),
}

/// A borrowed connection to either database; what [`on!`] takes apart.
pub enum Handle<'a> {
    /// SQLite.
    Sqlite(&'a mut SqliteConnection),
    /// PostgreSQL.
    Postgres(&'a mut Patient),
}

/// Anything SQL can be run on: a pooled connection or a transaction.
pub trait Connection: Send {
    /// The connection inside, for one statement.
    fn handle(&mut self) -> Handle<'_>;

    /// The statement ran to its end: nothing of its answer is still to come.
    fn settled(&mut self);
}

/// Runs one expression on whichever database `$connection` is of. The SQL must mean the same on both.
///
/// ```ignore
/// on!(tx, |c| sqlx::query_as::<_, Agent>("SELECT … WHERE id = $1").bind(id).fetch_optional(c).await)?
/// ```
#[macro_export]
macro_rules! on {
    ($connection:expr, |$c:ident| $body:expr) => {{
        let connection: &mut _ = $connection;
        let answer = match $crate::store::Connection::handle(connection) {
            $crate::store::Handle::Sqlite($c) => $body,
            $crate::store::Handle::Postgres($c) => $body,
        };
        $crate::store::Connection::settled(connection);
        answer
    }};
}

/// A pooled connection, for reading: each statement stands alone.
pub enum Conn {
    /// SQLite.
    Sqlite(Lent<Sqlite>),
    /// PostgreSQL.
    Postgres(Lent<Postgres>),
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[must_use = "a transaction that is not committed is rolled back"]
pub enum Tx {
    /// SQLite, begun with `BEGIN IMMEDIATE`.
    Sqlite(Open<Sqlite>),
    /// PostgreSQL, `READ COMMITTED`.
    Postgres(Open<Postgres>),
}

impl Connection for Conn {
    fn handle(&mut self) -> Handle<'_> {
        match self {
            Conn::Sqlite(c) => Handle::Sqlite(c.connection()),
            Conn::Postgres(c) => Handle::Postgres(c.connection()),
        }
    }

    fn settled(&mut self) {
        match self {
            Conn::Sqlite(c) => c.settled(),
            Conn::Postgres(c) => c.settled(),
        }
    }
}

impl Connection for Tx {
    fn handle(&mut self) -> Handle<'_> {
        match self {
            Tx::Sqlite(c) => Handle::Sqlite(c.connection()),
            Tx::Postgres(c) => Handle::Postgres(c.connection()),
        }
    }

    // Whatever is still to come does before the answer to the commit or the rollback.
    fn settled(&mut self) {}
}

impl Tx {
    /// Makes everything done in this transaction durable and visible, at once.
    ///
    /// # Errors
    /// If the database refuses or is away; then nothing of the transaction is kept.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Tx::Sqlite(tx) => tx.commit().await,
            Tx::Postgres(tx) => tx.commit().await,
        }
    }

    /// Rolls back, and waits until that is done; dropping does not wait.
    #[cfg(test)]
    pub async fn rollback(self) -> Result<(), StoreError> {
        match self {
            Tx::Sqlite(tx) => tx.rollback().await,
            Tx::Postgres(tx) => tx.rollback().await,
        }
    }

    /// What this host believes the audit chains to end with.
    pub fn heads(&self) -> &Heads {
        match self {
            Tx::Sqlite(tx) => &tx.heads,
            Tx::Postgres(tx) => &tx.heads,
        }
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

/// What each session with PostgreSQL begins with: nobody waits for a statement, a lock or a silent peer without end. A host that is
/// cut off within a transaction would otherwise keep its locks until TCP gives up, hours later. What is acknowledged is on disk, also where
/// the operator's default is not to wait for that; a stricter default, such as `remote_apply`, stays.
///
/// By `SET` and not in the start-up packet, which connection poolers refuse.
/// Source: <https://www.postgresql.org/docs/current/runtime-config-client.html> and `runtime-config-connection.html`.
fn session(limits: &ServerLimits) -> String {
    let ServerLimits { database_statement_seconds, database_lock_seconds, database_idle_transaction_seconds, .. } =
        limits;
    format!(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
         SET statement_timeout = '{database_statement_seconds}s';
         SET lock_timeout = '{database_lock_seconds}s';
         SET idle_in_transaction_session_timeout = '{database_idle_transaction_seconds}s'"
    )
}

/// What a session is better with, and comes up without: a server on another system than Linux may know one of these and refuse it, as
/// PostgreSQL on Windows does the check of the connection, and what only speaks PostgreSQL's protocol need not know them. Nothing of
/// this is set on our end of the connection, where [`Patient`] does not wait for a silent server.
const WHERE_POSSIBLE: [&str; 2] = [
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3",
    "SET client_connection_check_interval = '5s'",
];

/// What a migration needs of its session: it may rewrite a table.
pub(super) const WITHOUT_TIME_LIMITS: &str = "SET statement_timeout = 0; SET lock_timeout = 0";

impl Db {
    /// Connects to `sqlite:PATH` or `postgres://…`; a SQLite file is made if missing.
    ///
    /// # Errors
    /// [`StoreError::Url`] for another scheme; otherwise what the database said.
    pub async fn connect(url: &str, limits: &ServerLimits) -> Result<Self, StoreError> {
        let connections = usize::try_from(limits.database_connections).unwrap_or(2).max(2);
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)
                .map_err(|error| StoreError::Url(error.to_string()))?
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(ACQUIRE)
                .statement_cache_capacity(512)
                .disable_statement_logging();
            // A file's connections do not age, and one that is closed takes its cache along.
            let write = Pool::lasting(options.clone(), 1, Duration::MAX).await?;
            let read = Pool::lasting(options.pragma("query_only", "ON"), connections, Duration::MAX).await?;
            Ok(Db::Sqlite { read, write })
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url)
                .map_err(|error| StoreError::Url(error.to_string()))?
                .application_name("kaizen")
                .statement_cache_capacity(512)
                .disable_statement_logging();
            let pool = Pool::open(
                options,
                connections,
                limits.database_answer(),
                Session::new(session(limits), &WHERE_POSSIBLE),
            )
            .await?;
            Ok(Db::Postgres(pool))
        } else {
            Err(StoreError::Url("it must begin with `sqlite:` or `postgres://`".into()))
        }
    }
}
