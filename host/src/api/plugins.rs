//! `/api/v1/plugins`: what is installed, and what a plugin's error is to a caller.

use std::{collections::HashSet, fmt::Display, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    extract::{Caller, Parameters, PathId, etag},
    page::{Listed, Page, cursor},
    problem::{Fault, Problem, ProblemType, Result},
};
use crate::{
    app::App,
    authz::{Action, Context, Resource},
    domain::{connection::Kind, plugin::Origin, principal::Principal},
    plugins::{
        CapabilityView, Changes, CheckError, InstallError, ManifestView, PluginError, Refused, RoomError, SecretView,
        health, install,
    },
    store::{Connection, StoreError, connections, plugins as rows},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read)).routes(routes!(changes))
}

/// A plugin as the API shows it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Plugin)]
pub struct PluginView {
    id: Uuid,
    /// The version that new connections use; null if none is active. The manifest is of that version, or else of the
    /// latest.
    active_version: Option<String>,
    #[serde(flatten)]
    manifest: ManifestView,
    /// All of them, oldest first.
    versions: Vec<VersionView>,
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
    #[serde(serialize_with = "crate::clock::micros")]
    updated_at: DateTime<Utc>,
}

/// A version of a plugin.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = PluginVersion)]
pub struct VersionView {
    version: String,
    /// What it is compatible with, e.g. `^1`: connections that follow it run its active version.
    compatible: String,
    /// Connections that follow it, or name it, run it.
    active: bool,
    /// Connections may name it: it was activated once, or came with the server.
    enabled: bool,
    /// SHA-256 of the component, hexadecimal.
    digest: String,
    /// Bytes of the component.
    size: i64,
    origin: Origin,
    /// The Ed25519 key it is signed with.
    signer: Option<String>,
    secrets: Vec<SecretView>,
    capabilities: Vec<CapabilityView>,
    /// Why it must not run, if a platform administrator put it into quarantine: its calls are refused with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<String>,
    /// Why it does not load on the host that answers, which tries again; what ran before in its place goes on there.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
}

/// A plugin, and how it does on the host that answers.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = PluginWithHealth)]
pub struct PluginHealth {
    #[serde(flatten)]
    plugin: PluginView,
    /// Of each version that was called on the host that answers, since it started.
    health: Vec<health::Report>,
}

impl VersionView {
    /// A version; `lines` says whether it is active, `quarantines` whether it must not run.
    pub(super) fn of(
        app: &App,
        (kind, name): (Kind, &str),
        row: &rows::Version,
        (lines, quarantines): (&[rows::Line], &[rows::Quarantine]),
    ) -> std::result::Result<Self, StoreError> {
        let manifest = install::manifest(row)?;
        Ok(Self {
            version: row.version.clone(),
            compatible: format!("^{}", row.line),
            active: lines.iter().any(|line| (line.plugin_id, &line.version) == (row.plugin_id, &row.version)),
            enabled: row.enabled,
            digest: row.digest.clone(),
            size: row.size,
            origin: row.origin,
            signer: row.signer.clone(),
            secrets: manifest.secrets,
            capabilities: manifest.capabilities,
            quarantine: quarantines.iter().find(|one| one.digest == row.digest).map(|one| one.reason.clone()),
            failure: app.plugins.failure(kind, name, &row.version),
            created_at: row.created_at,
        })
    }
}

impl PluginView {
    /// None for a plugin without versions, of which there are none.
    fn of(
        app: &App,
        plugin: &rows::Plugin,
        versions: &[&rows::Version],
        states: (&[rows::Line], &[rows::Quarantine]),
    ) -> std::result::Result<Option<Self>, StoreError> {
        let active = versions.iter().find(|row| Some(&row.version) == plugin.active_version.as_ref());
        let Some(shown) = active.or(versions.last()) else { return Ok(None) };
        let of = |row: &&rows::Version| VersionView::of(app, (plugin.kind, &plugin.name), row, states);
        Ok(Some(Self {
            id: plugin.id,
            active_version: plugin.active_version.clone(),
            manifest: install::manifest(shown)?,
            versions: versions.iter().map(of).collect::<std::result::Result<_, _>>()?,
            created_at: plugin.created_at,
            updated_at: plugin.updated_at,
        }))
    }

