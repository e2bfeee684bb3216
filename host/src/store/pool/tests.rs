//! What a pool must hold to: what one borrower leaves behind is never another's business.

use std::time::Duration;

use sqlx::{Postgres, postgres::PgConnectOptions};
use tokio::io::AsyncReadExt as _;

use super::{Pool, Session};
use crate::{
    jobs::fixture::Fixture,
    on,
    store::{Connection, Handle, Store, StoreError, Unwritable, health},
};

async fn number(store: &Store, sql: &'static str) -> Result<i64, StoreError> {
    let mut conn = store.read().await?;
    Ok(on!(&mut conn, |c| sqlx::query_scalar(sql).fetch_one(c).await)?)
}

fn is_postgres(c: &mut impl Connection) -> bool {
    matches!(c.handle(), Handle::Postgres(_))
}

#[tokio::test]
async fn a_transaction_that_is_dropped_keeps_nothing_and_holds_no_lock() {
    for fixture in Fixture::each().await {
        let store = &fixture.store;
        fixture.tenant().await;
        let mut tx = store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query("UPDATE organizations SET name = 'changed'").execute(c).await.map(|_| ()))
            .unwrap();
        drop(tx);
        // Waits for the row until the one before has been rolled back.
        let mut tx = store.begin().await.unwrap();
        let kept = "UPDATE organizations SET name = 'kept' WHERE name <> 'changed'";
        let rows = on!(&mut tx, |c| sqlx::query(kept).execute(c).await.map(|done| done.rows_affected())).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(rows, 1);
        let left = number(store, "SELECT COUNT(*) FROM organizations WHERE name = 'kept'").await.unwrap();
        assert_eq!(left, 1);
    }
}

#[tokio::test]
async fn a_statement_that_nobody_waits_for_any_more_delays_no_other() {
    for fixture in Fixture::each().await {
        let store = &fixture.store;
        let mut conn = store.read().await.unwrap();
        if !is_postgres(&mut conn) {
            continue;
        }
        let asked = async { on!(&mut conn, |c| sqlx::query("SELECT pg_sleep(20)").execute(c).await.map(drop)) };
        let asleep = async {
            let active = "SELECT COUNT(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND state = 'active' AND query = 'SELECT pg_sleep(20)'";
            while number(store, active).await.unwrap() == 0 {}
        };
        tokio::select! {
            _ = asked => panic!("it sleeps for longer than this takes"),
            () = asleep => {}
        }
        drop(conn);
        // All connections but the one that sleeps are good, and that one is given to nobody.
        for _ in 0..32 {
            let answer = tokio::time::timeout(Duration::from_secs(4), number(store, "SELECT 7::BIGINT")).await;
            assert_eq!(answer.expect("another connection answers").unwrap(), 7);
        }
    }
}

