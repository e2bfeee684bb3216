//! `/api/v1/identity-connections`, `/api/v1/gateways` and `/api/v1/audit-sinks`: the same routes for each kind of connection.

mod body;
mod routes;

use std::collections::BTreeMap;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::types::Json as Column;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use self::body::{Checked, ConnectionChange, Described, NewConnection, Shown, describe, merge};
use super::{
    deployments::removal,
    extract::{IfMatch, Input, etag},
    guard::change,
    idempotency::{Claimed, Once},
    page::{Item, Listed, Page, visible},
    problem::{Fault, Problem, ProblemType, Result},
    quota,
};
use crate::{
    app::App,
    authz::{self, Action, Context, Resource},
    domain::{connection::Kind, principal::Principal},
    identity::sso::{self, SsoError},
    plugins::{self, Attempt, PluginError},
    secrets::SecretsError,
    store::{
        Tx,
        connections::{self, Connection},
        deployments::Of,
        identities, plugins as stored,
        quota::Counted,
    },
};

/// The routes of this file.
pub fn router() -> OpenApiRouter<App> {
    routes::router()
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

/// What a plugin made of a connection.
struct TriedOut {
    /// The version that it was looked at with.
    version: String,
    /// The issuer of an identity provider, unless the plugin was not available.
    issuer: Option<String>,
}

/// What the plugin makes of it, before it is stored: of an identity provider, whether it can say where to sign in.
async fn try_out(app: &App, connection: &Connection, secrets: &BTreeMap<String, SecretString>) -> Result<TriedOut> {
    let (kind, config) = (connection.kind, &connection.config.0);
    let wanted = plugins::wanted(connection);
    let validated = app.plugins.validate_as(kind, &connection.plugin, &wanted, config, secrets).await;
    let version = validated?;
    let issuer = match kind {
        Kind::IdentityProvider => issuer(app, connection, secrets).await?,
        Kind::DeploymentTarget | Kind::AuditSink => None,
    };
    Ok(TriedOut { version, issuer })
}

/// The issuer that an identity connection signs people in at; nothing where its plugin is not available.
async fn issuer(
    app: &App,
    connection: &Connection,
    secrets: &BTreeMap<String, SecretString>,
) -> Result<Option<String>> {
    let binding = plugins::Binding {
        organization_id: connection.organization_id,
        connection_id: connection.id,
        plugin: connection.plugin.clone(),
        wanted: plugins::wanted(connection),
        config: connection.config.0.clone(),
        secrets: secrets.clone(),
    };
    match app.plugins.begin(&binding, &attempt(app)).await {
        Ok(protocol) => sso::feasible(protocol, &binding.config)
            .map(Some)
            .map_err(|why| Problem::invalid(vec![Fault::new("/config", why)])),
        Err(PluginError::Unavailable { .. } | PluginError::Postponed { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a connection signed people in at another issuer so far. One that can't be told counts as another: of the links, those
/// that are of the new issuer stay.
async fn is_another(app: &App, before: &Connection, secrets: &BTreeMap<String, SecretString>, now: &str) -> bool {
    !matches!(issuer(app, before, secrets).await, Ok(Some(so_far)) if so_far == now)
}

/// Decides which version the connection is to run; it is loaded then.
async fn settle(app: &App, connection: &mut Connection, pin: Option<&str>) -> Result<()> {
    let wanted = app.plugins.settle(connection.kind, &connection.plugin, pin).await?;
    (connection.plugin_version, connection.plugin_line) = (wanted.pin, wanted.line);
    Ok(())
}

/// Holds the version that the connection was looked at with until the transaction ends, so that it is the one it runs.
async fn hold(tx: &mut Tx, connection: &Connection, version: &str) -> Result<()> {
    let (pin, line) = (connection.plugin_version.as_deref(), connection.plugin_line.as_deref());
    match stored::hold(tx, connection.kind, &connection.plugin, pin, line).await? {
        Some(runs) if runs == version => Ok(()),
        Some(runs) => {
            let plugin = &connection.plugin;
            let detail =
                format!("Version {runs} of the plugin `{plugin}` took the place of {version} just now: send it again.");
            Err(Problem::conflict(detail))
        }
        None => {
            let message = format!("version {version} was disabled or removed just now: choose another one");
            Err(Problem::invalid(vec![Fault::new("/plugin_version", message)]))
        }
    }
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
        name: String::new(),
        plugin: new.plugin,
        plugin_version: None,
        plugin_line: None,
        config: Column(Value::Object(new.config)),
        secrets: Vec::new(),
        secret_names: Column(new.secrets.keys().cloned().collect()),
        environment: None,
        labels: Column(BTreeMap::new()),
        active: new.active,
        created_at: now,
        updated_at: now,
        revision: 1,
    };
    let said = Described { name: Some(new.name), environment: new.environment, labels: Some(new.labels) };
    Problem::check(describe(&mut connection, said))?;
    app.plugins.look().await?;
    settle(&app, &mut connection, new.plugin_version.as_deref()).await?;
    let version = try_out(&app, &connection, &new.secrets).await?.version;
    let room = app.plugins.room_for_folders(&connection).await;
    connection.secrets = plugins::seal(&app.secrets, &app.clock, organization, connection.id, &new.secrets)?;
    let mut tx = app.store.begin().await?;
    let once = match Once::claim(&app, &mut tx, &caller, input.idempotency).await? {
        Claimed::Fresh(once) => once,
        Claimed::Answered(response) => return Ok(response),
    };
    // Only now: a request that is repeated has taken the room that there was.
    room?;
    quota::room(&app, &mut tx, organization, Counted::Connections(connection.kind)).await?;
    hold(&mut tx, &connection, &version).await?;
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
    after.active = patch.active.unwrap_or(after.active);
    let said = Described { name: patch.name, environment: patch.environment, labels: patch.labels };
    let mut faults = describe(&mut after, said);
    app.plugins.look().await?;
    if let Some(pin) = &patch.plugin_version {
        settle(&app, &mut after, pin.as_deref()).await?;
    }
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
    let (runs, will_run) = (plugins::wanted(&before), plugins::wanted(&after));
    let (from, to) = ((&before.config.0, &runs), (&after.config.0, &will_run));
    faults.extend(app.plugins.redirected(kind, &after.plugin, from, to, &stored, supplied));
    Problem::check(faults)?;
    // What the plugin is not concerned with can be changed also where it is broken: so it can be switched off.
    let concerned = from != to || !changed.is_empty() || (after.active && !before.active);
    let tried = if concerned { Some(try_out(&app, &after, &secrets).await?) } else { None };
    let moved = match tried.as_ref().and_then(|tried| tried.issuer.as_deref()) {
        None if kind == Kind::IdentityProvider && from != to => {
            let detail = "The plugin cannot say now which provider this configuration leads to, and so not whether the links of \
                          people to the former one still hold: try again shortly.";
            return Err(Problem::new(ProblemType::Unavailable, detail)
                .with_header(header::RETRY_AFTER, HeaderValue::from_static("5")));
        }
        Some(issuer) if from != to && is_another(&app, &before, &stored, issuer).await => Some(issuer),
        _ => None,
    };
    after.secrets = plugins::seal(&app.secrets, &app.clock, caller.organization_id, id, &secrets)?;
    after.secret_names.0 = secrets.keys().cloned().collect();
    let mut tx = app.store.begin().await?;
    if let Some(tried) = &tried {
        hold(&mut tx, &after, &tried.version).await?;
    }
    let after = connections::update(&mut tx, &after).await?;
    let mut unlinked = 0;
    if let Some(issuer) = moved {
        // The same subject at another provider is another person.
        let provider = identities::Provider { organization: caller.organization_id, connection: id, issuer };
        unlinked = identities::remove_other_issuers(&mut tx, provider).await?;
    }
    let shown = Shown::of(&after);
    let names: Vec<&String> = changed.keys().collect();
    let mut details = json!({ "before": Shown::of(&before), "after": shown, "secrets_changed": names });
    if let (Some(_), Some(details)) = (moved, details.as_object_mut()) {
        details.insert("identities_removed".into(), json!(unlinked));
    }
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
        removal::forget(&mut tx, caller.organization_id, Of::Gateway(id.into())).await?;
    }
    connections::delete(&mut tx, &connection).await?;
    change(&app, tx, &caller, action, target(&connection), json!({ "before": Shown::of(&connection) })).await?;
    app.plugins.forget(kind, &connection.plugin, connection.id);
    Ok(StatusCode::NO_CONTENT)
}

async fn check(app: App, caller: Principal, kind: Kind, id: Uuid) -> Result<Json<Checked>> {
    let connection = find(&app, &caller, kind, id, actions(kind).check).await?;
    let binding = plugins::bind(&app.secrets, &connection)?;
    let message = app.plugins.check(kind, &binding, &attempt(&app)).await?;
    if kind == Kind::IdentityProvider {
        // The host runs the protocol, so it has to reach the provider too.
        let protocol = app.plugins.begin(&binding, &attempt(&app)).await?;
        app.identity.check_sso(binding.organization_id, protocol, &binding.config).await.map_err(
            |error| match error {
                SsoError::Config(why) => Problem::invalid(vec![Fault::new("/config", why)]),
                error => Problem::new(ProblemType::Upstream, error.to_string()),
            },
        )?;
    }
    Ok(Json(Checked { message }))
}
