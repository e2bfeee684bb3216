//! One call of a plugin: what it may do, how it is measured, and what its errors mean.

use std::{sync::Arc, time::Duration};

use metrics::{counter, histogram};
use secrecy::SecretString;
use tokio::{sync::mpsc, time::Instant};
use wasmtime::Store;

use super::{
    Attempt, Binding, Exports, Plugin, PluginError, Plugins, Progress,
    results::FromGuest,
    suspension::{Lane, Verdict},
};
use crate::{
    domain::connection::Kind,
    sandbox::{
        Fault,
        bindings::common::kaizen::plugin::types as wit,
        context::Context,
        grants::Grants,
        limits::{Limits, Usage},
        scheduler::Caller,
        secret::{self, Vault},
        state::State,
    },
};

/// Bytes of a plugin's message that are kept.
const MESSAGE: usize = 2000;
/// Longest wait that a far side can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// When to come back where too many calls are under way.
const BUSY: Duration = Duration::from_secs(1);

/// What a call gives back: its store, and the export's own result if it came to one.
pub(super) type Called<R> = (Store<State>, wasmtime::Result<Result<R, wit::Error>>);

/// One call, before it begins.
pub(super) struct Call<'a> {
    kind: Kind,
    binding: &'a Binding,
    attempt: &'a Attempt,
    export: &'static str,
    /// The configuration, as the plugin gets it.
    config: String,
    /// It deploys, which may take longer than other calls.
    pub(super) deploys: bool,
    /// Somebody asks how it is: also where calls are suspended.
    forced: bool,
    /// One more secret, for this call only.
    pub(super) extra: Option<(String, SecretString)>,
    /// Where progress goes.
    pub(super) progress: Option<mpsc::Sender<Progress>>,
    /// The arguments hold what looks like a placeholder.
    placeholders: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(kind: Kind, binding: &'a Binding, attempt: &'a Attempt, export: &'static str) -> Self {
        let config = binding.config.to_string();
        let placeholders = secret::mentions(config.as_bytes());
        let (deploys, forced) = (false, false);
        Self { kind, binding, attempt, export, config, deploys, forced, extra: None, progress: None, placeholders }
    }

    /// Somebody asks how it is.
    pub(super) fn forced(mut self) -> Self {
        self.forced = true;
        self
    }

    /// These texts are among the arguments. What people wrote may look like a placeholder: then a body with it is not
    /// refused, or anybody who can name an agent `{{secret:x}}` could stop the delivery of audit events.
    pub(super) fn about(mut self, texts: &[&str]) -> Self {
        self.placeholders |= texts.iter().any(|text| secret::mentions(text.as_bytes()));
        self
    }

    fn argument(&mut self) -> wit::Call {
        wit::Call {
            connection_id: self.binding.connection_id.to_string(),
            config: std::mem::take(&mut self.config),
            idempotency_key: self.attempt.idempotency_key.clone(),
            attempt: self.attempt.attempt,
        }
    }
}

/// The registry keeps kinds apart, so this is not met.
pub(super) fn unsuitable() -> wit::Error {
    wit::Error::Internal("the plugin is of another kind".into())
}

/// How a call ended.
struct Ended<R> {
    result: Result<R, PluginError>,
    /// For metrics: [`PluginError::outcome`], but `trap`, `limit` or `busy` where that is known.
    outcome: &'static str,
    /// What it says of plugin and far side; nothing where it did not begin.
    verdict: Option<Verdict>,
}

impl<R> From<Result<R, PluginError>> for Ended<R> {
    fn from(result: Result<R, PluginError>) -> Self {
        let (outcome, verdict) = match &result {
            Ok(_) => ("ok", Verdict::Works),
            Err(error) => (error.outcome().as_str(), error.verdict()),
        };
        Self { result, outcome, verdict: Some(verdict) }
    }
}

impl PluginError {
    fn verdict(&self) -> Verdict {
        match self {
            PluginError::Config(_) | PluginError::Rejected(_) => Verdict::Works,
            PluginError::Unavailable { retry_after, .. } => Verdict::Away(*retry_after),
            PluginError::Postponed { after, .. } => Verdict::Away(Some(*after)),
            PluginError::Internal(_) | PluginError::Fault(_) => Verdict::Defect,
        }
    }
}

