//! What a pool must hold to: what one borrower leaves behind is never another's business.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::{
    jobs::fixture::Fixture,
    on,
    store::{Connection, Handle, Store, StoreError},
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
    tokio::select! {
        () = hang_up => panic!("it goes on for ever"),
        connected = Store::connect(&url, 2) => assert!(matches!(connected, Err(StoreError::Unavailable(_)))),
    }
}
