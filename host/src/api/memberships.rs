//! `/api/v1/memberships`: who holds which role where.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Caller, IfMatch, Input, Parameters, PathId, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Fault, Problem, Result},
    quota,
    users::keep_an_owner,
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        id::{MembershipId, UserId, WorkspaceId},
        principal::Principal,
        role::Role,
        user::Membership,
    },
    store::{memberships, quota::Counted, users, workspaces},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(read, update, remove))
}

/// A new membership.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMembership {
    /// Who is to hold the role.
    user_id: UserId,
    /// Only owners may make owners.
    role: Role,
    /// Where; everywhere in the organization if absent.
    workspace_id: Option<WorkspaceId>,
}

/// What to change.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MembershipChange {
    role: Role,
}

/// What to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only this user's.
    user_id: Option<UserId>,
}

impl Item for Membership {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        Resource {
            workspace: self.workspace_id,
            owner: Some(self.user_id),
            ..Resource::new(Kind::Membership, self.id, self.organization_id, self.role.as_str())
        }
    }
}

fn about(role: Role) -> Context {
    Context { role: Some(role), ..Context::default() }
}

async fn find(app: &App, caller: &Principal, id: MembershipId) -> Result<Membership> {
    let membership = memberships::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    membership.ok_or_else(|| Problem::not_found("membership"))
}

/// Give a user a role
#[utoipa::path(post, path = "/api/v1/memberships", tag = "Memberships", request_body = NewMembership,
    responses((status = CREATED, body = Membership)))]
async fn create(State(app): State<App>, Caller(caller): Caller, input: Input<NewMembership>) -> Result<Response> {
    let NewMembership { user_id, role, workspace_id } = input.body;
    let mut faults = Vec::new();
    let mut conn = app.store.read().await?;
    if users::get(&mut conn, caller.organization_id, user_id).await?.is_none() {
        faults.push(Fault::new("/user_id", "the id of a user of this organization"));
    }
    let workspace = match workspace_id {
        None => None,
        Some(id) => {
            let workspace = workspaces::get(&mut conn, caller.organization_id, id).await?;
            if workspace.is_none() {
                faults.push(Fault::new("/workspace_id", "the id of a workspace of this organization"));
            }
            workspace
        }
    };
    drop(conn);
    let place =
        workspace.map_or_else(|| Resource::organization(caller.organization_id), |workspace| workspace.resource());
    app.require(&caller, Action::MembershipCreate, &place, &about(role)).await?;
    Problem::check(faults)?;
    let now = app.clock.now();
    let membership = Membership {
        id: app.clock.id(),
        organization_id: caller.organization_id,
        user_id,
        workspace_id,
        role,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    quota::room(&app, &mut tx, caller.organization_id, Counted::Memberships(membership.user_id)).await?;
    memberships::insert(&mut tx, &membership).await?;
    let response = once.created(&mut tx, &membership, membership.revision).await?;
    let (target, details) = (format!("membership/{}", membership.id), json!({ "after": membership }));
    change(&app, tx, &caller, Action::MembershipCreate, target, details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(response)
}

/// List memberships
#[utoipa::path(get, path = "/api/v1/memberships", tag = "Memberships", params(Page, Filter),
    responses((status = OK, body = Listed<Membership>)))]
async fn list(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Json<Listed<Membership>>> {
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, Action::MembershipRead, &page, move |store, after, limit| async move {
        memberships::list(&mut store.read().await?, organization, filter.user_id, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read a membership
#[utoipa::path(get, path = "/api/v1/memberships/{id}", tag = "Memberships", params(("id" = MembershipId, Path)),
    responses((status = OK, body = Membership)))]
async fn read(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<MembershipId>) -> Result<Response> {
    let membership = find(&app, &caller, id).await?;
    app.require(&caller, Action::MembershipRead, &membership.resource(), &Context::default()).await?;
    Ok(([etag(membership.revision)], Json(membership)).into_response())
}

/// Change a membership's role
#[utoipa::path(patch, path = "/api/v1/memberships/{id}", tag = "Memberships", params(("id" = MembershipId, Path)),
    request_body = MembershipChange, responses((status = OK, body = Membership)))]
async fn update(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<MembershipId>,
    if_match: IfMatch,
    input: Input<MembershipChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id).await?;
    // Both what is taken away and what is given.
    app.require(&caller, Action::MembershipUpdate, &before.resource(), &about(before.role)).await?;
    app.require(&caller, Action::MembershipUpdate, &before.resource(), &about(input.body.role)).await?;
    if_match.check(before.revision)?;
    let after = Membership { role: input.body.role, updated_at: app.clock.now(), ..before.clone() };
    let mut tx = app.store.begin().await?;
    memberships::lock_owners(&mut tx, caller.organization_id).await?;
    let membership = memberships::update(&mut tx, &after).await?;
    keep_an_owner(&mut tx, &caller).await?;
    let details = json!({ "before": before, "after": membership });
    change(&app, tx, &caller, Action::MembershipUpdate, format!("membership/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(([etag(membership.revision)], Json(membership)).into_response())
}

/// Take a role away
#[utoipa::path(delete, path = "/api/v1/memberships/{id}", tag = "Memberships", params(("id" = MembershipId, Path)),
    responses((status = NO_CONTENT)))]
async fn remove(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<MembershipId>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let membership = find(&app, &caller, id).await?;
    app.require(&caller, Action::MembershipDelete, &membership.resource(), &about(membership.role)).await?;
    if_match.check(membership.revision)?;
    let mut tx = app.store.begin().await?;
    memberships::lock_owners(&mut tx, caller.organization_id).await?;
    memberships::delete(&mut tx, &membership).await?;
    keep_an_owner(&mut tx, &caller).await?;
    let details = json!({ "before": membership });
    change(&app, tx, &caller, Action::MembershipDelete, format!("membership/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(StatusCode::NO_CONTENT)
}
