//! The operators' listener: `/metrics`, `/healthz`, `/readyz`, `/readyz/reads`. Never on the public one.

use std::sync::{Arc, OnceLock};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{app::App, store::StoreError};

/// The server, once it is up.
pub type Up = Arc<OnceLock<App>>;

#[derive(Clone)]
struct Ops {
    up: Up,
    metrics: PrometheusHandle,
}

/// The routes of the operators' listener. They answer also while the server still starts.
pub fn router(up: Up, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/metrics", get(async |State(ops): State<Ops>| ops.metrics.render()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/readyz/reads", get(ready_for_reads))
        .with_state(Ops { up, metrics })
}

type Answer = (StatusCode, String);

fn not_ready(why: &str) -> Answer {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

impl Ops {
    /// The server, if it is up and nobody has asked it to stop.
    fn serving(&self) -> Result<&App, Answer> {
        let app = self.up.get().ok_or_else(|| not_ready("starting"))?;
        if app.draining.is_cancelled() || app.stopping.is_cancelled() {
            return Err(not_ready("stopping"));
        }
        Ok(app)
    }
}

/// Ready: the database answers, takes changes as far as is known, and nobody has asked the server to stop.
async fn ready(State(ops): State<Ops>) -> Answer {
    let app = match ops.serving() {
        Ok(app) => app,
        Err(answer) => return answer,
    };
    told(app.store.ping().await)
}

/// Ready for what is only read: as above, also where the database takes no changes. All hosts share it, so a load balancer that asked
/// for more would have no host left.
async fn ready_for_reads(State(ops): State<Ops>) -> Answer {
    let app = match ops.serving() {
        Ok(app) => app,
        Err(answer) => return answer,
    };
    told(app.store.ping_for_reads().await)
}

fn told(answered: Result<(), StoreError>) -> Answer {
    match answered {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        // Named in the log once, where it began.
        Err(StoreError::Unwritable(why, _)) => not_ready(why.sentence()),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            not_ready("the database does not answer")
        }
    }
}
