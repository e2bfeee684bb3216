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
    domain::{
        connection::Kind,
        plugin::{Origin, SemanticVersion},
        principal::Principal,
    },
    plugins::{
        CapabilityView, Changes, CheckError, InstallError, ManifestView, PluginError, Refused, RoomError, SecretView,
        health, install,
    },
    store::{Connection, StoreError, connections, plugins as rows},
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_plugins))
        .routes(routes!(get_plugin))
        .routes(routes!(get_plugin_version_changes))
}

/// An installed plugin: the manifest of its active version, or else of the latest one, and all its versions.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Plugin, example = json!({
    "id": "019f2a41-6f0c-7d3e-8b12-3c4d5e6f7a80",
    "active_version": "1.4.0",
    "kind": "deployment_target",
    "name": "nexus",
    "version": "1.4.0",
    "title": "Nexus gateway",
    "description": "Deploys agents to a Nexus gateway.",
    "config_schema": {
        "type": "object",
        "additionalProperties": false,
        "required": ["api_url"],
        "properties": { "api_url": { "type": "string", "format": "uri", "description": "The gateway's address." } },
    },
    "secrets": [{ "name": "api-key", "description": "The gateway's API key.", "hosts": ["{config.api_url}"] }],
    "capabilities": [{ "type": "http", "value": "{config.api_url}" }],
    "versions": [{
        "version": "1.4.0",
        "compatible": "^1",
        "active": true,
        "enabled": true,
        "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "size": 1_482_310,
        "origin": "uploaded",
        "signer": "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "secrets": [{ "name": "api-key", "description": "The gateway's API key.", "hosts": ["{config.api_url}"] }],
        "capabilities": [{ "type": "http", "value": "{config.api_url}" }],
        "created_at": "2026-11-27T09:30:00.000000Z",
    }],
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:41:12.250000Z",
}))]
pub struct PluginView {
    /// The plugin's id.
    id: Uuid,
    /// The version that new connections use; null where none is active.
    #[schema(value_type = Option<SemanticVersion>, required = true)]
    active_version: Option<String>,
    #[serde(flatten)]
    manifest: ManifestView,
    /// All installed versions, oldest first.
    #[schema(min_items = 1)]
    versions: Vec<VersionView>,
    /// When the first version was installed.
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
    /// When a version was last installed, activated or otherwise changed.
    #[serde(serialize_with = "crate::clock::micros")]
    updated_at: DateTime<Utc>,
}

/// An installed version of a plugin.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = PluginVersion)]
pub struct VersionView {
    /// The version's number.
    #[schema(value_type = SemanticVersion)]
    version: String,
    /// The range of versions that it is compatible with; connections that follow this range run its active version.
    #[schema(pattern = r"^\^(0\.0\.[0-9]+|0\.[1-9][0-9]*|[1-9][0-9]*)$", example = "^1")]
    compatible: String,
    /// Whether it is the active version of its range: connections that follow the range run it.
    active: bool,
    /// Whether connections may name it as their `plugin_version`: it was activated once or came with the server, and was not
    /// disabled since.
    enabled: bool,
    /// SHA-256 of the component, hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    /// The size of the component in bytes.
    #[schema(minimum = 1)]
    size: i64,
    /// Where it came from.
    origin: Origin,
    /// The Ed25519 key that it is signed with; null where it is not signed.
    #[schema(required = true, pattern = "^ed25519:[0-9a-f]{64}$")]
    signer: Option<String>,
    /// What a connection that runs it supplies in `secrets`.
    #[schema(max_items = 32)]
    secrets: Vec<SecretView>,
    /// What it may reach beyond its own memory.
    #[schema(max_items = 64)]
    capabilities: Vec<CapabilityView>,
    /// Why a platform administrator put it into quarantine: its calls are refused with this. Absent where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 500)]
    quarantine: Option<String>,
    /// Why it does not load on the host that answers, which tries again; what ran before in its place goes on there. Absent
    /// where it loads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    failure: Option<String>,
    /// When it was installed.
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
}

/// A plugin, and how it does on the host that answers.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = PluginWithHealth)]
pub struct PluginHealth {
    #[serde(flatten)]
    plugin: PluginView,
    /// How each version did that was called on the host that answers since that started.
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
/// versions; oldest first. All organizations share the plugins. Owners, admins, developers, auditors and platform administrators
/// may read them; an organization's policies are not asked.
#[utoipa::path(get, path = "/api/v1/plugins", tag = "Plugins", params(Page),
    responses((status = OK, description = "A page of the plugins.", body = Listed<PluginView>)))]
async fn list_plugins(
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
/// Health and last errors are those of the host that answers, since it started; other hosts may tell something else. Whoever is
/// no platform administrator sees the errors of their own organization's connections, and no totals.
#[utoipa::path(get, path = "/api/v1/plugins/{id}", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin.")),
    responses((status = OK, description = "The plugin.", body = PluginHealth, headers(("ETag")))))]
async fn get_plugin(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<Uuid>) -> Result<Response> {
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

/// Compare a version of a plugin with the one in use
///
/// Says what activating the version would change: what it may reach, the secrets it needs, where they go and who signed it. It is
/// compared with the active version that it is compatible with, or else with the one that new connections use. Changes nothing.
#[utoipa::path(get, path = "/api/v1/plugins/{id}/versions/{version}/changes", tag = "Plugins",
    params(("id" = Uuid, Path, description = "The plugin."),
        ("version" = SemanticVersion, Path, description = "The version that is compared.")),
    responses((status = OK, description = "The differences.", body = Changes)))]
async fn get_plugin_version_changes(
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
    use utoipa::{
        PartialSchema as _,
        openapi::{RefOr, Schema},
    };

    use super::*;
    use crate::plugins::Busy;

    #[test]
    fn a_version_shows_as_many_secrets_and_capabilities_as_a_manifest_has() {
        let schema = |schema: RefOr<Schema>| serde_json::to_value(schema).unwrap();
        let (version, manifest) = (schema(VersionView::schema()), schema(ManifestView::schema()));
        let changes = schema(Changes::schema());
        for (shown, of_manifest) in [
            (&version["properties"]["secrets"], "secrets"),
            (&version["properties"]["capabilities"], "capabilities"),
            (&changes["properties"]["secrets_added"], "secrets"),
            (&changes["properties"]["secrets_removed"], "secrets"),
            (&changes["properties"]["capabilities_added"], "capabilities"),
            (&changes["properties"]["capabilities_removed"], "capabilities"),
        ] {
            assert!(shown["maxItems"].is_u64(), "{shown}");
            assert_eq!(shown["maxItems"], manifest["properties"][of_manifest]["maxItems"]);
        }
    }

    #[test]
    fn the_schema_of_a_range_takes_what_versions_are_compatible_with() {
        let version = serde_json::to_value(VersionView::schema()).unwrap();
        let compatible = jsonschema::draft202012::new(&version["properties"]["compatible"]).unwrap();
        for number in ["0.0.0", "0.0.3", "0.2.3", "0.10.0", "1.2.3", "12.0.0-rc.1"] {
            let range = format!("^{}", crate::domain::plugin::line(&number.parse().unwrap()));
            assert!(compatible.is_valid(&range.as_str().into()), "{range}");
        }
        for range in ["1", "^", "^1.2", "^0", "^01", "^1 "] {
            assert!(!compatible.is_valid(&range.into()), "{range}");
        }
    }

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
