//! The sandbox: engine, limits, grants, egress, secret injection, bindings. Knows no table and no tenant.

pub mod address;
pub mod body;
pub mod egress;
pub mod pattern;