#[tokio::test]
async fn connections_that_the_server_ended_are_replaced() {
    for fixture in Fixture::each().await {
        let store = &fixture.store;
        if !is_postgres(&mut store.read().await.unwrap()) {
            continue;
        }
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(store.read().await.unwrap());
        }
        let mut killer = held.pop().unwrap();
        drop(held);
        let others = "SELECT COUNT(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let ended: i64 = on!(&mut killer, |c| sqlx::query_scalar(others).fetch_one(c).await).unwrap();
        assert!(ended >= 3, "{ended}");
        // The first to meet one of them fails, and from then on each is asked before it is used.
        let mut failed = 0;
        for _ in 0..16 {
            match number(store, "SELECT 7::BIGINT").await {
                Ok(seven) => assert_eq!(seven, 7),
                Err(StoreError::Unavailable(_)) => failed += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(failed <= 1, "{failed} requests failed");
        drop(killer);
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_when_asked_for_tls_is_away() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://kaizen@{}/kaizen", listener.local_addr().unwrap());
    let hang_up = async {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            // The whole of an SSLRequest, so that what follows is an end and no reset.
            socket.read_exact(&mut [0; 8]).await.unwrap();
        }
    };
    let limits = Default::default();
    tokio::select! {
        () = hang_up => panic!("it goes on for ever"),
        connected = Store::connect(&url, &limits) => assert!(matches!(connected, Err(StoreError::Unavailable(_)))),
    }
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn a_task_that_holds_a_connection_and_asks_for_another_is_told() {
    for fixture in Fixture::each().await {
        let store = fixture.store.clone();
        let task = async move {
            let first = store.read().await.unwrap();
            drop(first);
            let _second = store.read().await.unwrap();
            let _third = store.begin().await;
        };
        let panic = tokio::spawn(task).await.unwrap_err().into_panic();
        let told = panic.downcast_ref::<&str>().unwrap();
        assert!(told.contains("while this task holds one"), "{told}");
    }
}

#[tokio::test]
async fn a_session_with_postgres_waits_for_nothing_without_end() {
    for fixture in Fixture::each().await {
        let mut conn = fixture.store.read().await.unwrap();
        if !is_postgres(&mut conn) {
            continue;
        }
        for (name, expected) in [
            ("statement_timeout", "25s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "15s"),
            ("tcp_keepalives_idle", "30"),
            ("tcp_keepalives_interval", "10"),
            ("tcp_keepalives_count", "3"),
            ("client_connection_check_interval", "5s"),
        ] {
            let shown: String = on!(&mut conn, |c| sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(c)
                .await
                .unwrap());
            assert_eq!(shown, expected, "{name}, after the migration too");
        }
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_on_disk_whatever_the_servers_default_is() {
    for fixture in Fixture::each().await {
        if !fixture.url().starts_with("postgres") {
            continue;
        }
        for (default, expected) in [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")] {
            let url = format!("{}?options[synchronous_commit]={default}", fixture.url());
            let store = Store::connect(&url, &Default::default()).await.unwrap();
            let mut tx = store.begin().await.unwrap();
            let shown: String = on!(&mut tx, |c| sqlx::query_scalar("SELECT current_setting('synchronous_commit')")
                .fetch_one(c)
                .await
                .unwrap());
            assert_eq!(shown, expected, "{default}");
        }
    }
}

#[tokio::test]
async fn a_session_comes_up_without_what_its_server_refuses() {
    for fixture in Fixture::each().await {
        if !fixture.url().starts_with("postgres") {
            continue;
        }
        let options: PgConnectOptions = fixture.url().parse().unwrap();
        // Of another system, of a later version, of no version.
        let wanted = &["SET tcp_user_timeout = 'nonsense'", "SET kaizen_no_such_setting = 1", "SET work_mem = '9MB'"];
        let session = Session::new("SET lock_timeout = '7s'".into(), wanted);
        let pool = Pool::<Postgres>::open(options.clone(), 1, Duration::from_secs(20), session).await.unwrap();
        let mut lent = pool.get().await.unwrap();
        for (name, expected) in [("work_mem", "9MB"), ("lock_timeout", "7s")] {
            let shown: Result<String, sqlx::Error> =
                sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(lent.connection()).await;
            assert_eq!(shown.unwrap_or_else(|error| panic!("{name}: {error}")), expected.to_owned());
        }
        lent.settled();
        let needed = Session::new("SET kaizen_no_such_setting = 1".into(), &[]);
        assert!(
            Pool::<Postgres>::open(options, 1, Duration::from_secs(20), needed).await.is_err(),
            "no bound is left out"
        );
    }
}

/// What is known of whether the database can be written is of the whole process: tests that change it take turns.
static HEALTH: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_transaction_that_changed_nothing_does_not_tell_that_the_database_can_be_written() {
    let _turn = HEALTH.lock().await;
    for fixture in Fixture::each().await {
        let store = &fixture.store;
        health::failed(Unwritable::DiskFull, &sqlx::Error::PoolClosed);
        store.begin().await.unwrap().commit().await.unwrap();
        let nothing = store.sweep(&Default::default(), |_, _| Box::pin(async { Ok(0) })).await;
        assert_eq!(nothing.unwrap(), 0);
        assert_eq!(health::unwritable(), Some(Unwritable::DiskFull));
        store.look_again().await;
        assert_eq!(health::unwritable(), None, "it was written to");
    }
}

// The black-box tests do the same to PostgreSQL; there a pool has connections that such a setting does not reach.
#[tokio::test]
async fn a_database_that_takes_no_changes_says_so_until_it_does_again() {
    let _turn = HEALTH.lock().await;
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    fixture.tenant().await;
    let change = async || {
        let mut tx = store.begin().await?;
        let sql = "INSERT INTO write_probe (id, tries) VALUES (2, 0) ON CONFLICT (id) DO UPDATE SET tries = 1";
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop))?;
        tx.commit().await
    };
    let say = async |sql: &'static str| {
        let mut tx = store.begin().await.unwrap();
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop)).unwrap();
        tx.commit().await.unwrap();
    };
    change().await.unwrap();
    say("PRAGMA query_only = ON").await;
    let refused = change().await;
    assert!(matches!(refused, Err(StoreError::Unwritable(Unwritable::ReadOnly, _))), "{refused:?}");
    let mut tx = store.begin().await.unwrap();
    on!(&mut tx, |c| sqlx::query("PRAGMA query_only = OFF").execute(c).await.map(drop)).unwrap();
    drop(tx);
    store.ping().await.unwrap();
    change().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_until_there_is_room_again() {
    let _turn = HEALTH.lock().await;
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let say = async |sql: &'static str| {
        let mut tx = store.begin().await?;
        on!(&mut tx, |c| sqlx::query(sql).execute(c).await.map(drop))?;
        tx.commit().await
    };
    // As if the file could not grow any more: SQLite answers what it answers for a full disk.
    say("CREATE TABLE filler (bytes BLOB)").await.unwrap();
    store.pretend_full(true).await;
    let full = say("INSERT INTO filler (bytes) VALUES (zeroblob(1000000))").await;
    assert!(matches!(full, Err(StoreError::Unwritable(Unwritable::DiskFull, _))), "{full:?}");
    // What needs no space tells nothing.
    say("UPDATE write_probe SET tries = tries").await.unwrap();
    let still = store.try_writing().await;
    assert!(matches!(still, Err(StoreError::Unwritable(Unwritable::DiskFull, _))), "{still:?}");
    let mut conn = store.read().await.unwrap();
    assert_eq!(
        on!(&mut conn, |c| sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM filler").fetch_one(c).await).unwrap(),
        0
    );
    drop(conn);
    store.pretend_full(false).await;
    // What was found just now is not tried again at once.
    while store.try_writing().await.is_err() {
        tokio::task::yield_now().await;
    }
    store.ping().await.unwrap();
    say("INSERT INTO filler (bytes) VALUES (zeroblob(1000000))").await.unwrap();
}
