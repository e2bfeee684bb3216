//! An API server of Kubernetes, as far as server-side apply of a few objects goes: managers of fields and their conflicts,
//! Status objects, and a controller that brings Deployments up when they are looked at.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{Reply, Seen, Stub};

/// The token the API server accepts.
pub const CLUSTER_TOKEN: &str = "cluster-token-that-must-not-leak";
/// The only namespace there is.
pub const NAMESPACE: &str = "agents";

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Fields of somebody else's: by path and JSON Pointer, who.
    managed: BTreeMap<(String, String), String>,
    /// Whether pods take their time.
    held: bool,
    /// What keeps pods from starting, if anything does.
    broken: Option<String>,
}

pub struct Kubernetes {
    pub stub: Stub,
    state: Arc<Mutex<State>>,
}

impl Kubernetes {
    pub async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let own = state.clone();
        Self { stub: Stub::start(move |seen| answer(&mut own.lock().expect("lock"), seen)).await, state }
    }

    /// The body that creates this gateway through the API.
    pub fn body(&self, name: &str, more: Value) -> Value {
        let mut config = json!({
            "api_url": self.stub.url, "namespace": NAMESPACE, "image": "registry.example.com/runtime:1", "ready_seconds": 8,
        });
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({
            "name": name, "plugin": "kubernetes", "config": config, "secrets": { "token": CLUSTER_TOKEN },
            "environment": "staging",
        })
    }

    /// What is there, by kind.
    pub fn objects(&self) -> BTreeMap<String, Value> {
        let objects = self.state.lock().expect("lock").objects.clone();
        objects.into_values().map(|object| (object["kind"].as_str().expect("a kind").to_owned(), object)).collect()
    }

    /// Somebody else makes an object and manages one of its fields.
    pub fn occupy(&self, path: &str, object: Value, pointer: &str, manager: &str) {
        let mut state = self.state.lock().expect("lock");
        state.objects.insert(path.to_owned(), object);
        state.managed.insert((path.to_owned(), pointer.to_owned()), manager.to_owned());
    }

    /// Somebody else removes an object.
    pub fn remove(&self, path: &str) {
        self.state.lock().expect("lock").objects.remove(path).expect("it is there");
    }

    /// From now on pods take their time, or no longer.
    pub fn hold_pods(&self, on: bool) {
        self.state.lock().expect("lock").held = on;
    }

    /// From now on pods don't start, or do again.
    pub fn break_pods(&self, why: Option<&str>) {
        self.state.lock().expect("lock").broken = why.map(str::to_owned);
    }
}

fn status(code: u16, reason: &str, message: &str, causes: Value) -> Reply {
    Reply::Json(
        code,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "code": code, "details": { "causes": causes },
        }),
    )
}

