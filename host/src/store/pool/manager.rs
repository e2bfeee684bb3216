//! How connections are opened, begin, and are looked at before they are used again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use sqlx::{AssertSqlSafe, Connection as _, Database, PgConnection, Postgres, Sqlite, SqliteConnection};

use super::super::answer::Patient;

/// A connection unused for longer is asked whether it still lives: something on the way may have dropped it.
const QUIET: Duration = Duration::from_secs(10);

/// Counts failures of connections, of any pool: each asks every connection of the process once whether it still lives.
static TROUBLE: AtomicU64 = AtomicU64::new(0);

/// A connection failed, or the database said that it is going away.
pub(in super::super) fn trouble() {
    TROUBLE.fetch_add(1, Ordering::Relaxed);
}

/// What differs in how the two databases are told to begin.
pub trait Dialect: Database {
    /// Begins a transaction that will write.
    const BEGIN: &'static str;
    /// A connection as statements use it.
    type Session: Send;
    /// Takes a new connection over; each of its answers is waited for as long as `patience`.
    fn session(connection: Self::Connection, patience: Duration) -> Self::Session;
    /// Runs one statement without parameters or rows.
    fn run(session: &mut Self::Session, sql: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Whether it still lives.
    fn ping(session: &mut Self::Session) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Whether an answer that nobody waits for any more may still come.
    fn gave_up(session: &Self::Session) -> bool;
}

impl Dialect for Sqlite {
    // The write lock from the start: a read that becomes a write later can fail with `SQLITE_BUSY`.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    // A file answers: what it waits for is another writer, for as long as `busy_timeout` says.
    type Session = SqliteConnection;

    fn session(connection: SqliteConnection, _: Duration) -> SqliteConnection {
        connection
    }

    async fn run(session: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await.map(drop)
    }

    async fn ping(session: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::Connection::ping(session).await
    }

    fn gave_up(_: &SqliteConnection) -> bool {
        false
    }
}

impl Dialect for Postgres {
    const BEGIN: &'static str = "BEGIN";

    type Session = Patient;

    fn session(connection: PgConnection, patience: Duration) -> Patient {
        Patient::new(connection, patience)
    }

    async fn run(session: &mut Patient, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await.map(drop)
    }

    async fn ping(session: &mut Patient) -> Result<(), sqlx::Error> {
        session.unbounded().ping().await
    }

    fn gave_up(session: &Patient) -> bool {
        session.gave_up()
    }
}

/// Opens connections, and looks at those that come back.
pub struct Manager<D: Dialect> {
    pub(super) options: <D::Connection as sqlx::Connection>::Options,
    pub(super) lifetime: Duration,
    /// How long an answer is waited for.
    pub(super) patience: Duration,
    /// What a new connection begins with.
    pub(super) session: Session,
    /// And with this, which a test may change.
    #[cfg(test)]
    pub(super) also: parking_lot::Mutex<Option<&'static str>>,
}

/// Statements that a new connection begins with.
#[derive(Clone, Default)]
pub(in super::super) struct Session {
    /// Without these it is not used.
    needed: Option<Arc<str>>,
    /// These the server may refuse.
    wanted: &'static [&'static str],
}

impl Session {
    pub(in super::super) fn new(needed: String, wanted: &'static [&'static str]) -> Self {
        Self { needed: Some(needed.into()), wanted }
    }

    async fn begin<D: Dialect>(&self, connection: &mut D::Session) -> Result<(), sqlx::Error> {
        if let Some(needed) = &self.needed {
            D::run(connection, needed).await?;
        }
        for wanted in self.wanted {
            match D::run(connection, wanted).await {
                Err(sqlx::Error::Database(error)) => tracing::debug!(%error, wanted, "the database refuses a setting"),
                other => other?,
            }
        }
        Ok(())
    }
}

/// Whatever goes wrong while a connection is being opened, the database is away: sqlx takes the end of a stream that is cut
/// before PostgreSQL answered whether it speaks TLS for an answer that it does not know.
fn unreachable(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Protocol(what) => sqlx::Error::Io(std::io::Error::other(what)),
        sqlx::Error::Tls(what) => sqlx::Error::Io(std::io::Error::other(what)),
        error => error,
    }
}

/// A connection, and the last trouble that it survived.
pub struct Kept<C> {
    pub(super) connection: C,
    survived: u64,
}

impl<D: Dialect> managed::Manager for Manager<D> {
    type Type = Kept<D::Session>;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Self::Type, sqlx::Error> {
        let survived = TROUBLE.load(Ordering::Relaxed);
        // Boxed, as rarely needed and large: whoever awaits a connection holds this within its own future.
        let connection = Box::pin(D::Connection::connect_with(&self.options)).await.map_err(unreachable)?;
        let mut connection = D::session(connection, self.patience);
        Box::pin(self.session.begin::<D>(&mut connection)).await?;
        #[cfg(test)]
        {
            let also = *self.also.lock();
            if let Some(also) = also {
                D::run(&mut connection, also).await?;
            }
        }
        Ok(Kept { connection, survived })
    }

    async fn recycle(&self, kept: &mut Self::Type, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > self.lifetime {
            return Err(RecycleError::message("old"));
        }
        if D::gave_up(&kept.connection) {
            return Err(RecycleError::message("an answer is still to come"));
        }
        let trouble = TROUBLE.load(Ordering::Relaxed);
        if kept.survived != trouble || metrics.last_used() > QUIET {
            Box::pin(D::ping(&mut kept.connection)).await?;
            kept.survived = trouble;
        }
        Ok(())
    }
}
