//! Announces deployments to an address of one's own, signed: for gateways that speak nobody's protocol, pipelines and
//! scripts.
//!
//! | setting | | |
//! |---|---|---|
//! | `url` | needed | Every request is a POST to it. |
//! | `template` | see below | The JSON object that is sent, with placeholders. |
//! | `headers` | `{}` | Further headers, such as `Accept`. Nothing secret: configuration is shown. |
//! | `asks_status` | `true` | Whether the receiver can be asked how a registration is. If not, what it took counts as active until it is removed. |
//! | `timeout_seconds` | `15` | How long the receiver may take. |
//!
//! Secret `signing-key`: shared with the receiver, at least 16 characters; after `whsec_` it is base64.
//!
//! # What is sent
//! `{{action}}` is `check`, `deploy`, `status` or `undeploy`; it is also in the header `Kaizen-Action`. Without a `template`
//! the body is
//! ```json
//! {
//!   "action": "{{action}}", "registration_id": "{{registration_id}}", "deployment_id": "{{deployment_id}}",
//!   "agent_id": "{{agent_id}}", "agent_name": "{{agent_name}}", "version": "{{version}}", "environment": "{{environment}}",
//!   "digest": "{{digest}}", "workflow": "{{workflow}}"
//! }
//! ```
//! A text that is one placeholder and nothing else becomes the value itself: `"{{version}}"` a number, `"{{workflow}}"` the
//! object `kaizen.workflow.v1` with exactly the bytes that `digest` is the SHA-256 of. Within a longer text the value is put
//! in as text. Placeholders are filled in after the template was read as JSON and are never looked for again in what was
//! filled in, so no name of an agent can add a field or another placeholder. Those that an action has no value for are
//! `null`, or nothing within a text: `deployment_id` to `workflow` are there for `deploy` only, `registration_id` for
//! `status` and `undeploy` only.
//!
//! # Signature
//! `Kaizen-Signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over `SECONDS.BODY`, and the headers of Standard Webhooks
//! (`Webhook-Id`, `Webhook-Timestamp`, `Webhook-Signature`). How a receiver checks them, ready to copy in three languages:
//! [`audit/webhook/README.md`](../../../audit/webhook/README.md). `Idempotency-Key` and `Webhook-Id` are the same for every
//! attempt at a piece of work: do nothing twice for the same one, and answer how it is now.
//!
//! # What is answered
//! Any 2xx is agreement. A JSON object may say more:
//!
//! | member | for | meaning |
//! |---|---|---|
//! | `id` | `deploy` | How the receiver calls it; without it, the deployment's own id. |
//! | `endpoint` | `deploy` | Where the agent is reached. |
//! | `status` | `deploy`, `status` | `active` (so without it), `pending`, `failed` or `gone`. |
//! | `message` | `deploy`, `status` | What it waits for, or why it failed. |
//!
//! A `deploy` that is `pending` is tried again later, until it is `active`. 404 and 410 say for `status` that it is gone,
//! and for `undeploy` that there is nothing to do. 401 and 403, and 404 otherwise, are the operator's to mend; 429 and 503
//! are tried again, after `Retry-After`; any other 4xx refuses. Redirects are not followed.

mod template;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kaizen_plugin::http::{Request, Response};
use kaizen_plugin::schemars::{self, JsonSchema};
use kaizen_plugin::target::{Registration, Release, State};
use kaizen_plugin::{
    Call, Capability, DeploymentTarget, Error, Manifest, Plugin, Result, Secret, SecretSlot, Url, progress, signature,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use template::{Action, Values};

/// Where to announce deployments, and how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct Config {
    /// Every request is a POST to this address.
    url: Url,
    /// The JSON object that is sent. In its texts `{{action}}`, `{{registration_id}}`, `{{deployment_id}}`, `{{agent_id}}`,
    /// `{{agent_name}}`, `{{version}}`, `{{environment}}`, `{{digest}}`, `{{workflow}}`, `{{idempotency_key}}` and
    /// `{{attempt}}` are filled in.
    #[serde(default)]
    template: Option<Map<String, Value>>,
    /// Further headers. Nothing secret: configuration is shown.
    #[serde(default)]
    #[schemars(length(max = 32))]
    headers: BTreeMap<String, String>,
    /// Whether the receiver can be asked how a registration is. If not, what it took counts as active until it is removed.
    #[serde(default = "yes")]
    asks_status: bool,
    /// How many seconds the receiver may take.
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 25))]
    timeout_seconds: u8,
}

fn yes() -> bool {
    true
}

fn default_timeout_seconds() -> u8 {
    15
}

/// Headers that are this plugin's, or the connection's.
const RESERVED_HEADERS: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "idempotency-key",
    "kaizen-action",
    "kaizen-signature",
    "proxy-authorization",
    "transfer-encoding",
    "webhook-",
];
/// Longer ids are no ids.
const LONGEST_ID: usize = 512;
/// A `pending` receiver that doesn't say when to ask again.
const PENDING_PAUSE: Duration = Duration::from_secs(5);

struct Webhook;

impl Plugin for Webhook {
    type Config = Config;
    const MANIFEST: Manifest = Manifest {
        name: "webhook",
        version: env!("CARGO_PKG_VERSION"),
        title: "Webhook",
        description: "Announces deployments to an address, as JSON of your own shape, signed with HMAC-SHA256.",
        secrets: &[SecretSlot {
            name: "signing-key",
            description: "The key shared with the receiver, at least 16 characters. Each request is signed with it; it is never sent.",
            hosts: &[],
        }],
        capabilities: &[Capability::Http("{config.url}"), Capability::RevealSecret("signing-key")],
    };
}

