//! `/api/v1/agents/{id}/versions`: immutable, numbered, each with a digest.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use sha2::{Digest, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    agents::find,
    extract::{Caller, IdempotencyKey, Input, Parameters, PathId},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Listed, Page, cursor},
    problem::{Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::Action,
    domain::{
        agent::{Agent, Settings, Version},
        canvas::{CanvasEdge, CanvasNode, Graph, Items},
        fault,
        id::AgentId,
        labels::Labels,
        principal::Principal,
    },
    store::{Tx, agents, canvas, versions},
};

/// How often a version is read anew because the agent changed meanwhile.
const TRIES: usize = 8;

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_agent_version, list_agent_versions)).routes(routes!(get_agent_version))
}

/// A version to be created of what is on the canvas and in the settings now.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAgentVersion, example = json!({ "note": "Asks for the order number first." }))]
pub struct NewVersion {
    /// What changed in this version, for people; empty if absent.
    #[serde(default)]
    #[schema(max_length = 4000)]
    note: String,
}

/// A version of an agent with its workflow.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = AgentVersionWithWorkflow)]
pub struct FullVersion {
    #[serde(flatten)]
    version: Version,
    /// What a gateway gets of this version, exactly as digested.
    #[schema(value_type = Workflow)]
    workflow: Box<RawValue>,
}

/// What a gateway gets of a version, in the format `kaizen.workflow.v1`.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "format": "kaizen.workflow.v1",
    "agent": {
        "id": "019a2c4e-7b3d-7f10-8a5c-2e9d4b6f8c01", "name": "Support assistant",
        "description": "Answers questions about orders.", "labels": { "team": "support" },
    },
    "settings": { "system_prompt": "You help customers of Acme.", "model": "gpt-4o", "temperature": 0.2, "max_tokens": 1024 },
    "nodes": [{ "id": "n1", "type": "prompt", "position": { "x": 120, "y": 80 }, "data": { "label": "Greeting" } }],
    "edges": [],
    "canvas_sequence": 41,
}))]
struct Workflow<'a> {
    /// The name of this format: `kaizen.workflow.v1`.
    #[schema(value_type = String, pattern = r"^kaizen\.workflow\.v1$")]
    format: &'static str,
    /// The agent, as it was when the version was created.
    #[schema(value_type = AgentPart)]
    agent: AgentPart<'a>,
    /// The agent's settings.
    #[schema(value_type = Settings)]
    settings: &'a RawValue,
    /// The canvas's nodes, parents before their children.
    #[schema(value_type = Vec<CanvasNode>)]
    nodes: &'a Items,
    /// The canvas's edges.
    #[schema(value_type = Vec<CanvasEdge>)]
    edges: &'a Items,
    /// The sequence of the last message that the canvas held; 0 where nothing was drawn yet.
    #[schema(minimum = 0)]
    canvas_sequence: i64,
}

/// An agent within a workflow.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = WorkflowAgent)]
struct AgentPart<'a> {
    /// The agent's id.
    id: AgentId,
    /// The agent's display name.
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: &'a str,
    /// What the agent is for; may be empty.
    #[schema(value_type = String, max_length = 4000)]
    description: &'a str,
    /// The agent's labels.
    #[schema(value_type = Labels)]
    labels: &'a std::collections::BTreeMap<String, String>,
}

/// Create a version of an agent
///
/// It takes the permission `agent.version`. The version holds the agent's name, description, labels and settings and what is on its
/// canvas, all as of one moment, and never changes; only versions are deployed. One that holds the same as the version before it is
/// a new version as well. Versions are removed only with their agent. One version of an organization is created at a time; refused
/// with 429 where many wait already, and with 409 where the agent or the organization has as many as it may.
#[utoipa::path(post, path = "/api/v1/agents/{id}/versions", tag = "Versions",
    params(("id" = AgentId, Path, description = "The agent's id."), IdempotencyKey), request_body = NewVersion,
    responses((status = CREATED, description = "The new version.", body = Version,
        headers(("ETag" = String, description = "The version's number, in quotes.")))),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_agent_version(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AgentId>,
    input: Input<NewVersion>,
) -> Result<Response> {
    find(&app, &caller, id, Action::AgentVersion).await?;
    let mut faults = Vec::new();
    fault::description("/note", &input.body.note, &mut faults);
    Problem::check(faults)?;
    let Ok(_turn) = app.versions.turn(caller.organization_id).await else {
        let why = "Several versions of this organization's agents are being cut: send one after the other.";
        return Err(
            Problem::new(ProblemType::RateLimited, why).with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
        );
    };
    for _ in 0..TRIES {
        let draft = draft(&app, &caller, id).await?;
        let mut tx = app.store.begin().await?;
        let once = match Once::claim(&app, &mut tx, &caller, input.idempotency.clone()).await? {
            Claimed::Fresh(once) => once,
            Claimed::Answered(response) => return Ok(response),
        };
        let locked = versions::next(&mut tx, caller.organization_id, id).await?;
        let (agent, number) = locked.ok_or_else(|| Problem::not_found("agent"))?;
        room(&app, number, draft.bytes)?;
        if !draft.holds(&mut tx, &agent, number).await? {
            continue;
        }
        let Draft { sequence, text, .. } = draft;
        let version = Version {
            id: app.clock.id(),
            agent_id: id,
            number,
            digest: hex::encode(Sha256::digest(&text)),
            note: input.body.note,
            created_by: caller.user_id,
            created_at: app.clock.now(),
        };
        versions::insert(&mut tx, caller.organization_id, &version, &text).await?;
        let response = once.created(&mut tx, &version, number).await?;
        let details = json!({ "version": number, "digest": version.digest, "canvas_sequence": sequence });
        change(&app, tx, &caller, Action::AgentVersion, format!("agent/{id}"), details).await?;
        return Ok(response);
    }
    let why = "This agent is being changed, or other versions of it are being cut, all the time: try again shortly.";
    Err(Problem::new(ProblemType::Unavailable, why).with_header(header::RETRY_AFTER, HeaderValue::from_static("1")))
}

