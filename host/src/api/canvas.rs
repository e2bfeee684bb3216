//! `/ws/canvas/{session_id}`, and `/api/v1/canvases/{id}`: the graph to read, and tickets for the socket.

use axum::{
    Json,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::TimeDelta;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::limited,
    extract::{Caller, PathId, etag},
    page::Item,
    problem::{Problem, ProblemType, Result},
    websocket::Upgrade,
};
use crate::{
    app::App,
    authz::{Action, Context},
    canvas::{Close, Connect, accept, refuse},
    domain::{
        agent::Agent,
        canvas::{Graph, Items},
        client::Client,
        id::CanvasId,
        principal::Principal,
    },
    identity::{AuthError, throttle::Anonymous},
    store::{
        StoreError, agents,
        canvas::{self, Loaded},
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(ticket)).routes(routes!(socket))
}

/// Seconds within which a ticket must be used.
const TICKET: i64 = 30;
/// What tickets begin with, so that scanners for leaked secrets know them.
const TICKET_PREFIX: &str = "kzt_";
/// Bytes of a client's name for itself, at the most.
const CLIENT: usize = 64;

/// What is on a canvas.
#[derive(Serialize, utoipa::ToSchema)]
struct Canvas {
    /// The sequence of the last message it holds.
    seq: i64,
    /// React Flow's nodes, in their order.
    #[schema(value_type = Vec<Object>)]
    nodes: Items,
    /// React Flow's edges.
    #[schema(value_type = Vec<Object>)]
    edges: Items,
}

/// Lets its bearer in once.
#[derive(Serialize, utoipa::ToSchema)]
struct Ticket {
    /// For `?ticket=`.
    ticket: String,
    /// Seconds.
    expires_in: i64,
}

/// The canvas's agent, if it is the caller's organization's and the caller may read it.
async fn find(app: &App, caller: &Principal, id: CanvasId) -> Result<Agent> {
    let agent = agents::by_canvas(&mut app.store.read().await?, caller.organization_id, id).await?;
    let agent = agent.ok_or_else(|| Problem::not_found("canvas"))?;
    app.require(caller, Action::AgentRead, &agent.resource(), &Context::default()).await?;
    Ok(agent)
}

/// Read a canvas
#[utoipa::path(get, path = "/api/v1/canvases/{id}", tag = "Canvas", params(("id" = CanvasId, Path)),
    responses((status = OK, body = Canvas), (status = NOT_MODIFIED)))]
async fn read(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<CanvasId>,
    headers: HeaderMap,
) -> Result<Response> {
    find(&app, &caller, id).await?;
    let seq = canvas::sequence(&mut app.store.read().await?, caller.organization_id, id).await?;
    let tag = etag(seq.unwrap_or(0));
    if headers.get(header::IF_NONE_MATCH) == Some(&tag.1) {
        return Ok((StatusCode::NOT_MODIFIED, [tag]).into_response());
    }
    let body = |Loaded { sequence: seq, graph: Graph { nodes, edges, .. }, .. }| {
        let text = serde_json::to_vec(&Canvas { seq, nodes, edges });
        text.map(|text| (seq, text)).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
    };
    let (seq, body) = app.canvases.read(caller.organization_id, id, body).await?;
    Ok(([etag(seq)], [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Get a ticket for the socket
///
/// For clients that cannot send headers when they open a WebSocket. It works once, within 30 seconds, on any host.
#[utoipa::path(post, path = "/api/v1/canvases/{id}/tickets", tag = "Canvas", params(("id" = CanvasId, Path)),
    responses((status = CREATED, body = Ticket)))]
async fn ticket(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<CanvasId>) -> Result<Response> {
    find(&app, &caller, id).await?;
    let ticket = format!("{TICKET_PREFIX}{}", hex::encode(app.clock.bytes::<32>()));
    let now = app.clock.now();
    let row = canvas::Ticket {
        organization_id: caller.organization_id,
        canvas_id: id,
        user_id: caller.user_id,
        session_id: caller.session_id,
    };
    let mut tx = app.store.begin().await?;
    canvas::issue_ticket(&mut tx, &Sha256::digest(&ticket), &row, now, now + TimeDelta::seconds(TICKET)).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(Ticket { ticket, expires_in: TICKET })).into_response())
}

/// What may follow the socket's address.
#[derive(Debug, Default, PartialEq)]
struct Query {
    since: Option<i64>,
    ticket: Option<String>,
    client: Option<String>,
}

