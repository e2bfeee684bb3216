//! Kaizen Studio's control plane: teams build agents together on a canvas, decide in Cedar who may do what, and deploy
//! the agents to gateways. Sign-in, audit delivery and deployment are sandboxed WebAssembly components.
//!
//! Arrows go one way: `api` and `jobs` → `identity authz canvas audit plugins` → `store sandbox` → `domain`.

pub mod api;
pub mod app;
pub mod audit;
pub mod authz;
pub mod bus;
pub mod canvas;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod identity;
pub mod jobs;
pub mod lease;
pub mod plugins;
pub mod queues;
pub mod request_id;
pub mod sandbox;
pub mod secrets;
pub mod store;
pub mod telemetry;
