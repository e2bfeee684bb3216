//! What a migration leaves to the server, because SQL cannot do it: once after migrations were applied.

use super::{Connection, Store, StoreError, Tx};
use crate::on;

impl Store {
    /// Does `work` unless it was done since the last migration was applied. Where it fails, or the host goes away, the next start
    /// does it again. Hosts that start together may each do it.
    ///
    /// After the next migrations it is done again: a host of the earlier version may have run beside this one.
    ///
    /// # Errors
    /// As `work` and the database say.
    pub async fn after_migrations(
        &self,
        name: &str,
        work: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let last = self.last_migration();
        if done(&mut self.read().await?, name).await? >= Some(last) {
            return Ok(());
        }
        work.await?;
        let mut tx = self.begin().await?;
        finish(&mut tx, name, last).await?;
        tx.commit().await
    }
}

/// The last migration that had been applied when this was done.
async fn done(c: &mut impl Connection, name: &str) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT migration FROM data_migrations WHERE name = $1";
    Ok(on!(c, |c| sqlx::query_scalar(sql).bind(name).fetch_optional(c).await)?)
}

async fn finish(tx: &mut Tx, name: &str, migration: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO data_migrations (name, migration) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET migration = excluded.migration
               WHERE data_migrations.migration < excluded.migration";
    on!(tx, |c| sqlx::query(sql).bind(name).bind(migration).execute(c).await.map(drop))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::fixture::Database;

    #[tokio::test]
    async fn what_migrations_leave_is_done_once_after_each_of_them() {
        for database in Database::each().await {
            let (store, times) = (&database.store, AtomicUsize::new(0));
            let start = async |works: bool| {
                let work = async {
                    times.fetch_add(1, Ordering::Relaxed);
                    if works { Ok(()) } else { Err(StoreError::Stale) }
                };
                store.after_migrations("test", work).await.is_ok()
            };
            assert!(!start(false).await);
            let (one, two) = tokio::join!(start(true), start(true));
            assert!(one && two && start(true).await);
            let before = times.load(Ordering::Relaxed);
            assert!((2..=3).contains(&before), "{before}");
            assert!(start(true).await);
            assert_eq!(times.load(Ordering::Relaxed), before, "done");
            // An upgrade later.
            let mut tx = store.begin().await.unwrap();
            let sql = "UPDATE data_migrations SET migration = migration - 1";
            on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
            tx.commit().await.unwrap();
            assert!(start(true).await);
            assert_eq!(times.load(Ordering::Relaxed), before + 1);
            // A host of an earlier version takes nothing back.
            let mut tx = store.begin().await.unwrap();
            finish(&mut tx, "test", 1).await.unwrap();
            tx.commit().await.unwrap();
            assert!(start(true).await);
            assert_eq!(times.load(Ordering::Relaxed), before + 1);
        }
    }
}
