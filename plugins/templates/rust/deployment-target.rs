//! {{title}}: registers agents with a service that has `PUT`, `GET` and `DELETE /agents/{id}`.

use kaizen_plugin::http::{Method, Request, Response};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::serde_json::{Value, json};
use kaizen_plugin::target::{Registration, Release, State};
use kaizen_plugin::{
    Call, Capability, DeploymentTarget, Manifest, Plugin, Result, Secret, SecretSlot, Url, progress,
};

/// What a connection has to fill in. Field names, types and documentation become the form.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// The service's address.
    url: Url,
}

struct Target;

impl Plugin for Target {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "{{name}}",
        version: env!("CARGO_PKG_VERSION"),
        title: "{{title}}",
        description: "Registers agents with a service of our own.",
        // The server puts it into requests to `url`'s host and to no other.
        secrets: &[SecretSlot {
            name: "token",
            description: "A token that the service accepts.",
            hosts: &["{config.url}"],
        }],
        // The only host this plugin may speak to.
        capabilities: &[Capability::Http("{config.url}")],
    };
}

impl DeploymentTarget for Target {
    /// Is the target there and are the credentials good? A sentence for the operator.
    fn check(call: &Call<Config>) -> Result<String> {
        request(call, Method::Get, &["agents"])?.send()?.success()?;
        Ok(format!("{} takes agents.", call.config.url.authority()))
    }

    /// The same deployment again gives the same registration: its id is the agent's name there.
    fn deploy(call: &Call<Config>, release: &Release) -> Result<Registration> {
        progress(10, &format!("Registering {}", release.agent_name));
        let path = ["agents", &release.deployment_id];
        let body =
            json!({ "name": release.agent_name, "environment": release.environment, "workflow": release.workflow });
        request(call, Method::Put, &path)?.json(&body)?.send()?.success()?;
        Ok(Registration {
            id: release.deployment_id.clone(),
            endpoint: Some(call.config.url.join(&path)?.to_string()),
        })
    }

    fn status(call: &Call<Config>, registration_id: &str) -> Result<State> {
        let answer = request(call, Method::Get, &["agents", registration_id])?.send()?;
        if answer.status == 404 {
            return Ok(State::Gone);
        }
        let agent: Value = answer.success()?.json()?;
        let text = |name: &str| agent.get(name).and_then(Value::as_str);
        Ok(match text("state") {
            Some("active") => State::Active,
            Some("failed") => State::Failed(text("reason").unwrap_or("no reason given").to_owned()),
            other => State::Pending(format!("it is {}", other.unwrap_or("starting"))),
        })
    }

    /// Removing what is already gone succeeds.
    fn undeploy(call: &Call<Config>, registration_id: &str) -> Result<()> {
        gone(request(call, Method::Delete, &["agents", registration_id])?.send()?)
    }
}

fn gone(answer: Response) -> Result<()> {
    if answer.status != 404 {
        answer.success()?;
    }
    Ok(())
}

fn request(call: &Call<Config>, method: Method, path: &[&str]) -> Result<Request> {
    Ok(Request::new(method, &call.config.url.join(path)?)
        .header("authorization", Secret::named("token").bearer())
        .header("idempotency-key", &call.idempotency_key))
}

kaizen_plugin::deployment_target!(Target);

#[cfg(test)]
mod tests {
    use kaizen_plugin::{Error, http::Response, testing};

    use super::*;

    #[test]
    fn what_is_gone_is_undeployed() {
        let _far_side = testing::answer(|_| Ok(Response::new(404, "")));
        let call = testing::call::<Target>(r#"{"url": "https://agents.example.com"}"#);
        assert_eq!(Target::undeploy(&call, "a1"), Ok(()));
    }

    #[test]
    fn an_expired_token_is_for_the_operator_to_fix() {
        let _far_side = testing::answer(|_| Ok(Response::new(401, "token expired")));
        let call = testing::call::<Target>(r#"{"url": "https://agents.example.com"}"#);
        assert!(matches!(Target::check(&call), Err(Error::Config(_))));
    }
}
