//! Which version of a plugin is in use: activate, roll back, disable, remove. For platform administrators.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, IfMatch, Input, PathId, etag},
    guard::change,
    plugins::{PluginView, named, require},
    problem::{Fault, Problem, Result},
};
use crate::{
    app::App,
    audit::{self, Record},
    authz::{self, Action},
    bus::Hint,
    domain::{
        audit::Outcome,
        connection::Kind,
        id::OrganizationId,
        plugin::{self, SemanticVersion},
        principal::Principal,
    },
    plugins::{
        InstallError, Plugin,
        fit::{Examined, Misfits},
        install::{self, ChangeError},
    },
    store::{Tx, plugins as rows},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(activate_plugin))
        .routes(routes!(rollback_plugin))
        .routes(routes!(disable_plugin_version))
        .routes(routes!(delete_plugin_version))
}

/// The version of a plugin to activate, and what is accepted with it.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PluginActivation, example = json!({ "version": "1.4.0", "accept_capabilities": true }))]
struct Activation {
    /// One of the plugin's installed versions.
    #[schema(value_type = SemanticVersion)]
    version: String,
    /// Accepts that the version reaches more than the one it takes the place of, or that somebody else signed it;
    /// `GET /api/v1/plugins/{id}/versions/{version}/changes` says what. False if absent.
    #[serde(default)]
    accept_capabilities: bool,
    /// Lets connections whose configuration or secrets the version does not take keep the version that they run: they name it as
    /// their `plugin_version` from then on, and their organization's audit trail says so. False if absent.
    #[serde(default)]
    pin_misfits: bool,
}

/// Begins a change of one plugin: nobody else changes plugins until it is committed.
pub(super) async fn begin(app: &App, id: Uuid, if_match: &IfMatch) -> Result<(Tx, rows::Plugin)> {
    let mut tx = app.store.begin().await?;
    rows::lock(&mut tx).await?;
    let plugin = rows::seize(&mut tx, id).await?.ok_or_else(|| Problem::not_found("plugin"))?;
    if_match.check(plugin.revision)?;
    Ok((tx, plugin))
}

/// Refuses what does not load on this host (any more). That may take a while: not within a transaction.
async fn loads(app: &App, plugin: &rows::Plugin, row: &rows::Version) -> Result<Arc<Plugin>> {
    match app.plugins.try_row(plugin, row).await {
        Ok(ready) => Ok(ready),
        Err(error @ (InstallError::Store(_) | InstallError::Busy(_))) => Err(error.into()),
        Err(error) => Err(Problem::conflict(format!("version {} does not load: {}", row.version, error.why()))),
    }
}

/// Commits it with its audit event, and makes it run.
async fn finish(
    app: &App,
    mut tx: Tx,
    caller: &Principal,
    action: Action,
    plugin: &rows::Plugin,
    mut details: Value,
    at_hand: Vec<Arc<Plugin>>,
) -> Result<Response> {
    let view = PluginView::read(app, &mut tx, plugin).await?;
    if let Some(details) = details.as_object_mut() {
        details.insert("name".into(), format!("{}/{}", plugin.kind.as_str(), plugin.name).into());
    }
    change(app, tx, caller, action, format!("plugin/{}", plugin.id), details).await?;
    app.plugins.changed(at_hand).await;
    Ok(([etag(plugin.revision)], Json(view)).into_response())
}

/// Activate a version of a plugin
///
/// New connections use it from now on, and so do connections that follow a version it is compatible with; calls under way
/// end on the version they began on. Activating the active version again changes nothing. Only platform administrators may.
///
/// 409 where it reaches more than what it takes the place of and that is not accepted, with each thing it would reach in
/// `errors`; and where it does not take the configuration or the secrets of connections that would run it, with the first of
/// these in `errors`: `/gateways/{id}/config/…` and what is wrong there, without the value.
#[utoipa::path(post, path = "/api/v1/plugins/{id}/activate", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."), IfMatch), request_body = Activation,
    responses((status = OK, description = "The plugin, with the version active.", body = PluginView, headers(("ETag")))),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn activate_plugin(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<Uuid>,
    if_match: IfMatch,
    input: Input<Activation>,
) -> Result<Response> {
    require(&app, &caller, Action::PluginActivate).await?;
    let asked = input.body;
    let mut conn = app.store.read().await?;
    let plugin = rows::get(&mut conn, id).await?.ok_or_else(|| Problem::not_found("plugin"))?;
    let none = || {
        let message = format!("there is no version `{}` of this plugin", asked.version);
        Problem::invalid(vec![Fault::new("/version", message)])
    };
    let row = rows::version(&mut conn, id, &asked.version).await?.ok_or_else(none)?;
    drop(conn);
    let ready = loads(&app, &plugin, &row).await?;
    let accepted = install::Accepted { capabilities: asked.accept_capabilities, pins: asked.pin_misfits };
    let mut examined = Examined::default();
    let (mut tx, plugin, version, before, done) = loop {
        examined.look(&app.store, &ready, (plugin.kind, &plugin.name), &row.line).await?;
        let (mut tx, mut plugin) = begin(&app, id, &if_match).await?;
        let mut version = rows::version(&mut tx, id, &asked.version).await?.ok_or_else(none)?;
        let before = plugin.active_version.clone();
        let looked_at = (&*ready, &examined);
        match install::activate(&mut tx, &app.clock, &mut plugin, &mut version, looked_at, accepted).await {
            Err(ChangeError::Moved) => examined.again(),
            done => break (tx, plugin, version, before, done?),
        }
    };
    let Some(install::Activated { changes, pinned }) = done else {
        let view = PluginView::read(&app, &mut tx, &plugin).await?;
        return Ok(([etag(plugin.revision)], Json(view)).into_response());
    };
    let told = match &pinned {
        Some(misfits) => tell(&app, &mut tx, &plugin, misfits).await?,
        None => BTreeSet::new(),
    };
    let details = json!({
        "before": before, "after": version.version, "digest": version.digest, "accepted": changes.growth(),
        "pinned": pinned.map(|misfits| misfits.connections.len()),
    });
    let answer = finish(&app, tx, &caller, Action::PluginActivate, &plugin, details, vec![ready]).await?;
    for organization in told {
        app.bus.publish(Hint::Audit { organization });
    }
    Ok(answer)
}

