//! For tests: a fresh database of each kind, gone with the test.

use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{Db, MIGRATIONS, Migrator, POSTGRES, SQLITE, Store};
use crate::{clock::Clock, on};

/// A migrated database, and a data folder for who needs one.
pub(crate) struct Database {
    pub(crate) store: Store,
    pub(crate) url: String,
    pub(crate) folder: tempfile::TempDir,
    /// Its name in the cluster, on PostgreSQL.
    name: Option<String>,
}

impl Database {
    /// SQLite, and the PostgreSQL that `tests/run` offers.
    pub(crate) async fn each() -> Vec<Self> {
        vec![Self::sqlite().await, Self::postgres(i64::MAX).await]
    }

    /// The same, as they were after this migration and before the next: [`Store::migrate`] brings them on.
    pub(crate) async fn each_after(migration: i64) -> Vec<Self> {
        vec![Self::sqlite_after(migration).await, Self::postgres(migration).await]
    }

    pub(crate) async fn sqlite() -> Self {
        Self::sqlite_after(i64::MAX).await
    }

    async fn sqlite_after(migration: i64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::at(format!("sqlite:{}", folder.path().join("kaizen.db").display()), folder, None, migration).await
    }

    async fn postgres(migration: i64) -> Self {
        let name = format!("unit_{}", Clock::system().id::<Uuid>().simple());
        let mut admin = cluster().parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        let mut url = url::Url::parse(&cluster()).unwrap();
        url.set_path(&name);
        Self::at(url.to_string(), tempfile::tempdir().unwrap(), Some(name), migration).await
    }

    async fn at(url: String, folder: tempfile::TempDir, name: Option<String>, last: i64) -> Self {
        let store = Store::connect(&url, &Default::default()).await.unwrap();
        let until = |of: &Migrator| {
            let migrations = of.iter().filter(|migration| migration.version <= last).cloned().collect();
            let mut migrator = Migrator::with_migrations(migrations);
            migrator.dangerous_set_table_name(MIGRATIONS);
            migrator
        };
        match &store.db {
            Db::Sqlite { write, .. } => {
                until(&SQLITE).run(write.get().await.unwrap().connection()).await.unwrap();
            }
            Db::Postgres(pool) => {
                let mut lent = pool.get().await.unwrap();
                until(&POSTGRES).run(lent.connection().unbounded()).await.unwrap();
                lent.discard();
            }
        }
        Self { store, url, folder, name }
    }
}

impl Store {
    /// SQLite's file does not grow any more, as if its disk were full, until it may again.
    pub(crate) async fn pretend_full(&self, full: bool) {
        let Db::Sqlite { write, .. } = &self.db else { panic!("SQLite") };
        let (sql, also) = if full {
            ("PRAGMA max_page_count = 1", Some("PRAGMA max_page_count = 1"))
        } else {
            ("PRAGMA max_page_count = 1000000", None)
        };
        // A connection that failed for it is closed, and another one opened.
        write.begin_with(also);
        let mut tx = self.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
    }
}

fn cluster() -> String {
    std::env::var("KZTEST_POSTGRES_URL")
        .expect("PostgreSQL is needed: run the tests with `tests/run`, or set KZTEST_POSTGRES_URL")
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        // A runtime of its own: the test's may be going away.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut admin = cluster().parse::<PgConnectOptions>().ok()?.connect().await.ok()?;
                let drop = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                sqlx::query(drop).execute(&mut admin).await.ok()
            })
        });
        dropping.join().ok();
    }
}
