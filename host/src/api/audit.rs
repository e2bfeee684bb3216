//! `/api/v1/audit`: the trail, its export and its verification; and how far each sink has got.

use std::io;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chrono::{DateTime, Datelike as _, Utc};
use futures::stream;
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Caller, Parameters, PathId},
    page::{Listed, Page},
    problem::{Fault, Problem, Result},
};
use crate::{
    app::App,
    audit::{
        export::{self, Shown},
        verify::{self, Report},
    },
    authz::{Action, Context, Kind, Resource},
    domain::{audit::Outcome, connection::Kind as ConnectionKind, id::AuditSinkId, principal::Principal},
    store::{
        self, connections,
        delivery::{self, Delivery},
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(events))
        .routes(routes!(export_lines))
        .routes(routes!(verify_chain))
        .routes(routes!(sink_delivery))
}

/// What to show; what is absent does not matter.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Exactly this action, e.g. `agent.deploy`; with a `*` at its end every action that begins so.
    action: Option<String>,
    /// Exactly this actor, e.g. `user/0192…`.
    actor: Option<String>,
    /// Exactly this target, e.g. `agent/0192…`.
    target: Option<String>,
    /// How it ended.
    outcome: Option<Outcome>,
    /// At this time or later (RFC 3339).
    since: Option<DateTime<Utc>>,
    /// Before this time (RFC 3339).
    until: Option<DateTime<Utc>>,
}

async fn may_read(app: &App, caller: &Principal) -> Result<()> {
    let organization = Resource::organization(caller.organization_id);
    app.require(caller, Action::AuditRead, &organization, &Context::default()).await
}

/// List audit events, in the order of the chain
#[utoipa::path(get, path = "/api/v1/audit/events", tag = "Audit", params(Page, Filter),
    responses((status = OK, body = Listed<Shown>)))]
async fn events(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Shown>>> {
    may_read(&app, &caller).await?;
    let limit = page.limit();
    let after = match &page.cursor {
        None => 0,
        Some(cursor) => cursor
            .parse::<i64>()
            .ok()
            .filter(|sequence| *sequence >= 0)
            .ok_or_else(|| Problem::invalid(vec![Fault::new("cursor", "send `next_cursor` as it was received")]))?,
    };
    for (name, time) in [("since", filter.since), ("until", filter.until)] {
        if time.is_some_and(|time| !(1..=9999).contains(&time.year())) {
            return Err(Problem::invalid(vec![Fault::new(name, "a year from 0001 to 9999")]));
        }
    }
    let filter = store::audit::Filter {
        action: filter.action,
        actor: filter.actor,
        target: filter.target,
        outcome: filter.outcome,
        since: filter.since,
        until: filter.until,
    };
    let organization = caller.organization_id;
    let mut conn = app.store.read().await?;
    let head = store::audit::head(&mut conn, organization).await?.map_or(0, |(sequence, _)| sequence);
    // The page then ends early, with a cursor.
    let up_to = after.saturating_add(app.config.limits.audit_list_events);
    // One row more than wanted tells whether there is a next page.
    let wanted = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut found = store::audit::search(&mut conn, organization, &filter, after, up_to, wanted).await?;
    drop(conn);
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = if more {
        found.last().map(|event| event.sequence.to_string())
    } else {
        (up_to < head).then(|| up_to.to_string())
    };
    Ok(Json(Listed { items: found.into_iter().map(Shown::from).collect(), next_cursor }))
}

/// Export the whole trail as JSON lines
///
/// Permission is asked for again with each batch; an export that is cut short ends without its last chunk.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "Audit",
    responses((status = OK, body = Shown, content_type = "application/x-ndjson")))]
async fn export_lines(State(app): State<App>, Caller(caller): Caller) -> Result<Response> {
    may_read(&app, &caller).await?;
    let name = format!("attachment; filename=\"audit-{}.jsonl\"", caller.organization_id);
    let batches = stream::try_unfold((app, caller, 0), |(app, caller, after)| async move {
        batch(&app, caller, after).await.map(|next| next.map(|(lines, caller, last)| (lines, (app, caller, last))))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(batches)).into_response())
}

async fn batch(app: &App, caller: Principal, after: i64) -> io::Result<Option<(Bytes, Principal, i64)>> {
    let again = app.identity.again(&mut app.store.read().await.map_err(io::Error::other)?, &app.clock, &caller).await;
    let Some(caller) = again.map_err(io::Error::other)? else {
        return Err(io::Error::other("no longer signed in"));
    };
    let organization = Resource::organization(caller.organization_id);
    let decision = app.authz.check(&app.store, &caller, Action::AuditRead, &organization, &Context::default()).await;
    if !decision.map_err(io::Error::other)?.allowed || app.stopping.is_cancelled() {
        return Err(io::Error::other("no longer allowed"));
    }
    let lines = export::lines(&app.store, caller.organization_id, after).await.map_err(io::Error::other)?;
    Ok(lines.map(|(last, lines)| (lines.into(), caller, last)))
}

/// Verify the chain
#[utoipa::path(get, path = "/api/v1/audit/verify", tag = "Audit", responses((status = OK, body = Report)))]
async fn verify_chain(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Report>> {
    may_read(&app, &caller).await?;
    let report = verify::verify(&app.store, caller.organization_id).await?;
    Ok(Json(report.ok_or_else(|| Problem::not_found("audit chain"))?))
}

/// How far a sink has got
#[utoipa::path(get, path = "/api/v1/audit-sinks/{id}/delivery", tag = "Audit sinks", params(("id" = AuditSinkId, Path)),
    responses((status = OK, body = Delivery)))]
async fn sink_delivery(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AuditSinkId>,
) -> Result<Json<Delivery>> {
    let organization = caller.organization_id;
    let sink = connections::get(&mut app.store.read().await?, organization, ConnectionKind::AuditSink, id.0).await?;
    let sink = sink.ok_or_else(|| Problem::not_found("audit sink"))?;
    let resource = Resource::new(Kind::AuditSink, sink.id, sink.organization_id, sink.name);
    app.require(&caller, Action::AuditSinkRead, &resource, &Context::default()).await?;
    let state = delivery::state(&mut app.store.read().await?, organization, id).await?;
    Ok(Json(state.ok_or_else(|| Problem::not_found("audit sink"))?))
}
