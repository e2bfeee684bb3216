//! `/api/v1/policies`: a tenant's own policy sets, their versions, and which one is in force.

mod body;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::body::{
    ActivatedPolicySet, Activation, NewPolicySet, NewPolicyVersion, PolicyError, PolicyErrors, PolicySetChange,
    PolicyWarning, WrittenPolicyVersion,
};
use super::{
    extract::{Caller, IdempotencyKey, IfMatch, Input, Parameters, PathId, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, cursor, visible},
    problem::{Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::{self, Action, Context, Invalid, Kind, Resource, Validated},
    bus::Hint,
    domain::{
        fault::{self, Fault},
        id::PolicySetId,
        policy::{PolicySet, PolicyText, PolicyVersion},
        principal::Principal,
    },
    store::{Tx, policies},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_policy_set, list_policy_sets))
        .routes(routes!(get_policy_set, update_policy_set, delete_policy_set))
        .routes(routes!(create_policy_version, list_policy_versions))
        .routes(routes!(get_policy_version))
        .routes(routes!(activate_policy_set))
        .routes(routes!(deactivate_policy_set))
        .routes(routes!(list_policy_errors))
}

/// Errors that are told.
const ERRORS: i64 = 100;

impl Item for PolicySet {
    fn id(&self) -> uuid::Uuid {
        self.id.0
    }

    fn resource(&self) -> Resource {
        Resource::new(Kind::PolicySet, self.id, self.organization_id, self.name.clone())
    }
}

async fn find(app: &App, caller: &Principal, id: PolicySetId, action: Action) -> Result<PolicySet> {
    let set = policies::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    let set = set.ok_or_else(|| Problem::not_found("policy set"))?;
    app.require(caller, action, &set.resource(), &Context::default()).await?;
    Ok(set)
}

async fn current(app: &App, caller: &Principal, id: PolicySetId) -> Result<Response> {
    let set = policies::get(&mut app.store.read().await?, caller.organization_id, id).await?;
    let set = set.ok_or_else(|| Problem::not_found("policy set"))?;
    Ok(([etag(set.revision)], Json(set)).into_response())
}

/// Takes over what is wanted, in its one spelling.
fn put(set: &mut PolicySet, name: Option<String>, description: Option<String>) -> Result<()> {
    let mut faults = Vec::new();
    if let Some(name) = name {
        set.name = fault::name("/name", name, &mut faults);
    }
    if let Some(description) = description {
        fault::description("/description", &description, &mut faults);
        set.description = description;
    }
    Problem::check(faults)
}

/// Validates off the threads that answer requests: a large set takes its time.
async fn validate(app: &App, caller: &Principal, text: &str) -> Result<Validated> {
    let soon =
        |kind, detail| Problem::new(kind, detail).with_header(header::RETRY_AFTER, HeaderValue::from_static("1"));
    app.authz.validate(caller.organization_id, text.to_owned()).await.map_err(|invalid| match invalid {
        Invalid::Faults(faults) => {
            Problem::invalid(faults.iter().map(|fault| Fault::new("/text", fault.to_string())).collect())
        }
        Invalid::Busy => soon(
            ProblemType::RateLimited,
            "Several policy texts of this organization are being validated: send one after the other.",
        ),
        Invalid::Unavailable(error) => {
            tracing::error!(%error, "policies cannot be validated now");
            soon(ProblemType::Unavailable, "This server has no room for validating policies now; try again shortly.")
        }
        Invalid::Defect => Problem::internal(invalid),
    })
}

fn warnings(validated: Validated) -> Vec<PolicyWarning> {
    validated.warnings.into_iter().map(Into::into).collect()
}

