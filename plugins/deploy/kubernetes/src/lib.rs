//! Runs agents in a Kubernetes cluster: for each deployment a Deployment, a Service and a ConfigMap with the workflow, by
//! server-side apply.
//!
//! | setting | | |
//! |---|---|---|
//! | `api_url` | needed | The API server, e.g. `https://10.0.0.1:6443`. Its certificate must be trusted by the server's system, or by `SSL_CERT_FILE`. |
//! | `namespace` | needed | Where to run agents. It must be there already. |
//! | `image` | needed | The image of the agent runtime. `{{version}}`, `{{environment}}` and the like are not filled in: the same image runs every agent. |
//! | `port` | `8080` | The port that the runtime listens on. |
//! | `replicas` | `1` | |
//! | `env` | `{}` | Environment of the runtime. Nothing secret: configuration is shown. |
//! | `env_from_secrets` | `[]` | Secrets of the namespace whose entries become environment, for model keys and the like. |
//! | `image_pull_secrets` | `[]` | |
//! | `service_account` | the namespace's | |
//! | `cpu`, `memory` | | Requested by each pod, e.g. `250m` and `512Mi`; memory is its limit too. |
//! | `readiness_path` | | Where the runtime says over HTTP that it is ready; without one, an open port counts. |
//! | `ready_seconds` | `30` | How long one attempt waits for the pods. |
//! | `progress_deadline_seconds` | `300` | After this long without progress a rollout has failed. Allow for the image's pull. |
//! | `force_conflicts` | `false` | Take over fields that others (an autoscaler, a person) have changed. |
//!
//! Secret `token`: a service account's token that may get, create, patch and delete ConfigMaps, Services and Deployments in
//! the namespace. The commands that make one, and what else a cluster needs: [`README.md`](../README.md).
//!
//! # What is applied
//! All three are called `agent-DEPLOYMENT_ID`, so that the same deployment is the same objects however often it is
//! attempted, and have the labels `app.kubernetes.io/managed-by: kaizen-studio`, `kaizen.studio/deployment-id`,
//! `kaizen.studio/agent-id` and the annotations `kaizen.studio/agent-name`, `kaizen.studio/version`,
//! `kaizen.studio/environment`, `kaizen.studio/digest`. The workflow is in the file `/etc/kaizen/workflow.json` (and
//! `KAIZEN_WORKFLOW` says so), byte for byte as its digest was taken; `KAIZEN_AGENT_ID`, `KAIZEN_DEPLOYMENT_ID`,
//! `KAIZEN_ENVIRONMENT`, `KAIZEN_DIGEST` and `PORT` are in the environment. Pods run without privileges (the "restricted" pod
//! security standard but for the user, which is the image's) and without the service account's token.
//!
//! The registration's id is `NAMESPACE/NAME`, its endpoint `http://NAME.NAMESPACE.svc:PORT`.
//!
//! # How it ends
//! The API server is first asked for each of the three whether it would take it (a dry run); only then are they applied. The
//! Deployment's conditions decide: `Available` with all replicas updated is active; `Progressing` false has failed, and so
//! has what the API server refuses; all else is waited for, `ready_seconds` in one attempt, and then in the next; the
//! attempts are spread over `progress_deadline_seconds`, so that Kubernetes decides. What has failed is removed again, so
//! that nothing is left half-way. A field that somebody else manages is not taken over but reported, with the other's name.
//! Undeploying deletes the three, and what is not there any more is no error.

mod api;
mod objects;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::target::{Registration, Release, State};
use kaizen_plugin::{
    Call, Capability, DeploymentTarget, Error, Manifest, Plugin, Result, SecretSlot, Url, log, progress,
};
use serde::Deserialize;

use api::{Cluster, DryRun, Kind};

