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
    preconditions::IfNoneMatch,
    problem::{Problem, ProblemType, Result},
    websocket::Upgrade,
};
use crate::{
    app::App,
    authz::{Action, Context},
    canvas::{Close, Connect, accept, refuse},
    domain::{
        agent::Agent,
        canvas::{CanvasEdge, CanvasNode, Graph, Items},
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
    OpenApiRouter::new()
        .routes(routes!(get_canvas))
        .routes(routes!(create_canvas_ticket))
        .routes(routes!(open_canvas_socket))
}

/// Seconds within which a ticket must be used.
const TICKET: i64 = 30;
/// What tickets begin with, so that scanners for leaked secrets know them.
const TICKET_PREFIX: &str = "kzt_";
/// Bytes of a client's name for itself, at the most.
const CLIENT: usize = 64;

/// What is on a canvas.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "seq": 41,
    "nodes": [
        { "id": "n1", "type": "prompt", "position": { "x": 120, "y": 80 }, "data": { "label": "Greeting" } },
        { "id": "n2", "type": "answer", "position": { "x": 420, "y": 80 }, "data": {} },
    ],
    "edges": [{ "id": "n1-n2", "source": "n1", "target": "n2" }],
}))]
struct Canvas {
    /// The sequence of the last message that the canvas holds, which is its revision; 0 where nothing was drawn yet.
    #[schema(minimum = 0)]
    seq: i64,
    /// React Flow's nodes in the order they were added, parents before their children.
    #[schema(value_type = Vec<CanvasNode>)]
    nodes: Items,
    /// React Flow's edges in the order they were added.
    #[schema(value_type = Vec<CanvasEdge>)]
    edges: Items,
}

/// A ticket, with which a canvas socket is opened once.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = CanvasTicket, example = json!({
    "ticket": "kzt_3c9e1f40a7b35d136e880c4f2c529a0d019a9f86d081884c7d659a2feaa0c55a",
    "expires_in": 30,
}))]
struct Ticket {
    /// The secret to send as `ticket` with `GET /ws/canvas/{session_id}`.
    #[schema(min_length = 68, max_length = 68, pattern = "^kzt_[0-9a-f]{64}$")]
    ticket: String,
    /// Seconds within which the ticket has to be used.
    #[schema(minimum = 1)]
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
///
/// It takes the permission `agent.read` on the agent that the canvas belongs to. To draw, and to follow what others draw, open the
/// socket `GET /ws/canvas/{session_id}`.
#[utoipa::path(get, path = "/api/v1/canvases/{id}", tag = "Canvas",
    params(("id" = CanvasId, Path, description = "The canvas's id: the agent's `canvas_id`.")),
    responses((status = OK, description = "The canvas; its `ETag` is `seq`, in quotes.", body = Canvas)))]