impl Query {
    /// Refuses a client's name for itself that is not one: taken for none, its repeats would be applied twice; and, as all routes
    /// do, what is unknown or there twice.
    fn parse(raw: &str) -> std::result::Result<Self, Close> {
        let (mut query, mut since) = (Self::default(), None);
        for (name, value) in url::form_urlencoded::parse(raw.as_bytes()) {
            let part = match &*name {
                "since" => &mut since,
                "ticket" => &mut query.ticket,
                "client" => &mut query.client,
                _ => return Err(Close::QUERY),
            };
            if part.replace(value.into_owned()).is_some() {
                return Err(Close::QUERY);
            }
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if query.client.as_ref().is_some_and(|c| c.is_empty() || c.len() > CLIENT || !c.bytes().all(good)) {
            return Err(Close::CLIENT);
        }
        // Nonsense is as good as nothing: the whole canvas is sent.
        query.since = since.and_then(|since| since.parse().ok());
        Ok(query)
    }
}

/// Draw together
///
/// A WebSocket of subprotocol `kaizen.canvas.v1`: JSON text frames as the documentation tells. `session_id` is the
/// agent's `canvas_id`. Who is refused is told by a close code after the upgrade, since browsers cannot read a failed
/// one: 4401 not signed in, 4403 not allowed, 4404 no such canvas, 4429 too many sockets, 1013 try again later (the
/// database is away, or too many wait); later 4408 too slow, 4413 message too large, 4429 too many messages. All frames and codes are in `docs/canvas.md`.
#[utoipa::path(get, path = "/ws/canvas/{session_id}", tag = "Canvas",
    params(("session_id" = CanvasId, Path),
        ("since" = Option<i64>, Query, description = "Resume after this sequence"),
        ("ticket" = Option<String>, Query, description = "From `POST /api/v1/canvases/{id}/tickets`"),
        ("client" = Option<String>, Query, description = "A name for this tab, the same after reconnecting: then a `ref` that is sent again is never applied twice")),
    responses((status = SWITCHING_PROTOCOLS, description = "The socket is open")))]
async fn socket(
    State(app): State<App>,
    path: std::result::Result<Path<String>, axum::extract::rejection::PathRejection>,
    RawQuery(query): RawQuery,
    (method, client): (Method, Client),
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response> {
    let canvas = path.ok().and_then(|Path(text)| text.parse().ok());
    let query = Query::parse(&query.unwrap_or_default());
    if query.as_ref().is_ok_and(|query| query.ticket.is_some()) {
        // Anybody may send one, and each is looked for in the database.
        app.identity.admit(Anonymous::CanvasTicket, client).map_err(limited)?;
    }
    let connect = match query {
        Ok(query) => admit(&app, canvas, query, &method, &headers).await,
        Err(close) => Err(close),
    };
    let tasks = app.tasks.clone();
    Ok(upgrade.then(move |upgraded| {
        tasks.track_future(async move {
            let socket = accept(upgraded).await;
            match connect {
                Ok(connect) => app.canvases.serve(socket, connect).await,
                Err(close) => refuse(socket, close).await,
            }
        })
    }))
}

/// Who it is, that the canvas is one of their organization's, and that they may look at it: nothing of it is read for whoever may not.
/// What they may do is decided when they join the room.
async fn admit(
    app: &App,
    id: Option<CanvasId>,
    query: Query,
    method: &Method,
    headers: &HeaderMap,
) -> std::result::Result<Connect, Close> {
    let principal = match &query.ticket {
        Some(ticket) => {
            redeem(app, ticket, id.ok_or(Close::SIGNED_OUT)?).await.map_err(away)?.ok_or(Close::SIGNED_OUT)?
        }
        None => {
            app.identity.authenticate(&app.store, &app.clock, method, headers).await.map_err(|error| match error {
                AuthError::Unauthenticated => Close::SIGNED_OUT,
                AuthError::Origin => Close::FORBIDDEN,
                AuthError::Store(error) => away(error),
            })?
        }
    };
    let id = id.ok_or(Close::GONE)?;
    let agent = find(app, &principal, id).await.map_err(|problem| match problem.kind {
        ProblemType::NotFound => Close::GONE,
        ProblemType::Denied => Close::FORBIDDEN,
        ProblemType::Unavailable => Close::LATER,
        _ => Close::DEFECT,
    })?;
    Ok(Connect { principal, agent, since: query.since, client: query.client })
}

async fn redeem(app: &App, ticket: &str, canvas: CanvasId) -> std::result::Result<Option<Principal>, StoreError> {
    let hash = Sha256::digest(ticket);
    if !canvas::ticket_exists(&mut app.store.read().await?, &hash, canvas, app.clock.now()).await? {
        return Ok(None);
    }
    let mut tx = app.store.begin().await?;
    let ticket = canvas::redeem_ticket(&mut tx, &hash, canvas, app.clock.now()).await?;
    let Some(ticket) = ticket else { return Ok(None) };
    tx.commit().await?;
    let bearer = Principal {
        user_id: ticket.user_id,
        organization_id: ticket.organization_id,
        email: String::new(),
        name: String::new(),
        grants: Vec::new(),
        attributes: serde_json::Map::new(),
        platform_administrator: false,
        session_id: ticket.session_id,
        policy_version: None,
    };
    // A ticket only says who; what they are is read as of now, and whether their sign-in still holds.
    app.identity.again(&mut app.store.read().await?, &app.clock, &bearer).await
}

fn away(error: StoreError) -> Close {
    let problem = Problem::from(error);
    if problem.kind == ProblemType::Unavailable { Close::LATER } else { Close::DEFECT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_and_what_is_wrong_is_not_ignored() {
        let query = Query::parse("since=41&client=tab-1&ticket=kzt_1").unwrap();
        assert_eq!(query, Query { since: Some(41), ticket: Some("kzt_1".into()), client: Some("tab-1".into()) });
        assert_eq!(Query::parse("since=x"), Ok(Query::default()));
        assert_eq!(Query::parse("client="), Err(Close::CLIENT));
        assert_eq!(Query::parse("client=a%0Ab"), Err(Close::CLIENT));
        assert_eq!(Query::parse(&format!("client={}", "x".repeat(65))), Err(Close::CLIENT));
        for query in ["more=x", "since=1&sinse=2", "since=1&since=2", "client=a&client=a", "since=x&since=x"] {
            assert_eq!(Query::parse(query), Err(Close::QUERY), "{query}");
        }
    }
}