/// A namespace of a cluster, and how agents run there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The API server, e.g. `https://10.0.0.1:6443`.
    api_url: Url,
    /// Where to run agents. It must be there already.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    namespace: String,
    /// The image of the agent runtime.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[!-~]+$"))]
    image: String,
    /// The port that the runtime listens on.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1))]
    port: u16,
    /// How many pods run an agent.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 100))]
    replicas: u32,
    /// Environment of the runtime. Nothing secret: configuration is shown.
    #[serde(default)]
    #[schemars(length(max = 64))]
    env: BTreeMap<String, String>,
    /// Secrets of the namespace whose entries become environment.
    #[serde(default)]
    #[schemars(length(max = 16), inner(regex(pattern = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")))]
    env_from_secrets: Vec<String>,
    /// Secrets of the namespace to pull the image with.
    #[serde(default)]
    #[schemars(length(max = 16), inner(regex(pattern = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")))]
    image_pull_secrets: Vec<String>,
    /// The service account of the pods; without one the namespace's default.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"))]
    service_account: Option<String>,
    /// The processor time each pod requests, e.g. `250m`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?m?$"))]
    cpu: Option<String>,
    /// The memory each pod requests, and its limit, e.g. `512Mi`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    memory: Option<String>,
    /// Where the runtime says over HTTP that it is ready, e.g. `/healthz`; without one, an open port counts.
    #[serde(default)]
    #[schemars(regex(pattern = r"^/[!-~]*$"))]
    readiness_path: Option<String>,
    /// How many seconds one attempt waits for the pods.
    #[serde(default = "default_ready_seconds")]
    #[schemars(range(max = 90))]
    ready_seconds: u8,
    /// After how many seconds without progress a rollout has failed. Allow for the image's pull.
    #[serde(default = "default_progress_deadline_seconds")]
    #[schemars(range(min = 10, max = 3600))]
    progress_deadline_seconds: u32,
    /// Take over fields that others (an autoscaler, a person) have changed.
    #[serde(default)]
    force_conflicts: bool,
}

fn default_port() -> u16 {
    8080
}

fn default_replicas() -> u32 {
    1
}

fn default_ready_seconds() -> u8 {
    30
}

fn default_progress_deadline_seconds() -> u32 {
    300
}

struct Kubernetes;

impl Plugin for Kubernetes {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "kubernetes",
        version: env!("CARGO_PKG_VERSION"),
        title: "Kubernetes",
        description: "Runs agents in a Kubernetes cluster, each as a Deployment with a Service and a ConfigMap.",
        secrets: &[SecretSlot {
            name: "token",
            description: "A service account's token, sent to the API server as a bearer token. It may get, create, patch and delete configmaps, services and deployments in the namespace.",
            hosts: &["{config.api_url}"],
        }],
        capabilities: &[Capability::Http("{config.api_url}")],
    };
}

/// Before it is looked again whether pods are ready.
const PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause before another attempt at a rollout that goes on.
const SHORTEST_LATER: Duration = Duration::from_secs(5);

impl DeploymentTarget for Kubernetes {
    /// Does the API server take the token, and may it do in the namespace what it will have to? Nothing is made: the
    /// objects of a deployment that there is not are asked for, and applied and deleted as a dry run.
    fn check(call: &Call<Config>) -> Result<String> {
        let config = &call.config;
        let cluster = Cluster::new(config, &config.namespace);
        let version = cluster.version()?;
        for kind in Kind::ALL {
            cluster.get(kind, CHECKED)?;
            let object = objects::of(config, CHECKED, &objects::nothing(), kind)?;
            cluster.apply(kind, &object, DryRun::Yes).map_err(|error| match error {
                // All that the cluster can refuse of it comes from the configuration.
                Error::Rejected(why) => Error::Config(why),
                error => error,
            })?;
            cluster.delete(kind, CHECKED, DryRun::Yes)?;
        }
        Ok(format!(
            "Kubernetes {version} at {} takes objects in the namespace {}.",
            config.api_url.authority(),
            config.namespace
        ))
    }

    fn deploy(call: &Call<Config>, release: &Release) -> Result<Registration> {
        let config = &call.config;
        let cluster = Cluster::new(config, &config.namespace);
        let name = objects::name(&release.deployment_id)?;
        // An earlier attempt may have applied some of it.
        let mut applied = call.attempt > 1;
        let ended = apply_all(config, &cluster, &name, release, &mut applied);
        match ended.and_then(|()| await_ready(call, &cluster, &name)) {
            Ok(()) => {}
            Err(error) if !applied || matches!(error, Error::Unavailable { .. }) => return Err(error),
            // There is no further attempt, so nothing may be left.
            Err(error) => return Err(cleared(&cluster, &name, error)),
        }
        progress(100, &format!("All {} pods of {name} are ready", config.replicas));
        Ok(Registration {
            id: format!("{}/{name}", config.namespace),
            endpoint: Some(format!("http://{name}.{}.svc:{}", config.namespace, config.port)),
        })
    }