    /// As it is in the database, with the changes of a transaction.
    ///
    /// # Errors
    /// 404; as the database says.
    pub(super) async fn read(app: &App, c: &mut impl Connection, plugin: &rows::Plugin) -> Result<Self> {
        let (versions, lines) = (rows::versions(c, plugin.id).await?, rows::lines(c).await?);
        let quarantines = rows::quarantines(c).await?;
        let versions: Vec<&rows::Version> = versions.iter().collect();
        Self::of(app, plugin, &versions, (&lines, &quarantines))?.ok_or_else(|| Problem::not_found("plugin"))
    }
}

/// The organization in which a caller's rights on plugins are looked at: plugins belong to none.
pub(super) async fn require(app: &App, caller: &Principal, action: Action) -> Result<()> {
    app.require(caller, action, &Resource::organization(caller.organization_id), &Context::default()).await
}

/// The plugin and the version that a path names.
///
/// # Errors
/// 404.
pub(super) async fn named(
    c: &mut impl Connection,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
) -> Result<(rows::Plugin, rows::Version)> {
    let none = || Problem::not_found("version of a plugin");
    let Ok(Path((id, version))) = path else { return Err(none()) };
    let plugin = rows::get(c, id).await?.ok_or_else(none)?;
    let version = rows::version(c, id, &version).await?.ok_or_else(none)?;
    Ok((plugin, version))
}

/// List the installed plugins
///
/// Each with the JSON Schema of a connection's `config`, the secrets it needs, the capabilities it asks for, and its
/// versions.
#[utoipa::path(get, path = "/api/v1/plugins", tag = "Plugins", params(Page),
    responses((status = OK, body = Listed<PluginView>)))]
async fn list(
    State(app): State<App>,
    Caller(caller): Caller,
    Parameters(page): Parameters<Page>,
) -> Result<Json<Listed<PluginView>>> {
    require(&app, &caller, Action::PluginRead).await?;
    let (limit, after) = (page.limit(), page.after()?);
    let mut conn = app.store.read().await?;
    // One more than wanted tells whether there is a next page.
    let mut plugins = rows::list(&mut conn, after, i64::try_from(limit + 1).unwrap_or(i64::MAX)).await?;
    let more = plugins.len() > limit;
    plugins.truncate(limit);
    let (Some(first), Some(last)) = (plugins.first(), plugins.last()) else {
        return Ok(Json(Listed { items: Vec::new(), next_cursor: None }));
    };
    let versions = rows::versions_within(&mut conn, first.id, last.id).await?;
    let (lines, next_cursor) = (rows::lines(&mut conn).await?, more.then(|| cursor(last.id)));
    let quarantines = rows::quarantines(&mut conn).await?;
    drop(conn);
    let mut items = Vec::new();
    for plugin in &plugins {
        let own: Vec<&rows::Version> = versions.iter().filter(|row| row.plugin_id == plugin.id).collect();
        items.extend(PluginView::of(&app, plugin, &own, (&lines, &quarantines))?);
    }
    Ok(Json(Listed { items, next_cursor }))
}

/// Read a plugin with its versions and its health
///
/// Health and last errors are those of the host that answers, since it started. Whoever is no platform administrator
/// sees the errors of their own organization's connections, and no totals.
#[utoipa::path(get, path = "/api/v1/plugins/{id}", tag = "Plugins", params(("id" = Uuid, Path)),
    responses((status = OK, body = PluginHealth)))]
async fn read(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<Uuid>) -> Result<Response> {
    require(&app, &caller, Action::PluginRead).await?;
    let mut conn = app.store.read().await?;
    let found = rows::get(&mut conn, id).await?.ok_or_else(|| Problem::not_found("plugin"))?;
    let plugin = PluginView::read(&app, &mut conn, &found).await?;
    let own: HashSet<Uuid> = if caller.platform_administrator {
        HashSet::new()
    } else {
        connections::ids_of_plugin(&mut conn, caller.organization_id, found.kind, &found.name)
            .await?
            .into_iter()
            .collect()
    };
    drop(conn);
    let visible = |connection: Uuid| caller.platform_administrator || own.contains(&connection);
    let mut health = app.plugins.reports(found.kind, &found.name, visible);
    if !caller.platform_administrator {
        health = health.into_iter().map(health::Report::without_totals).collect();
    }
    Ok(([etag(found.revision)], Json(PluginHealth { plugin, health })).into_response())
}

/// Show what a version reaches beyond the one it would take the place of
///
/// That is the active version it is compatible with, or else the one that new connections use.
#[utoipa::path(get, path = "/api/v1/plugins/{id}/versions/{version}/changes", tag = "Plugins",
    params(("id" = Uuid, Path), ("version" = String, Path)), responses((status = OK, body = Changes)))]