/// Records in each tenant's trail which of its connections name a version from now on. By whom is the operator's matter.
async fn tell(app: &App, tx: &mut Tx, plugin: &rows::Plugin, misfits: &Misfits) -> Result<BTreeSet<OrganizationId>> {
    let (action, kind) = of_connections(misfits.kind);
    let mut connections: Vec<_> = misfits.connections.iter().collect();
    // Chains are locked in one order everywhere.
    connections.sort_by_key(|misfit| (misfit.organization_id, misfit.id));
    for misfit in &connections {
        let details = json!({
            "reason": format!("version {} of the plugin `{}` does not fit it", misfits.version, plugin.name),
            "faults": misfit.faults, "changes": { "after": { "plugin_version": misfit.runs } },
        });
        let event = Record {
            organization_id: misfit.organization_id,
            actor: "system".to_owned(),
            action: action.as_str(),
            target: format!("{}/{}", kind.as_str(), misfit.id),
            outcome: Outcome::Success,
            details,
        };
        audit::record(tx, &app.clock, event).await?;
    }
    Ok(connections.into_iter().map(|misfit| misfit.organization_id).collect())
}

/// Roll back the last activation of a plugin
///
/// Goes back to the version that was in use before; sent again, to the one before that, as far as there were activations, and
/// 409 beyond. Connections that were changed since and do not fit that version do not keep it from that: the audit trail names
/// the first of them. Connections that follow the version gone back from, where nothing compatible with it was in use before,
/// follow the version gone back to, and their organization's audit trail says so. Only platform administrators may.
#[utoipa::path(post, path = "/api/v1/plugins/{id}/rollback", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."), IfMatch),
    responses((status = OK, description = "The plugin, with the earlier version active.", body = PluginView, headers(("ETag")))),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn rollback_plugin(
    State(app): State<App>,
    Caller(caller): Caller,
    PathId(id): PathId<Uuid>,
    if_match: IfMatch,
) -> Result<Response> {
    require(&app, &caller, Action::PluginActivate).await?;
    let mut conn = app.store.read().await?;
    let plugin = rows::get(&mut conn, id).await?.ok_or_else(|| Problem::not_found("plugin"))?;
    let last = rows::last_activation(&mut conn, id).await?;
    let versions = last.iter().flat_map(|last| [Some(&last.previous), last.line_previous.as_ref()]);
    let versions: BTreeSet<&String> = versions.flatten().collect();
    let mut found = Vec::new();
    for version in versions {
        found.extend(rows::version(&mut conn, id, version).await?);
    }
    let left = match &last {
        Some(last) => rows::version(&mut conn, id, &last.version).await?,
        None => None,
    };
    drop(conn);
    let mut ready = Vec::new();
    for row in &found {
        ready.push(loads(&app, &plugin, row).await?);
    }
    let mut lines: BTreeSet<&str> = found.iter().map(|row| row.line.as_str()).collect();
    lines.extend(left.as_ref().map(|left| left.line.as_str()));
    let mut examined = Examined::default();
    let (mut tx, plugin, before, done) = loop {
        for ready in &ready {
            for line in &lines {
                examined.look(&app.store, ready, (plugin.kind, &plugin.name), line).await?;
            }
        }
        let (mut tx, mut plugin) = begin(&app, id, &if_match).await?;
        let before = plugin.active_version.clone();
        let looked_at = (ready.as_slice(), &examined);
        match install::rollback(&mut tx, &app.clock, &mut plugin, last.as_ref(), looked_at).await {
            Err(ChangeError::Moved) => examined.again(),
            done => break (tx, plugin, before, done?),
        }
    };
    let misfits: Vec<String> = done.misfits.iter().map(Misfits::summary).collect();
    for summary in &misfits {
        tracing::warn!(plugin = plugin.name, after = plugin.active_version, "rolled back although {summary}");
    }
    let moved = tell_moved(&app, &mut tx, &plugin, &done).await?;
    let details = json!({
        "rolled_back": done.last.version, "before": before, "after": plugin.active_version, "misfits": misfits,
        "moved": done.moved.len(),
    });
    let answer = finish(&app, tx, &caller, Action::PluginActivate, &plugin, details, ready).await?;
    for organization in moved {
        app.bus.publish(Hint::Audit { organization });
    }
    Ok(answer)
}

