//! What is applied for one deployment.

use kaizen_plugin::target::Release;
use kaizen_plugin::{Error, Result};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::Config;
use crate::api::Kind;

/// Bytes of a workflow that fit into a ConfigMap (1 MiB with everything in it).
const LONGEST_WORKFLOW: usize = 1_000_000;
/// Where pods have the workflow.
const FOLDER: &str = "/etc/kaizen";
const FILE: &str = "workflow.json";

/// The objects' name: a label of DNS (RFC 1035), as Services need it, made of the deployment's id alone.
///
/// # Errors
/// [`Error::Rejected`] for an id that can't be a part of one.
pub fn name(deployment_id: &str) -> Result<String> {
    let name = format!("agent-{}", deployment_id.to_ascii_lowercase());
    let fits = name.len() <= 63
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(name) } else { Err(Error::Rejected("the deployment's id can't be an object's name".to_owned())) }
}

/// A release of nothing, to check with.
pub fn nothing() -> Release {
    Release {
        deployment_id: "check".to_owned(),
        agent_id: "check".to_owned(),
        agent_name: "check".to_owned(),
        version: 1,
        environment: "check".to_owned(),
        workflow: RawValue::NULL.to_owned(),
        digest: String::new(),
    }
}

/// One of the three objects. It has exactly the fields that are ours: server-side apply leaves all others alone.
///
/// # Errors
/// [`Error::Rejected`] for a workflow that no ConfigMap can hold.
pub fn of(config: &Config, name: &str, release: &Release, kind: Kind) -> Result<Value> {
    let mut object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "metadata": {
            "name": name,
            "namespace": config.namespace,
            "labels": labels(name, release),
            "annotations": {
                "kaizen.studio/agent-name": release.agent_name,
                "kaizen.studio/version": release.version.to_string(),
                "kaizen.studio/environment": release.environment,
                "kaizen.studio/digest": release.digest,
            },
        },
    });
    match kind {
        Kind::ConfigMap => {
            let workflow = release.workflow.get();
            if workflow.len() > LONGEST_WORKFLOW {
                return Err(Error::Rejected(format!(
                    "the workflow has {} bytes; Kubernetes takes {LONGEST_WORKFLOW} in a ConfigMap",
                    workflow.len()
                )));
            }
            put(&mut object, "data", json!({ (FILE): workflow }));
        }
        Kind::Service => put(
            &mut object,
            "spec",
            json!({
                "selector": selector(name),
                "ports": [{"name": "http", "port": config.port, "targetPort": "http", "protocol": "TCP"}],
            }),
        ),
        Kind::Deployment => put(&mut object, "spec", deployment(config, name, release)),
    }
    Ok(object)
}

fn deployment(config: &Config, name: &str, release: &Release) -> Value {
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(config, release)],
        "volumes": [{"name": "workflow", "configMap": {"name": name}}],
    });
    if let Some(account) = &config.service_account {
        put(&mut pod, "serviceAccountName", account.as_str().into());
    }
    if !config.image_pull_secrets.is_empty() {
        let secrets = config.image_pull_secrets.iter().map(|secret| json!({"name": secret})).collect();
        put(&mut pod, "imagePullSecrets", Value::Array(secrets));
    }
    json!({
        "replicas": config.replicas,
        "progressDeadlineSeconds": config.progress_deadline_seconds,
        "selector": {"matchLabels": selector(name)},
        "template": {
            "metadata": {
                "labels": labels(name, release),
                // Another workflow is another pod.
                "annotations": {"kaizen.studio/digest": release.digest},
            },
            "spec": pod,
        },
    })
}

fn container(config: &Config, release: &Release) -> Value {
    let own = [
        ("KAIZEN_WORKFLOW", format!("{FOLDER}/{FILE}")),
        ("KAIZEN_AGENT_ID", release.agent_id.clone()),
        ("KAIZEN_DEPLOYMENT_ID", release.deployment_id.clone()),
        ("KAIZEN_ENVIRONMENT", release.environment.clone()),
        ("KAIZEN_DIGEST", release.digest.clone()),
        ("PORT", config.port.to_string()),
    ];
    let configured = config.env.iter().filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
    let env: Vec<Value> = own
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .chain(configured.map(|(name, value)| json!({"name": name, "value": value})))
        .collect();
    let probe = match &config.readiness_path {
        Some(path) => json!({"httpGet": {"path": path, "port": "http"}}),
        None => json!({"tcpSocket": {"port": "http"}}),
    };
    let mut container = json!({
        "name": "agent",
        "image": config.image,
        "ports": [{"name": "http", "containerPort": config.port, "protocol": "TCP"}],
        "env": env,
        "volumeMounts": [{"name": "workflow", "mountPath": FOLDER, "readOnly": true}],
        "readinessProbe": probe,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    if !config.env_from_secrets.is_empty() {
        let secrets = config.env_from_secrets.iter().map(|secret| json!({"secretRef": {"name": secret}})).collect();
        put(&mut container, "envFrom", Value::Array(secrets));
    }
    let mut requests = serde_json::Map::new();
    if let Some(cpu) = &config.cpu {
        requests.insert("cpu".to_owned(), cpu.as_str().into());
    }
    let mut resources = json!({});
    if let Some(memory) = &config.memory {
        requests.insert("memory".to_owned(), memory.as_str().into());
        put(&mut resources, "limits", json!({ "memory": memory }));
    }
    if !requests.is_empty() {
        put(&mut resources, "requests", Value::Object(requests));
        put(&mut container, "resources", resources);
    }
    container
}

/// Pods are found by the deployment alone.
fn selector(name: &str) -> Value {
    json!({ "app.kubernetes.io/instance": name })
}

fn labels(name: &str, release: &Release) -> Value {
    json!({
        "app.kubernetes.io/name": "kaizen-agent",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "kaizen-studio",
        "kaizen.studio/agent-id": release.agent_id,
        "kaizen.studio/deployment-id": release.deployment_id,
    })
}

fn put(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}