/// Create a policy set
///
/// Takes the permission `policy.create`. The new set has no version, and nothing of it is in force: add a version, and
/// activate it. Refused with 409 where another set has the name, or where there are `policy_sets` (100) already.
#[utoipa::path(post, path = "/api/v1/policies", tag = "Policies", params(IdempotencyKey), request_body = NewPolicySet,
    responses((status = CREATED, description = "The new policy set.", body = PolicySet)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    input: Input<NewPolicySet>,
) -> Result<Response> {
    let within = Resource::organization(caller.organization_id);
    app.require(&caller, Action::PolicyCreate, &within, &Context::default()).await?;
    let now = app.clock.now();
    let mut set = PolicySet {
        id: app.clock.id(),
        organization_id: caller.organization_id,
        name: String::new(),
        description: String::new(),
        active_version: None,
        latest_version: None,
        created_by: caller.user_id,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    put(&mut set, Some(input.body.name), Some(input.body.description))?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    let most = app.config.limits.policy_sets;
    if policies::count(&mut tx, caller.organization_id).await? >= most {
        return Err(Problem::conflict(format!("There are {most} policy sets already; delete one first.")));
    }
    policies::insert(&mut tx, &set).await?;
    let response = once.created(&mut tx, &set, set.revision).await?;
    change(&app, tx, &caller, Action::PolicyCreate, format!("policy/{}", set.id), json!({ "name": set.name })).await?;
    Ok(response)
}

/// List policy sets
///
/// Those of the organization for which the caller has the permission `policy.read`, oldest first. Each says which of its
/// versions is in force, if any.
#[utoipa::path(get, path = "/api/v1/policies", tag = "Policies", params(Page),
    responses((status = OK, description = "A page of policy sets.", body = Listed<PolicySet>)),
    extensions(("x-problems" = json!(["-denied"]))))]
async fn list_policy_sets(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<PolicySet>>> {
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, Action::PolicyRead, &page, move |store, after, limit| async move {
        policies::list(&mut store.read().await?, organization, after, limit).await
    });
    Ok(Json(listed.await?))
}

/// Read a policy set
///
/// Takes the permission `policy.read`. The policies themselves are in the set's versions.
#[utoipa::path(get, path = "/api/v1/policies/{id}", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set.")),
    responses((status = OK, description = "The policy set.", body = PolicySet)))]
async fn get_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
) -> Result<Response> {
    let set = find(&app, &caller, id, Action::PolicyRead).await?;
    Ok(([etag(set.revision)], Json(set)).into_response())
}

/// Change the name or the description of a policy set
///
/// Takes the permission `policy.update`. What is absent stays as it is, and so does what is in force. Refused with 409 where
/// another set has the new name.
#[utoipa::path(patch, path = "/api/v1/policies/{id}", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), IfMatch), request_body = PolicySetChange,
    responses((status = OK, description = "The policy set as it is now.", body = PolicySet)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn update_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    if_match: IfMatch,
    input: Input<PolicySetChange>,
) -> Result<Response> {
    let before = find(&app, &caller, id, Action::PolicyUpdate).await?;
    if_match.check(before.revision)?;
    let mut after = before.clone();
    after.updated_at = app.clock.now();
    put(&mut after, input.body.name, input.body.description)?;
    let mut tx = app.store.begin().await?;
    policies::update(&mut tx, &after).await?;
    let details = json!({ "before": before, "after": after });
    change(&app, tx, &caller, Action::PolicyUpdate, format!("policy/{id}"), details).await?;
    current(&app, &caller, id).await
}

