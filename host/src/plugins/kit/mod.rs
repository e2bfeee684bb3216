//! The kit for plugins: drives every export of a plugin in what a provider meets in real life, without a server and
//! without a network, and judges what the plugin makes of it.
//!
//! The plugin runs in the server's own sandbox, under the server's limits and the grants of its connection. Only the way
//! out leads elsewhere: names resolve to nothing real, and connections end in this process ([`far_side`]).

mod answers;
mod calls;
mod far_side;
mod report;
mod sample;
mod situation;
mod tcp;
mod verdict;

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
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use answers::Case;
pub use report::Report;

use self::{
    answers::Answers,
    calls::{attempt, claims, exports},
    far_side::{FarSide, Way},
    situation::{OFF_HOURS, Reaches, Situation},
    tcp::Ports,
    verdict::{Outcome, Seen, Verdict},
};
use super::{Artifact, Binding, InstallError, Manifest, Plugins, Protocol, Refused, Registration, Wanted, audit_dir};
use crate::{
    clock::Clock,
    domain::connection::Kind,
    sandbox::{
        Sandbox,
        egress::{Client, Policy, PrivateRule},
        grants::{Capability, Grants},
        pattern::{Pattern, Target},
    },
};

/// Situations at once: a plugin waits more than it computes, and a slow drip does nothing else.
const AT_ONCE: usize = 8;

/// Why the kit cannot test a plugin.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// It does not load.
    #[error("{0}")]
    Install(#[from] InstallError),
    /// The configuration or the secrets are not ones of this plugin's.
    #[error("{whose}: {faults}")]
    Config {
        /// Whose configuration.
        whose: &'static str,
        /// Each fault.
        faults: String,
    },
    /// A far side that cannot be played here, and nothing is ever sent to the real one.
    #[error("the far side of {target} cannot be played on this machine: {why}")]
    Tcp {
        /// As the configuration and the manifest have it.
        target: String,
        /// What to change.
        why: String,
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
    ports: Ports,
    policy_private: Vec<PrivateRule>,
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
    let plugins = Plugins::within(sandbox.clone(), vec![artifact], BTreeMap::new()).await?;
    let plugin = plugins.0.registry.load().active().next();
    let plugin = plugin.ok_or_else(|| std::io::Error::other("nothing was loaded"))?;
    let manifest = &plugin.manifest;

    let made_up = case.config.is_none();
    let mut ports = Ports::default();
    let mut config = match case.config {
        Some(config) => config,
        None => sample::config(manifest, ports.reserve(0)?),
    };
    let mut secrets = sample::secrets(kind, manifest);
    secrets.extend(case.secrets);
    let secrets: BTreeMap<String, SecretString> =
        secrets.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect();
    let valid = async |config: &Value| {
        plugins.validate(kind, &manifest.name, config, &secrets).await.map_err(|refused| {
            let Refused::Faults(faults) = refused else { return std::io::Error::other(refused).into() };
            let whose = if made_up && faults.iter().any(|fault| fault.pointer.starts_with("/config")) {
                "no configuration could be made up from the manifest's schema (give one with --config, or `examples` in the schema)"
            } else {
                "what --config gives does not suit the plugin"
            };
            let faults: Vec<String> =
                faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.message)).collect();
            KitError::Config { whose, faults: faults.join("; ") }
        })
    };
    valid(&config).await?;
    let targets = |config: &Value| -> Vec<Target> {
        Grants::resolve(&manifest.capabilities, &manifest.slots, config, &BTreeMap::new())
            .map(|grants| grants.tcp().collect())
            .unwrap_or_default()
    };
    let asked = targets(&config);
    let moved = tcp::stand_in(&mut config, &tcp::named(&manifest.capabilities), &asked, &mut ports)?;
    let tcp = targets(&config);
    if let Some(target) = tcp.iter().find(|target| !ports.plays(target)) {
        return Err(KitError::Tcp {
            target: target.to_string(),
            why: "the manifest itself names an address, or a port that cannot be listened on here".into(),
        });
    }
    ports.keep(&tcp);
    valid(&config).await?;

    let binding = Binding {
        organization_id: clock.id(),
        connection_id: clock.id(),
        plugin: manifest.name.clone(),
        wanted: Wanted::default(),
        config: config.clone(),
        secrets: secrets.clone(),
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
    let kit = Kit {
        sandbox: sandbox.clone(),
        artifact,
        kind,
        reaches: reaches(manifest, claims.is_some()),
        answers: Arc::new(Answers { rules: case.answers, not_found: case.not_found }),
        claims,
        userinfo: case.userinfo,
        policy_private: private(&config, &tcp),
        tcp,
        ports,
        folders: folders(manifest),
        scratch: scratch.to_owned(),
        clock,
        patience,
        binding,
    };
    let mut report = Report::new(kind, manifest, config, made_up);
    report.notes.extend(moved);
    report.notes.extend(kit.out_of_reach());
    report.rows = kit.all().await?;
    Ok(report)
}

