//! The sandbox: engine, limits, grants, egress, secret injection, bindings. Knows no table and no tenant.
