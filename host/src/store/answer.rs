//! How long PostgreSQL's answers are waited for.
//!
//! PostgreSQL's own limits on statements and locks do not help where its processes are stopped, or its host is cut off without a word:
//! nothing closes the connection, and a statement would wait for its answer without end. It is given up here instead, and its
//! connection with it.

use std::{
    future::Future,
    io,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use sqlx::{
    Describe, Either, Error, Execute, Executor, PgConnection, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::{sleep, timeout};

/// A connection whose answers are waited for so long and no longer.
#[derive(Debug)]
pub struct Patient {
    connection: PgConnection,
    patience: Duration,
    /// An answer did not come in time: the connection is of no use any more, since it may still come.
    gave_up: bool,
}

fn late() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database did not answer in time"))
}

/// The answer, if it comes within `patience`.
async fn within<T>(
    answer: impl Future<Output = Result<T, Error>>,
    patience: Duration,
    gave_up: &mut bool,
) -> Result<T, Error> {
    if let Ok(answer) = timeout(patience, answer).await {
        return answer;
    }
    *gave_up = true;
    Err(late())
}

impl Patient {
    pub(super) fn new(connection: PgConnection, patience: Duration) -> Self {
        Self { connection, patience, gave_up: false }
    }

    /// The connection itself, for what may take longer: migrations.
    pub(super) fn unbounded(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Whether an answer that was given up may still come.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }
}

impl<'c> Executor<'c> for &'c mut Patient {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Patient { connection, patience, gave_up } = self;
        let mut answers = connection.fetch_many(query);
        let mut end = Box::pin(sleep(*patience));
        let next = move |context: &mut Context<'_>| match answers.poll_next_unpin(context) {
            Poll::Pending if end.poll_unpin(context).is_ready() => {
                *gave_up = true;
                Poll::Ready(Some(Err(late())))
            }
            answer => answer,
        };
        stream::poll_fn(next).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let Patient { connection, patience, gave_up } = self;
        within(connection.fetch_optional(query), *patience, gave_up).boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        let Patient { connection, patience, gave_up } = self;
        within(connection.prepare_with(sql, parameters), *patience, gave_up).boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        let Patient { connection, patience, gave_up } = self;
        within(connection.describe(sql), *patience, gave_up).boxed()
    }
}
