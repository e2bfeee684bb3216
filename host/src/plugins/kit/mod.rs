//! The kit for plugins: drives every export of a plugin in what a provider meets in real life, without a server and
//! without a network, and judges what the plugin makes of it.
//!
//! The plugin runs in the server's own sandbox, under the server's limits and the grants of its connection. Only the way
//! out leads elsewhere: names resolve to nothing real, and connections end in this process ([`far_side`]).

mod answers;
mod far_side;
mod report;
mod sample;
mod situation;
mod tcp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use futures::StreamExt as _;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use answers::Case;
pub use report::Report;
pub use situation::{Outcome, Situation, Verdict};

use self::{
    answers::Answers,
    far_side::{FarSide, Way},
    situation::{Detail, OFF_HOURS, Reaches, Seen},
};
use super::{
    Artifact, Attempt, Binding, IdentityGrant, InstallError, Manifest, PluginError, Plugins, Protocol, Registration,
    Release, TargetState, Wanted,
};
use crate::{
    clock::Clock,
    domain::{
        audit::{self, GENESIS},
        connection::Kind,
    },
    sandbox::{
        Sandbox,
        egress::{Client, Policy},
        grants::{Capability, Grants},
        pattern::{Pattern, Target},
    },
};

/// Situations at once.
const AT_ONCE: usize = 4;

/// Why the kit cannot test a plugin.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// It does not load.
    #[error("{0}")]
    Install(#[from] InstallError),
    /// The configuration is not one of this plugin's.
    #[error("{made_up}: {faults}")]
    Config {
        /// Whose configuration.
        made_up: &'static str,
        /// Each fault.
        faults: String,
    },
    /// The machine.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// One call in one situation.
#[derive(Debug)]
pub struct Row {
    /// The situation.
    pub situation: Situation,
    /// The export.
    pub export: &'static str,
    /// Requests and connections that it made.
    pub contacts: usize,
    /// What it came to.
    pub outcome: Outcome,
    /// What the kit thinks of it.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// What is tested, with what.
struct Kit {
    sandbox: Sandbox,
    artifact: Artifact,
    kind: Kind,
    binding: Binding,
    reaches: Reaches,
    answers: Arc<Answers>,
    claims: Option<Value>,
    userinfo: Option<Value>,
    /// Of `tcp` capabilities.
    tcp: Vec<Target>,
    policy_private: Vec<ipnet::IpNet>,
    folders: BTreeSet<String>,
    scratch: PathBuf,
    clock: Clock,
    patience: Duration,
}

/// What the first run, in which all is well, tells the others.
#[derive(Default)]
struct Known {
    registration: Option<Registration>,
    files: Vec<PathBuf>,
}

/// Tests a plugin. `scratch` is a folder for what it writes; `patience` is how long a call is waited for.
///
/// # Errors
/// If it does not load, or the configuration is not one of its own.
pub async fn run(
    sandbox: &Sandbox,
    artifact: Artifact,
    case: Case,
    scratch: &Path,
    patience: Duration,
) -> Result<Report, KitError> {
    let clock = Clock::system();
    let kind = artifact.0;
    let port = tcp::free_port().await?;
    let plugins = Plugins::within(sandbox.clone(), vec![artifact], BTreeMap::new()).await?;
    let plugin = plugins.0.registry.load().active().next();
    let plugin = plugin.ok_or_else(|| std::io::Error::other("nothing was loaded"))?;
    let manifest = &plugin.manifest;

    let made_up = case.config.is_none();
    let config = case.config.unwrap_or_else(|| sample::config(manifest, port));
    let mut secrets = sample::secrets(kind, manifest);
    secrets.extend(case.secrets);
    let secrets: BTreeMap<String, SecretString> =
        secrets.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect();
    plugins.validate(kind, &manifest.name, &config, &secrets).map_err(|faults| KitError::Config {
        made_up: if made_up {
            "no configuration could be made up from the manifest's schema (give one with --config, or `examples` in the schema)"
        } else {
            "the configuration given does not suit the plugin"
        },
        faults: faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.message)).collect::<Vec<_>>().join("; "),
    })?;

    let grants =
        Grants::resolve(&manifest.capabilities, &manifest.slots, &config, &BTreeMap::new()).unwrap_or_default();
    let tcp: Vec<Target> = grants.tcp().collect();
    let binding = Binding {
        connection_id: clock.id(),
        plugin: manifest.name.clone(),
        wanted: Wanted::default(),
        config: config.clone(),
        secrets,
    };
    let claims = match case.claims {
        Some(Value::Null) => None,
        Some(claims) => Some(claims),
        None if kind == Kind::IdentityProvider => {
            // Plain OAuth 2 brings none.
            let began = plugins.begin(&binding, &attempt(&clock)).await;
            (!matches!(began, Ok(Protocol::Oauth2 { .. }))).then(|| claims(&config, &clock))
        }
        None => None,
    };
    let mut kit = Kit {
        sandbox: sandbox.clone(),
        artifact,
        kind,
        reaches: reaches(manifest, claims.is_some()),
        answers: Arc::new(Answers { rules: case.answers, not_found: case.not_found }),
        claims,
        userinfo: case.userinfo,
        policy_private: private(&config, &tcp),
        tcp,
        folders: folders(manifest),
        scratch: scratch.to_owned(),
        clock,
        patience,
        binding,
    };
    let mut report = Report::new(kind, manifest, config, made_up);
    report.rows = kit.all(&mut report.notes).await?;
    Ok(report)
}

