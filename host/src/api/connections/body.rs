//! What a connection looks like from outside: the bodies of its routes, and the faults of those that come in.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    api::problem::Fault,
    domain::{
        connection::Kind, environment::Environment, fault, id::OrganizationId, labels::Labels, name::Name,
        plugin::SemanticVersion,
    },
    store::connections::Connection,
};

/// A connection to create.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Production gateway",
    "plugin": "nexus",
    "config": { "api_url": "https://nexus.example.com" },
    "secrets": { "api-key": "nx_live_2f6c1e9b" },
    "environment": "production",
    "labels": { "region": "eu" },
}))]
pub struct NewConnection {
    /// The display name, unique among the organization's connections of the same kind.
    #[schema(value_type = Name)]
    pub(super) name: String,
    /// The name of the plugin that it runs: one of `GET /api/v1/plugins`, of the right kind.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$")]
    pub(super) plugin: String,
    /// The version of the plugin that it runs whatever is active: one that is enabled. Null or absent: the version that is active
    /// now, and later the active version that is compatible with it.
    #[schema(value_type = Option<SemanticVersion>)]
    pub(super) plugin_version: Option<String>,
    /// The configuration, as the plugin's `config_schema` says; at most `plugin_config_kib` (64 KiB unless set otherwise).
    #[serde(default)]
    pub(super) config: Map<String, Value>,
    /// The secrets that the plugin asks for, by name; each at most `plugin_secret_kib` (16 KiB unless set otherwise). They are
    /// stored encrypted and never shown again.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>, min_length = 1)]
    pub(super) secrets: BTreeMap<String, SecretString>,
    /// Whether it is in use from now on. True if absent.
    #[serde(default = "yes")]
    pub(super) active: bool,
    /// What the agents that are deployed to the gateway are for, e.g. `production`; policies see it. Only gateways have one.
    #[schema(value_type = Option<Environment>)]
    pub(super) environment: Option<String>,
    /// The gateway's labels; policies see them. Only gateways have any.
    #[serde(default)]
    #[schema(value_type = Labels)]
    pub(super) labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// What to change of a connection. What is absent stays as it is, and so does what is null, but for `plugin_version`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Former gateway", "active": false }))]
pub struct ConnectionChange {
    /// The new display name, unique among the organization's connections of the same kind.
    #[schema(value_type = Option<Name>)]
    pub(super) name: Option<String>,
    /// The version of the plugin that it runs from now on, whatever is active: one that is enabled. Null: the version that is
    /// active now, and later the active version that is compatible with it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<SemanticVersion>)]
    pub(super) plugin_version: Option<Option<String>>,
    /// What to change of the configuration: merged into it (RFC 7396), so that null removes a property.
    pub(super) config: Option<Map<String, Value>>,
    /// The secrets to set, by name; null removes one, and those that are not named stay. A secret that the new configuration
    /// sends to another host than before has to be sent again.
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    pub(super) secrets: Option<BTreeMap<String, Option<SecretString>>>,
    /// Whether it is in use from now on.
    pub(super) active: Option<bool>,
    /// What the agents that are deployed to the gateway are for, from now on. Only gateways have one; it can be changed, and not
    /// removed.
    #[schema(value_type = Option<Environment>)]
    pub(super) environment: Option<String>,
    /// The gateway's labels from now on: they replace all that it has. Only gateways have any.
    #[schema(value_type = Option<Labels>)]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// A property that is there, also where it is null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A connection of an organization to another system, through a plugin: an identity connection, a gateway or an audit sink.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Connection, example = json!({
    "id": "019f2a58-0c4d-7b1e-9a37-5e6f708192a3",
    "organization_id": "019f2a40-11de-7c02-8f5a-6b7c8d9e0f10",
    "name": "Production gateway",
    "plugin": "nexus",
    "plugin_version": null,
    "plugin_follows": "^1",
    "config": { "api_url": "https://nexus.example.com" },
    "secrets": ["api-key"],
    "active": true,
    "environment": "production",
    "labels": { "region": "eu" },
    "created_at": "2026-11-27T09:30:00.000000Z",
    "updated_at": "2026-11-27T09:30:00.000000Z",
}))]
pub struct Shown {
    /// The connection's id.
    id: Uuid,
    /// The organization that the connection belongs to.
    organization_id: OrganizationId,
    /// The display name, unique among the organization's connections of the same kind.
    #[schema(value_type = Name)]
    name: String,
    /// The name of the plugin that it runs.
    #[schema(min_length = 1, max_length = 64)]
    plugin: String,
    /// The version of the plugin that it runs whatever is active; null where it follows a range.
    #[schema(value_type = Option<SemanticVersion>, required = true)]
    plugin_version: Option<String>,
    /// The range of versions whose active one it runs; null where it names a version.
    #[schema(required = true, example = "^1")]
    plugin_follows: Option<String>,
    /// The configuration, as the plugin's `config_schema` says.
    #[schema(value_type = BTreeMap<String, Value>)]
    config: Value,
    /// The names of the secrets that are set; never a value.
    secrets: Vec<String>,
    /// Whether it is in use.
    active: bool,
    /// What the agents that are deployed to the gateway are for. Absent where the connection is no gateway, or has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Environment, required = false)]
    environment: Option<String>,
    /// The gateway's labels. Absent where the connection is no gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Labels, required = false)]
    labels: Option<BTreeMap<String, String>>,
    /// When it was created.
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
    /// When it was last changed.
    #[serde(serialize_with = "crate::clock::micros")]
    updated_at: DateTime<Utc>,
}

/// What a check of a connection that works found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ConnectionCheck, example = json!({ "message": "Signs in with OpenID Connect at https://login.example.com." }))]
pub struct Checked {
    /// A sentence for the operator: what answered, and whether calls that were suspended go on now.
    pub(super) message: String,
}

impl Shown {
    pub(super) fn of(connection: &Connection) -> Self {
        let gateway = connection.kind == Kind::DeploymentTarget;
        Self {
            id: connection.id,
            organization_id: connection.organization_id,
            name: connection.name.clone(),
            plugin: connection.plugin.clone(),
            plugin_version: connection.plugin_version.clone(),
            plugin_follows: connection.plugin_line.as_ref().map(|line| format!("^{line}")),
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

/// What people and policies read of a connection, as it comes in.
pub(super) struct Described {
    pub(super) name: Option<String>,
    pub(super) environment: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// Takes over what is said of a connection, in its one spelling. Returns the faults of what does not depend on the plugin.
pub(super) fn describe(connection: &mut Connection, said: Described) -> Vec<Fault> {
    let mut faults = Vec::new();
    if let Some(name) = said.name {
        connection.name = fault::name("/name", name, &mut faults);
    }
    if let Some(environment) = said.environment {
        connection.environment = Some(fault::environment("/environment", environment, &mut faults));
    }
    if let Some(mut labels) = said.labels {
        fault::labels("/labels", &mut labels, &mut faults);
        connection.labels.0 = labels;
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

/// JSON Merge Patch (RFC 7396).
pub(super) fn merge(into: &mut Value, patch: Value) {
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
