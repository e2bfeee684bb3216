//! Waiting for conditions, with a deadline that only a failing test meets.

use std::{future::Future, time::Duration};

/// Long enough for a busy machine; nothing waits for it to pass.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer, and returns it.
///
/// # Panics
/// If there is none before the deadline; `what` says what was waited for.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let asking = async {
        loop {
            pace.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {} s in vain: {what}", DEADLINE.as_secs()),
    }
}

/// Awaits a future that must end before the deadline.
///
/// # Panics
/// If it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {} s in vain: {what}", DEADLINE.as_secs()),
    }
}
