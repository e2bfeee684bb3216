//! `/api/v1/deployments/{id}/events`: how a deployment goes, as server-sent events.
//!
//! Each event has the deployment's own sequence as its id, so that a client that comes back (`Last-Event-ID`) misses
//! nothing and sees nothing twice. The stream ends once the deployment is settled, or its reader is no longer allowed.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    deployments::find,
    extract::{Caller, PathId},
    page::Item,
    problem::{Problem, ProblemType, Result},
    requests::CountedElsewhere,
};
use crate::{
    app::App,
    authz::{Action, Context},
    bus::Hint,
    domain::{
        deployment::{DeploymentEvent, EventKind},
        id::{DeploymentId, OrganizationId},
        principal::Principal,
    },
    jobs,
    store::{StoreError, deployments},
};

/// How often it is looked for events and for permission without a hint.
const POLL: Duration = Duration::from_secs(1);
/// A comment that keeps proxies from closing a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events read at once.
const BATCH: i64 = 100;

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream_deployment_events))
}

/// Follow the events of a deployment
///
/// It takes the permission `deployment.read`. A stream of server-sent events, from the first one on or after `Last-Event-ID`: each is
/// named `progress` or `status`, its `id` is its `sequence`, and its `data` is a `DeploymentEvent` as JSON. The stream ends once the
/// deployment is `active`, `failed`, `cancelled` or `stopped`, or the caller may no longer read it. Refused with 429 if too many
/// streams are open.
#[utoipa::path(get, path = "/api/v1/deployments/{id}/events", tag = "Deployments",
    params(("id" = DeploymentId, Path, description = "The deployment's id."),
        ("Last-Event-ID" = Option<i64>, Header, nullable = false, example = 3,
            description = "The `id` of the last event that was received: those after it follow. All that are kept if absent.")),
    responses(
        (status = OK, description = "The events, as they come.", body = DeploymentEvent, content_type = "text/event-stream"),
        (status = NO_CONTENT, description = "Nothing will come after `Last-Event-ID`: an `EventSource` does not reconnect.")),
    extensions(("x-problems" = json!(["malformed"]))))]
async fn stream_deployment_events(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<DeploymentId>,
    headers: HeaderMap,
) -> Result<Response> {
    let hints = app.bus.subscribe();
    let deployment = find(&app, &caller, id, Action::DeploymentRead).await?;
    let last = match headers.get("last-event-id").map(|value| value.to_str().ok().and_then(|text| text.parse().ok())) {
        None => 0,
        Some(Some(sequence)) => sequence,
        Some(None) => return Err(Problem::new(ProblemType::Malformed, "Last-Event-ID: send the `id` of an event.")),
    };
    let follow = Follow {
        app,
        caller,
        organization: deployment.organization_id,
        id,
        last,
        hints,
        queue: Vec::new().into_iter(),
    };
    let first = deployments::events(&mut follow.app.store.read().await?, follow.organization, id, last, 1).await?;
    if deployment.status.settled() && first.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let room = follow.app.jobs.streams.open(follow.caller.organization_id, follow.caller.user_id).ok_or_else(|| {
        Problem::new(ProblemType::RateLimited, "Too many event streams are open: close one, or ask again shortly.")
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("2"))
    })?;
    let stream = stream::unfold((follow, room), |(mut follow, room): (Follow, jobs::Stream)| async move {
        let event = follow.next().await?;
        Some((Ok::<_, Infallible>(event), (follow, room)))
    });
    let mut response = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.extensions_mut().insert(CountedElsewhere);
    // nginx would collect the events before it passes them on; others may compress or keep them.
    let headers = response.headers_mut();
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    Ok(response)
}

/// One reader.
struct Follow {
    app: App,
    caller: Principal,
    organization: OrganizationId,
    id: DeploymentId,
    last: i64,
    hints: Receiver<Hint>,
    queue: std::vec::IntoIter<DeploymentEvent>,
}

impl Follow {
    /// The next event; nothing at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.next() {
                self.last = event.sequence;
                return shown(&event);
            }
            match self.look().await {
                Ok(true) => {}
                Ok(false) => return None,
                // The database is away for a moment: the client need not notice.
                Err(error) => tracing::debug!(deployment = %self.id, %error, "could not look for events; trying again"),
            }
            let stopping = self.app.stopping.clone();
            if self.queue.len() == 0 && stopping.run_until_cancelled(self.wait()).await.is_none() {
                return None;
            }
        }
    }

    /// Reads what is new. False if nothing more will come, or not for this reader.
    async fn look(&mut self) -> std::result::Result<bool, StoreError> {
        let mut conn = self.app.store.read().await?;
        let Some(caller) = self.app.identity.again(&mut conn, &self.app.clock, &self.caller).await? else {
            return Ok(false);
        };
        // The state before the events: an event that comes in between is then still read by the next look.
        let Some(deployment) = deployments::get(&mut conn, self.organization, self.id).await? else { return Ok(false) };
        let events = deployments::events(&mut conn, self.organization, self.id, self.last, BATCH).await?;
        drop(conn);
        let (resource, context) = (deployment.resource(), Context::default());
        let decision =
            self.app.authz.check(&self.app.store, &caller, Action::DeploymentRead, &resource, &context).await?;
        self.caller = caller;
        if !decision.allowed || (events.is_empty() && deployment.status.settled()) {
            return Ok(false);
        }
        self.queue = events.into_iter();
        Ok(true)
    }

    /// Returns when there may be something new: after a hint, or after [`POLL`].
    async fn wait(&mut self) {
        let (id, organization, hints) = (self.id, self.organization, &mut self.hints);
        let hint = async {
            loop {
                match hints.recv().await {
                    Ok(Hint::Deployment { deployment }) if deployment == id => return,
                    Ok(Hint::Access { organization: changed }) if changed == organization => return,
                    Ok(Hint::Resync) | Err(RecvError::Lagged(_)) => return,
                    Ok(_) => {}
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        drop(tokio::time::timeout(POLL, hint).await);
    }
}

fn shown(event: &DeploymentEvent) -> Option<Event> {
    let name = match event.kind {
        EventKind::Progress => "progress",
        EventKind::Status => "status",
    };
    Event::default().id(event.sequence.to_string()).event(name).json_data(event).ok()
}
