//! `/api/v1/identity-connections`, `/api/v1/gateways` and `/api/v1/audit-sinks`: the same routes for each kind of connection.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::types::Json as Column;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::{
    extract::{Caller, IfMatch, Input, Parameters, PathId, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Fault, Problem, Result},
};
use crate::{
    app::App,
    authz::{self, Action, Context, Resource},
    domain::{connection::Kind, fault, id::OrganizationId, principal::Principal},
    plugins::{self, Attempt, PluginError},
    secrets::SecretsError,
    store::{
        connections::{self, Connection},
        deployments,
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().merge(identity_connections::router()).merge(gateways::router()).merge(audit_sinks::router())
}

/// A new connection.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewConnection {
    /// For people; unique among those of its kind.
    name: String,
    /// One of `/api/v1/plugins`, of the right kind.
    plugin: String,
    /// As the plugin's `config_schema` says.
    #[serde(default)]
    config: Map<String, Value>,
    /// The plugin's secrets by name. Written, never read back.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    secrets: BTreeMap<String, SecretString>,
    /// Whether it is in use from now on; true if absent.
    #[serde(default = "yes")]
    active: bool,
    /// For gateways: what agents deployed there are for, e.g. `production`.
    environment: Option<String>,
    /// For gateways: key and value; policies see them.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// What to change; what is absent stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionChange {
    name: Option<String>,
    /// Merged into the configuration (RFC 7396): null removes a property.
    config: Option<Map<String, Value>>,
    /// Merged into the secrets: null removes one. Where the new configuration takes a secret to another host than before,
    /// it must come again.
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    secrets: Option<BTreeMap<String, Option<SecretString>>>,
    active: Option<bool>,
    environment: Option<String>,
    /// Replaces all labels.
    labels: Option<BTreeMap<String, String>>,
}

/// A connection as shown.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Connection)]
pub struct Shown {
    id: Uuid,
    organization_id: OrganizationId,
    name: String,
    plugin: String,
    #[schema(value_type = Object)]
    config: Value,
    /// The names of those that are set; never a value.
    secrets: Vec<String>,
    active: bool,
    /// Gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    /// Gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// What a check found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Checked {
    /// A sentence for the operator.
    message: String,
}

impl Shown {
    fn of(connection: &Connection) -> Self {
        let gateway = connection.kind == Kind::DeploymentTarget;
        Self {
            id: connection.id,
            organization_id: connection.organization_id,
            name: connection.name.clone(),
            plugin: connection.plugin.clone(),
            config: connection.config.0.clone(),
            secrets: connection.secret_names.0.clone(),
            active: connection.active,
            environment: connection.environment.clone().filter(|_| gateway),
            labels: gateway.then(|| connection.labels.0.clone()),
            created_at: connection.created_at,
            updated_at: connection.updated_at,
        }
    }
}

impl Item for Connection {
    fn id(&self) -> Uuid {
        self.id
    }

    fn resource(&self) -> Resource {
        let kind = match self.kind {
            Kind::IdentityProvider => authz::Kind::IdentityConnection,
            Kind::DeploymentTarget => authz::Kind::Gateway,
            Kind::AuditSink => authz::Kind::AuditSink,
        };
        Resource {
            environment: self.environment.clone(),
            labels: self.labels.0.clone(),
            ..Resource::new(kind, self.id, self.organization_id, self.name.clone())
        }
    }
}

/// What is done to a connection of a kind, in Cedar's words.
struct Actions {
    create: Action,
    read: Action,
    update: Action,
    delete: Action,
    check: Action,
}

