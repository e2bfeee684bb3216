//! Black-box tests: the real `kaizen` against real servers (PostgreSQL, Redis, an OpenID provider), one file for each area.
//! `tests/run` starts what they need. A test has a server, a database and tenants of its own, and waits for conditions,
//! never for time.
#![cfg(test)]

/// Makes of each `async fn name(backend: Backend)` two tests, `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                super::$name(crate::harness::Backend::Sqlite).await;
            }
            #[tokio::test]
            async fn postgres() {
                super::$name(crate::harness::Backend::Postgres).await;
            }
        }
    )*};
}

mod audit;
mod authoring;
mod bad_input;
mod canvas;
mod canvas_database;
mod canvas_hosts;
mod canvas_limits;
mod checks;
mod connections;
mod database;
mod delivery;
mod demo;
mod denials;
mod deployments;
mod docs;
mod drills;
mod environments;
mod folders;
mod guide;
mod harness;
mod http2;
mod identities;
mod isolation;
mod jobs;
mod kills;
mod names;
mod oauth2;
mod openapi;
mod operations;
mod plugin_bombs;
mod plugin_checks;
mod plugin_fit;
mod plugin_hosts;
mod plugin_limits;
mod plugin_quarantine;
mod plugin_refusals;
mod plugin_trust;
mod plugins;
mod policies;
mod policy_errors;
mod providers;
mod proxies;
mod queries;
mod quotas;
mod removal;
mod requests;
mod resources;
mod roles;
mod rotation;
mod signin;
mod sinks;
mod sso;
mod sso_failures;
mod summary;
mod targets;
