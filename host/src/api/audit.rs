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
use utoipa::{
    IntoParams,
    openapi::{
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::{ObjectBuilder, Type},
    },
};
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
        .routes(routes!(list_audit_events))
        .routes(routes!(export_audit_events))
        .routes(routes!(verify_audit_chain))
        .routes(routes!(get_audit_sink_delivery))
}

/// What to show; what is absent does not matter.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only events of this action, such as `agent.deploy`; with a `*` at its end, of every action that begins so.
    #[param(pattern = r"^[^\u0000]*$", example = "agent.*")]
    action: Option<String>,
    /// Only events of this actor, exactly as events name it: `user/` and the user's id, for example.
    #[param(pattern = r"^[^\u0000]*$", example = "user/01932f5d-02b1-7e11-b0c9-6d2e8f4a7c13")]
    actor: Option<String>,
    /// Only events of this target, exactly as events name it: `agent/` and the agent's id, for example.
    #[param(pattern = r"^[^\u0000]*$", example = "agent/01932f72-9d10-7c58-a3e4-1b6f0d8c5a27")]
    target: Option<String>,
    /// Only events that ended so.
    outcome: Option<Outcome>,
    /// Only events of this time or later (RFC 3339), in a year from 0001 to 9999.
    #[param(example = "2026-11-27T00:00:00Z")]
    since: Option<DateTime<Utc>>,
    /// Only events before this time (RFC 3339), in a year from 0001 to 9999.
    #[param(example = "2026-11-28T00:00:00Z")]
    until: Option<DateTime<Utc>>,
}

/// The page asked for, of which the cursor is a place in the chain.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct TrailPage(Page);

impl TrailPage {
    /// After which event; 0 at the beginning.
    fn after(&self) -> Result<i64> {
        let Some(cursor) = &self.0.cursor else { return Ok(0) };
        cursor
            .parse::<i64>()
            .ok()
            .filter(|sequence| *sequence >= 0 && sequence.to_string() == *cursor)
            .ok_or_else(|| Problem::invalid(vec![Fault::new("cursor", "send `next_cursor` as it was received")]))
    }
}

impl IntoParams for TrailPage {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let cursor = |parameter: Parameter| {
            let schema = ObjectBuilder::new().schema_type(Type::String).max_length(Some(19)).pattern(Some("^[0-9]+$"));
            ParameterBuilder::from(parameter).schema(Some(schema)).example(Some("42".into())).build()
        };
        let parameters = Page::into_params(parameter_in).into_iter();
        parameters.map(|parameter| if parameter.name == "cursor" { cursor(parameter) } else { parameter }).collect()
    }
}

async fn may_read(app: &App, caller: &Principal) -> Result<()> {
    let organization = Resource::organization(caller.organization_id);
    app.require(caller, Action::AuditRead, &organization, &Context::default()).await
}

/// List the events of the audit trail
///
/// Takes the permission `audit.read`. The organization's events in the order of the chain, oldest first. A page ends after
/// `audit_list_events` (20,000) events that were looked at, and may then have fewer items than asked for, or none, with a
/// `next_cursor`. Changes that were refused are in the trail; refused reads are not.
#[utoipa::path(get, path = "/api/v1/audit/events", tag = "Audit", params(TrailPage, Filter),
    responses((status = OK, description = "A page of events.", body = Listed<Shown>)))]
async fn list_audit_events(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<TrailPage>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Shown>>> {
    may_read(&app, &caller).await?;
    let (limit, after) = (page.0.limit(), page.after()?);
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

/// Export the audit trail as JSON lines
///
/// Takes the permission `audit.read`, which is asked for again with each batch. All of the organization's events, oldest first:
/// each line is one event as `GET /api/v1/audit/events` shows it, with all that verifying the chain takes. An export that is cut
/// short ends without its last chunk.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "Audit",
    responses((status = OK, description = "The events, one `AuditEvent` as JSON on each line.", body = String,
        content_type = "application/x-ndjson",
        headers(("Content-Disposition" = String, description = "A name for the file, with the organization's id in it.")))))]
async fn export_audit_events(State(app): State<App>, Caller(caller): Caller) -> Result<Response> {
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

/// Verify the chain of the audit trail
///
/// Takes the permission `audit.read`. Computes the hash of each of the organization's events again, from the first one to the
/// end that the chain had when verification began, and stops at the first fault. A chain that does not hold is answered with 200
/// and `valid: false`.
#[utoipa::path(get, path = "/api/v1/audit/verify", tag = "Audit",
    responses((status = OK, description = "What verification found.", body = Report)),
    extensions(("x-problems" = json!(["not_found"]))))]
async fn verify_audit_chain(State(app): State<App>, Caller(caller): Caller) -> Result<Json<Report>> {
    may_read(&app, &caller).await?;
    let report = verify::verify(&app.store, caller.organization_id).await?;
    Ok(Json(report.ok_or_else(|| Problem::not_found("audit chain"))?))
}

/// Read how far an audit sink has got
///
/// Takes the permission `audit_sink.read`. A sink gets the events that came after it was created, in the order of the chain; one
/// that fails is tried again, later and later, and no event is left out.
#[utoipa::path(get, path = "/api/v1/audit-sinks/{id}/delivery", tag = "Audit sinks",
    params(("id" = AuditSinkId, Path, description = "The audit sink.")),
    responses((status = OK, description = "How far the sink has got.", body = Delivery)))]
async fn get_audit_sink_delivery(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_the_trail_is_documented_as_it_is_read() {
        let parameters = serde_json::to_value(TrailPage::into_params(|| None)).unwrap();
        let cursor = parameters.as_array().unwrap().iter().find(|parameter| parameter["name"] == "cursor").unwrap();
        let longest = i64::MAX.to_string();
        assert_eq!(cursor["schema"]["maxLength"], longest.len());
        for (given, after) in [(Some("0"), 0), (Some(longest.as_str()), i64::MAX), (cursor["example"].as_str(), 42)] {
            let query = format!("limit=7&cursor={}", given.unwrap());
            let page: TrailPage = serde_urlencoded::from_str(&query).unwrap();
            assert_eq!((page.0.limit(), page.after().unwrap()), (7, after));
        }
    }
}
