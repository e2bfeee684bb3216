//! What a migration leaves to the server, because SQL cannot do it: at each start of the days after migrations were applied.
//!
//! Once is not enough: hosts of the earlier version may go on writing what this one compares otherwise until the last of them has been
//! replaced.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Connection, Store, StoreError, Tx};
use crate::on;

/// How long after it was done first it is done again with each start: no upgrade that replaces one host after the other takes longer.
const UPGRADE: TimeDelta = TimeDelta::days(7);

impl Store {
    /// Does `work` unless it was done first, since the last migration was applied, longer ago than [`UPGRADE`]. Where it fails, or the
    /// host goes away, the next start does it again. Hosts that start together may each do it.
    ///
    /// # Errors
    /// As `work` and the database say.
    pub async fn after_migrations(
        &self,
        name: &str,
        now: DateTime<Utc>,
        work: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let last = self.last_migration();
        let done = done(&mut self.read().await?, name).await?;
        if done.is_some_and(|done| done.migration >= last && done.first_at.is_some_and(|at| now - at > UPGRADE)) {
            return Ok(());
        }
        work.await?;
        let mut tx = self.begin().await?;
        finish(&mut tx, name, last, now).await?;
        tx.commit().await
    }
}

/// That something was done.
#[derive(sqlx::FromRow)]
struct Done {
    /// The last migration that had been applied.
    migration: i64,
    /// When it was done first since; absent where a host of an earlier version did it.
    first_at: Option<DateTime<Utc>>,
}

async fn done(c: &mut impl Connection, name: &str) -> Result<Option<Done>, StoreError> {
    let sql = "SELECT migration, first_at FROM data_migrations WHERE name = $1";
    Ok(on!(c, |c| sqlx::query_as(sql).bind(name).fetch_optional(c).await)?)
}

async fn finish(tx: &mut Tx, name: &str, migration: i64, now: DateTime<Utc>) -> Result<(), StoreError> {
    let sql = "INSERT INTO data_migrations (name, migration, first_at) VALUES ($1, $2, $3)
               ON CONFLICT (name) DO UPDATE SET migration = excluded.migration, first_at = excluded.first_at
               WHERE data_migrations.migration < excluded.migration
                  OR (data_migrations.migration = excluded.migration AND data_migrations.first_at IS NULL)";
    on!(tx, |c| sqlx::query(sql).bind(name).bind(migration).bind(now).execute(c).await.map(drop))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{clock::Clock, store::fixture::Database};

    #[tokio::test]
    async fn what_migrations_leave_is_done_with_each_start_for_a_week_after_them() {
        for database in Database::each().await {
            let (store, times) = (&database.store, AtomicUsize::new(0));
            let began = Clock::system().now();
            let start = async |day: i64, works: bool| {
                let work = async {
                    times.fetch_add(1, Ordering::Relaxed);
                    if works { Ok(()) } else { Err(StoreError::Stale) }
                };
                store.after_migrations("test", began + TimeDelta::days(day), work).await.is_ok()
            };
            let done = || times.swap(0, Ordering::Relaxed);
            assert!(!start(0, false).await);
            let (one, two) = tokio::join!(start(1, true), start(1, true));
            assert!(one && two);
            assert_eq!(done(), 3);
            // Hosts of the earlier version may still be there; later they are not.
            assert!(start(2, true).await && start(8, true).await);
            assert_eq!(done(), 2);
            assert!(start(9, true).await);
            assert_eq!(done(), 0);
            // An upgrade later.
            let earlier = |sql: &'static str| async move {
                let mut tx = store.begin().await.unwrap();
                on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
                tx.commit().await.unwrap();
            };
            earlier("UPDATE data_migrations SET migration = migration - 1").await;
            assert!(start(100, true).await && start(107, true).await && start(108, true).await);
            assert_eq!(done(), 2);
            // A host of an earlier version takes nothing back, and what it did counts from the next start on.
            let mut tx = store.begin().await.unwrap();
            finish(&mut tx, "test", 1, began).await.unwrap();
            tx.commit().await.unwrap();
            assert!(start(108, true).await);
            assert_eq!(done(), 0);
            earlier("UPDATE data_migrations SET first_at = NULL").await;
            assert!(start(200, true).await && start(208, true).await);
            assert_eq!(done(), 1);
        }
    }
}