/// What a version is made of, read before anything is locked: reading a large canvas takes its time.
struct Draft {
    /// Of the agent.
    revision: i64,
    /// The version that would be the next one before the canvas was read.
    number: i64,
    /// Of the canvas.
    sequence: i64,
    text: String,
    /// Of all versions of the organization, with this one.
    bytes: i64,
}

async fn draft(app: &App, caller: &Principal, id: AgentId) -> Result<Draft> {
    let organization = caller.organization_id;
    let mut conn = app.store.read().await?;
    let number = versions::next_number(&mut conn, organization, id).await?;
    let bytes = versions::bytes(&mut conn, organization).await?;
    let agent = agents::get(&mut conn, organization, id).await?.ok_or_else(|| Problem::not_found("agent"))?;
    let (sequence, graph) = canvas::graph(&mut conn, organization, agent.canvas_id).await?;
    drop(conn);
    let text = workflow(&agent, sequence, &graph)?;
    let bytes = bytes.saturating_add(i64::try_from(text.len()).unwrap_or(i64::MAX));
    Ok(Draft { revision: agent.revision, number, sequence, text, bytes })
}

impl Draft {
    /// Whether it is what agent and canvas were at one moment, and no earlier one than that of the version before.
    async fn holds(&self, tx: &mut Tx, agent: &Agent, number: i64) -> Result<bool> {
        if agent.revision != self.revision {
            return Ok(false);
        }
        // The canvas may change all the time. That is no matter unless a version was cut meanwhile, which may have more of it.
        Ok(number == self.number
            || canvas::sequence(tx, agent.organization_id, agent.canvas_id).await?.unwrap_or_default() == self.sequence)
    }
}

/// Whether there may be a version of this number, and all versions of the organization may take so many bytes.
fn room(app: &App, number: i64, bytes: i64) -> Result<()> {
    let limits = &app.config.limits;
    let most = limits.versions_per_agent;
    if number > most {
        return Err(Problem::conflict(format!(
            "This agent has {most} versions already, as many as one may have here: go on with a new agent, or ask the operator to \
             raise `versions_per_agent`."
        )));
    }
    let most = limits.version_storage_mib_per_organization;
    if bytes > most.saturating_mul(1024 * 1024) {
        return Err(Problem::conflict(format!(
            "With this one, the versions of your organization's agents would take more than {most} MiB: delete agents that are not \
             needed any more, or ask the operator to raise `version_storage_mib_per_organization`."
        )));
    }
    Ok(())
}

fn workflow(agent: &Agent, canvas_sequence: i64, graph: &Graph) -> Result<String> {
    let workflow = Workflow {
        format: "kaizen.workflow.v1",
        agent: AgentPart { id: agent.id, name: &agent.name, description: &agent.description, labels: &agent.labels },
        settings: &agent.settings,
        nodes: &graph.nodes,
        edges: &graph.edges,
        canvas_sequence,
    };
    serde_json::to_string(&workflow).map_err(Problem::internal)
}

/// List the versions of an agent
///
/// All of them without their workflows, oldest first, for whoever may read the agent (`agent.read`).
#[utoipa::path(get, path = "/api/v1/agents/{id}/versions", tag = "Versions",
    params(("id" = AgentId, Path, description = "The agent's id."), Page),
    responses((status = OK, description = "A page of versions.", body = Listed<Version>)))]
async fn list_agent_versions(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<AgentId>,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<Version>>> {
    find(&app, &caller, id, Action::AgentRead).await?;
    let (limit, after) = (page.limit(), page.after()?);
    let more = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut items = versions::list(&mut app.store.read().await?, caller.organization_id, id, after, more).await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(|version| cursor(version.id.0));
    Ok(Json(Listed { items, next_cursor }))
}

/// Read a version of an agent with its workflow
///
/// It takes the permission `agent.read`. The `digest` is of the bytes that `workflow` has in the answer.
#[utoipa::path(get, path = "/api/v1/agents/{id}/versions/{version}", tag = "Versions",
    params(("id" = AgentId, Path, description = "The agent's id."),
        ("version" = i64, Path, description = "The version's number, from 1.", minimum = 1, example = 3)),
    responses((status = OK, description = "The version.", body = FullVersion)))]
async fn get_agent_version(
    State(app): State<App>,
    Caller(caller): Caller,
    path: std::result::Result<axum::extract::Path<(uuid::Uuid, i64)>, axum::extract::rejection::PathRejection>,
) -> Result<Response> {
    let Ok(axum::extract::Path((id, number))) = path else { return Err(Problem::not_found("version")) };
    let agent = find(&app, &caller, id.into(), Action::AgentRead).await?;
    if number < 1 {
        return Err(Problem::not_found("version"));
    }
    let found = versions::get(&mut app.store.read().await?, caller.organization_id, agent.id, Some(number)).await?;
    let (version, text) = found.ok_or_else(|| Problem::not_found("version"))?;
    let workflow = RawValue::from_string(text).map_err(Problem::internal)?;
    Ok(Json(FullVersion { version, workflow }).into_response())
}