fn answer(state: &mut State, seen: &Seen) -> Reply {
    let authorization = seen.headers.get("authorization").and_then(|value| value.to_str().ok());
    if authorization != Some(&format!("Bearer {CLUSTER_TOKEN}")) {
        return status(401, "Unauthorized", "Unauthorized", json!([]));
    }
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    if path == "/version" {
        return Reply::Json(200, json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.1" }));
    }
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (kind, namespace, name) = match segments.as_slice() {
        ["api", "v1", "namespaces", namespace, "configmaps", name] => ("ConfigMap", *namespace, *name),
        ["api", "v1", "namespaces", namespace, "services", name] => ("Service", *namespace, *name),
        ["apis", "apps", "v1", "namespaces", namespace, "deployments", name] => ("Deployment", *namespace, *name),
        _ => return status(404, "NotFound", "the server could not find the requested resource", json!([])),
    };
    let missing = || status(404, "NotFound", &format!("{kind} \"{name}\" not found"), json!([]));
    match seen.method.as_str() {
        "PATCH" => {
            if namespace != NAMESPACE {
                return status(404, "NotFound", &format!("namespaces \"{namespace}\" not found"), json!([]));
            }
            apply(state, seen, path, query, (kind, name))
        }
        "GET" => match state.objects.get_mut(path) {
            Some(object) => {
                let now = object.clone();
                if kind == "Deployment" && !state.held {
                    advance(object, state.broken.as_deref());
                }
                Reply::Json(200, now)
            }
            None => missing(),
        },
        "DELETE" if query.contains("dryRun=All") => {
            state.objects.get(path).map_or_else(missing, |object| Reply::Json(200, object.clone()))
        }
        "DELETE" => state.objects.remove(path).map_or_else(missing, |object| Reply::Json(200, object)),
        _ => status(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
            json!([]),
        ),
    }
}

fn apply(state: &mut State, seen: &Seen, path: &str, query: &str, (kind, name): (&str, &str)) -> Reply {
    if seen.headers.get("content-type").is_none_or(|kind| kind != "application/apply-patch+yaml") {
        return status(415, "UnsupportedMediaType", "the body of the request was in an unknown format", json!([]));
    }
    let has = |parameter: &str| query.split('&').any(|other| other == parameter);
    let wanted = &seen.body;
    let named = (&wanted["kind"], &wanted["metadata"]["name"], &wanted["metadata"]["namespace"]);
    let version = if kind == "Deployment" { "apps/v1" } else { "v1" };
    if named != (&json!(kind), &json!(name), &json!(NAMESPACE))
        || wanted["apiVersion"] != version
        || !query.contains("fieldManager=")
    {
        return status(400, "BadRequest", "the name in the body or the field manager is missing or another", json!([]));
    }
    if let Some((field, message)) = invalid(kind, name, wanted, state.objects.get(path)) {
        let said = format!("{kind} \"{name}\" is invalid: {field}: {message}");
        let causes = json!([{ "reason": "FieldValueInvalid", "field": field, "message": message }]);
        return status(422, "Invalid", &said, causes);
    }
    let conflicts: Vec<_> = state
        .managed
        .iter()
        .filter(|((of, pointer), _)| {
            let now = state.objects.get(path).and_then(|object| object.pointer(pointer));
            of == path && wanted.pointer(pointer).is_some_and(|value| Some(value) != now)
        })
        .map(|((_, pointer), manager)| (pointer.clone(), manager.clone()))
        .collect();
    if !conflicts.is_empty() && !has("force=true") {
        let causes = conflicts.iter().map(|(pointer, manager)| {
            json!({
                "reason": "FieldManagerConflict", "field": pointer.replace('/', "."),
                "message": format!("conflict with \"{manager}\" using apps/v1"),
            })
        });
        return status(409, "Conflict", "Apply failed with conflicts", causes.collect());
    }
    let mut object = wanted.clone();
    if kind == "Deployment" {
        let before = state.objects.get(path);
        let generation = before.map_or(0, |object| object["metadata"]["generation"].as_i64().expect("a number"));
        let unchanged = before.is_some_and(|before| before["spec"] == wanted["spec"]);
        object["metadata"]["generation"] = json!(if unchanged { generation } else { generation + 1 });
        object["status"] = before.map_or_else(|| json!({}), |before| before["status"].clone());
    }
    let created = !state.objects.contains_key(path);
    if !has("dryRun=All") {
        for (pointer, _) in conflicts {
            state.managed.remove(&(path.to_owned(), pointer));
        }
        state.objects.insert(path.to_owned(), object.clone());
    }
    Reply::Json(if created { 201 } else { 200 }, object)
}

/// What the API server's validation refuses: the field and why. As far as our objects could go wrong.
fn invalid(kind: &str, name: &str, wanted: &Value, before: Option<&Value>) -> Option<(&'static str, &'static str)> {
    let inner = |text: &str, also: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
    let ends =
        |text: &str| [text.chars().next(), text.chars().last()].iter().flatten().all(char::is_ascii_alphanumeric);
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if name.len() > 63 || !starts || !ends(name) || !inner(name, "-") || name.chars().any(|c| c.is_ascii_uppercase()) {
        return Some(("metadata.name", "a DNS-1035 label must consist of lower case alphanumeric characters or '-'"));
    }
    let labels = |object: &Value| object["labels"].as_object().cloned().unwrap_or_default();
    for value in labels(&wanted["metadata"]).values().chain(labels(&wanted["spec"]["template"]["metadata"]).values()) {
        let fits = value.as_str().is_some_and(|value| value.len() <= 63 && ends(value) && inner(value, "-_."));
        if !fits {
            return Some((
                "metadata.labels",
                "a valid label must be an empty string or consist of alphanumeric characters",
            ));
        }
    }
    let annotations = wanted["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    if !annotations.values().all(Value::is_string) {
        return Some(("metadata.annotations", "expected string"));
    }
    let spec = &wanted["spec"];
    match kind {
        "ConfigMap" => {
            let bytes: usize = wanted["data"]
                .as_object()?
                .iter()
                .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
                .sum();
            (bytes > 1 << 20).then_some(("", "Too long: must have at most 1048576 bytes"))
        }
        "Deployment" => {
            let (selector, pod) = (spec["selector"]["matchLabels"].as_object()?, labels(&spec["template"]["metadata"]));
            if selector.is_empty() || selector.iter().any(|(key, value)| pod.get(key) != Some(value)) {
                return Some(("spec.template.metadata.labels", "`selector` does not match template `labels`"));
            }
            if before.is_some_and(|before| before["spec"]["selector"] != spec["selector"]) {
                return Some(("spec.selector", "field is immutable"));
            }
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let volumes = list(&spec["template"]["spec"]["volumes"]);
            let containers = list(&spec["template"]["spec"]["containers"]);
            let mut env = containers.iter().flat_map(|container| list(&container["env"]));
            if env.any(|one| one["name"].as_str().is_none_or(|name| !inner(name, "-_.") || name.is_empty())) {
                return Some((
                    "spec.template.spec.containers[0].env[6].name",
                    "a valid environment variable name must consist of",
                ));
            }
            let mounts = containers.iter().flat_map(|container| list(&container["volumeMounts"]));
            let lost = mounts.into_iter().any(|mount| !volumes.iter().any(|volume| volume["name"] == mount["name"]));
            if lost || containers.is_empty() {
                return Some(("spec.template.spec.containers", "Not found"));
            }
            None
        }
        _ => spec["ports"].as_array().is_none_or(Vec::is_empty).then_some(("spec.ports", "Required value")),
    }
}

/// What the controllers do between two looks: see the change, then start the pods.
fn advance(object: &mut Value, broken: Option<&str>) {
    let generation = object["metadata"]["generation"].clone();
    if object["status"]["observedGeneration"] != generation {
        object["status"] = json!({
            "observedGeneration": generation, "replicas": object["spec"]["replicas"], "updatedReplicas": 0,
            "conditions": [{ "type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated" }],
        });
        return;
    }
    object["status"]["conditions"] = match broken {
        Some(why) => json!([
            { "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": why },
            { "type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable" },
        ]),
        None => {
            object["status"]["updatedReplicas"] = object["spec"]["replicas"].clone();
            object["status"]["availableReplicas"] = object["spec"]["replicas"].clone();
            json!([
                { "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" },
                { "type": "Available", "status": "True", "reason": "MinimumReplicasAvailable" },
            ])
        }
    };
}
