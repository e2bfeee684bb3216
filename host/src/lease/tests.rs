use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use tokio::sync::Notify;

use super::*;

fn lease(length: Duration) -> Lease {
    Lease { of: "test".to_owned(), length, until: Instant::now() + length }
}

fn away() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolTimedOut)
}

/// A host that does not run for as long as this: the test's runtime has one thread.
fn stall(time: Duration) {
    std::thread::sleep(time);
}

#[tokio::test]
async fn work_whose_lease_is_not_renewed_stops_before_others_may_have_it() {
    let says_nothing: fn() -> futures::future::BoxFuture<'static, Result<(), StoreError>> = || Box::pin(pending());
    let refuses: fn() -> futures::future::BoxFuture<'static, Result<(), StoreError>> =
        || Box::pin(async { Err(away()) });
    for renew in [says_nothing, refuses] {
        let lease = lease(Duration::from_millis(500));
        let until = lease.until;
        let mut last = Instant::now();
        let work = async {
            loop {
                last = Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended: Result<(), Lost> = while_held(lease, renew, work).await;
        assert_eq!(ended, Err(Lost));
        assert!(last < until, "it went on for {:?} after that", last - until);
    }
}

#[tokio::test]
async fn a_renewal_that_fails_is_tried_again_as_long_as_the_lease_lasts() {
    let (asked, renewed) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let renew = {
        let renewed = renewed.clone();
        move || {
            let (count, renewed) = (asked.fetch_add(1, Ordering::SeqCst), renewed.clone());
            async move {
                if count < 2 {
                    return Err(away());
                }
                renewed.notify_one();
                Ok(())
            }
        }
    };
    let work = async { renewed.notified().await };
    assert_eq!(while_held(lease(Duration::from_secs(3)), renew, work).await, Ok(()));
}

#[tokio::test]
async fn a_host_that_stalled_asks_before_it_goes_on() {
    let length = Duration::from_millis(100);
    for answer in [Ok(()), Err(Lost)] {
        let (asked, answered) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let renew = {
            let (asked, answered, taken) = (asked.clone(), answered.clone(), answer.is_err());
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                let answered = answered.clone();
                async move {
                    // Whatever else is ready has its turns before the answer comes.
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                    answered.store(true, Ordering::SeqCst);
                    if taken { Err(StoreError::Stale) } else { Ok(()) }
                }
            }
        };
        let work = async {
            stall(length * 3);
            tokio::task::yield_now().await;
            assert!(answered.load(Ordering::SeqCst), "it went on without knowing whether it may");
        };
        assert_eq!(while_held(lease(length), renew, work).await, answer);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_host_that_stalled_and_hears_nothing_gives_up() {
    let length = Duration::from_millis(100);
    let went_on = AtomicBool::new(false);
    let work = async {
        stall(length * 3);
        tokio::task::yield_now().await;
        went_on.store(true, Ordering::SeqCst);
    };
    assert_eq!(while_held(lease(length), pending, work).await, Err(Lost));
    assert!(!went_on.load(Ordering::SeqCst));
}
