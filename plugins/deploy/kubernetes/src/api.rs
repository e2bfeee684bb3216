//! The API server, as far as it is needed.

use kaizen_plugin::http::{Method, Request, Response};
use kaizen_plugin::target::State;
use kaizen_plugin::{Error, Result, Secret, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Config;

/// Who manages the fields that are applied (server-side apply).
pub const FIELD_MANAGER: &str = "kaizen-studio";

/// What is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The workflow.
    ConfigMap,
    /// The address.
    Service,
    /// The pods.
    Deployment,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ConfigMap, Self::Service, Self::Deployment];

    /// As in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
        }
    }

    /// The API group and version in a manifest.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::ConfigMap | Self::Service => "v1",
            Self::Deployment => "apps/v1",
        }
    }

    /// The path's segments up to the namespace, and the resource.
    fn path(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::ConfigMap => (&["api", "v1"], "configmaps"),
            Self::Service => (&["api", "v1"], "services"),
            Self::Deployment => (&["apis", "apps", "v1"], "deployments"),
        }
    }
}

/// Whether a request only says what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    /// Everything but the writing (`dryRun=All`).
    Yes,
    /// For good.
    No,
}

impl DryRun {
    fn of(self, url: Url) -> Url {
        if self == Self::Yes { url.query("dryRun", "All") } else { url }
    }
}

/// How the API server explains an error.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    reason: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
    #[serde(rename = "retryAfterSeconds")]
    retry_after: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
    field: String,
}

#[derive(Deserialize)]
struct DeploymentObject {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: DeploymentStatus,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    generation: i64,
    #[serde(rename = "deletionTimestamp")]
    deleted: Option<String>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default = "one")]
    replicas: u32,
}

fn one() -> u32 {
    1
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DeploymentStatus {
    observed_generation: i64,
    updated_replicas: u32,
    available_replicas: u32,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
}

/// One namespace of a cluster.
pub struct Cluster<'a> {
    config: &'a Config,
    namespace: &'a str,
}

impl<'a> Cluster<'a> {
    /// The namespace of this cluster.
    pub fn new(config: &'a Config, namespace: &'a str) -> Self {
        Self { config, namespace }
    }

    fn url(&self, kind: Kind, name: &str) -> Result<Url> {
        let (group, resource) = kind.path();
        let path = [group, &["namespaces", self.namespace, resource, name]].concat();
        Ok(self.config.api_url.join(&path)?)
    }

    fn request(method: Method, url: &Url) -> Request {
        Request::new(method, url)
            .header("authorization", Secret::named("token").bearer())
            .header("accept", "application/json")
    }

    /// The cluster's version.
    pub fn version(&self) -> Result<String> {
        let response = Self::request(Method::Get, &self.config.api_url.join(&["version"])?).send()?;
        let version: Value = self.understood(response, "asking for its version")?.json()?;
        match version.get("gitVersion").and_then(Value::as_str) {
            Some(version) => Ok(version.chars().filter(|c| c.is_ascii_graphic()).take(40).collect()),
            None => {
                Err(Error::Config(format!("api_url: {} is no Kubernetes API server", self.config.api_url.origin())))
            }
        }
    }

