//! A fresh database for each test, and a second connection to it.

use std::{path::Path, str::FromStr};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, SqliteConnection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions,
};

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file in the server's data folder.
    Sqlite,
    /// A database of its own in the cluster of `tests/run`.
    Postgres,
}

/// A database; dropped with the test.
pub struct Database {
    pub backend: Backend,
    /// As in `KAIZEN_DATABASE_URL`.
    pub url: String,
    name: Option<String>,
}

/// A second connection, beside the server's.
pub enum Direct {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

fn cluster() -> PgConnectOptions {
    let url = std::env::var("KZTEST_POSTGRES_URL")
        .expect("PostgreSQL is needed: run the tests with `tests/run`, or set KZTEST_POSTGRES_URL");
    PgConnectOptions::from_str(&url).expect("KZTEST_POSTGRES_URL")
}

impl Database {
    pub async fn fresh(backend: Backend, dir: &Path) -> Self {
        match backend {
            Backend::Sqlite => Self { backend, url: format!("sqlite:{}", dir.join("kaizen.db").display()), name: None },
            Backend::Postgres => {
                let name = format!("kztest_{}", super::fresh_id().simple());
                let options = cluster();
                let mut connection =
                    PgConnection::connect_with(&options).await.expect("the PostgreSQL of KZTEST_POSTGRES_URL");
                sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
                    .execute(&mut connection)
                    .await
                    .expect("CREATE DATABASE");
                connection.close().await.ok();
                let mut url = url::Url::parse(&std::env::var("KZTEST_POSTGRES_URL").expect("set")).expect("an address");
                url.set_path(&name);
                Self { backend, url: url.to_string(), name: Some(name) }
            }
        }
    }

    /// The database of a cluster that is the test's own, and goes with it.
    pub fn of(cluster: &super::Cluster) -> Self {
        Self { backend: Backend::Postgres, url: cluster.url(), name: None }
    }

    /// The same database through another port, for a test that cuts the connection.
    pub fn url_through(&self, port: u16) -> String {
        let mut url = url::Url::parse(&self.url).expect("an address");
        url.set_host(Some("127.0.0.1")).expect("has a host");
        url.set_port(Some(port)).expect("has a port");
        url.to_string()
    }

    /// The port of the cluster.
    pub fn cluster_port() -> u16 {
        cluster().get_port()
    }

    pub async fn direct(&self) -> Direct {
        match self.backend {
            Backend::Sqlite => {
                let options = SqliteConnectOptions::from_str(&self.url).expect("an address");
                let options = options.busy_timeout(std::time::Duration::from_secs(20));
                Direct::Sqlite(SqliteConnection::connect_with(&options).await.expect("a second connection"))
            }
            Backend::Postgres => Direct::Postgres(PgConnection::connect(&self.url).await.expect("a second connection")),
        }
    }
}

impl Direct {
    /// Runs statements that take no parameters; returns how many rows the last one changed.
    pub async fn execute(&mut self, sql: &str) -> u64 {
        self.try_execute(sql).await.expect("statement")
    }

    /// The same where the database may refuse.
    pub async fn try_execute(&mut self, sql: &str) -> sqlx::Result<u64> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match self {
            Direct::Sqlite(c) => sqlx::raw_sql(sql).execute(c).await?.rows_affected(),
            Direct::Postgres(c) => sqlx::raw_sql(sql).execute(c).await?.rows_affected(),
        })
    }

    /// The single number that a query answers.
    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Direct::Sqlite(c) => sqlx::query_scalar(sql).fetch_one(c).await.expect("query"),
            Direct::Postgres(c) => sqlx::query_scalar(sql).fetch_one(c).await.expect("query"),
        }
    }

    /// The single column of text that a query answers.
    pub async fn names(&mut self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Direct::Sqlite(c) => sqlx::query_scalar(sql).fetch_all(c).await.expect("query"),
            Direct::Postgres(c) => sqlx::query_scalar(sql).fetch_all(c).await.expect("query"),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        // A runtime of its own: the test's may be going away.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect_with(&cluster()).await.ok()?;
                sqlx::query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")))
                    .execute(&mut connection)
                    .await
                    .ok()
            })
        });
        dropping.join().ok();
    }
}
