//! The sandbox: engine, limits, grants, egress, secret injection, bindings. Knows no table and no tenant.
//!
//! A call: [`guest::Sandbox::call`] waits for its place ([`scheduler`]), makes a fresh [`state::State`] from what the call's
//! [`context::Context`] grants, instantiates, and ends at the first limit of [`limits`]. What goes out passes
//! [`hooks`](self), which asks [`grants`] and [`secret`], and then [`egress`], which asks [`address`].

pub mod address;
mod aside;
pub mod bindings;
pub mod body;
pub mod cache;
pub mod compiler;
pub mod context;
mod descriptors;
pub mod egress;
pub mod engine;
mod folders;
pub mod grants;
pub mod guest;
mod hooks;
#[cfg(test)]
mod hostile;
pub mod limits;
pub mod mask;
mod native;
pub mod pattern;
mod places;
pub mod scheduler;
pub mod secret;
pub mod state;
mod stdio;
pub mod template;

pub use guest::{Fault, Guest, LoadError, Sandbox};
