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
    extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId, etag},
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
    OpenApiRouter::new().routes(routes!(create_membership, list_memberships)).routes(routes!(
        get_membership,
        update_membership,
        delete_membership
    ))
}

/// A role to give to a user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "user_id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
    "role": "developer",
    "workspace_id": "019d0e2f-6f3b-7f52-a163-7c8d9e0f1a2b",
}))]
pub struct NewMembership {
    /// The user of the organization who is to hold the role.
    user_id: UserId,
    /// The role to hold. Only owners make owners.
    role: Role,
    /// The workspace to hold the role in; the whole organization if absent or null.
    workspace_id: Option<WorkspaceId>,
}

/// A change of a membership.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "role": "admin" }))]
pub struct MembershipChange {
    /// The role to hold from now on, in the same place. Only owners make owners.
    role: Role,
}

/// What to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// List the memberships of this user only; of all users if absent.
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

/// Create a membership
///
/// Gives a user a role from their next request on, in the whole organization or in one workspace. It needs `membership.create`, and
/// only owners make owners. Refused with 409 where the user holds the role there already, or has as many roles as one may.
#[utoipa::path(post, path = "/api/v1/memberships", tag = "Memberships", params(IdempotencyKey), request_body = NewMembership,
    responses((status = CREATED, description = "The new membership.", body = Membership)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_membership(
    State(app): State<App>,
    Caller(caller): Caller,
    input: Input<NewMembership>,
) -> Result<Response> {
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
///
/// Who holds which role where: the memberships that the caller may read (`membership.read`), oldest first; others are left out.
#[utoipa::path(get, path = "/api/v1/memberships", tag = "Memberships", params(Page, Filter),
    responses((status = OK, description = "A page of memberships.", body = Listed<Membership>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_memberships(
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
///
/// It needs `membership.read`.
#[utoipa::path(get, path = "/api/v1/memberships/{id}", tag = "Memberships",
    params(("id" = MembershipId, Path, description = "The membership.")),
    responses((status = OK, description = "The membership.", body = Membership)))]
async fn get_membership(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<MembershipId>,
) -> Result<Response> {
    let membership = find(&app, &caller, id).await?;
    app.require(&caller, Action::MembershipRead, &membership.resource(), &Context::default()).await?;
    Ok(([etag(membership.revision)], Json(membership)).into_response())
}

/// Change the role of a membership
///
/// The user and the place stay. It needs `membership.update` for the role that is taken away and for the one that is given. Refused
/// with 409 where the user holds that role there already, and where the organization would be left without an active owner.
#[utoipa::path(patch, path = "/api/v1/memberships/{id}", tag = "Memberships",
    params(("id" = MembershipId, Path, description = "The membership."), IfMatch), request_body = MembershipChange,
    responses((status = OK, description = "The membership as changed.", body = Membership)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn update_membership(
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

/// Delete a membership
///
/// Takes a role from a user at once, in what they have open too. It needs `membership.delete`. Refused with 409 where the
/// organization would be left without an active owner.
#[utoipa::path(delete, path = "/api/v1/memberships/{id}", tag = "Memberships",
    params(("id" = MembershipId, Path, description = "The membership."), IfMatch),
    responses((status = NO_CONTENT, description = "The membership is deleted.")),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_membership(
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
