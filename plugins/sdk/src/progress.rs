//! What people see while they wait.

/// Tells people who wait how far the call is: percent from 0 to 100, `None` where it can't be told. Only deployment
/// targets are listened to. Call it as often as you like, the server keeps the latest.
pub fn progress(percent: impl Into<Option<u8>>, message: &str) {
    let percent = percent.into().map(|percent| percent.min(100));
    #[cfg(target_os = "wasi")]
    crate::bindings::shared::kaizen::plugin::progress::report(percent, message);
    #[cfg(not(target_os = "wasi"))]
    crate::testing::progressed(percent, message);
}
