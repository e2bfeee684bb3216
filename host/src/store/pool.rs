//! Connections, kept open and handed out.
//!
//! deadpool keeps them: sqlx's own pool asks the database whether a connection still lives each time one is given back,
//! which costs every read a second round trip. Here that is asked only where there is a reason to: the last statement
//! did not run to its end, some connection of the process failed since, or it was long unused.

mod manager;

use std::time::Duration;

use deadpool::{
    Runtime,
    managed::{self, Object, PoolError, QueueMode, TimeoutType},
};
use tokio::{runtime::Handle, time::timeout};

use self::manager::{Dialect, Manager};
pub(super) use self::manager::{Session, trouble};
use super::{StoreError, audit::Heads, held::Held};

/// How long a statement waits for a free connection, or for a new one, before the request fails with 503.
pub(super) const ACQUIRE: Duration = Duration::from_secs(5);
/// A connection this old is replaced.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A pool. Cheap to clone.
pub struct Pool<D: Dialect>(managed::Pool<Manager<D>>);

impl<D: Dialect> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Dialect> Pool<D> {
    /// A pool of at most `size` connections, one of which is opened now. Each begins with `session`,
    /// and waits for an answer as long as `patience`.
    ///
    /// # Errors
    /// What the database said.
    pub(super) async fn open(
        options: <D::Connection as sqlx::Connection>::Options,
        size: usize,
        patience: Duration,
        session: Session,
    ) -> Result<Self, StoreError> {
        Self::built(options, LIFETIME, patience, session, size).await
    }

    /// As [`Pool::open`], for a database that is a file: its connections do not age.
    ///
    /// # Errors
    /// What the database said.
    pub(super) async fn lasting(
        options: <D::Connection as sqlx::Connection>::Options,
        size: usize,
        lifetime: Duration,
    ) -> Result<Self, StoreError> {
        Self::built(options, lifetime, Duration::MAX, Session::default(), size).await
    }

    async fn built(
        options: <D::Connection as sqlx::Connection>::Options,
        lifetime: Duration,
        patience: Duration,
        session: Session,
        size: usize,
    ) -> Result<Self, StoreError> {
        let manager = Manager {
            options,
            lifetime,
            patience,
            session,
            #[cfg(test)]
            also: Default::default(),
        };
        let built = managed::Pool::builder(manager)
            .max_size(size)
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(ACQUIRE))
            .create_timeout(Some(ACQUIRE))
            .recycle_timeout(Some(ACQUIRE))
            .runtime(Runtime::Tokio1)
            .build();
        let pool = Self(built.map_err(|error| StoreError::Url(error.to_string()))?);
        drop(pool.get().await?);
        Ok(pool)
    }

    /// A connection; waits for one at most [`ACQUIRE`], those included that turn out not to answer any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(super) async fn get(&self) -> Result<Lent<D>, StoreError> {
        let held = Held::take();
        let got = timeout(ACQUIRE, self.0.get()).await.unwrap_or(Err(PoolError::Timeout(TimeoutType::Wait)));
        match got {
            Ok(object) => Ok(Lent { object: Some(object), unsettled: false, _held: held }),
            Err(PoolError::Backend(error)) => Err(error.into()),
            Err(PoolError::Timeout(_)) => Err(sqlx::Error::PoolTimedOut.into()),
            Err(PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
                Err(sqlx::Error::PoolClosed.into())
            }
        }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(super) async fn begin(&self, heads: Heads) -> Result<Open<D>, StoreError> {
        let mut open = Open { lent: self.get().await?, ended: false, heads };
        D::run(open.connection(), D::BEGIN).await?;
        Ok(open)
    }
}

/// A connection that goes back when it is dropped.
pub struct Lent<D: Dialect> {
    /// There until it is dropped.
    object: Option<Object<Manager<D>>>,
    /// A statement was begun, and is not known to have run to its end.
    unsettled: bool,
    _held: Held,
}

impl<D: Dialect> Lent<D> {
    /// For one statement; to be followed by [`Lent::settled`].
    pub(super) fn connection(&mut self) -> &mut D::Session {
        self.unsettled = true;
        #[expect(clippy::expect_used, reason = "only `drop` takes it")]
        &mut self.object.as_mut().expect("a connection that is lent is there").connection
    }

    /// Closes it, in place of giving it back: it has settings that the next borrower must not have.
    pub(super) fn discard(mut self) {
        drop(self.object.take().map(Object::take));
    }

    /// The statement ran to its end.
    pub(super) fn settled(&mut self) {
        self.unsettled = false;
    }
}

impl<D: Dialect> Drop for Lent<D> {
    fn drop(&mut self) {
        if self.unsettled
            && let Some(object) = self.object.take()
        {
            // Whoever gets it next would wait for the rest of the answer.
            put_back(object, false);
        }
    }
}

/// A connection in a transaction, which is rolled back unless it is committed.
pub struct Open<D: Dialect> {
    lent: Lent<D>,
    ended: bool,
    /// Of the audit chains.
    pub(super) heads: Heads,
}

impl<D: Dialect> Open<D> {
    /// For one statement.
    pub(super) fn connection(&mut self) -> &mut D::Session {
        self.lent.connection()
    }

    /// Makes what was done durable and visible.
    ///
    /// # Errors
    /// If the database refuses or is away.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        D::run(self.lent.connection(), "COMMIT").await?;
        self.ended = true;
        self.lent.settled();
        Ok(())
    }
}

#[cfg(test)]
impl<D: Dialect> Pool<D> {
    /// What connections that are opened from now on begin with too.
    pub(super) fn begin_with(&self, sql: Option<&'static str>) {
        *self.0.manager().also.lock() = sql;
    }
}

#[cfg(test)]
impl<D: Dialect> Open<D> {
    /// What dropping does, and waits until it is done.
    pub(super) async fn rollback(mut self) -> Result<(), StoreError> {
        D::run(self.lent.connection(), "ROLLBACK").await?;
        self.ended = true;
        self.lent.settled();
        Ok(())
    }
}

impl<D: Dialect> Drop for Open<D> {
    fn drop(&mut self) {
        if !self.ended
            && let Some(object) = self.lent.object.take()
        {
            put_back(object, true);
        }
    }
}

/// Gives a connection back once it is known to be at rest, in the background; otherwise closes it.
fn put_back<D: Dialect>(mut object: Object<Manager<D>>, roll_back: bool) {
    if D::gave_up(&object.connection) {
        drop(Object::take(object));
        return;
    }
    let mend = async move {
        let connection = &mut object.connection;
        let at_rest = async {
            // Where the transaction was not even begun, or ended already, this says so and does nothing.
            if roll_back { D::run(connection, "ROLLBACK").await } else { D::ping(connection).await }
        };
        if !matches!(timeout(ACQUIRE, at_rest).await, Ok(Ok(()))) {
            drop(Object::take(object));
        }
    };
    // Without a runtime there is nobody left to use the pool.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(mend);
    }
}

#[cfg(test)]
mod tests;