/// Records in each tenant's trail which of its connections follow another version from now on, as the one that they followed
/// was rolled back and nothing compatible with it was in use before.
async fn tell_moved(
    app: &App,
    tx: &mut Tx,
    plugin: &rows::Plugin,
    done: &install::RolledBack,
) -> Result<BTreeSet<OrganizationId>> {
    let (action, kind) = of_connections(plugin.kind);
    let previous = semver::Version::parse(&done.last.previous);
    let follows = previous.as_ref().map(|previous| format!("^{}", plugin::line(previous))).ok();
    for moved in &done.moved {
        let details = json!({
            "reason": format!("version {} of the plugin `{}` was rolled back", done.last.version, plugin.name),
            "changes": { "after": { "plugin_follows": follows } },
        });
        let event = Record {
            organization_id: moved.organization_id,
            actor: "system".to_owned(),
            action: action.as_str(),
            target: format!("{}/{}", kind.as_str(), moved.id),
            outcome: Outcome::Success,
            details,
        };
        audit::record(tx, &app.clock, event).await?;
    }
    Ok(done.moved.iter().map(|moved| moved.organization_id).collect())
}

/// What a change of a connection of this kind is in the audit trail.
fn of_connections(kind: Kind) -> (Action, authz::Kind) {
    match kind {
        Kind::IdentityProvider => (Action::IdentityConnectionUpdate, authz::Kind::IdentityConnection),
        Kind::DeploymentTarget => (Action::GatewayUpdate, authz::Kind::Gateway),
        Kind::AuditSink => (Action::AuditSinkUpdate, authz::Kind::AuditSink),
    }
}

/// Disable a version of a plugin
///
/// Connections can no longer name the version, and new ones do not use it. Refused with 409 while a connection names it or follows
/// it. Activating it enables it again. Only platform administrators may.
#[utoipa::path(post, path = "/api/v1/plugins/{id}/versions/{version}/disable", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."),
        ("version" = SemanticVersion, Path, description = "The version to disable."), IfMatch),
    responses((status = OK, description = "The plugin, with the version disabled.", body = PluginView, headers(("ETag")))),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn disable_plugin_version(
    State(app): State<App>,
    Caller(caller): Caller,
    if_match: IfMatch,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
) -> Result<Response> {
    require(&app, &caller, Action::PluginActivate).await?;
    let (plugin, version) = named(&mut app.store.read().await?, path).await?;
    let (mut tx, mut plugin) = begin(&app, plugin.id, &if_match).await?;
    let found = rows::version(&mut tx, plugin.id, &version.version).await?;
    let mut version = found.ok_or_else(|| Problem::not_found("version of a plugin"))?;
    install::disable(&mut tx, &app.clock, &mut plugin, &mut version).await?;
    let details = json!({ "disabled": version.version });
    finish(&app, tx, &caller, Action::PluginActivate, &plugin, details, Vec::new()).await
}

/// Uninstall a version of a plugin
///
/// With its last version the plugin is gone. Refused with 409 while a connection names the version or follows it, while it is in
/// quarantine, and where it is part of the server. Only platform administrators may.
#[utoipa::path(delete, path = "/api/v1/plugins/{id}/versions/{version}", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."),
        ("version" = SemanticVersion, Path, description = "The version to uninstall."), IfMatch),
    responses((status = NO_CONTENT, description = "The version is uninstalled.")),
    extensions(("x-problems" = json!(["conflict"]))))]
async fn delete_plugin_version(
    State(app): State<App>,
    Caller(caller): Caller,
    if_match: IfMatch,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
) -> Result<StatusCode> {
    require(&app, &caller, Action::PluginDelete).await?;
    let (plugin, version) = named(&mut app.store.read().await?, path).await?;
    let (mut tx, mut plugin) = begin(&app, plugin.id, &if_match).await?;
    let found = rows::version(&mut tx, plugin.id, &version.version).await?;
    let version = found.ok_or_else(|| Problem::not_found("version of a plugin"))?;
    install::remove(&mut tx, &app.clock, &mut plugin, &version).await?;
    let details = json!({
        "name": format!("{}/{}", plugin.kind.as_str(), plugin.name),
        "version": version.version, "digest": version.digest, "origin": version.origin,
    });
    change(&app, tx, &caller, Action::PluginDelete, format!("plugin/{}", plugin.id), details).await?;
    app.plugins.changed(Vec::new()).await;
    // Only files are left to remove: nobody waits for that.
    tokio::spawn(async move { app.plugins.tidy().await });
    Ok(StatusCode::NO_CONTENT)
}
