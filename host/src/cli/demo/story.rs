//! The story itself, step by step; each step is checked, and the first that does not hold ends it.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    client::{Canvas, Person, text},
    screen::Screen,
};
use crate::{
    app::App,
    domain::{email::Email, name::Name},
    identity::organization::{NewOrganization, create_organization},
};

/// Everyone and everything in it.
pub struct Story<'a> {
    /// Where it is told.
    pub screen: &'a Screen,
    /// The server under it; only for the first organization, which nobody could be signed in to create.
    pub app: &'a App,
    /// The server's address.
    pub base: &'a str,
    /// The gateway's address.
    pub gateway: &'a str,
    /// The gateway's key.
    pub key: &'a str,
}

/// A sign-in to try afterwards.
pub struct SignIn {
    /// Of whom.
    pub name: &'static str,
    /// With which role.
    pub role: &'static str,
    /// E-mail address.
    pub email: String,
    /// Password.
    pub password: String,
}

/// What each of the two puts on the canvas.
const NODES: usize = 8;

const POLICY: &str = r#"@id("production-is-for-owners")
@description("Only owners deploy to production.")
forbid (principal, action == Kaizen::Action::"agent.deploy", resource)
when { context.environment == "production" && !(principal in Kaizen::Role::"owner") };
"#;

