//! Deploys agents to a Nexus gateway.
//!
//! | setting | | |
//! |---|---|---|
//! | `api_url` | needed | The gateway's address, e.g. `https://nexus.example.com`. |
//! | `agent_type` | `workflow` | What kind of agent the gateway is to register. |
//! | `ready_seconds` | `5` | How long to wait, after registering, for an agent that the gateway still starts. After that the deployment counts as active, and its last message says that the gateway still starts it. |
//!
//! Secret `api-key`: the gateway's API key.
//!
//! | call | request |
//! |---|---|
//! | check | `GET {api_url}/health` |
//! | deploy | `POST {api_url}/api/v1/agents/register` with `{name, description, agent_type, config}`, which answers an `id` |
//! | status | `GET {api_url}/api/v1/agents/{id}`; 404 is gone |
//! | undeploy | `DELETE {api_url}/api/v1/agents/{id}`; 404 is success |
//!
//! Each request carries the secret `api-key` as a bearer token. Registering carries `Idempotency-Key` and, in `config`,
//! the deployment's id, so that a gateway answers a repeated attempt with the registration it already made.

mod gateway;

use std::time::{Duration, Instant};

use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::target::{Registration, Release, State};
use kaizen_plugin::{
    Call, Capability, DeploymentTarget, Error, Manifest, Plugin, Result, SecretSlot, Url, log, progress,
};
use serde::Deserialize;

use gateway::Gateway;

/// A Nexus gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The gateway's address, e.g. `https://nexus.example.com`. Paths such as `/api/v1/agents` are added to it.
    api_url: Url,
    /// What kind of agent the gateway is to register.
    #[serde(default = "default_agent_type")]
    #[schemars(length(min = 1, max = 64))]
    agent_type: String,
    /// How many seconds to wait, after registering, for an agent that the gateway still starts.
    #[serde(default = "default_ready_seconds")]
    #[schemars(range(max = 20))]
    ready_seconds: u8,
}

fn default_agent_type() -> String {
    "workflow".to_owned()
}

fn default_ready_seconds() -> u8 {
    5
}

struct Nexus;

impl Plugin for Nexus {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "nexus",
        version: env!("CARGO_PKG_VERSION"),
        title: "Nexus gateway",
        description: "Deploys agents to a Nexus gateway.",
        secrets: &[SecretSlot {
            name: "api-key",
            description: "The gateway's API key, sent to it as a bearer token.",
            hosts: &["{config.api_url}"],
        }],
        capabilities: &[Capability::Http("{config.api_url}")],
    };
}

impl DeploymentTarget for Nexus {
    fn check(call: &Call<Config>) -> Result<String> {
        Gateway::new(&call.config).health()?;
        Ok(format!("The gateway at {} answers.", call.config.api_url.authority()))
    }

    fn deploy(call: &Call<Config>, release: &Release) -> Result<Registration> {
        let gateway = Gateway::new(&call.config);
        let far = call.config.api_url.authority();
        progress(10, &format!("Asking the gateway at {far} whether it is ready"));
        if let Err(error) = gateway.health() {
            // What an operator must change, no attempt changes; a health route that is busy or missing decides nothing.
            if matches!(error, Error::Config(_)) {
                return Err(error);
            }
            log::warn!("health: {error}");
        }
        progress(30, &format!("Registering {} version {}", release.agent_name, release.version));
        let registered = gateway.register(call, release)?;
        progress(70, &format!("Registered as {}", registered.id));
        let patience = Duration::from_secs(call.config.ready_seconds.into());
        match await_active(&gateway, &registered.id, registered.state, patience)? {
            None => progress(100, &format!("{far} serves the agent")),
            Some(what) => progress(100, &format!("{far} has the agent and still starts it: {what}")),
        }
        let endpoint =
            registered.endpoint.or_else(|| gateway.agent_url(&registered.id).ok().map(|url| url.to_string()));
        Ok(Registration { id: registered.id, endpoint })
    }

    fn status(call: &Call<Config>, registration_id: &str) -> Result<State> {
        Gateway::new(&call.config).status(registration_id)
    }

    fn undeploy(call: &Call<Config>, registration_id: &str) -> Result<()> {
        Gateway::new(&call.config).remove(registration_id)
    }
}

/// Waits for an agent that the gateway said it still starts, and returns how it is if it still does after `patience`. It is
/// registered already, so only its failure is ours.
fn await_active(gateway: &Gateway<'_>, id: &str, mut state: State, patience: Duration) -> Result<Option<String>> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        match state {
            State::Active => return Ok(None),
            State::Failed(why) => return Err(Error::Rejected(format!("the gateway could not start the agent: {why}"))),
            State::Gone => return Err(Error::unavailable("the gateway lost the registration it had just made")),
            State::Pending(what) if began.elapsed() + pause > patience => return Ok(Some(what)),
            State::Pending(what) => progress(80, &format!("The gateway starts the agent: {what}")),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
        state = gateway.status(id)?;
    }
}

kaizen_plugin::deployment_target!(Nexus);

#[cfg(test)]
mod tests;