    /// Makes an object, or makes it as it should be (server-side apply, KEP-555). JSON is YAML.
    pub fn apply(&self, kind: Kind, object: &Value, dry_run: DryRun) -> Result<()> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let force = if self.config.force_conflicts { "true" } else { "false" };
        let url = self.url(kind, name)?.query("fieldManager", FIELD_MANAGER).query("force", force);
        let url = dry_run.of(url);
        let response = Self::request(Method::Patch, &url)
            .header("content-type", "application/apply-patch+yaml")
            .body(serde_json::to_vec(object)?)
            .send()?;
        if dry_run == DryRun::Yes && without_dry_run(&response) {
            return Ok(());
        }
        self.understood(response, &format!("applying {} {name}", kind.as_str()))?;
        Ok(())
    }

    /// An object, if it is there.
    pub fn get(&self, kind: Kind, name: &str) -> Result<Option<Response>> {
        let response = Self::request(Method::Get, &self.url(kind, name)?).send()?;
        if response.status == 404 && self.speaks_kubernetes(&response) {
            return Ok(None);
        }
        self.understood(response, &format!("asking for {} {name}", kind.as_str())).map(Some)
    }

    /// Deletes an object that may be gone already; of a Deployment also its pods, in the background.
    pub fn delete(&self, kind: Kind, name: &str, dry_run: DryRun) -> Result<()> {
        let response = Self::request(Method::Delete, &dry_run.of(self.url(kind, name)?))
            .json(&json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}))?
            .send()?;
        if response.status == 404 && self.speaks_kubernetes(&response) {
            return Ok(());
        }
        self.understood(response, &format!("deleting {} {name}", kind.as_str()))?;
        Ok(())
    }

    /// How a Deployment is, by its conditions.
    pub fn state(&self, name: &str) -> Result<State> {
        let Some(response) = self.get(Kind::Deployment, name)? else { return Ok(State::Gone) };
        let object: DeploymentObject = response.json()?;
        if object.metadata.deleted.is_some() {
            return Ok(State::Gone);
        }
        let status = &object.status;
        // Conditions speak of what the controller has seen.
        if status.observed_generation < object.metadata.generation {
            return Ok(State::Pending("the controller has not seen the change".to_owned()));
        }
        let condition = |kind: &str| status.conditions.iter().find(|condition| condition.r#type == kind);
        // Why pods can't be made at all, e.g. a quota: it may pass, or the deadline will.
        let failing = condition("ReplicaFailure").filter(|condition| condition.status == "True").map(said);
        if let Some(progressing) = condition("Progressing").filter(|condition| condition.status == "False") {
            let progressing = said(progressing);
            return Ok(State::Failed(match failing {
                Some(why) => format!("{why} ({progressing})"),
                // Why pods that were made do not become ready is told of the pods, which the token need not be able to read.
                None => format!(
                    "{progressing} {} of {} pods became ready: `kubectl get events -n {}` says why, for an hour (an image that \
                     cannot be pulled, a container that ends, a probe that fails)",
                    status.available_replicas, object.spec.replicas, self.namespace
                ),
            }));
        }
        let available = condition("Available").is_some_and(|condition| condition.status == "True");
        let wanted = object.spec.replicas;
        if available && status.updated_replicas >= wanted && status.available_replicas >= wanted {
            return Ok(State::Active);
        }
        if let Some(why) = failing {
            return Ok(State::Pending(why));
        }
        Ok(State::Pending(format!("{} of {wanted} are ready", status.available_replicas.min(status.updated_replicas))))
    }

    /// A 404 of the API server's own: of anything else at this address it would not say that an object is gone.
    fn speaks_kubernetes(&self, response: &Response) -> bool {
        response.json::<Value>().is_ok_and(|answer| answer.get("kind").and_then(Value::as_str) == Some("Status"))
    }

    /// A 2xx answer; or who has to act, by the Status object.
    fn understood(&self, response: Response, doing: &str) -> Result<Response> {
        if response.is_success() {
            return Ok(response);
        }
        let status: Status = response.json().unwrap_or_default();
        let (code, config) = (response.status, self.config);
        let kubernetes = self.speaks_kubernetes(&response);
        let error = match response.success() {
            Ok(response) => return Ok(response),
            Err(error) => Error::from(error),
        };
        let said = brief(&status.message);
        let error = match (code, status.reason.as_str()) {
            (401, _) => Error::Config(
                "secret `token`: the API server does not take it; supply a new one (tokens of service accounts expire)"
                    .to_owned(),
            ),
            (403, _) if !kubernetes => {
                Error::Config(format!("api_url: {} answers 403, and not as Kubernetes does", config.api_url.origin()))
            }
            (403, _) if terminating(&status) => {
                Error::Config(format!("namespace: `{}` is being deleted ({said}); name another one", self.namespace))
            }
            (403, _) if lacks_role(&status) => Error::Config(format!(
                "the token may not do this: {said}. Give its service account a Role that allows it"
            )),
            // A quota, an admission webhook or policy, pod security: each says by itself what it wants.
            (403, _) => Error::Rejected(said),
            (404, _) if !kubernetes => {
                Error::Config(format!("api_url: {} is no Kubernetes API server", config.api_url.origin()))
            }
            (404, _) => Error::Config(format!("namespace: is `{}` there? {said}", self.namespace)),
            (409, "Conflict") => conflict(&status),
            (409, _) => Error::unavailable(said),
            (415, _) => {
                Error::Config("the cluster has no server-side apply: Kubernetes 1.22 or later is needed".to_owned())
            }
            (422, _) => Error::Rejected(invalid(&status)),
            _ => match (error, status.details.retry_after) {
                // Said in the body too, and not always in a header.
                (Error::Unavailable { message, retry_after: None }, Some(seconds)) => {
                    Error::Unavailable { message, retry_after: Some(std::time::Duration::from_secs(seconds)) }
                }
                (error, _) => error,
            },
        };
        Err(error.context(doing))
    }
}

/// Whether it is refused because the namespace is being deleted (Kubernetes 1.16 and later give the cause).
fn terminating(status: &Status) -> bool {
    status.details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        || status.message.contains("because it is being terminated")
}

/// Whether it is refused for what the token may do. That and an admission's refusal have the same code and reason; the
/// authorizer's message is `… is forbidden: User "…" cannot VERB resource …`.
fn lacks_role(status: &Status) -> bool {
    status.message.contains("is forbidden: User \"") && status.message.contains(" cannot ")
}

/// Whether an admission webhook cannot be asked without it having effects: then nothing is known before the real thing.
fn without_dry_run(response: &Response) -> bool {
    response.status == 400
        && response.json::<Status>().is_ok_and(|status| status.message.contains("does not support dry run"))
}

/// Fields that another manager has, or a change in between.
fn conflict(status: &Status) -> Error {
    let fields: Vec<String> = status
        .details
        .causes
        .iter()
        .filter(|cause| cause.reason == "FieldManagerConflict")
        .take(5)
        .map(|cause| format!("{} ({})", brief(&cause.field), brief(&cause.message)))
        .collect();
    if fields.is_empty() {
        return Error::unavailable(brief(&status.message));
    }
    Error::Rejected(format!(
        "others manage these fields: {}. Let them give the fields up, or set `force_conflicts`",
        fields.join(", ")
    ))
}

/// What does not fit, field by field.
fn invalid(status: &Status) -> String {
    let causes: Vec<String> = status
        .details
        .causes
        .iter()
        .take(5)
        .map(|cause| format!("{}: {}", brief(&cause.field), brief(&cause.message)))
        .collect();
    if causes.is_empty() { brief(&status.message) } else { causes.join("; ") }
}

fn said(condition: &Condition) -> String {
    let said = if condition.message.is_empty() { &condition.reason } else { &condition.message };
    brief(said)
}

/// Fit for an operator's screen.
fn brief(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