impl Story<'_> {
    /// Plays it.
    ///
    /// # Errors
    /// The first step that did not hold.
    pub async fn play(&self) -> anyhow::Result<Vec<SignIn>> {
        let (people, ada, ben) = self.team().await?;
        let (agent, canvas) = self.agent(&ben).await?;
        self.draw(&ada, &ben, &canvas).await?;
        let staging = self.gateway(&ada, "Staging", "staging").await?;
        let production = self.gateway(&ada, "Production", "production").await?;
        self.deploy(&ben, &agent, &staging).await?;
        self.refused(&ada, &ben, &agent, &production).await?;
        self.trail(&ada, &ben).await?;
        Ok(people)
    }

    async fn team(&self) -> anyhow::Result<(Vec<SignIn>, Person, Person)> {
        self.screen.part("A team signs in")?;
        let tag = hex::encode(self.app.clock.bytes::<3>());
        let sign_in = |name, role| SignIn {
            name,
            role,
            email: format!("{}@{tag}.example", str::to_lowercase(name)),
            password: hex::encode(self.app.clock.bytes::<9>()),
        };
        let (owner, developer) = (sign_in("Ada", "owner"), sign_in("Ben", "developer"));
        let (store, clock, passwords) = (&self.app.store, &self.app.clock, &self.app.identity.passwords);
        let new = NewOrganization {
            name: &Name::parse(&format!("Aurora Labs {tag}"))?,
            owner: &Email::parse(&owner.email)?,
            owner_name: Some(&Name::parse(owner.name)?),
            password: Some(&SecretString::from(owner.password.clone())),
            platform_administrator: false,
            actor: "system",
        };
        create_organization(store, clock, passwords, &new).await.context("creating the organization")?;
        let ada =
            Person::sign_in(self.base, owner.name, &owner.email, &owner.password).await.context("Ada signs in")?;
        let user = json!({ "email": developer.email, "name": developer.name, "password": developer.password });
        let user = ada.post("/api/v1/users", &user).await?.ok().context("Ada adds Ben")?;
        let membership = json!({ "user_id": text(&user, "/id")?, "role": developer.role });
        ada.post("/api/v1/memberships", &membership).await?.ok().context("Ada makes Ben a developer")?;
        let ben = Person::sign_in(self.base, developer.name, &developer.email, &developer.password)
            .await
            .context("Ben signs in")?;
        self.screen.held(&format!("organization Aurora Labs {tag}, with Ada (owner) and Ben (developer)"))?;
        self.screen.held("both signed in by password; their requests carry RS256 tokens")?;
        Ok((vec![owner, developer], ada, ben))
    }

    async fn agent(&self, ben: &Person) -> anyhow::Result<(String, String)> {
        self.screen.part("An agent, drawn together")?;
        let workspaces = ben.get("/api/v1/workspaces").await?.ok()?;
        let workspace = text(&workspaces, "/items/0/id").context("Ben sees a workspace")?;
        let agent = json!({
            "name": "Support triage",
            "workspace_id": workspace,
            "description": "Sorts incoming questions and answers the easy ones.",
            "labels": { "team": "support" },
            "settings": { "model": "large-v1", "temperature": 0.2, "max_tokens": 2048, "system_prompt": "Be brief and kind." },
        });
        let agent = ben.post("/api/v1/agents", &agent).await?.ok().context("Ben creates an agent")?;
        self.screen.held("Ben created the agent “Support triage”")?;
        Ok((text(&agent, "/id")?.to_owned(), text(&agent, "/canvas_id")?.to_owned()))
    }

    /// Both write at the same time; both must end with everything, at the same sequence.
    async fn draw(&self, ada: &Person, ben: &Person, canvas: &str) -> anyhow::Result<()> {
        let mut of_ada = ada.join(canvas).await.context("Ada joins the canvas")?;
        let mut of_ben = ben.join(canvas).await.context("Ben joins the canvas")?;
        tokio::try_join!(edit(&mut of_ada, ada.name, 0), edit(&mut of_ben, ben.name, 300))?;
        ensure!(of_ada.seq == of_ben.seq, "the two ended at different sequences: {} and {}", of_ada.seq, of_ben.seq);
        let link = json!([{ "op": "edge.put", "edge": { "id": "handover", "source": "ada-0", "target": "ben-0" } }]);
        of_ada.send("link", link).await?;
        while of_ada.acks <= NODES {
            of_ada.next().await?;
        }
        let seq = of_ada.seq;
        of_ada.leave().await;
        of_ben.leave().await;
        let stored = ben.get(&format!("/api/v1/canvases/{canvas}")).await?.ok().context("reading the canvas")?;
        let nodes = stored.pointer("/nodes").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(nodes == 2 * NODES, "the canvas has {nodes} nodes, not {}", 2 * NODES);
        self.screen.held(&format!(
            "Ada and Ben drew {NODES} nodes each at the same time; both saw all of them, in one order, up to change {seq}"
        ))
    }

    async fn gateway(&self, ada: &Person, name: &str, environment: &str) -> anyhow::Result<String> {
        let gateway = json!({
            "name": name, "plugin": "nexus", "environment": environment,
            "config": { "api_url": self.gateway }, "secrets": { "api-key": self.key },
        });
        let gateway = ada.post("/api/v1/gateways", &gateway).await?.ok().with_context(|| format!("gateway {name}"))?;
        let id = text(&gateway, "/id")?.to_owned();
        let check = ada.post(&format!("/api/v1/gateways/{id}/check"), &json!({})).await?.ok();
        check.with_context(|| format!("gateway {name} answers its check"))?;
        Ok(id)
    }

    async fn deploy(&self, ben: &Person, agent: &str, gateway: &str) -> anyhow::Result<()> {
        self.screen.part("A version, deployed by a job through a sandboxed plugin")?;
        self.screen.held("Ada connected two gateways through the `nexus` plugin; both answered its check")?;
        let version = ben.post(&format!("/api/v1/agents/{agent}/versions"), &json!({ "note": "First" })).await?.ok()?;
        let digest = text(&version, "/digest")?;
        self.screen.held(&format!("Ben cut version 1, sha256 {}…", digest.get(..12).unwrap_or(digest)))?;
        let accepted = ben.post(&format!("/api/v1/agents/{agent}/deploy"), &json!({ "gateway_id": gateway })).await?;
        ensure!(accepted.status == 202, "deploying was answered with {}: {}", accepted.status, accepted.body);
        let id = text(&accepted.body, "/deployment_id")?.to_owned();
        let bar = self.screen.bar("queued");
        let mut stream = ben.events(&format!("/api/v1/deployments/{id}/events")).await?.bytes_stream();
        let mut buffer = String::new();
        while let Some(chunk) = stream.next().await {
            buffer.push_str(std::str::from_utf8(&chunk?)?);
            while let Some((line, rest)) = buffer.split_once('\n') {
                if let Some(event) =
                    line.strip_prefix("data:").and_then(|data| serde_json::from_str::<Value>(data).ok())
                {
                    if let Some(percent) = event.get("percent").and_then(Value::as_u64) {
                        bar.set_position(percent);
                    }
                    if let Some(message) = event.get("message").or_else(|| event.get("status")).and_then(Value::as_str)
                    {
                        bar.set_message(message.to_owned());
                    }
                }
                buffer = rest.to_owned();
            }
        }
        let deployment = ben.get(&format!("/api/v1/deployments/{id}")).await?.ok()?;
        let status = text(&deployment, "/status")?;
        if status != "active" {
            bar.abandon();
            bail!("the deployment ended as {status}: {}", deployment.get("error").unwrap_or(&Value::Null));
        }
        self.screen.full(&bar)?;
        let registration = text(&deployment, "/registration_id")?;
        self.screen.held(&format!(
            "deployed: {}",
            deployment.get("endpoint").and_then(Value::as_str).unwrap_or(registration)
        ))?;
        let health: Value = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .get(format!("{}/health", self.gateway))
            .send()
            .await?
            .json()
            .await?;
        ensure!(health.get("agents") == Some(&json!(1)), "the gateway does not know the agent: {health}");
        self.screen.held("the gateway itself says that it serves 1 agent")
    }

    async fn refused(&self, ada: &Person, ben: &Person, agent: &str, production: &str) -> anyhow::Result<()> {
        self.screen.part("What policy forbids")?;
        let set = ada.post("/api/v1/policies", &json!({ "name": "House rules" })).await?.ok()?;
        let set = text(&set, "/id")?.to_owned();
        let version = ada.post(&format!("/api/v1/policies/{set}/versions"), &json!({ "text": POLICY })).await?.ok()?;
        let number = version.get("version").cloned().context("the policy version has a number")?;
        ada.post(&format!("/api/v1/policies/{set}/activate"), &json!({ "version": number })).await?.ok()?;
        self.screen.held("Ada put a Cedar policy in force: only owners deploy to production")?;
        let refused = ben.post(&format!("/api/v1/agents/{agent}/deploy"), &json!({ "gateway_id": production })).await?;
        ensure!(
            refused.status == 403,
            "Ben's deployment to production was answered with {}: {}",
            refused.status,
            refused.body
        );
        let detail = text(&refused.body, "/detail")?;
        ensure!(
            refused.body.to_string().contains("production-is-for-owners"),
            "the denial does not name the policy: {}",
            refused.body
        );
        self.screen.held("Ben tries to deploy to production, and is told why not:")?;
        self.screen.detail(&format!("403 {detail}"))
    }

    async fn trail(&self, ada: &Person, ben: &Person) -> anyhow::Result<()> {
        self.screen.part("The audit trail")?;
        let mut names = BTreeMap::new();
        for person in [ada, ben] {
            let me = person.get("/api/v1/auth/me").await?.ok()?;
            names.insert(format!("user/{}", text(&me, "/user/id")?), person.name);
        }
        let page = ada.get("/api/v1/audit/events?limit=200").await?.ok()?;
        let events = page.pointer("/items").and_then(Value::as_array).context("the trail is a list")?;
        let field = |event: &Value, name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        for event in events {
            let time = field(event, "occurred_at");
            let target = field(event, "target");
            self.screen.detail(&format!(
                "{:>3}  {}  {:<8} {:<7} {:<19} {:<12} {}…",
                event.get("sequence").and_then(Value::as_i64).unwrap_or_default(),
                time.get(11..23).unwrap_or(&time),
                names.get(&field(event, "actor")).copied().unwrap_or("system"),
                field(event, "outcome"),
                field(event, "action"),
                target.split_once('/').map_or(target.as_str(), |(kind, _)| kind),
                field(event, "hash").get(..12).unwrap_or_default(),
            ))?;
        }
        let has = |action: &str, outcome: &str| {
            events.iter().any(|e| field(e, "action") == action && field(e, "outcome") == outcome)
        };
        ensure!(has("agent.deploy", "success"), "the trail does not tell of the deployment");
        ensure!(has("agent.deploy", "denied"), "the trail does not tell of the denial");
        let verified = ada.get("/api/v1/audit/verify").await?.ok()?;
        ensure!(verified.get("valid") == Some(&json!(true)), "the chain does not verify: {verified}");
        self.screen.held(&format!("the chain verifies: {} events, none edited, dropped or reordered", events.len()))
    }
}

async fn edit(canvas: &mut Canvas, name: &str, top: usize) -> anyhow::Result<()> {
    let prefix = name.to_lowercase();
    for n in 0..NODES {
        let node = json!({
            "id": format!("{prefix}-{n}"), "type": "step", "position": { "x": 180 * n, "y": top },
            "data": { "label": format!("{name}'s step {n}") },
        });
        canvas.send(&format!("{prefix}-{n}"), json!([{ "op": "node.put", "node": node }])).await?;
    }
    while canvas.acks < NODES || canvas.nodes < NODES {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), canvas.next()).await;
        next.with_context(|| format!("{name} waits for the other's edits"))??;
    }
    Ok(())
}