fn actions(kind: Kind) -> Actions {
    match kind {
        Kind::IdentityProvider => Actions {
            create: Action::IdentityConnectionCreate,
            read: Action::IdentityConnectionRead,
            update: Action::IdentityConnectionUpdate,
            delete: Action::IdentityConnectionDelete,
            check: Action::IdentityConnectionCheck,
        },
        Kind::DeploymentTarget => Actions {
            create: Action::GatewayCreate,
            read: Action::GatewayRead,
            update: Action::GatewayUpdate,
            delete: Action::GatewayDelete,
            check: Action::GatewayCheck,
        },
        Kind::AuditSink => Actions {
            create: Action::AuditSinkCreate,
            read: Action::AuditSinkRead,
            update: Action::AuditSinkUpdate,
            delete: Action::AuditSinkDelete,
            check: Action::AuditSinkCheck,
        },
    }
}

impl From<SecretsError> for Problem {
    fn from(error: SecretsError) -> Self {
        Self::internal(error)
    }
}

/// As the audit trail names a connection.
fn target(connection: &Connection) -> String {
    format!("{}/{}", connection.resource().kind.as_str(), connection.id)
}

/// The connection, if it is the caller's organization's and the caller may do this to it.
///
/// # Errors
/// 404, 403.
pub async fn find(app: &App, caller: &Principal, kind: Kind, id: Uuid, action: Action) -> Result<Connection> {
    let found = connections::get(&mut app.store.read().await?, caller.organization_id, kind, id).await?;
    let found = found.ok_or_else(|| Problem::not_found(kind.noun()))?;
    app.require(caller, action, &found.resource(), &Context::default()).await?;
    Ok(found)
}

/// Faults of what does not depend on the plugin.
fn faults_of(connection: &Connection) -> Vec<Fault> {
    let mut faults = Vec::new();
    fault::name("/name", &connection.name, &mut faults);
    fault::labels("/labels", &connection.labels.0, &mut faults);
    if let Some(environment) = &connection.environment {
        fault::name("/environment", environment, &mut faults);
    }
    if connection.kind != Kind::DeploymentTarget {
        if connection.environment.is_some() {
            faults.push(Fault::new("/environment", "only gateways have an environment"));
        }
        if !connection.labels.0.is_empty() {
            faults.push(Fault::new("/labels", "only gateways have labels"));
        }
    }
    faults
}