impl Plugins {
    pub(super) async fn call<R, F, Fut>(&self, call: Call<'_>, body: F) -> Result<R, PluginError>
    where
        R: FromGuest + Send + 'static,
        F: FnOnce(Exports, wit::Call, Store<State>) -> Fut + Send + 'static,
        Fut: Future<Output = Called<R>> + Send + 'static,
    {
        let plugin = self.running(call.kind, &call.binding.plugin, &call.binding.wanted).await?;
        let (kind, export, connection) = (call.kind.as_str(), call.export, call.binding.connection_id);
        let organization = call.binding.organization_id;
        let labels = |outcome| counter!("kaizen_plugin_calls_total", "kind" => kind, "plugin" => plugin.manifest.name.clone(), "export" => export, "outcome" => outcome);
        let lanes = self.0.shares.of(call.kind, &call.binding.plugin);
        let pass = match lanes.admit(connection, call.forced) {
            Ok(pass) => pass,
            Err(suspended) => {
                labels("suspended").increment(1);
                // Without what changes while the reason stays: whoever is put off again and again is told of it once.
                let message = format!("calls are suspended after failures in a row; the last: {}", suspended.reason);
                return Err(PluginError::Postponed { message, after: lanes.wait(suspended.until) });
            }
        };
        let started = Instant::now();
        let usage = Arc::new(Usage::default());
        let ended = self.attempt(&plugin, call, &pass.lane, usage.clone(), body).await;
        if let Some(verdict) = ended.verdict {
            let message = ended.result.as_ref().err().map(ToString::to_string);
            pass.ended(verdict, message.as_deref().unwrap_or_default());
        }
        let key = (plugin.kind, plugin.manifest.name.clone(), plugin.manifest.version.clone());
        let whose = (organization, connection);
        self.0.health.record(key, whose, export, ended.result.as_ref().err(), self.0.clock.now());
        labels(ended.outcome).increment(1);
        let name = || plugin.manifest.name.clone();
        histogram!("kaizen_plugin_call_seconds", "kind" => kind, "plugin" => name(), "export" => export)
            .record(started.elapsed().as_secs_f64());
        histogram!("kaizen_plugin_memory_peak_bytes", "kind" => kind, "plugin" => name(), "export" => export)
            .record(usage.memory() as f64);
        histogram!("kaizen_plugin_cpu_seconds", "kind" => kind, "plugin" => name(), "export" => export)
            .record(usage.cpu().as_secs_f64());
        ended.result
    }

    async fn attempt<R, F, Fut>(
        &self,
        plugin: &Plugin,
        mut call: Call<'_>,
        lane: &Lane,
        usage: Arc<Usage>,
        body: F,
    ) -> Ended<R>
    where
        R: FromGuest + Send + 'static,
        F: FnOnce(Exports, wit::Call, Store<State>) -> Fut + Send + 'static,
        Fut: Future<Output = Called<R>> + Send + 'static,
    {
        let binding = call.binding;
        let manifest = &plugin.manifest;
        let folders = self.folders(binding.organization_id, binding.connection_id);
        let grants = Grants::resolve(&manifest.capabilities, &manifest.slots, &binding.config, &folders);
        let grants = match grants {
            Ok(grants) => grants,
            Err(faults) => {
                let faults: Vec<String> =
                    faults.iter().map(|f| format!("config.{}: {}", f.property, f.message)).collect();
                return Err(PluginError::Config(faults.join("; "))).into();
            }
        };
        let argument = call.argument();
        let vault = match call.extra {
            None => Vault::new(&grants, &binding.secrets),
            Some((name, value)) => {
                let mut secrets = binding.secrets.clone();
                secrets.insert(name, value);
                Vault::new(&grants, &secrets)
            }
        };
        let sandbox = &self.0.sandbox;
        let bounds = sandbox.bounds();
        let wall = match (call.deploys, call.forced) {
            (true, _) => bounds.deploy,
            // Somebody waits for it, and is to hear that it took too long before the request itself does.
            (_, true) => bounds.check.min(bounds.call.wall),
            _ => bounds.call.wall,
        };
        let limits = Limits { wall, ..bounds.call.clone() };
        let connection = binding.connection_id.to_string();
        let mut context = sandbox.context(&manifest.name, connection, grants, vault, limits, lane.lines.clone());
        context.caller = Caller {
            plugin: format!("{}/{}", call.kind.as_str(), manifest.name),
            connection: Some(binding.connection_id),
            organization: Some(binding.organization_id.into()),
            signs_in: call.kind == Kind::IdentityProvider && !call.forced,
        };
        context.usage = usage;
        context.progress = call.progress;
        context.placeholders_in_arguments = call.placeholders;
        let context = Arc::new(context);
        let exports = plugin.exports.clone();
        let called = sandbox.call(context.clone(), move |store| body(exports, argument, store)).await;
        match called {
            Ok(Ok(result)) => result.received(&context).map_err(PluginError::Internal).into(),
            Ok(Err(error)) => Err(explained(&context, error)).into(),
            Err(fault @ (Fault::Busy | Fault::MemoryInUse)) => {
                let result = Err(PluginError::Postponed { message: fault.to_string(), after: BUSY });
                Ended { result, outcome: "busy", verdict: None }
            }
            Err(Fault::Unreachable(message)) => Err(PluginError::Unavailable { message, retry_after: None }).into(),
            Err(Fault::Setup(why)) => Err(PluginError::Config(why)).into(),
            Err(fault) => {
                tracing::warn!(target: "kaizen::plugin", plugin = manifest.name, connection = %binding.connection_id, %fault, "call ended");
                let outcome = if matches!(fault, Fault::Limit(_)) { "limit" } else { "trap" };
                Ended { outcome, ..Err(PluginError::Fault(fault.to_string())).into() }
            }
        }
    }
}

/// A plugin's own error, for operators. Where something was refused during the call, that is the reason: trying again
/// would be refused again, so it counts as a matter of configuration.
fn explained(context: &Context, error: wit::Error) -> PluginError {
    let text = |text: &str| context.for_people(text, MESSAGE);
    let (message, error) = match error {
        wit::Error::Config(message) => (text(&message), PluginError::Config(text(&message))),
        wit::Error::Rejected(message) => (text(&message), PluginError::Rejected(text(&message))),
        wit::Error::Internal(message) => (text(&message), PluginError::Internal(text(&message))),
        wit::Error::Unavailable(unavailable) => {
            let retry_after = unavailable.retry_after.map(|wait| Duration::from_millis(wait).min(LONGEST_WAIT));
            let message = text(&unavailable.message);
            (message.clone(), PluginError::Unavailable { message, retry_after })
        }
    };
    let mut reasons = context.denials();
    if reasons.is_empty() && matches!(error, PluginError::Config(_)) {
        reasons = context.grants.withheld().to_vec();
    }
    if reasons.is_empty() { error } else { PluginError::Config(format!("{message} ({})", reasons.join("; "))) }
}
