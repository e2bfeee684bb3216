//! Plain types and rules. Nothing here does I/O, and nothing here knows another room.

pub mod agent;
pub mod audit;
pub mod canvas;
pub mod client;
pub mod connection;
pub mod deployment;
pub mod email;
pub mod environment;
pub mod fault;
pub mod id;
pub mod job;
pub mod labels;
pub mod name;
pub mod nearest;
pub mod plugin;
pub mod policy;
pub mod principal;
pub mod role;
pub mod tenancy;
pub mod text;
pub mod user;