    fn status(call: &Call<Config>, registration_id: &str) -> Result<State> {
        let (namespace, name) = parse(registration_id)?;
        Cluster::new(&call.config, namespace).state(name)
    }

    fn undeploy(call: &Call<Config>, registration_id: &str) -> Result<()> {
        let (namespace, name) = parse(registration_id)?;
        remove(&Cluster::new(&call.config, namespace), name)
    }
}

/// The name of objects that are never made.
const CHECKED: &str = "agent-check";

/// Applies the three, after the API server has said of each that it would take it: refused with the last, the others would
/// be there without it. `applied` is set once one of them may be there.
fn apply_all(config: &Config, cluster: &Cluster<'_>, name: &str, release: &Release, applied: &mut bool) -> Result<()> {
    progress(5, &format!("Asking whether {} takes {name}", config.namespace));
    let objects = Kind::ALL.map(|kind| objects::of(config, name, release, kind).map(|object| (kind, object)));
    let objects: Vec<_> = objects.into_iter().collect::<Result<_>>()?;
    for (kind, object) in &objects {
        cluster.apply(*kind, object, DryRun::Yes)?;
    }
    // Pods mount the ConfigMap and are found by the Service: both are there before the first pod is.
    for (percent, (kind, object)) in [10, 20, 30].into_iter().zip(&objects) {
        progress(percent, &format!("Applying {} {name} in {}", kind.as_str(), config.namespace));
        let outcome = cluster.apply(*kind, object, DryRun::No);
        // What broke off may have been done.
        *applied |= matches!(outcome, Ok(()) | Err(Error::Unavailable { .. }));
        outcome?;
    }
    Ok(())
}

/// The error of a deployment that has failed for good, once what there is of it is removed; or saying that it could not be.
fn cleared(cluster: &Cluster<'_>, name: &str, error: Error) -> Error {
    match remove(cluster, name) {
        Ok(()) => error,
        Err(left) => {
            log::warn!("{name} failed and could not be removed: {left}");
            let add = |why: String| format!("{why} (what was applied as {name} could not be removed: {left})");
            match error {
                Error::Config(why) => Error::Config(add(why)),
                Error::Rejected(why) => Error::Rejected(add(why)),
                error => error,
            }
        }
    }
}

/// All three; the pods first, for they use the others.
fn remove(cluster: &Cluster<'_>, name: &str) -> Result<()> {
    for kind in [Kind::Deployment, Kind::Service, Kind::ConfigMap] {
        cluster.delete(kind, name, DryRun::No)?;
    }
    Ok(())
}

/// Waits for the pods. A rollout that goes on is for the next attempt.
fn await_ready(call: &Call<Config>, cluster: &Cluster<'_>, name: &str) -> Result<()> {
    let patience = Duration::from_secs(call.config.ready_seconds.into());
    let began = Instant::now();
    loop {
        match cluster.state(name)? {
            State::Active => return Ok(()),
            State::Failed(why) => return Err(Error::Rejected(format!("the rollout failed: {why}"))),
            State::Gone => return Err(Error::unavailable(format!("{name} was deleted while it was rolled out"))),
            State::Pending(what) if began.elapsed() + PAUSE > patience => {
                return Err(Error::Unavailable {
                    message: format!("the pods are not ready yet: {what}"),
                    retry_after: Some(later(call)),
                });
            }
            State::Pending(what) => progress(60, &format!("Waiting for the pods: {what}")),
        }
        std::thread::sleep(PAUSE);
    }
}

/// The pause before the next attempt: twice as long each time, the first four together the progress deadline. A server
/// makes five attempts; by the last one the Deployment's conditions have decided.
fn later(call: &Call<Config>) -> Duration {
    let deadline = Duration::from_secs(call.config.progress_deadline_seconds.into());
    let doubled = 1 << call.attempt.saturating_sub(1).min(3);
    (deadline * doubled / 15).max(SHORTEST_LATER)
}

/// `NAMESPACE/NAME`, as [`DeploymentTarget::deploy`] gave it.
fn parse(registration_id: &str) -> Result<(&str, &str)> {
    let label = |text: &str| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    registration_id
        .split_once('/')
        .filter(|(namespace, name)| label(namespace) && label(name))
        .ok_or_else(|| Error::Rejected("this registration is not one of a cluster: expected NAMESPACE/NAME".to_owned()))
}

kaizen_plugin::deployment_target!(Kubernetes);

#[cfg(test)]
mod tests;
