//! The one place with `unsafe`: loading machine code that was compiled before.
#![expect(
    unsafe_code,
    reason = "wasmtime runs what it deserializes as it is; `Trusted` is the proof that we compiled it"
)]

use wasmtime::{Engine, component::Component};

/// Bytes that this server wrote itself: their authentication code was checked, or they were compiled a moment ago.
pub(super) struct Trusted<'a>(pub(super) &'a [u8]);

/// Loads a component that [`Engine::precompile_component`] made.
///
/// # Errors
/// If it was made by another version of wasmtime or for another processor.
pub(super) fn load(engine: &Engine, compiled: &Trusted<'_>) -> wasmtime::Result<Component> {
    // SAFETY: `deserialize` needs bytes that came from `precompile_component` and were not changed since. They are in our
    // memory, and `cache` makes a `Trusted` only of bytes that it compiled itself or whose HMAC under the server's own key holds.
    unsafe { Component::deserialize(engine, compiled.0) }
}
