//! The calls: each export, with arguments as a server gives them.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::{Kit, Known, situation::Situation, verdict::Detail};
use crate::{
    clock::Clock,
    domain::{
        audit::{self, GENESIS},
        connection::Kind,
    },
    plugins::{Attempt, CheckError, IdentityGrant, PluginError, Plugins, Protocol, Registration, Release, TargetState},
};

impl Kit {
    /// Calls an export; what it says, and what of it is judged.
    pub(super) async fn call(
        &self,
        plugins: &Plugins,
        situation: Situation,
        export: &str,
        known: &mut Known,
    ) -> Result<(String, Option<Detail>), PluginError> {
        let (binding, attempt) = (&self.binding, attempt(&self.clock));
        let registration = known.registration.as_ref().map_or("kit-1", |known| known.id.as_str()).to_owned();
        match export {
            "begin" => Ok((protocol(&plugins.begin(binding, &attempt).await?), None)),
            "identify" => {
                let grant = self.grant(situation);
                let token = SecretString::from("kit-access-token-0123456789abcdef");
                let who = plugins.identify(binding, &attempt, grant, Some(token)).await?;
                let email = who.email.as_deref().unwrap_or("no e-mail address");
                let vouched = if who.email_verified { "verified" } else { "not verified" };
                let said = format!("{}, {email} ({vouched}), {} groups", who.subject, who.groups.len());
                Ok((said, Some(Detail::Verified(who.email_verified))))
            }
            "deploy" => {
                let first = self.deploy(plugins, &attempt).await?;
                let mut detail = None;
                if situation == Situation::Good {
                    let again = self.deploy(plugins, &attempt).await?;
                    detail = (again.id != first.id).then_some(Detail::Twice);
                    known.registration = Some(first.clone());
                }
                Ok((format!("registered as {}", first.id), detail))
            }
            "status" => Ok(match plugins.status(binding, &attempt, &registration).await? {
                TargetState::Pending(why) => (format!("pending: {why}"), None),
                TargetState::Active => ("active".into(), None),
                TargetState::Failed(why) => (format!("failed: {why}"), Some(Detail::FailedState)),
                TargetState::Gone => ("gone".into(), Some(Detail::Gone)),
            }),
            "undeploy" => {
                plugins.undeploy(binding, &attempt, &registration).await?;
                Ok(("undeployed".into(), None))
            }
            "deliver" => {
                let events = events(&self.clock);
                let stored = plugins.deliver(binding, &attempt, &events).await?;
                Ok((format!("{stored} of {} events stored", events.len()), Some(Detail::Stored(stored))))
            }
            _ => match plugins.check(self.kind, binding, &attempt).await {
                Ok(said) => Ok((said, None)),
                Err(CheckError::Plugin(error)) => Err(error),
                Err(error) => Err(PluginError::Postponed { message: error.to_string(), after: Duration::ZERO }),
            },
        }
    }

    async fn deploy(&self, plugins: &Plugins, attempt: &Attempt) -> Result<Registration, PluginError> {
        let workflow = json!({
            "format": "kaizen.workflow.v1",
            "settings": { "model": "gpt-4o", "system_prompt": "Be brief.", "temperature": 0.2, "max_tokens": 500 },
            "nodes": [{ "id": "n1", "type": "input", "position": { "x": 0, "y": 0 }, "data": { "label": "{{secret:x}}" } }],
            "edges": [],
        })
        .to_string();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, workflow.as_bytes());
        let id = uuid::Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
        let release = Release {
            deployment_id: id,
            agent_id: id,
            agent_name: "Kit agent".into(),
            version: 3,
            environment: "staging".into(),
            digest: hex::encode(digest.as_ref()),
            workflow,
        };
        let (sender, mut progress) = tokio::sync::mpsc::channel(8);
        let draining = async { while progress.recv().await.is_some() {} };
        let (registration, ()) = tokio::join!(plugins.deploy(&self.binding, attempt, release, sender), draining);
        registration
    }

    /// What the sign-in brings.
    fn grant(&self, situation: Situation) -> IdentityGrant {
        let (mut claims, mut userinfo) = (self.claims.clone(), self.userinfo.clone());
        for object in [&mut claims, &mut userinfo].into_iter().flatten().filter_map(Value::as_object_mut) {
            match situation {
                Situation::NoSubject => drop(object.remove("sub")),
                Situation::Unverified => drop(object.remove("email_verified")),
                Situation::OddClaims => odd(object),
                _ => {}
            }
        }
        IdentityGrant { claims, userinfo }
    }
}

fn odd(claims: &mut Map<String, Value>) {
    claims.insert("groups".into(), json!("engineering"));
    claims.insert("name".into(), json!(7));
    claims.insert("email".into(), json!({ "value": "ada@example.com" }));
    claims.insert("roles".into(), Value::Null);
}

/// A first attempt.
pub(super) fn attempt(clock: &Clock) -> Attempt {
    Attempt { idempotency_key: clock.id::<uuid::Uuid>().to_string(), attempt: 1 }
}

/// The exports of a kind's interface, in the order in which a server calls them.
pub(super) fn exports(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::IdentityProvider => &["begin", "identify"],
        Kind::DeploymentTarget => &["check", "deploy", "status", "undeploy"],
        Kind::AuditSink => &["check", "deliver"],
    }
}

/// Verified claims as providers make them.
pub(super) fn claims(config: &Value, clock: &Clock) -> Value {
    let text = |name: &str| config.get(name).cloned().unwrap_or_default();
    let now = clock.now().timestamp();
    json!({
        "iss": text("issuer"), "aud": text("client_id"), "sub": "kit-user-1", "iat": now, "exp": now + 300,
        "email": "ada@example.com", "email_verified": true, "name": "Ada Lovelace", "preferred_username": "ada",
        "groups": ["engineering", "on-call"], "locale": "en",
    })
}

fn protocol(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Oidc { issuer, scopes, .. } => format!("OpenID Connect at {issuer}, scopes {}", scopes.join(" ")),
        Protocol::Oauth2 { authorization_endpoint, scopes, .. } => {
            format!("OAuth 2 at {authorization_endpoint}, scopes {}", scopes.join(" "))
        }
    }
}

/// Events with what people write into them.
fn events(clock: &Clock) -> Vec<audit::Event> {
    let organization = clock.id();
    let texts = ["agent/kit-1", "agent/{{secret:token}}", "agent/é \u{1f600} \u{7}"];
    texts
        .into_iter()
        .zip(1..)
        .map(|(target, sequence)| audit::Event {
            id: clock.id(),
            organization_id: organization,
            sequence,
            occurred_at: clock.now(),
            actor: "user/kit".into(),
            action: "agent.update".into(),
            target: target.into(),
            outcome: if sequence == 2 { audit::Outcome::Denied } else { audit::Outcome::Success },
            details: json!({ "request_id": "kit", "changes": { "name": target } }).to_string(),
            hash: GENESIS.into(),
        })
        .collect()
}
