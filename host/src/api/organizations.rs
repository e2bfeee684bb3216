//! `/api/v1/organizations`: one's own; platform administrators also create and list all.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    deployments::removal,
    extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId, etag},
    guard::{actor, change},
    idempotency::{Claimed, Once},
    page::{Listed, Page, cursor},
    problem::{Fault, Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Kind, Resource},
    bus::Hint,
    domain::{
        email::Email,
        id::{OrganizationId, UserId},
        name::Name,
        principal::Principal,
        tenancy::Organization,
        text::TextFault,
    },
    identity::organization::{self, OrganizationError},
    store::{deployments::Of, organizations},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create_organization, list_organizations)).routes(routes!(
        get_organization,
        update_organization,
        delete_organization
    ))
}

/// A new organization with its first owner.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Aurora Labs",
    "owner": { "email": "ada@example.com", "name": "Ada Lovelace", "password": "violet harbour lamp 41" },
}))]
pub struct NewOrganization {
    /// The organization's display name.
    #[schema(value_type = Name)]
    name: String,
    /// The user who manages the organization at first.
    owner: NewOwner,
}

/// The first owner of a new organization.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "email": "ada@example.com", "name": "Ada Lovelace", "password": "violet harbour lamp 41" }))]
pub struct NewOwner {
    /// The e-mail address that the owner signs in with. Case does not matter.
    email: Email,
    /// The owner's display name; what stands before the `@` of the address if absent or empty.
    #[schema(max_length = 200)]
    name: Option<String>,
    /// The owner's password; absent for one who will sign in at an identity provider.
    #[schema(value_type = Option<String>, format = Password, min_length = 8, max_length = 128)]
    password: Option<SecretString>,
}

/// The new organization and its first owner.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "019d0e2f-6f39-7a10-9c3d-2b4f6a8c0e1d",
    "name": "Aurora Labs",
    "policy_version_id": null,
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:30:00.000000Z",
    "owner_id": "019d0e2f-6f3a-7c41-8b52-9d0e1f2a3b4c",
}))]
pub struct CreatedOrganization {
    #[serde(flatten)]
    organization: Organization,
    /// The id of the first owner, a user of the new organization.
    owner_id: UserId,
}

/// A change of an organization: what is absent or null stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Aurora Research" }))]
pub struct OrganizationChange {
    /// The organization's new display name.
    #[schema(value_type = Option<Name>)]
    name: Option<String>,
}

/// What confirms that everything is to go.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Confirmation {
    /// The organization's name as it is now. Without it, or with another one, the answer is 428.
    #[param(required, example = "Aurora Labs")]
    confirm: Option<String>,
}

/// The problem of a name at this place.
fn at(pointer: &str) -> impl Fn(TextFault) -> Problem {
    move |fault| Problem::invalid(vec![Fault::new(pointer, fault.to_string())])
}

async fn find(app: &App, caller: &Principal, id: OrganizationId, action: Action) -> Result<Organization> {
    if id != caller.organization_id {
        return Err(Problem::not_found("organization"));
    }
    let organization = organizations::get(&mut app.store.read().await?, id).await?;
    let organization = organization.ok_or_else(|| Problem::not_found("organization"))?;
    let resource = Resource::new(Kind::Organization, id, id, organization.name.clone());
    app.require(caller, action, &resource, &Context::default()).await?;
    Ok(organization)
}

/// Create an organization
///
/// For platform administrators. It has a workspace named `Default`, and its owner can sign in at once if a password is given. The
/// owner is a new user, also where the address is known in other organizations; no e-mail is sent.
#[utoipa::path(post, path = "/api/v1/organizations", tag = "Organizations", params(IdempotencyKey), request_body = NewOrganization,
    responses((status = CREATED, description = "The new organization, with the id of its first owner.", body = CreatedOrganization,
        headers(("ETag" = String, description = "The revision of the organization.")))))]
async fn create_organization(
    State(app): State<App>,
    Caller(caller): Caller,
    input: Input<NewOrganization>,
) -> Result<Response> {
    let within = Resource::organization(caller.organization_id);
    app.require(&caller, Action::OrganizationCreate, &within, &Context::default()).await?;
    let NewOrganization { name, owner } = input.body;
    let name = Name::parse(&name).map_err(at("/name"))?;
    let owner_name = owner.name.filter(|name| !name.is_empty());
    let owner_name = owner_name.map(|name| Name::parse(&name)).transpose().map_err(at("/owner/name"))?;
    let new = organization::NewOrganization {
        name: &name,
        owner: &owner.email,
        owner_name: owner_name.as_ref(),
        password: owner.password.as_ref(),
        platform_administrator: false,
        actor: &actor(&caller),
    };
    let hash = organization::prepare(&app.identity.passwords, &app.clock, &new).await?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    let (organization, owner_id) = organization::create(&mut tx, &app.clock, &new, hash.as_deref()).await?;
    let (id, revision) = (organization.id, organization.revision);
    let response = once.created(&mut tx, &CreatedOrganization { organization, owner_id }, revision).await?;
    let details = json!({ "name": name, "owner": owner.email });
    change(&app, tx, &caller, Action::OrganizationCreate, format!("organization/{id}"), details).await?;
    Ok(response)
}

