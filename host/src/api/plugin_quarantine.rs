//! A version of a plugin that must not run any more: quarantined at once, for all tenants and on every host, with the digest
//! of its component. For platform administrators.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, IfMatch, Input, etag},
    guard::actor,
    plugin_changes::begin,
    plugins::{PluginView, named, require},
    problem::{Fault, Problem, Result},
};
use crate::{
    app::App,
    audit::{self, Record},
    authz::Action,
    bus::Hint,
    domain::{audit::Outcome, id::OrganizationId, plugin::SemanticVersion, principal::Principal},
    plugins::install,
    store::{
        Tx,
        plugins::{self as rows, Dependent},
    },
};

/// Characters of a reason.
const REASON: usize = 500;
/// Connections of one organization that its audit event names.
const NAMED: usize = 100;

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(quarantine_plugin_version, release_plugin_version))
}

/// Why a version of a plugin must not run any more.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPluginQuarantine, example = json!({ "reason": "It sends tokens to a third party. Version 1.4.1 is without fault." }))]
struct Order {
    /// What the organizations whose connections run it are told with each call that is refused: one line of at most 500
    /// characters. White space around it is removed.
    #[schema(min_length = 1, max_length = 500, pattern = r"\S")]
    reason: String,
}

impl Order {
    fn reason(&self) -> Result<&str> {
        let reason = self.reason.trim();
        let bad = |why: &str| Err(Problem::invalid(vec![Fault::new("/reason", why)]));
        match reason.chars().count() {
            0 => bad("is needed: the tenants whose connections run this version are told it"),
            count if count > REASON => bad("has more than 500 characters"),
            _ if reason.chars().any(char::is_control) => bad("must be one line without control characters"),
            _ => Ok(reason),
        }
    }
}

/// Put a version of a plugin into quarantine
///
/// At once, on every host (within a second where hosts share no Redis), calls of the connections that run it are refused with the
/// reason, and so are activating it, naming it and uploading it again. Calls under way run to their end, which
/// `plugin_call_seconds` and `plugin_deploy_seconds` bound. Sent again, it replaces the reason. Only platform administrators may.
///
/// The component is refused by its digest, however it comes; and where an upgrade of the server brings other bytes of the same
/// version, these are in quarantine too, until the version is released. The audit trail of each organization with such a
/// connection says so. Connections keep what they name or follow: activate another version, roll back to an earlier one, or
/// release this one.
#[utoipa::path(post, path = "/api/v1/plugins/{id}/versions/{version}/quarantine", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."),
        ("version" = SemanticVersion, Path, description = "The version to put into quarantine."), IfMatch),
    request_body = Order,
    responses((status = OK, description = "The plugin, with the version in quarantine.", body = PluginView, headers(("ETag")))))]
async fn quarantine_plugin_version(
    State(app): State<App>,
    Caller(caller): Caller,
    if_match: IfMatch,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
    input: Input<Order>,
) -> Result<Response> {
    require(&app, &caller, Action::PluginActivate).await?;
    let reason = input.body.reason()?.to_owned();
    let (mut tx, mut plugin, version) = locked(&app, path, &if_match).await?;
    let by = (reason.as_str(), caller.user_id);
    let dependents = install::quarantine(&mut tx, &app.clock, &mut plugin, &version, by).await?;
    finish(&app, tx, &caller, (&plugin, &version), "plugin.quarantine", Some(&reason), &dependents).await
}

/// Release a version of a plugin from quarantine
///
/// Connections that name or follow the version run it again, and the audit trail of their organizations says so. Refused with 409
/// where it is not in quarantine. Only platform administrators may.
#[utoipa::path(delete, path = "/api/v1/plugins/{id}/versions/{version}/quarantine", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."),
        ("version" = SemanticVersion, Path, description = "The version to release."), IfMatch),
    responses((status = OK, description = "The plugin, with the version released.", body = PluginView, headers(("ETag")))),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn release_plugin_version(
    State(app): State<App>,
    Caller(caller): Caller,
    if_match: IfMatch,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
) -> Result<Response> {
    require(&app, &caller, Action::PluginActivate).await?;
    let (mut tx, mut plugin, version) = locked(&app, path, &if_match).await?;
    let dependents = install::release(&mut tx, &app.clock, &mut plugin, &version).await?;
    finish(&app, tx, &caller, (&plugin, &version), "plugin.release", None, &dependents).await
}

/// The plugin and the version that a path names, to be changed.
async fn locked(
    app: &App,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
    if_match: &IfMatch,
) -> Result<(Tx, rows::Plugin, rows::Version)> {
    let (plugin, version) = named(&mut app.store.read().await?, path).await?;
    let (mut tx, plugin) = begin(app, plugin.id, if_match).await?;
    let version = rows::version(&mut tx, plugin.id, &version.version).await?;
    Ok((tx, plugin, version.ok_or_else(|| Problem::not_found("version of a plugin"))?))
}

/// Tells the organizations concerned, commits, and makes it so on this host.
async fn finish(
    app: &App,
    mut tx: Tx,
    caller: &Principal,
    (plugin, version): (&rows::Plugin, &rows::Version),
    action: &'static str,
    reason: Option<&str>,
    dependents: &[Dependent],
) -> Result<Response> {
    let view = PluginView::read(app, &mut tx, plugin).await?;
    let mut organizations: BTreeSet<OrganizationId> = dependents.iter().map(|one| one.organization_id).collect();
    organizations.insert(caller.organization_id);
    let changes = json!({
        "name": format!("{}/{}", plugin.kind.as_str(), plugin.name),
        "version": version.version, "digest": version.digest, "reason": reason,
    });
    // Chains are locked in one order everywhere.
    for organization in &organizations {
        let own: Vec<Uuid> =
            dependents.iter().filter(|one| one.organization_id == *organization).map(|one| one.id).collect();
        let mut details = json!({ "changes": changes, "connections": own.iter().take(NAMED).collect::<Vec<_>>() });
        let by_caller = *organization == caller.organization_id;
        if let (true, Some(details)) = (by_caller, details.as_object_mut()) {
            details.insert("organizations".into(), organizations.len().into());
        }
        // By whom is the operator's matter.
        let actor = if by_caller { actor(caller) } else { "system".to_owned() };
        let target = format!("plugin/{}", plugin.id);
        let organization_id = *organization;
        let event = Record { organization_id, actor, action, target, outcome: Outcome::Success, details };
        audit::record(&mut tx, &app.clock, event).await?;
    }
    tx.commit().await?;
    for organization in organizations {
        app.bus.publish(Hint::Audit { organization });
    }
    app.plugins.changed(Vec::new()).await;
    Ok((StatusCode::OK, [etag(plugin.revision)], Json(view)).into_response())
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema as _;

    use super::*;

    #[test]
    fn the_schema_takes_the_reasons_that_the_server_takes() {
        let schema = serde_json::to_value(Order::schema()).unwrap();
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        for (reason, good) in [
            ("It leaks.".to_owned(), true),
            ("é".repeat(REASON), true),
            ("é".repeat(REASON + 1), false),
            (String::new(), false),
            (" ".to_owned(), false),
        ] {
            let valid = schema.is_valid(&json!({ "reason": reason }));
            assert_eq!((valid, Order { reason }.reason().is_ok()), (good, good));
        }
    }
}