/// What a receiver may answer. Anything else in it is its own business.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    id: Option<Value>,
    endpoint: Option<String>,
    status: Option<String>,
    message: Option<String>,
}

impl Answer {
    /// What a 2xx says: a body that is no JSON object says nothing.
    fn of(response: &Response) -> Result<Self> {
        match response.json::<Value>() {
            Ok(Value::Object(answer)) => serde_json::from_value(Value::Object(answer))
                .map_err(|error| Error::Rejected(format!("the receiver's answer: {error}"))),
            _ => Ok(Self::default()),
        }
    }

    fn state(&self) -> Result<State> {
        let message = |otherwise: &str| self.message.clone().unwrap_or_else(|| otherwise.to_owned());
        Ok(match self.status.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("active") => State::Active,
            Some("pending") => State::Pending(message("the receiver")),
            Some("failed") => State::Failed(message("the receiver doesn't say why")),
            Some("gone") => State::Gone,
            Some(other) => {
                return Err(Error::Rejected(format!(
                    "the receiver's `status` is `{}`; expected active, pending, failed or gone",
                    other.chars().take(40).collect::<String>().escape_debug()
                )));
            }
        })
    }
}

impl DeploymentTarget for Webhook {
    fn check(call: &Call<Config>) -> Result<String> {
        succeed(post(call, Values::new(call, Action::Check))?)?;
        Ok(format!("{} takes signed requests.", call.config.url.authority()))
    }

    fn deploy(call: &Call<Config>, release: &Release) -> Result<Registration> {
        let far = call.config.url.authority();
        progress(20, &format!("Announcing {} version {} to {far}", release.agent_name, release.version));
        let response = succeed(post(call, Values::new(call, Action::Deploy).release(release))?)?;
        let pause = response.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
        let answer = Answer::of(&response)?;
        match answer.state()? {
            State::Active => {}
            State::Pending(what) => {
                progress(60, &format!("{far} is at it: {what}"));
                return Err(Error::Unavailable {
                    message: format!("the receiver is not done yet: {what}"),
                    retry_after: Some(pause.map_or(PENDING_PAUSE, Duration::from_secs)),
                });
            }
            State::Failed(why) => return Err(Error::Rejected(format!("the receiver could not deploy: {why}"))),
            State::Gone => {
                return Err(Error::Rejected("the receiver says that what it was just given is gone".to_owned()));
            }
        }
        let id = match &answer.id {
            None | Some(Value::Null) => release.deployment_id.clone(),
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(_) => String::new(),
        };
        if id.is_empty() || id.len() > LONGEST_ID || id.chars().any(char::is_control) {
            return Err(Error::Rejected("the receiver's `id` is no text of 1 to 512 characters".to_owned()));
        }
        progress(100, &format!("{far} has taken it as {id}"));
        Ok(Registration { id, endpoint: answer.endpoint })
    }

    fn status(call: &Call<Config>, registration_id: &str) -> Result<State> {
        if !call.config.asks_status {
            return Ok(State::Active);
        }
        let response = post(call, Values::new(call, Action::Status).registration(registration_id))?;
        if is_gone(&response) {
            return Ok(State::Gone);
        }
        Answer::of(&succeed(response)?)?.state()
    }

    fn undeploy(call: &Call<Config>, registration_id: &str) -> Result<()> {
        let response = post(call, Values::new(call, Action::Undeploy).registration(registration_id))?;
        if !is_gone(&response) {
            succeed(response)?;
        }
        Ok(())
    }
}

fn is_gone(response: &Response) -> bool {
    matches!(response.status, 404 | 410)
}

/// That the address is wrong is for the operator to see.
fn succeed(response: Response) -> Result<Response> {
    if matches!(response.status, 404 | 405 | 410) {
        return Err(Error::Config(format!("url: the receiver answers {}", response.status)));
    }
    Ok(response.success()?)
}

fn post(call: &Call<Config>, values: Values) -> Result<Response> {
    let config = &call.config;
    let body = values.fill(config.template.as_ref())?;
    let key = &call.idempotency_key;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut request = Request::post(&config.url)
        .timeout(Duration::from_secs(config.timeout_seconds.into()))
        .header("content-type", "application/json")
        .header("kaizen-action", values.action.name())
        .header("idempotency-key", key);
    for (name, value) in signature::webhook(Secret::named("signing-key"), key, now, body.as_bytes())? {
        request = request.header(name, value);
    }
    for (name, value) in &config.headers {
        let lower = name.to_ascii_lowercase();
        if RESERVED_HEADERS.iter().any(|own| lower == *own || (own.ends_with('-') && lower.starts_with(own))) {
            return Err(Error::Config(format!("headers: `{lower}` is not to be set here; remove it")));
        }
        if value.contains("{{") {
            return Err(Error::Config(format!(
                "headers: `{lower}` has a placeholder; they are filled in in `template` only"
            )));
        }
        request = request.header(&lower, value);
    }
    request.body(body).send().map_err(|error| match error {
        // The only header names and values that can be wrong are the configuration's.
        kaizen_plugin::http::Error::Request(why) => Error::Config(format!("headers: {why}")),
        error => error.into(),
    })
}

kaizen_plugin::deployment_target!(Webhook);

#[cfg(test)]
mod tests;
