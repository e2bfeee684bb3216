//! `/api/v1/users/{id}/identities`: which subjects of identity providers a user is linked to, and how a link is removed.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, Parameters, PathId},
    guard::change,
    page::{Listed, Page, cursor},
    problem::{Problem, Result},
    users::{find, may},
};
use crate::{
    app::App,
    authz::Action,
    bus::Hint,
    domain::{
        id::{IdentityId, UserId},
        user::Identity,
    },
    store::{identities, sessions},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_user_identities)).routes(routes!(delete_user_identity))
}

/// List the identities of a user
///
/// The subjects of identity providers that the user is linked to, oldest first. Everyone reads their own; those of others need
/// `user.update`.
#[utoipa::path(get, path = "/api/v1/users/{id}/identities", tag = "Users",
    params(("id" = UserId, Path, description = "The user."), Page),
    responses((status = OK, description = "A page of the user's identities.", body = Listed<Identity>)))]
async fn list_user_identities(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<UserId>,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<Identity>>> {
    let user = find(&app, &caller, id).await?;
    if id != caller.user_id {
        may(&app, &caller, Action::UserUpdate, &user).await?;
    }
    let (after, limit) = (page.after()?, page.limit());
    // One more than wanted tells whether there is a next page.
    let rows = i64::try_from(limit + 1).map_err(Problem::internal)?;
    let mut items = identities::list(&mut app.store.read().await?, caller.organization_id, id, after, rows).await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(|identity| cursor(identity.id.into()));
    Ok(Json(Listed { items, next_cursor }))
}

/// Delete an identity of a user
///
/// Whoever signs in as that subject is not this user any more, and the user's sessions end, but for the caller's own. It needs
/// `user.update`, one's own too. At their next sign-in somebody whose verified e-mail address is the user's is linked again.
#[utoipa::path(delete, path = "/api/v1/users/{id}/identities/{identity_id}", tag = "Users",
    params(
        ("id" = UserId, Path, description = "The user."),
        ("identity_id" = IdentityId, Path, description = "The identity of the user to delete.")
    ),
    responses((status = NO_CONTENT, description = "The identity is deleted.")))]
async fn delete_user_identity(
    State(app): State<App>,
    Caller(caller): Caller,
    path: std::result::Result<Path<(Uuid, Uuid)>, PathRejection>,
) -> Result<StatusCode> {
    let Path((id, identity)) = path.map_err(|_| Problem::not_found("identity: the ids in the path are not UUIDs"))?;
    let (id, identity) = (UserId(id), IdentityId(identity));
    let user = find(&app, &caller, id).await?;
    may(&app, &caller, Action::UserUpdate, &user).await?;
    let (organization, now) = (caller.organization_id, app.clock.now());
    let mut tx = app.store.begin().await?;
    let removed = identities::remove(&mut tx, organization, id, identity).await?;
    let removed = removed.ok_or_else(|| Problem::not_found("identity"))?;
    // Which of them began by it is not known; one's own goes on.
    let keep = caller.session_id.filter(|_| id == caller.user_id);
    let ended = sessions::revoke_user(&mut tx, organization, id, keep, now).await?;
    let details = json!({ "identity_removed": removed, "sessions_ended": ended });
    change(&app, tx, &caller, Action::UserUpdate, format!("user/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization });
    Ok(StatusCode::NO_CONTENT)
}
