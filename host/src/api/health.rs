//! The operators' listener: `/metrics`, `/healthz`, `/readyz`. Never on the public one.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{app::App, store::StoreError};

#[derive(Clone)]
struct Ops {
    app: App,
    metrics: PrometheusHandle,
}

/// The routes of the operators' listener.
pub fn router(app: App, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/metrics", get(async |State(ops): State<Ops>| ops.metrics.render()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Ops { app, metrics })
}

/// Ready: the database answers, takes changes as far as is known, and nobody has asked the server to stop.
async fn ready(State(ops): State<Ops>) -> (StatusCode, String) {
    if ops.app.draining.is_cancelled() || ops.app.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match ops.app.store.ping().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        // Named in the log once, where it began.
        Err(StoreError::Unwritable(why, _)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why.sentence())),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n".to_owned())
        }
    }
}
