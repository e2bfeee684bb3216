//! The gateway's API.

use kaizen_plugin::http::{Method, Request, Response};
use kaizen_plugin::serde_json::{Value, json};
use kaizen_plugin::target::{Release, State};
use kaizen_plugin::{Call, Error, Result, Secret, Url};

use crate::Config;

/// Longer ids are no ids.
const LONGEST_ID: usize = 512;

/// A gateway that is spoken to.
pub struct Gateway<'a> {
    config: &'a Config,
}

/// What registering answered.
pub struct Registered {
    /// The gateway's id.
    pub id: String,
    /// Where the agent is reached, if the gateway says.
    pub endpoint: Option<String>,
    /// Active, unless the gateway says otherwise.
    pub state: State,
}

impl<'a> Gateway<'a> {
    /// The gateway of this configuration.
    pub fn new(config: &'a Config) -> Self {
        Self { config }
    }

    fn request(&self, method: Method, url: &Url) -> Request {
        Request::new(method, url)
            .header("authorization", Secret::named("api-key").bearer())
            .header("accept", "application/json")
    }

    /// Where an agent is.
    pub fn agent_url(&self, id: &str) -> Result<Url> {
        Ok(self.config.api_url.join(&["api", "v1", "agents", id])?)
    }

    /// Is it there, and does it take our key?
    pub fn health(&self) -> Result<()> {
        let response = self.request(Method::Get, &self.config.api_url.join(&["health"])?).send()?;
        response.success().map_err(|error| Error::from(error).context("the gateway's health"))?;
        Ok(())
    }

    /// Registers the agent; the same deployment again gives the same registration.
    pub fn register(&self, call: &Call<Config>, release: &Release) -> Result<Registered> {
        let body = json!({
            "name": release.agent_name,
            "description": format!("Version {} for {}, deployed by Kaizen Studio", release.version, release.environment),
            "agent_type": self.config.agent_type,
            "config": {
                "deployment_id": release.deployment_id,
                "agent_id": release.agent_id,
                "version": release.version,
                "environment": release.environment,
                "digest": release.digest,
                "workflow": release.workflow,
            },
        });
        let url = self.config.api_url.join(&["api", "v1", "agents", "register"])?;
        let response =
            self.request(Method::Post, &url).header("idempotency-key", &call.idempotency_key).json(&body)?.send()?;
        if response.status == 404 {
            return Err(Error::Config(format!("api_url: there is no Nexus gateway, {url} answers 404")));
        }
        let answer: Value = response.success().map_err(|error| Error::from(error).context("registering"))?.json()?;
        let id = match answer.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => String::new(),
        };
        if id.is_empty() || id.len() > LONGEST_ID || self.agent_url(&id).is_err() {
            return Err(Error::Rejected("the gateway registered the agent without a usable `id`".to_owned()));
        }
        let endpoint = answer.get("endpoint").and_then(Value::as_str).map(str::to_owned);
        Ok(Registered { id, endpoint, state: state(&answer) })
    }

    /// How an agent is.
    pub fn status(&self, id: &str) -> Result<State> {
        let response = self.request(Method::Get, &self.agent_url(id)?).send()?;
        if is_gone(&response) {
            return Ok(State::Gone);
        }
        let response = response.success().map_err(|error| Error::from(error).context("the agent's status"))?;
        // An agent that serves a page of its own there is active, whatever it says.
        Ok(response.json::<Value>().map_or(State::Active, |answer| state(&answer)))
    }

    /// Removes an agent that may be gone already.
    pub fn remove(&self, id: &str) -> Result<()> {
        let response = self.request(Method::Delete, &self.agent_url(id)?).send()?;
        if !is_gone(&response) {
            response.success().map_err(|error| Error::from(error).context("removing the agent"))?;
        }
        Ok(())
    }
}

fn is_gone(response: &Response) -> bool {
    matches!(response.status, 404 | 410)
}

/// What the gateway's `status` means; without one, an agent that is there is active.
fn state(answer: &Value) -> State {
    let Some(status) = answer.get("status").and_then(Value::as_str) else { return State::Active };
    let why =
        || answer.get("error").or_else(|| answer.get("message")).and_then(Value::as_str).unwrap_or(status).to_owned();
    match status.to_ascii_lowercase().as_str() {
        "active" | "healthy" | "ok" | "ready" | "registered" | "running" | "success" => State::Active,
        "error" | "failed" | "unhealthy" => State::Failed(why()),
        "deleted" | "gone" | "removed" => State::Gone,
        other => State::Pending(other.to_owned()),
    }
}
