//! `/api/v1/users`: the people of one's organization.

mod body;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::SecretString;
use serde_json::json;
use sqlx::types::Json as Column;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::body::Property;
use self::body::{NewUser, UserChange};
use super::{
    extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Problem, Result},
    quota,
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        connection::Kind as ConnectionKind,
        email::Email,
        fault::{self, Fault},
        id::UserId,
        principal::Principal,
        role::Role,
        user::{self, Membership, User},
    },
    identity::{password, turns::Hashing},
    store::{Tx, connections, identities, memberships, quota::Counted, sessions, users},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_user, list_users)).routes(routes!(get_user, update_user, delete_user))
}

/// Whether this is what everybody may change of themselves without permission.
pub(super) fn own_matters(caller: &Principal, user: &User, properties: &[Property]) -> bool {
    let own = |property: &Property| match property {
        Property::Name => true,
        Property::Password => user.has_password,
        Property::Active | Property::Attributes => false,
    };
    user.id == caller.user_id && properties.iter().all(own)
}

/// Why a user is out of the caller's reach whatever policies say: those who manage what all tenants share are.
pub(super) fn out_of_reach(caller: &Principal, user: &User) -> Option<&'static str> {
    (user.platform_administrator && !caller.platform_administrator)
        .then_some("Only a platform administrator may change the account of a platform administrator.")
}

impl Item for User {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        Resource::new(Kind::User, self.id, self.organization_id, self.name.clone())
    }
}

pub(super) async fn find(app: &App, caller: &Principal, id: UserId) -> Result<User> {
    let user = users::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    user.ok_or_else(|| Problem::not_found("user"))
}

/// Refuses unless the caller may do this to a user. Policies are told whether the user is an owner; those who manage what
/// all tenants share are out of a tenant's reach altogether.
pub(super) async fn may(app: &App, caller: &Principal, action: Action, user: &User) -> Result<()> {
    let owner = memberships::is_owner(&mut app.store.read().await?, user.organization_id, user.id).await?;
    let context = Context { role: owner.then_some(Role::Owner), ..Context::default() };
    app.require(caller, action, &user.resource(), &context).await?;
    if let Some(reason) = out_of_reach(caller, user) {
        app.refuse(caller, action, &user.resource(), reason).await?;
    }
    Ok(())
}

/// Why the caller may not set this user's password, whatever policies say: it would be a way past the provider that somebody
/// signs in at. One's own is changed with the current one, and only another owner sets the first: who has a session only, a
/// stolen one perhaps, cannot make it last.
pub(super) async fn password_out_of_reach(app: &App, caller: &Principal, user: &User) -> Result<Option<&'static str>> {
    if user.id == caller.user_id {
        let detail = "The first password of an account is set by another owner of the organization, or by the operator with \
                      `kaizen admin set-password`.";
        return Ok((!user.has_password).then_some(detail));
    }
    if caller.has_role(Role::Owner) {
        return Ok(None);
    }
    if !user.has_password {
        return Ok(Some("Only an owner sets the first password of somebody who signs in elsewhere."));
    }
    let linked = identities::any(&mut app.store.read().await?, user.organization_id, user.id).await?;
    Ok(linked.then_some("Only an owner sets the password of somebody who is linked to an identity provider."))
}

/// Refuses what would leave the organization without an active owner. [`memberships::lock_owners`] must have been called
/// before the change.
///
/// # Errors
/// 409.
pub async fn keep_an_owner(tx: &mut Tx, caller: &Principal) -> Result<()> {
    if memberships::owners(tx, caller.organization_id).await? == 0 {
        let detail = "The organization would be left without an active owner: make somebody else an owner first.";
        return Err(Problem::conflict(detail));
    }
    Ok(())
}