impl From<OrganizationError> for Problem {
    fn from(error: OrganizationError) -> Self {
        match error {
            OrganizationError::Invalid(faults) => Self::invalid(faults),
            OrganizationError::Password(error) => error.into(),
            OrganizationError::Store(error) => error.into(),
        }
    }
}

/// List organizations
///
/// The caller's own, which needs `organization.read`; for platform administrators all of them, oldest first.
#[utoipa::path(get, path = "/api/v1/organizations", tag = "Organizations", params(Page),
    responses((status = OK, description = "A page of organizations.", body = Listed<Organization>)))]
async fn list_organizations(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<Organization>>> {
    let (limit, after) = (page.limit(), page.after()?);
    if !caller.platform_administrator {
        let own = find(&app, &caller, caller.organization_id, Action::OrganizationRead).await?;
        return Ok(Json(Listed { items: vec![own], next_cursor: None }));
    }
    let more = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut items = organizations::list(&mut app.store.read().await?, after, more).await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(|organization| cursor(organization.id.0));
    Ok(Json(Listed { items, next_cursor }))
}

/// Read one's organization
///
/// It needs `organization.read`. Others than the caller's own are not found, for platform administrators too.
#[utoipa::path(get, path = "/api/v1/organizations/{id}", tag = "Organizations",
    params(("id" = OrganizationId, Path, description = "The caller's organization.")),
    responses((status = OK, description = "The organization.", body = Organization)))]
async fn get_organization(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<OrganizationId>,
) -> Result<Response> {
    let organization = find(&app, &caller, id, Action::OrganizationRead).await?;
    Ok(([etag(organization.revision)], Json(organization)).into_response())
}

/// Rename one's organization
///
/// It needs `organization.update`. The policy set in force is changed at `/api/v1/policies`, not here.
#[utoipa::path(patch, path = "/api/v1/organizations/{id}", tag = "Organizations",
    params(("id" = OrganizationId, Path, description = "The caller's organization."), IfMatch),
    request_body = OrganizationChange,
    responses((status = OK, description = "The organization as changed.", body = Organization)))]
async fn update_organization(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<OrganizationId>,
    if_match: IfMatch,
    input: Input<OrganizationChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id, Action::OrganizationUpdate).await?;
    if_match.check(before.revision)?;
    let mut after = before.clone();
    if let Some(name) = input.body.name {
        after.name = Name::parse(&name).map_err(at("/name"))?.into();
    }
    after.updated_at = app.clock.now();
    let mut tx = app.store.begin().await?;
    let organization = organizations::update(&mut tx, &after).await?;
    let details = json!({ "before": before, "after": organization });
    change(&app, tx, &caller, Action::OrganizationUpdate, format!("organization/{id}"), details).await?;
    Ok(([etag(organization.revision)], Json(organization)).into_response())
}

/// Delete one's organization
///
/// With everything in it, but for its audit trail, at once and for good: so `confirm` has to repeat the organization's name. It needs
/// `organization.delete`. Refused with 409 while agents are deployed, or on their way: the answer names what has to be stopped or
/// cancelled first.
#[utoipa::path(delete, path = "/api/v1/organizations/{id}", tag = "Organizations",
    params(("id" = OrganizationId, Path, description = "The caller's organization."), Confirmation, IfMatch),
    responses((status = NO_CONTENT, description = "The organization is deleted.")),
    extensions(("x-problems" = json!(["conflict", "confirmation_required"]))))]
async fn delete_organization(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<OrganizationId>,
    Parameters(Confirmation { confirm }): Parameters<Confirmation>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let organization = find(&app, &caller, id, Action::OrganizationDelete).await?;
    if_match.check(organization.revision)?;
    if confirm.as_deref() != Some(organization.name.as_str()) {
        let detail = "Everything in the organization is deleted at once and for good, but for its audit trail. To confirm it, \
                      repeat the organization's name: `?confirm=` and the name, percent-encoded.";
        return Err(Problem::new(ProblemType::Unconfirmed, detail));
    }
    let mut tx = app.store.begin().await?;
    removal::forget(&mut tx, id, Of::Organization).await?;
    organizations::delete(&mut tx, &organization).await?;
    let details = json!({ "before": organization });
    change(&app, tx, &caller, Action::OrganizationDelete, format!("organization/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization: id });
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;
    use crate::identity::password;

    #[test]
    fn the_document_says_how_long_an_owners_name_and_password_are() {
        let owner = serde_json::to_value(NewOwner::schema()).unwrap();
        let (documented, name) = (&owner["properties"], serde_json::to_value(Name::schema()).unwrap());
        assert_eq!(documented["name"]["maxLength"], name["maxLength"]);
        let (least, most) = (password::LENGTH.start(), password::LENGTH.end());
        let password = &documented["password"];
        assert_eq!((&password["minLength"], &password["maxLength"]), (&json!(least), &json!(most)));
    }
}