async fn get_canvas(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<CanvasId>,
    asked: IfNoneMatch,
) -> Result<Response> {
    find(&app, &caller, id).await?;
    // One that the client has already is not put together.
    let seq = canvas::sequence(&mut app.store.read().await?, caller.organization_id, id).await?.unwrap_or(0);
    if asked.is_unchanged(seq) {
        return Ok((StatusCode::NOT_MODIFIED, [etag(seq)]).into_response());
    }
    let body = |Loaded { sequence: seq, graph: Graph { nodes, edges, .. }, .. }| {
        let text = serde_json::to_vec(&Canvas { seq, nodes, edges });
        text.map(|text| (seq, text)).map_err(|error| StoreError::Database(sqlx::Error::Encode(error.into())))
    };
    let (seq, body) = app.canvases.read(caller.organization_id, id, body).await?;
    Ok(([etag(seq)], [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Create a ticket for the socket of a canvas
///
/// It takes the permission `agent.read` on the agent that the canvas belongs to. A ticket is for clients that cannot send headers
/// when they open a WebSocket, such as pages in browsers. It opens the socket of this canvas once, within 30 seconds, on any host,
/// as the user who created it.
#[utoipa::path(post, path = "/api/v1/canvases/{id}/tickets", tag = "Canvas",
    params(("id" = CanvasId, Path, description = "The canvas's id: the agent's `canvas_id`.")),
    responses((status = CREATED, description = "The ticket.", body = Ticket)))]
async fn create_canvas_ticket(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<CanvasId>,
) -> Result<Response> {
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

/// Open the socket of a canvas
///
/// A WebSocket of subprotocol `kaizen.canvas.v1`, over which several people draw on one canvas at once: JSON text frames, all of
/// which are in `docs/canvas.md`. To view takes the permission `agent.read` on the canvas's agent, to draw `agent.update`. Sign in
/// as with any other route, or send a `ticket`.
///
/// Since browsers cannot read why a WebSocket failed to open, the socket is opened for everybody, and who is refused is told by the
/// code with which it is closed:
///
/// | code | meaning |
/// |---|---|
/// | 1001 | pings were not answered: reconnect with `since` |
/// | 1002, 1003 | what was sent is not the WebSocket protocol, or no text |
/// | 1008 | `client` is not a name, or a query parameter is unknown or given twice |
/// | 1011 | a defect in the server |
/// | 1012 | the server stops: reconnect with `since` |
/// | 1013 | try again later: the canvas or the host is full, the database is away, or too many wait |
/// | 4401 | not signed in, or no longer |
/// | 4403 | not allowed, or no longer |
/// | 4404 | no such canvas, or its agent was deleted |
/// | 4408 | the socket was not read fast enough |
/// | 4413 | a message was too large |
/// | 4429 | too many sockets or messages |
#[utoipa::path(get, path = "/ws/canvas/{session_id}", tag = "Canvas",
    params(("session_id" = CanvasId, Path, description = "The canvas's id: the agent's `canvas_id`."),
        ("since" = Option<i64>, Query, example = 41,
            description = "The last sequence that the client has. It is sent what it missed, or the whole canvas if that is too much, or if this is absent or no number."),
        ("ticket" = Option<String>, Query, example = "kzt_3c9e1f40a7b35d136e880c4f2c529a0d019a9f86d081884c7d659a2feaa0c55a",
            description = "A ticket from `POST /api/v1/canvases/{id}/tickets`, for clients that cannot send headers."),
        ("client" = Option<String>, Query, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "tab-1",
            description = "A name for this tab, the same after reconnecting: then a `ref` that is sent again is never applied twice.")),
    security((), ("bearer" = []), ("cookie" = [])),
    responses((status = SWITCHING_PROTOCOLS, description = "The socket is open.")),
    extensions(("x-problems" = json!(["malformed", "-not_found", "-invalid"]))))]
async fn open_canvas_socket(
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
                AuthError::Unauthenticated | AuthError::Expired => Close::SIGNED_OUT,
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
    #[test]
    fn the_name_of_a_client_and_a_ticket_are_documented_as_they_are() {
        let document = serde_json::to_value(router().into_openapi()).unwrap();
        let parameters = document["paths"]["/ws/canvas/{session_id}"]["get"]["parameters"].as_array().unwrap();
        let client = parameters.iter().find(|parameter| parameter["name"] == "client").unwrap();
        assert_eq!(client["schema"]["maxLength"], CLIENT);
        let ticket = &document["components"]["schemas"]["CanvasTicket"]["properties"]["ticket"];
        assert_eq!(ticket["maxLength"], TICKET_PREFIX.len() + 64);
        assert!(ticket["pattern"].as_str().unwrap().contains(TICKET_PREFIX));
        let tickets = &document["paths"]["/api/v1/canvases/{id}/tickets"]["post"]["description"];
        assert!(tickets.as_str().unwrap().contains(&format!("{TICKET} seconds")), "{tickets}");
    }
}