/// Delete a policy set with its versions
///
/// Takes the permission `policy.delete`. Refused with 409 while one of the versions is in force: deactivate the set first.
/// The texts are not kept.
#[utoipa::path(delete, path = "/api/v1/policies/{id}", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), IfMatch),
    responses((status = NO_CONTENT, description = "The policy set and its versions are deleted.")),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    if_match: IfMatch,
) -> Result<StatusCode> {
    let set = find(&app, &caller, id, Action::PolicyDelete).await?;
    if_match.check(set.revision)?;
    if let Some(version) = set.active_version {
        return Err(Problem::conflict(format!("Version {version} is in force; deactivate the set first.")));
    }
    let mut tx = app.store.begin().await?;
    policies::delete(&mut tx, &set).await?;
    change(&app, tx, &caller, Action::PolicyDelete, format!("policy/{id}"), json!({ "before": set })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Add a version to a policy set
///
/// Takes the permission `policy.update`. The text is validated strictly against the Cedar schema; each fault is told with line
/// and column. The version never changes, and is not in force until it is activated. One text of an organization is validated
/// at a time, and `policy_validations_waiting` (3) wait: further ones are refused with 429.
#[utoipa::path(post, path = "/api/v1/policies/{id}/versions", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), IdempotencyKey), request_body = NewPolicyVersion,
    responses((status = CREATED, description = "The new version, and what may surprise in it.", body = WrittenPolicyVersion)),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn create_policy_version(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    input: Input<NewPolicyVersion>,
) -> Result<Response> {
    find(&app, &caller, id, Action::PolicyUpdate).await?;
    let NewPolicyVersion { text, note } = input.body;
    let text = authz::without_mark(&text).to_owned();
    let mut faults = Vec::new();
    fault::description("/note", &note, &mut faults);
    if text.contains('\0') {
        faults.push(Fault::new("/text", "no NUL characters"));
    }
    Problem::check(faults)?;
    let validated = validate(&app, &caller, &text).await?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    let number = policies::next_number(&mut tx, caller.organization_id, id).await?;
    let number = number.ok_or_else(|| Problem::not_found("policy set"))?;
    let most = app.config.limits.policy_versions;
    if number > most {
        return Err(Problem::conflict(format!("This set has {most} versions already; go on in a new one.")));
    }
    let version = PolicyVersion {
        id: app.clock.id(),
        policy_id: id,
        number,
        digest: hex::encode(Sha256::digest(&text)),
        note,
        created_by: caller.user_id,
        created_at: app.clock.now(),
    };
    let details = json!({ "version": number, "digest": version.digest, "policies": validated.policies });
    let written = WrittenPolicyVersion { written: PolicyText { version, text }, warnings: warnings(validated) };
    let warnings = serde_json::to_string(&written.warnings).map_err(Problem::internal)?;
    let validation = policies::Validation { rules: app.authz.rules().to_owned(), warnings };
    policies::insert_version(&mut tx, caller.organization_id, &written.written, &validation).await?;
    let response = once.answer(&mut tx, StatusCode::CREATED, &written).await?;
    change(&app, tx, &caller, Action::PolicyUpdate, format!("policy/{id}"), details).await?;
    Ok(response)
}

/// List the versions of a policy set
///
/// All of them, oldest first and without their texts. Takes the permission `policy.read`.
#[utoipa::path(get, path = "/api/v1/policies/{id}/versions", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), Page),
    responses((status = OK, description = "A page of versions.", body = Listed<PolicyVersion>)))]
async fn list_policy_versions(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<PolicyVersion>>> {
    find(&app, &caller, id, Action::PolicyRead).await?;
    let (limit, after) = (page.limit(), page.after()?);
    let more = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut items = policies::versions(&mut app.store.read().await?, caller.organization_id, id, after, more).await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(|version| cursor(version.id.0));
    Ok(Json(Listed { items, next_cursor }))
}

/// Read a version of a policy set with its text
///
/// Takes the permission `policy.read`, for versions that are not in force as well.
#[utoipa::path(get, path = "/api/v1/policies/{id}/versions/{version}", tag = "Policies",
    params(
        ("id" = PolicySetId, Path, description = "The policy set."),
        ("version" = i64, Path, minimum = 1, example = json!(2), description = "The number of the version in the policy set."),
    ),
    responses((status = OK, description = "The version with its text.", body = PolicyText)))]
async fn get_policy_version(
    State(app): State<App>,
    Caller(caller): Caller,
    path: std::result::Result<Path<(uuid::Uuid, i64)>, PathRejection>,
) -> Result<Json<PolicyText>> {
    let Path((id, number)) = path.map_err(|_| Problem::not_found("policy version"))?;
    let id = PolicySetId(id);
    find(&app, &caller, id, Action::PolicyRead).await?;
    let found = policies::version(&mut app.store.read().await?, caller.organization_id, id, number).await?;
    found.map(Json).ok_or_else(|| Problem::not_found("policy version"))
}

/// Put a version of a policy set in force
///
/// Takes the permission `policy.activate`. From the next request on the version decides beside the platform's policies, in place
/// of whatever version of the organization was in force; an older version rolls back. Does nothing if it is in force already.
/// A version that an earlier server validated by other rules is validated again.
///
/// What is in force is part of each policy set of the organization: with `If-Match`, the change is refused also where somebody
/// else put a version of another set in force meanwhile.
#[utoipa::path(post, path = "/api/v1/policies/{id}/activate", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), IfMatch), request_body = Activation,
    responses((status = OK, description = "The policy set with the version in force.", body = ActivatedPolicySet,
        headers(("ETag" = String, description = "The revision of the policy set. Send it in `If-Match` to change exactly this revision.")))))]
