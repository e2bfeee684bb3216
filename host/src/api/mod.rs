//! Routes, one resource a file.

pub mod agents;
pub mod audit;
pub mod auth;
pub mod authz;
pub mod canvas;
pub mod client;
pub mod connections;
pub mod deployment_events;
pub mod deployments;
pub mod extract;
pub mod guard;
pub mod health;
pub mod idempotency;
pub mod identities;
pub mod input_faults;
pub mod jobs;
pub mod memberships;
pub mod middleware;
pub mod openapi;
pub mod organizations;
pub mod page;
pub mod plugin_changes;
pub mod plugin_quarantine;
pub mod plugin_upload;
pub mod plugins;
pub mod policies;
pub mod preconditions;
pub mod problem;
pub mod query;
pub mod quota;
pub mod requests;
pub mod server;
pub mod sso;
pub mod users;
pub mod versions;
mod websocket;
pub mod workspaces;

use axum::{Router, http::Method};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// Every documented route.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(auth::router())
        .merge(sso::router())
        .merge(organizations::router())
        .merge(users::router())
        .merge(identities::router())
        .merge(memberships::router())
        .merge(workspaces::router())
        .merge(agents::router())
        .merge(versions::router())
        .merge(canvas::router())
        .merge(policies::router())
        .merge(authz::router())
        .merge(deployments::router())
        .merge(deployment_events::router())
        .merge(jobs::router())
        .merge(audit::router())
        .merge(connections::router())
        .merge(plugins::router())
        .merge(plugin_upload::router())
        .merge(plugin_changes::router())
        .merge(plugin_quarantine::router())
}

/// The whole API with its document, its page and its middleware, ready to serve.
pub fn router(app: &App) -> serde_json::Result<Router> {
    let (router, document) = routes().split_for_parts();
    let outermost = middleware::Outermost::new(app, &document);
    let router = router
        .merge(openapi::pages(&openapi::finish(&document)?))
        .fallback(async || problem::Problem::not_found("route; the API is described at /api/docs"))
        .method_not_allowed_fallback(async |method: Method| {
            problem::Problem::new(problem::ProblemType::Method, format!("{method} is not a method of this route."))
        })
        .layer(axum::middleware::from_fn_with_state(outermost, middleware::outermost))
        .layer(middleware::cors(&app.config))
        .with_state(app.clone());
    Ok(router)
}