/// Create a user
///
/// They can sign in at once: by the password, if one is given, or at an identity provider that vouches for the e-mail address. It
/// needs `user.create`, and `membership.create` for each role; where the organization has an identity connection in use, only
/// owners give a password. Refused with 409 where somebody of the organization has
/// the address, or it has as many users as it may. No e-mail is sent.
#[utoipa::path(post, path = "/api/v1/users", tag = "Users", params(IdempotencyKey), request_body = NewUser,
    responses((status = CREATED, description = "The new user.", body = User)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_user(State(app): State<App>, Caller(caller): Caller, input: Input<NewUser>) -> Result<Response> {
    let mut new = input.body;
    new.roles.sort();
    new.roles.dedup();
    let organization = Resource::organization(caller.organization_id);
    app.require(&caller, Action::UserCreate, &organization, &Context::default()).await?;
    for role in &new.roles {
        let context = Context { role: Some(*role), ..Context::default() };
        app.require(&caller, Action::MembershipCreate, &organization, &context).await?;
    }
    let mut faults = Vec::new();
    let name = fault::name("/name", new.name, &mut faults);
    user::attributes("/attributes", &mut new.attributes, &mut faults);
    if let Some(password) = &new.password {
        password::check("/password", password, &new.email, &mut faults);
    }
    Problem::check(faults)?;
    if new.password.is_some() && !caller.has_role(Role::Owner) {
        let kind = ConnectionKind::IdentityProvider;
        let elsewhere = connections::any_active(&mut app.store.read().await?, caller.organization_id, kind).await?;
        if elsewhere {
            let detail = "People sign in at an identity provider here: only an owner creates users with a password. Leave \
                          `password` out.";
            app.refuse(&caller, Action::UserCreate, &organization, detail).await?;
        }
    }
    let hash = match &new.password {
        Some(password) => Some(
            app.identity.passwords.hash(&app.clock, password, Hashing::Organization(caller.organization_id)).await?,
        ),
        None => None,
    };
    let now = app.clock.now();
    let user = User {
        id: app.clock.id(),
        organization_id: caller.organization_id,
        email: new.email.into(),
        name,
        active: true,
        platform_administrator: false,
        has_password: hash.is_some(),
        attributes: Column(new.attributes),
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    quota::room(&app, &mut tx, caller.organization_id, Counted::Users).await?;
    users::insert(&mut tx, &user, hash.as_deref()).await?;
    for role in &new.roles {
        quota::room(&app, &mut tx, caller.organization_id, Counted::Memberships(user.id)).await?;
        let membership = Membership {
            id: app.clock.id(),
            organization_id: caller.organization_id,
            user_id: user.id,
            workspace_id: None,
            role: *role,
            created_at: now,
            updated_at: now,
            revision: 1,
        };
        memberships::insert(&mut tx, &membership).await?;
    }
    let response = once.created(&mut tx, &user, user.revision).await?;
    let details = json!({ "after": user, "roles": new.roles });
    change(&app, tx, &caller, Action::UserCreate, format!("user/{}", user.id), details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(response)
}

/// List users
///
/// The users of the caller's organization that the caller may read (`user.read`), oldest first; others are left out.
#[utoipa::path(get, path = "/api/v1/users", tag = "Users", params(Page),
    responses((status = OK, description = "A page of users.", body = Listed<User>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_users(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<User>>> {
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, Action::UserRead, &page, move |store, after, limit| async move {
        users::list(&mut store.read().await?, organization, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read a user
///
/// It needs `user.read`. Their roles are read at `/api/v1/memberships?user_id=`.
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "Users",
    params(("id" = UserId, Path, description = "The user.")),
    responses((status = OK, description = "The user.", body = User)))]
async fn get_user(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<UserId>) -> Result<Response> {
    let user = find(&app, &caller, id).await?;
    app.require(&caller, Action::UserRead, &user.resource(), &Context::default()).await?;
    Ok(([etag(user.revision)], Json(user)).into_response())
}

/// Change a user
///
/// What is absent or null stays. Everyone may change their own name, and their own password with the current one; the rest needs
/// `user.update`. The first password of somebody who signs in elsewhere is set by another owner. A new password and being
/// disabled end the user's sessions at once; the last active owner cannot be disabled (409).
#[utoipa::path(patch, path = "/api/v1/users/{id}", tag = "Users",
    params(("id" = UserId, Path, description = "The user."), IfMatch), request_body = UserChange,
    responses((status = OK, description = "The user as changed.", body = User)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn update_user(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<UserId>,
    if_match: IfMatch,
    input: Input<UserChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id).await?;
    let wanted = input.body;
    let oneself = id == caller.user_id;
    if !own_matters(&caller, &before, &wanted.properties()) {
        may(&app, &caller, Action::UserUpdate, &before).await?;
    }
    if wanted.password.is_some()
        && let Some(reason) = password_out_of_reach(&app, &caller, &before).await?
    {
        app.refuse(&caller, Action::UserUpdate, &before.resource(), reason).await?;
    }
    if_match.check(before.revision)?;
    let mut after = before.clone();
    after.updated_at = app.clock.now();
    after.active = wanted.active.unwrap_or(after.active);
    let mut faults = Vec::new();
    if let Some(name) = wanted.name {
        after.name = fault::name("/name", name, &mut faults);
    }
    if let Some(mut attributes) = wanted.attributes {
        user::attributes("/attributes", &mut attributes, &mut faults);
        after.attributes.0 = attributes;
    }
    let email = Email::parse(&before.email);
    if let Some(password) = &wanted.password {
        match &email {
            Ok(email) => password::check("/password", password, email, &mut faults),
            // Of an earlier version.
            Err(_) => faults.push(Fault::new(
                "/password",
                "nobody signs in by the e-mail address of this user any more, so it takes no password: make a new user",
            )),
        }
        if oneself && before.has_password && wanted.current_password.is_none() {
            faults.push(Fault::new("/current_password", "needed to change one's own password"));
        }
    }
    Problem::check(faults)?;
    let hash = match &wanted.password {
        None => None,
        Some(password) => {
            if let (true, Some(current)) = (oneself && before.has_password, &wanted.current_password) {
                confirm(&app, &caller, current).await?;
            }
            Some(
                app.identity
                    .passwords
                    .hash(&app.clock, password, Hashing::Organization(caller.organization_id))
                    .await?,
            )
        }
    };

    let mut tx = app.store.begin().await?;
    let disabled = before.active && !after.active;
    if disabled {
        memberships::lock_owners(&mut tx, caller.organization_id).await?;
    }
    let user = users::update(&mut tx, &after, hash.as_deref()).await?;
    let mut ended = 0;
    if disabled || hash.is_some() {
        let keep = caller.session_id.filter(|_| oneself && !disabled);
        ended = sessions::revoke_user(&mut tx, caller.organization_id, id, keep, after.updated_at).await?;
    }
    if disabled {
        keep_an_owner(&mut tx, &caller).await?;
    }
    let details =
        json!({ "before": before, "after": user, "password_changed": hash.is_some(), "sessions_ended": ended });
    change(&app, tx, &caller, Action::UserUpdate, format!("user/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(([etag(user.revision)], Json(user)).into_response())
}

/// Refuses unless this is the user's password now.
async fn confirm(app: &App, caller: &Principal, current: &SecretString) -> Result<()> {
    let session = caller.session_id.ok_or(crate::identity::AuthError::Unauthenticated)?;
    let stored = users::password_hash(&mut app.store.read().await?, caller.organization_id, caller.user_id).await?;
    let who = (caller.organization_id, caller.user_id, session);
    if app.identity.confirm(who, current, stored).await? {
        return Ok(());
    }
    Err(Problem::invalid(vec![Fault::new("/current_password", "not the current password")]))
}

/// Delete a user
///
/// With their roles, their sessions and their links to identity providers, at once. What they made stays, and the audit trail goes
/// on naming them by their id. It needs `user.delete`; the last active owner cannot be deleted (409).
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "Users",
    params(("id" = UserId, Path, description = "The user."), IfMatch),
    responses((status = NO_CONTENT, description = "The user is deleted.")),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_user(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<UserId>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let user = find(&app, &caller, id).await?;
    may(&app, &caller, Action::UserDelete, &user).await?;
    if_match.check(user.revision)?;
    let mut tx = app.store.begin().await?;
    memberships::lock_owners(&mut tx, caller.organization_id).await?;
    users::delete(&mut tx, &user).await?;
    keep_an_owner(&mut tx, &caller).await?;
    change(&app, tx, &caller, Action::UserDelete, format!("user/{id}"), json!({ "before": user })).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(StatusCode::NO_CONTENT)
}