impl Kit {
    async fn all(&mut self, notes: &mut Vec<String>) -> Result<Vec<Row>, KitError> {
        let exports = exports(self.kind);
        let mut known = Known::default();
        let mut rows = self.one(Situation::Good, exports, &mut known).await?;
        let mut rest = Vec::new();
        for situation in Situation::ALL.into_iter().skip(1) {
            let applicable: Vec<&'static str> =
                exports.iter().copied().filter(|export| situation.applies(export, self.reaches)).collect();
            if !applicable.is_empty() && (situation != Situation::FileBlocked || !known.files.is_empty()) {
                rest.push((situation, applicable));
            }
        }
        if self.tcp.iter().any(|target| !matches!(target.host, url::Host::Domain(_))) {
            notes.push("a far side that is named by its address cannot be stood in for: give a host name".into());
        }
        // TCP is served on one port of this machine, so one situation at a time.
        let at_once = if self.tcp.is_empty() { AT_ONCE } else { 1 };
        let (kit, known) = (&*self, &known);
        let mut running = futures::stream::iter(rest.into_iter().map(|(situation, applicable)| async move {
            let mut known = Known { registration: known.registration.clone(), files: known.files.clone() };
            kit.one(situation, &applicable, &mut known).await
        }))
        .buffered(at_once);
        while let Some(more) = running.next().await {
            rows.extend(more?);
        }
        Ok(rows)
    }