async fn activate_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    if_match: IfMatch,
    input: Input<Activation>,
) -> Result<Response> {
    let organization = caller.organization_id;
    if_match.check(find(&app, &caller, id, Action::PolicyActivate).await?.revision)?;
    let number = input.body.version;
    let found = policies::version(&mut app.store.read().await?, organization, id, number).await?;
    let Some(PolicyText { version, text }) = found else {
        return Err(Problem::invalid(vec![Fault::new("/version", format!("this policy set has no version {number}"))]));
    };
    let known = policies::validation(&mut app.store.read().await?, organization, version.id).await?;
    let warnings = match known.filter(|known| known.rules == app.authz.rules()) {
        Some(known) => serde_json::from_str(&known.warnings).map_err(Problem::internal)?,
        None => warnings(validate(&app, &caller, &text).await?),
    };
    let mut tx = app.store.begin().await?;
    let previous = policies::in_force(&mut tx, organization).await?;
    let set = unchanged(&mut tx, &caller, id, &if_match).await?;
    if previous == Some(version.id) {
        return Ok(([etag(set.revision)], Json(ActivatedPolicySet { set, warnings })).into_response());
    }
    policies::put_in_force(&mut tx, organization, Some(version.id), app.clock.now()).await?;
    let details =
        json!({ "version": number, "version_id": version.id, "digest": version.digest, "previous": previous });
    in_force_now(&app, tx, &caller, id, details).await?;
    let set = policies::get(&mut app.store.read().await?, organization, id).await?;
    let set = set.ok_or_else(|| Problem::not_found("policy set"))?;
    Ok(([etag(set.revision)], Json(ActivatedPolicySet { set, warnings })).into_response())
}

/// Take a policy set out of force
///
/// Takes the permission `policy.activate`. From the next request on the platform's policies decide alone. Does nothing if no
/// version of this set is in force.
#[utoipa::path(post, path = "/api/v1/policies/{id}/deactivate", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set."), IfMatch),
    responses((status = OK, description = "The policy set, of which no version is in force.", body = PolicySet)))]
async fn deactivate_policy_set(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
    if_match: IfMatch,
) -> Result<Response> {
    if_match.check(find(&app, &caller, id, Action::PolicyActivate).await?.revision)?;
    let mut tx = app.store.begin().await?;
    let previous = policies::in_force(&mut tx, caller.organization_id).await?;
    let set = unchanged(&mut tx, &caller, id, &if_match).await?;
    if set.active_version.is_none() {
        return Ok(([etag(set.revision)], Json(set)).into_response());
    }
    policies::put_in_force(&mut tx, caller.organization_id, None, app.clock.now()).await?;
    in_force_now(&app, tx, &caller, id, json!({ "version": null, "previous": previous })).await?;
    current(&app, &caller, id).await
}

/// The set, read again under the lock of what is in force: another one may have been activated meanwhile.
async fn unchanged(tx: &mut Tx, caller: &Principal, id: PolicySetId, if_match: &IfMatch) -> Result<PolicySet> {
    let set = policies::get(tx, caller.organization_id, id).await?.ok_or_else(|| Problem::not_found("policy set"))?;
    if_match.check(set.revision)?;
    Ok(set)
}

async fn in_force_now(app: &App, tx: Tx, caller: &Principal, id: PolicySetId, details: Value) -> Result<()> {
    change(app, tx, caller, Action::PolicyActivate, format!("policy/{id}"), details).await?;
    app.bus.publish(Hint::Access { organization: caller.organization_id });
    Ok(())
}

/// List the policies in force that could not be evaluated
///
/// Takes the permission `policy.read`. An error denies, and what it denies is missing from lists without a word. Told are the
/// errors of the version in force since it was put in force, those of other server processes `policy_error_seconds` (10) late.
#[utoipa::path(get, path = "/api/v1/policies/{id}/errors", tag = "Policies",
    params(("id" = PolicySetId, Path, description = "The policy set.")),
    responses((status = OK, description = "The policies that could not be evaluated; none if no version of this set is in force.", body = PolicyErrors)))]
async fn list_policy_errors(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<PolicySetId>,
) -> Result<Json<PolicyErrors>> {
    let set = find(&app, &caller, id, Action::PolicyRead).await?;
    app.authz.write_errors(&app.store, caller.organization_id).await?;
    let rows = policies::errors(&mut app.store.read().await?, caller.organization_id, id, ERRORS).await?;
    let told = |row: policies::ErrorRow| PolicyError {
        policy: row.policy,
        line: row.line,
        column: row.column,
        message: row.message,
        count: row.count,
        last_at: row.last_at,
    };
    Ok(Json(PolicyErrors { version: set.active_version, items: rows.into_iter().map(told).collect() }))
}