impl Kit {
    /// What cannot come about, so that nobody looks for it in the table.
    fn out_of_reach(&self) -> Option<String> {
        let possible =
            |situation: &Situation| exports(self.kind).iter().any(|export| situation.applies(export, self.reaches));
        let left: Vec<&str> = Situation::OF_THE_FAR_SIDE
            .iter()
            .filter(|situation| !possible(situation))
            .map(|situation| situation.name())
            .collect();
        let reaches = match self.reaches {
            Reaches { http: false, tcp: true, .. } => "TCP and no HTTP",
            Reaches { http: false, folder: true, .. } => "a folder and no network",
            _ => "no network",
        };
        (!left.is_empty())
            .then(|| format!("The plugin asks for {reaches}, so these cannot come about: {}.", left.join("; ")))
    }

    async fn all(&self) -> Result<Vec<Row>, KitError> {
        let exports = exports(self.kind);
        let mut known = Known::default();
        let mut rows = self.one(Situation::Good, exports, &mut known).await?;
        let mut rest: Vec<(Situation, Vec<&'static str>)> = Vec::new();
        for situation in Situation::ALL.into_iter().skip(1) {
            let applicable: Vec<&'static str> =
                exports.iter().copied().filter(|export| situation.applies(export, self.reaches)).collect();
            if applicable.is_empty() || situation == Situation::FileBlocked && known.files.is_empty() {
                continue;
            }
            // Each waits for as long as the plugin does: not one after the other.
            if situation == Situation::Drip {
                rest.extend(applicable.into_iter().map(|export| (situation, vec![export])));
            } else {
                rest.push((situation, applicable));
            }
        }
        // TCP is served on ports of this machine, so one situation at a time.
        let at_once = if self.tcp.is_empty() { AT_ONCE } else { 1 };
        let known = &known;
        let mut running = futures::stream::iter(rest.into_iter().map(|(situation, applicable)| async move {
            let mut known = Known { registration: known.registration.clone(), files: known.files.clone() };
            self.one(situation, &applicable, &mut known).await
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
        let way =
            Arc::new(Way { far_side: far_side.clone(), tcp: IpAddr::V4(tcp::ADDRESS), tcp_hosts: Arc::new(names) });
        let policy = Policy {
            allow: "*".parse::<Pattern>().into_iter().collect(),
            allow_private: self.policy_private.clone(),
            ..Policy::default()
        };
        let off = TimeDelta::hours(match situation {
            Situation::ClockFast => OFF_HOURS,
            Situation::ClockOff => -OFF_HOURS,
            _ => 0,
        });
        let elsewhere = self.sandbox.elsewhere(Client::through(policy, way.clone(), way), Clock::shifted(off));
        let folder = self.scratch.join(format!("{situation:?}"));
        let own = audit_dir::own(self.binding.organization_id, self.binding.connection_id);
        if situation == Situation::FileBlocked {
            for file in &known.files {
                std::fs::create_dir_all(folder.join(file))?;
            }
        }
        let offered = self.folders.iter().map(|name| (name.clone(), folder.join(name))).collect();
        let plugins = Plugins::within(elsewhere, vec![self.artifact], offered).await?;
        let listeners = self.ports.listen(situation, &far_side)?;

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
            let verdict = if far_side.breached() {
                Verdict::Wrong(
                    "a request went to the metadata service: that is a fault of the sandbox, please report it",
                )
            } else {
                let only_tcp = !self.reaches.http;
                verdict::judge(&Seen { export, situation, outcome: &outcome, contacts, detail, only_tcp })
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
fn private(config: &Value, tcp: &[Target]) -> Vec<PrivateRule> {
    let mut found: Vec<IpAddr> = Vec::new();
    if !tcp.is_empty() {
        found.push(IpAddr::V4(tcp::ADDRESS));
    }
    let texts = config.as_object().into_iter().flat_map(Map::values).filter_map(Value::as_str);
    found.extend(texts.filter_map(|text| match url::Url::parse(text).ok()?.host()? {
        url::Host::Ipv4(address) if !address.is_link_local() => Some(IpAddr::V4(address)),
        url::Host::Ipv6(address) => Some(IpAddr::V6(address)),
        _ => None,
    }));
    found.into_iter().map(|address| ipnet::IpNet::from(address).into()).collect()
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