    /// All exports in one situation.
    async fn one(
        &self,
        situation: Situation,
        exports: &[&'static str],
        known: &mut Known,
    ) -> Result<Vec<Row>, KitError> {
        let far_side = FarSide::new(situation, self.answers.clone(), self.clock.clone());
        let names = self.tcp.iter().map(|target| target.host.to_string()).collect();
        let way = Arc::new(Way { far_side: far_side.clone(), tcp: tcp::ADDRESS, tcp_hosts: Arc::new(names) });
        let policy =
            Policy { allow: "*".parse::<Pattern>().into_iter().collect(), allow_private: self.policy_private.clone() };
        let off = TimeDelta::hours(match situation {
            Situation::ClockFast => OFF_HOURS,
            Situation::ClockOff => -OFF_HOURS,
            _ => 0,
        });
        let elsewhere = self.sandbox.elsewhere(Client::through(policy, way.clone(), way), Clock::shifted(off));
        let folder = self.scratch.join(format!("{situation:?}"));
        let own = self.binding.connection_id.to_string();
        if situation == Situation::FileBlocked {
            for file in &known.files {
                std::fs::create_dir_all(folder.join(file))?;
            }
        }
        let offered = self.folders.iter().map(|name| (name.clone(), folder.join(name))).collect();
        let plugins = Plugins::within(elsewhere, vec![self.artifact], offered).await?;
        let mut listeners = Vec::new();
        for target in &self.tcp {
            listeners.extend(tcp::listen(situation, target.port, far_side.clone())?);
        }

        let mut rows = Vec::new();
        for export in exports {
            let before = far_side.contacts();
            let started = Instant::now();
            let calling = self.call(&plugins, situation, export, known);
            let (outcome, detail) = match tokio::time::timeout(self.patience, Box::pin(calling)).await {
                Ok(Ok((said, detail))) => (Outcome::Done(said), detail),
                Ok(Err(error)) => (Outcome::Failed(error), None),
                Err(_) => (Outcome::Waiting(self.patience), None),
            };
            let took = started.elapsed();
            let mut contacts = far_side.contacts() - before;
            if !self.tcp.is_empty() && situation == Situation::NoConnection {
                contacts = contacts.max(1);
            }
            if situation == Situation::FileBlocked {
                contacts = 1;
            }
            let verdict = if far_side.breached() {
                Verdict::Wrong(
                    "a request went to the metadata service: that is a fault of the sandbox, please report it",
                )
            } else {
                let only_tcp = !self.reaches.http;
                situation::judge(&Seen { export, situation, outcome: &outcome, contacts, detail, only_tcp })
            };
            rows.push(Row { situation, export, contacts, outcome, verdict, took });
        }
        for listener in listeners {
            // The next situation listens on the same port: this one must be gone, not only asked to go.
            listener.abort();
            drop(listener.await);
        }
        if situation == Situation::Good {
            for name in &self.folders {
                let root = folder.join(name).join(&own);
                known.files.extend(files(&root).into_iter().map(|file| Path::new(name).join(&own).join(file)));
            }
        }
        Ok(rows)
    }

    async fn call(
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
            _ => Ok((plugins.check(self.kind, binding, &attempt).await?, None)),
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

fn attempt(clock: &Clock) -> Attempt {
    Attempt { idempotency_key: clock.id::<uuid::Uuid>().to_string(), attempt: 1 }
}

/// The exports of a kind's interface, in the order in which a server calls them.
fn exports(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::IdentityProvider => &["begin", "identify"],
        Kind::DeploymentTarget => &["check", "deploy", "status", "undeploy"],
        Kind::AuditSink => &["check", "deliver"],
    }
}

fn reaches(manifest: &Manifest, claims: bool) -> Reaches {
    let asks = |what: fn(&Capability) -> bool| manifest.capabilities.iter().any(what);
    Reaches {
        http: asks(|c| matches!(c, Capability::Http(_))),
        tcp: asks(|c| matches!(c, Capability::Tcp(_))),
        folder: asks(|c| matches!(c, Capability::Directory(_))),
        claims,
    }
}

fn folders(manifest: &Manifest) -> BTreeSet<String> {
    let named = manifest.capabilities.iter().filter_map(|capability| match capability {
        Capability::Directory(name) => Some(name.clone()),
        _ => None,
    });
    named.collect()
}

/// Networks that have to be allowed: the kit's own listener, and addresses that the configuration itself names.
fn private(config: &Value, tcp: &[Target]) -> Vec<ipnet::IpNet> {
    let mut found: Vec<IpAddr> = Vec::new();
    if !tcp.is_empty() {
        found.push(tcp::ADDRESS);
    }
    let texts = config.as_object().into_iter().flat_map(Map::values).filter_map(Value::as_str);
    found.extend(texts.filter_map(|text| match url::Url::parse(text).ok()?.host()? {
        url::Host::Ipv4(address) if !address.is_link_local() => Some(IpAddr::V4(address)),
        url::Host::Ipv6(address) => Some(IpAddr::V6(address)),
        _ => None,
    }));
    found.into_iter().map(ipnet::IpNet::from).collect()
}

/// The files below a folder, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.extend(entry.path().strip_prefix(root).map(Path::to_owned)),
                Err(_) => {}
            }
        }
    }
    found
}

/// Verified claims as providers make them.
fn claims(config: &Value, clock: &Clock) -> Value {
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