async fn changes(
    State(app): State<App>,
    Caller(caller): Caller,
    path: std::result::Result<Path<(Uuid, String)>, PathRejection>,
) -> Result<Json<Changes>> {
    require(&app, &caller, Action::PluginRead).await?;
    let mut conn = app.store.read().await?;
    let (plugin, version) = named(&mut conn, path).await?;
    Ok(Json(install::changes(&mut conn, &plugin, &version).await?))
}

impl From<PluginError> for Problem {
    fn from(error: PluginError) -> Self {
        match &error {
            PluginError::Config(message) => Self::invalid(vec![Fault::new("/config", message)]),
            // It is this server that has no room for the call, or does not make it.
            PluginError::Postponed { after, .. } => later(ProblemType::Unavailable, &error, *after),
            PluginError::Unavailable { retry_after: Some(wait), .. } => later(ProblemType::Upstream, &error, *wait),
            _ => Self::new(ProblemType::Upstream, error.to_string()),
        }
    }
}

impl From<RoomError> for Problem {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Full(why) => Self::conflict(why),
            RoomError::Disk(why) => later(ProblemType::Unavailable, &why, Duration::from_secs(5)),
        }
    }
}

impl From<CheckError> for Problem {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::TooOften { after } => later(ProblemType::RateLimited, &error, after),
            CheckError::UnderWay => later(ProblemType::Conflict, &error, Duration::from_secs(1)),
            CheckError::Plugin(error) => error.into(),
        }
    }
}

/// With the time after which the same may succeed.
fn later(kind: ProblemType, why: &impl Display, after: Duration) -> Problem {
    Problem::new(kind, why.to_string()).with_header(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)))
}

/// The server has too much to do: the same may succeed in a moment.
fn busy(why: &impl Display) -> Problem {
    later(ProblemType::Unavailable, why, Duration::from_secs(1))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Faults(faults) => Self::invalid(faults),
            Refused::Busy(why) => busy(&why),
            Refused::Store(error) => error.into(),
        }
    }
}

impl From<InstallError> for Problem {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Store(error) => error.into(),
            InstallError::Busy(why) => busy(&why),
            InstallError::Signature { error, .. } => Self::invalid(vec![Fault::new("/signature", error.to_string())]),
            InstallError::Engine(_) => Self::internal(error),
            _ => Self::invalid(vec![Fault::new("/component", error.why())]),
        }
    }
}

impl From<install::ChangeError> for Problem {
    fn from(error: install::ChangeError) -> Self {
        match error {
            install::ChangeError::Store(error) => error.into(),
            install::ChangeError::Conflict(detail) => Self::conflict(detail),
            install::ChangeError::Busy(why) => busy(&why),
            moved @ install::ChangeError::Moved => Self::conflict(moved.to_string()),
            install::ChangeError::Misfits(misfits) => {
                let errors = misfits.faults();
                Self { errors, ..Self::conflict(install::ChangeError::Misfits(misfits).to_string()) }
            }
            install::ChangeError::Growth(changes) => {
                let grown = changes.growth().into_iter().map(|what| Fault::new("/accept_capabilities", what)).collect();
                let detail = install::ChangeError::Growth(changes).to_string();
                Self { errors: grown, ..Self::conflict(detail) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::Busy;

    #[test]
    fn who_has_to_wait_is_told_why_and_how_long() {
        let shown = |problem: Problem| {
            let after = problem.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            (problem.kind.parts().0.as_u16(), after.map(str::to_owned))
        };
        let seconds = |count: u64| Some(count.to_string());
        let busy = || "busy".to_owned();
        assert_eq!(shown(CheckError::TooOften { after: Duration::from_secs(40) }.into()), (429, seconds(40)));
        assert_eq!(shown(CheckError::UnderWay.into()), (409, seconds(1)));
        let postponed = PluginError::Postponed { message: busy(), after: Duration::from_secs(7) };
        assert_eq!(shown(CheckError::Plugin(postponed).into()), (503, seconds(7)));
        let away = PluginError::Unavailable { message: busy(), retry_after: None };
        assert_eq!(shown(CheckError::Plugin(away).into()), (502, None));
        // What says nothing of a configuration is none of its faults.
        assert_eq!(shown(Refused::Busy(busy()).into()), (503, seconds(1)));
        assert_eq!(shown(InstallError::Busy(Busy).into()), (503, seconds(1)));
        assert_eq!(shown(install::ChangeError::Busy(Busy).into()), (503, seconds(1)));
        assert_eq!(shown(Refused::Faults(vec![Fault::new("/config", "is wrong")]).into()).0, 422);
    }
}
