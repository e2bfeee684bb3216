//! Trouble that may be over at the next try: told as such, and it leaves nothing behind.

use axum::{
    http::{StatusCode, header},
    response::IntoResponse as _,
};

use super::{Connection, Store, StoreError, Tx, lost};
use crate::{
    api::problem::Problem, config::limits::ServerLimits, domain::id::OrganizationId, jobs::fixture::Fixture, on,
};

async fn run(tx: &mut Tx, sql: &'static str) -> Result<(), sqlx::Error> {
    on!(tx, |c| sqlx::query(sql).execute(c).await.map(drop))
}

async fn rename(tx: &mut Tx, organization: OrganizationId) -> Result<(), sqlx::Error> {
    let sql = "UPDATE organizations SET name = 'renamed' WHERE id = $1";
    on!(tx, |c| sqlx::query(sql).bind(organization).execute(c).await.map(drop))
}

async fn number(c: &mut impl Connection, sql: &'static str) -> i64 {
    on!(c, |c| sqlx::query_scalar(sql).fetch_one(c).await.unwrap())
}

/// PostgreSQL alone: on SQLite, nobody waits for anybody but the one writer.
async fn postgres() -> Fixture {
    let fixture = Fixture::each().await.pop().unwrap();
    assert!(fixture.store.is_shared());
    fixture
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Into::into)
}

/// A client is told to try again, and that no defect was met.
fn is_told_to_try_again(error: sqlx::Error) {
    let error = StoreError::from(error);
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let response = Problem::from(error).into_response();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn a_lock_that_is_not_to_be_had_and_a_slow_statement_are_no_defects() {
    let fixture = postgres().await;
    let tenant = fixture.tenant().await;
    let mut tx = fixture.store.begin().await.unwrap();
    rename(&mut tx, tenant.organization).await.unwrap();
    let mut other = fixture.store.begin().await.unwrap();
    run(&mut other, "SET LOCAL lock_timeout = '10ms'").await.unwrap();
    let error = rename(&mut other, tenant.organization).await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("55P03"));
    is_told_to_try_again(error);
    let mut other = fixture.store.begin().await.unwrap();
    run(&mut other, "SET LOCAL statement_timeout = '10ms'").await.unwrap();
    let error = run(&mut other, "SELECT pg_sleep(20)").await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("57014"));
    is_told_to_try_again(error);
}

#[tokio::test]
async fn a_deadlock_is_no_defect_and_the_other_transaction_goes_on() {
    let fixture = postgres().await;
    let (a, b) = (fixture.tenant().await.organization, fixture.tenant().await.organization);
    let (mut one, mut other) = (fixture.store.begin().await.unwrap(), fixture.store.begin().await.unwrap());
    for (tx, organization) in [(&mut one, a), (&mut other, b)] {
        run(tx, "SET LOCAL deadlock_timeout = '10ms'").await.unwrap();
        rename(tx, organization).await.unwrap();
    }
    let (first, second) = tokio::join!(rename(&mut one, b), rename(&mut other, a));
    let error = first.err().xor(second.err()).expect("one of them fails");
    assert_eq!(code(&error).as_deref(), Some("40P01"));
    is_told_to_try_again(error);
}

#[tokio::test]
async fn two_transactions_that_cannot_be_put_in_an_order_are_no_defect() {
    let fixture = postgres().await;
    let tenant = fixture.tenant().await;
    let mut one = fixture.store.begin().await.unwrap();
    run(&mut one, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    assert_eq!(number(&mut one, "SELECT COUNT(*) FROM organizations").await, 1);
    let mut other = fixture.store.begin().await.unwrap();
    rename(&mut other, tenant.organization).await.unwrap();
    other.commit().await.unwrap();
    let error = rename(&mut one, tenant.organization).await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("40001"));
    is_told_to_try_again(error);
}

#[tokio::test]
async fn a_transaction_that_was_silent_for_too_long_is_no_defect_and_its_connection_is_not_used_again() {
    let fixture = postgres().await;
    let tenant = fixture.tenant().await;
    let mut silent = fixture.store.begin().await.unwrap();
    rename(&mut silent, tenant.organization).await.unwrap();
    let process = number(&mut silent, "SELECT pg_backend_pid()::BIGINT").await;
    run(&mut silent, "SET LOCAL idle_in_transaction_session_timeout = '10ms'").await.unwrap();
    let mut watching = fixture.store.read().await.unwrap();
    let there = "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = $1";
    while on!(&mut watching, |c| sqlx::query_scalar::<_, i64>(there).bind(process).fetch_one(c).await).unwrap() > 0 {}
    let error = rename(&mut silent, tenant.organization).await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("25P03"));
    assert!(lost(&error), "others are asked whether they still live");
    is_told_to_try_again(error);
    drop(silent);
    drop(watching);
    for _ in 0..4 {
        let mut tx = fixture.store.begin().await.unwrap();
        assert_ne!(number(&mut tx, "SELECT pg_backend_pid()::BIGINT").await, process);
        rename(&mut tx, tenant.organization).await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_too_long_for_a_connection_is_told_and_no_connection_is_taken_for_lost() {
    let exhaust = async |fixture: Fixture| {
        let limits = ServerLimits { database_connections: 2, ..Default::default() };
        let store = Store::connect(fixture.url(), &limits).await.unwrap();
        // All that write: SQLite has one of them.
        let mut held = Vec::new();
        for _ in 0..if store.is_shared() { 2 } else { 1 } {
            held.push(store.begin().await.unwrap());
        }
        let refused = store.begin().await.err().expect("all are in use");
        let StoreError::Unavailable(error) = refused else { panic!("{refused:?}") };
        assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error:?}");
        assert!(!lost(&error), "else each connection would be asked whether it lives, when all have too much to do");
        is_told_to_try_again(error);
        held.clear();
        let mut tx = store.begin().await.unwrap();
        assert_eq!(number(&mut tx, "SELECT COUNT(*) FROM organizations").await, 0);
    };
    futures::future::join_all(Fixture::each().await.into_iter().map(exhaust)).await;
}