/// What the plugin makes of it, before it is stored: of an identity provider, whether it can say where to sign in.
async fn try_out(app: &App, connection: &Connection, secrets: &BTreeMap<String, SecretString>) -> Result<()> {
    let (kind, config) = (connection.kind, &connection.config.0);
    app.plugins.validate(kind, &connection.plugin, config, secrets).map_err(Problem::invalid)?;
    if kind == Kind::IdentityProvider {
        let binding = plugins::Binding {
            connection_id: connection.id,
            plugin: connection.plugin.clone(),
            config: config.clone(),
            secrets: secrets.clone(),
        };
        match app.plugins.begin(&binding, &attempt(app)).await {
            Err(PluginError::Unavailable { .. }) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn attempt(app: &App) -> Attempt {
    Attempt { idempotency_key: app.clock.id::<Uuid>().to_string(), attempt: 1 }
}

async fn create(app: App, caller: Principal, kind: Kind, input: Input<NewConnection>) -> Result<Response> {
    let action = actions(kind).create;
    let organization = caller.organization_id;
    app.require(&caller, action, &Resource::organization(organization), &Context::default()).await?;
    let (new, now) = (input.body, app.clock.now());
    let mut connection = Connection {
        id: app.clock.id(),
        organization_id: organization,
        kind,
        name: new.name,
        plugin: new.plugin,
        config: Column(Value::Object(new.config)),
        secrets: Vec::new(),
        secret_names: Column(new.secrets.keys().cloned().collect()),
        environment: new.environment,
        labels: Column(new.labels),
        active: new.active,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    Problem::check(faults_of(&connection))?;
    try_out(&app, &connection, &new.secrets).await?;
    connection.secrets = plugins::seal(&app.secrets, &app.clock, organization, connection.id, &new.secrets)?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    connections::insert(&mut tx, &connection).await?;
    let shown = Shown::of(&connection);
    let response = once.created(&mut tx, &shown, connection.revision).await?;
    change(&app, tx, &caller, action, target(&connection), json!({ "after": shown })).await?;
    Ok(response)
}

async fn list(app: App, caller: Principal, kind: Kind, page: Page) -> Result<Json<Listed<Shown>>> {
    let organization = caller.organization_id;
    let listed = visible(&app, &caller, actions(kind).read, &page, move |store, after, limit| async move {
        connections::list(&mut store.read().await?, organization, kind, after, limit).await
    });
    let Listed { items, next_cursor } = listed.await?;
    Ok(Json(Listed { items: items.iter().map(Shown::of).collect(), next_cursor }))
}

async fn read(app: App, caller: Principal, kind: Kind, id: Uuid) -> Result<Response> {
    let connection = find(&app, &caller, kind, id, actions(kind).read).await?;
    Ok(([etag(connection.revision)], Json(Shown::of(&connection))).into_response())
}

async fn update(
    app: App,
    caller: Principal,
    (kind, id): (Kind, Uuid),
    if_match: IfMatch,
    patch: ConnectionChange,
) -> Result<Response> {
    let action = actions(kind).update;
    let before = find(&app, &caller, kind, id, action).await?;
    if_match.check(before.revision)?;
    let stored = plugins::unseal(&app.secrets, &before)?;
    let mut after = before.clone();
    after.updated_at = app.clock.now();
    after.name = patch.name.unwrap_or(after.name);
    after.active = patch.active.unwrap_or(after.active);
    after.environment = patch.environment.or(after.environment);
    after.labels.0 = patch.labels.unwrap_or(after.labels.0);
    merge(&mut after.config.0, Value::Object(patch.config.unwrap_or_default()));
    let changed = patch.secrets.unwrap_or_default();
    let mut secrets = stored.clone();
    for (name, value) in &changed {
        match value {
            Some(value) => secrets.insert(name.clone(), value.clone()),
            None => secrets.remove(name),
        };
    }
    let supplied = |name: &str| changed.contains_key(name);
    let mut faults = faults_of(&after);
    let (plugin, from, to) = (&after.plugin, &before.config.0, &after.config.0);
    faults.extend(app.plugins.redirected(kind, plugin, from, to, &stored, supplied));
    Problem::check(faults)?;
    try_out(&app, &after, &secrets).await?;
    after.secrets = plugins::seal(&app.secrets, &app.clock, caller.organization_id, id, &secrets)?;
    after.secret_names.0 = secrets.keys().cloned().collect();
    let mut tx = app.store.begin().await?;
    let after = connections::update(&mut tx, &after).await?;
    let shown = Shown::of(&after);
    let names: Vec<&String> = changed.keys().collect();
    let details = json!({ "before": Shown::of(&before), "after": shown, "secrets_changed": names });
    change(&app, tx, &caller, action, target(&after), details).await?;
    Ok(([etag(after.revision)], Json(shown)).into_response())
}

async fn remove(app: App, caller: Principal, (kind, id): (Kind, Uuid), if_match: IfMatch) -> Result<StatusCode> {
    let action = actions(kind).delete;
    let connection = find(&app, &caller, kind, id, action).await?;
    if_match.check(connection.revision)?;
    let mut tx = app.store.begin().await?;
    if kind == Kind::DeploymentTarget {
        // What is over does not keep a gateway; what still runs does.
        deployments::forget_gateway(&mut tx, caller.organization_id, id.into()).await?;
    }
    connections::delete(&mut tx, &connection).await?;
    change(&app, tx, &caller, action, target(&connection), json!({ "before": Shown::of(&connection) })).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check(app: App, caller: Principal, kind: Kind, id: Uuid) -> Result<Json<Checked>> {
    let connection = find(&app, &caller, kind, id, actions(kind).check).await?;
    let binding = plugins::bind(&app.secrets, &connection)?;
    Ok(Json(Checked { message: app.plugins.check(kind, &binding, &attempt(&app)).await? }))
}

/// JSON Merge Patch (RFC 7396).
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !into.is_object() {
                *into = json!({});
            }
            let Value::Object(into) = into else { return };
            for (name, value) in patch {
                if value.is_null() {
                    into.remove(&name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        value => *into = value,
    }
}

/// The routes of one kind.
macro_rules! routes_of {
    ($module:ident, $kind:ident, $tag:literal, $all:literal, $one:literal, $check:literal) => {
        mod $module {
            use utoipa_axum::routes;

            use super::*;

            pub(super) fn router() -> OpenApiRouter<App> {
                OpenApiRouter::new()
                    .routes(routes!(create, list))
                    .routes(routes!(read, update, remove))
                    .routes(routes!(check))
            }

            /// Create one
            #[utoipa::path(post, path = $all, tag = $tag, request_body = NewConnection,
                responses((status = CREATED, body = Shown)))]
            async fn create(State(app): State<App>, Caller(caller): Caller, input: Input<NewConnection>) -> Result<Response> {
                super::create(app, caller, Kind::$kind, input).await
            }

            /// List
            #[utoipa::path(get, path = $all, tag = $tag, params(Page), responses((status = OK, body = Listed<Shown>)))]
            async fn list(
                State(app): State<App>,
                Caller(caller): Caller,
                Parameters(page): Parameters<Page>,
            ) -> Result<Json<Listed<Shown>>> {
                super::list(app, caller, Kind::$kind, page).await
            }

            /// Read one
            #[utoipa::path(get, path = $one, tag = $tag, params(("id" = Uuid, Path)), responses((status = OK, body = Shown)))]
            async fn read(State(app): State<App>, Caller(caller): Caller, PathId(id): PathId<Uuid>) -> Result<Response> {
                super::read(app, caller, Kind::$kind, id).await
            }

            /// Change one
            #[utoipa::path(patch, path = $one, tag = $tag, params(("id" = Uuid, Path)), request_body = ConnectionChange,
                responses((status = OK, body = Shown)))]
            async fn update(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
                input: Input<ConnectionChange>,
            ) -> Result<Response> {
                super::update(app, caller, (Kind::$kind, id), if_match, input.body).await
            }

            /// Delete one
            #[utoipa::path(delete, path = $one, tag = $tag, params(("id" = Uuid, Path)), responses((status = NO_CONTENT)))]
            async fn remove(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
                if_match: IfMatch,
            ) -> Result<StatusCode> {
                super::remove(app, caller, (Kind::$kind, id), if_match).await
            }

            /// Ask the far side whether it works
            #[utoipa::path(post, path = $check, tag = $tag, params(("id" = Uuid, Path)), responses((status = OK, body = Checked)))]
            async fn check(
                State(app): State<App>,
                Caller(caller): Caller,
                PathId(id): PathId<Uuid>,
            ) -> Result<Json<Checked>> {
                super::check(app, caller, Kind::$kind, id).await
            }
        }
    };
}

routes_of!(
    identity_connections,
    IdentityProvider,
    "Identity connections",
    "/api/v1/identity-connections",
    "/api/v1/identity-connections/{id}",
    "/api/v1/identity-connections/{id}/check"
);
routes_of!(
    gateways,
    DeploymentTarget,
    "Gateways",
    "/api/v1/gateways",
    "/api/v1/gateways/{id}",
    "/api/v1/gateways/{id}/check"
);
routes_of!(
    audit_sinks,
    AuditSink,
    "Audit sinks",
    "/api/v1/audit-sinks",
    "/api/v1/audit-sinks/{id}",
    "/api/v1/audit-sinks/{id}/check"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_merged_as_rfc_7396_says() {
        for (before, patch, after) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [1]}), json!({"a": [2]}), json!({"a": [2]})),
            (json!({"a": "b"}), json!({"c": {"d": null}}), json!({"a": "b", "c": {}})),
        ] {
            let mut merged = before;
            merge(&mut merged, patch);
            assert_eq!(merged, after);
        }
    }
}
