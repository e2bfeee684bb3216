//! What a connection looks like from outside: the bodies of its routes, and the faults of those that come in.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    api::problem::Fault,
    domain::{connection::Kind, fault, id::OrganizationId},
    store::connections::Connection,
};

/// A new connection.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewConnection {
    /// For people; unique among those of its kind.
    pub(super) name: String,
    /// One of `/api/v1/plugins`, of the right kind.
    pub(super) plugin: String,
    /// The version to run whatever is active, one that is enabled; null: the one that is active now, and later what is
    /// active and compatible with it.
    pub(super) plugin_version: Option<String>,
    /// As the plugin's `config_schema` says.
    #[serde(default)]
    pub(super) config: Map<String, Value>,
    /// The plugin's secrets by name. Written, never read back.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub(super) secrets: BTreeMap<String, SecretString>,
    /// Whether it is in use from now on; true if absent.
    #[serde(default = "yes")]
    pub(super) active: bool,
    /// For gateways: what agents deployed there are for, e.g. `production`.
    #[schema(max_length = 63)]
    pub(super) environment: Option<String>,
    /// For gateways: key and value; policies see them.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// What to change; what is absent stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionChange {
    pub(super) name: Option<String>,
    /// The version to run from now on; null: the one that is active now, and later what is compatible with it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub(super) plugin_version: Option<Option<String>>,
    /// Merged into the configuration (RFC 7396): null removes a property.
    pub(super) config: Option<Map<String, Value>>,
    /// Merged into the secrets: null removes one. Where the new configuration takes a secret to another host than before,
    /// it must come again.
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    pub(super) secrets: Option<BTreeMap<String, Option<SecretString>>>,
    pub(super) active: Option<bool>,
    #[schema(max_length = 63)]
    pub(super) environment: Option<String>,
    /// Replaces all labels.
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// A property that is there, also where it is null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A connection as shown.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Connection)]
pub struct Shown {
    id: Uuid,
    organization_id: OrganizationId,
    name: String,
    plugin: String,
    /// The version that it runs whatever is active; null if it follows.
    plugin_version: Option<String>,
    /// What the active version has to be compatible with for this connection to run it, e.g. `^1`; null if it names a
    /// version.
    plugin_follows: Option<String>,
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
    #[serde(serialize_with = "crate::clock::micros")]
    created_at: DateTime<Utc>,
    #[serde(serialize_with = "crate::clock::micros")]
    updated_at: DateTime<Utc>,
}

/// What a check found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Checked {
    /// A sentence for the operator.
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
