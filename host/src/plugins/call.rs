//! One call of a plugin: what it may do, how it is measured, and what its errors mean.

use std::{sync::Arc, time::Duration};

use metrics::{counter, histogram};
use secrecy::SecretString;
use tokio::{sync::mpsc, time::Instant};
use wasmtime::Store;

use super::{Attempt, Binding, Exports, Plugin, PluginError, Plugins, Progress};
use crate::{
    domain::connection::Kind,
    sandbox::{
        Fault,
        bindings::common::kaizen::plugin::types as wit,
        context::Context,
        grants::Grants,
        limits::Limits,
        secret::{self, Vault},
        state::State,
    },
};

/// Bytes of a plugin's message that are kept.
const MESSAGE: usize = 2000;
/// Longest wait that a far side can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Deploying may take longer than other calls.
pub(super) const LONGEST_DEPLOY: Duration = Duration::from_secs(120);

/// What a call gives back: its store, and the export's own result if it came to one.
pub(super) type Called<R> = (Store<State>, wasmtime::Result<Result<R, wit::Error>>);

/// One call, before it begins.
pub(super) struct Call<'a> {
    kind: Kind,
    binding: &'a Binding,
    attempt: &'a Attempt,
    export: &'static str,
    /// For longer or shorter work than usual.
    pub(super) wall: Duration,
    /// One more secret, for this call only.
    pub(super) extra: Option<(String, SecretString)>,
    /// Where progress goes.
    pub(super) progress: Option<mpsc::Sender<Progress>>,
    /// The arguments hold what looks like a placeholder.
    placeholders: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(kind: Kind, binding: &'a Binding, attempt: &'a Attempt, export: &'static str) -> Self {
        let placeholders = secret::mentions(binding.config.to_string().as_bytes());
        let wall = Limits::default().wall;
        Self { kind, binding, attempt, export, wall, extra: None, progress: None, placeholders }
    }

    /// These texts are among the arguments. What people wrote may look like a placeholder: then a body with it is not
    /// refused, or anybody who can name an agent `{{secret:x}}` could stop the delivery of audit events.
    pub(super) fn about(mut self, texts: &[&str]) -> Self {
        self.placeholders |= texts.iter().any(|text| secret::mentions(text.as_bytes()));
        self
    }

    fn argument(&self) -> wit::Call {
        wit::Call {
            connection_id: self.binding.connection_id.to_string(),
            config: self.binding.config.to_string(),
            idempotency_key: self.attempt.idempotency_key.clone(),
            attempt: self.attempt.attempt,
        }
    }
}

/// The registry keeps kinds apart, so this is not met.
pub(super) fn unsuitable() -> wit::Error {
    wit::Error::Internal("the plugin is of another kind".into())
}

impl Plugins {
    pub(super) async fn call<R, F, Fut>(&self, call: Call<'_>, body: F) -> Result<R, PluginError>
    where
        R: Send,
        F: FnOnce(Exports, wit::Call, Store<State>) -> Fut + Send,
        Fut: Future<Output = Called<R>> + Send,
    {
        let plugin = self.running(call.kind, &call.binding.plugin, &call.binding.wanted).await?;
        let started = Instant::now();
        let (export, connection) = (call.export, call.binding.connection_id);
        let result = self.attempt(&plugin, call, body).await;
        let key = (plugin.kind, plugin.manifest.name.clone(), plugin.manifest.version.clone());
        self.0.health.record(key, connection, export, result.as_ref().err(), self.0.clock.now());
        let outcome = result.as_ref().err().map_or("ok", PluginError::outcome);
        let name = plugin.manifest.name.clone();
        counter!("kaizen_plugin_calls_total", "plugin" => name.clone(), "export" => export, "outcome" => outcome)
            .increment(1);
        histogram!("kaizen_plugin_call_seconds", "plugin" => name, "export" => export)
            .record(started.elapsed().as_secs_f64());
        result
    }

    async fn attempt<R, F, Fut>(&self, plugin: &Plugin, call: Call<'_>, body: F) -> Result<R, PluginError>
    where
        R: Send,
        F: FnOnce(Exports, wit::Call, Store<State>) -> Fut + Send,
        Fut: Future<Output = Called<R>> + Send,
    {
        let binding = call.binding;
        let manifest = &plugin.manifest;
        let folders = self.folders(binding);
        let grants =
            Grants::resolve(&manifest.capabilities, &manifest.slots, &binding.config, &folders).map_err(|faults| {
                let faults: Vec<String> =
                    faults.iter().map(|f| format!("config.{}: {}", f.property, f.message)).collect();
                PluginError::Config(faults.join("; "))
            })?;
        let argument = call.argument();
        let vault = match call.extra {
            None => Vault::new(&grants, &binding.secrets),
            Some((name, value)) => {
                let mut secrets = binding.secrets.clone();
                secrets.insert(name, value);
                Vault::new(&grants, &secrets)
            }
        };
        let limits = Limits { wall: call.wall, ..Limits::default() };
        let mut context =
            self.0.sandbox.context(&manifest.name, binding.connection_id.to_string(), grants, vault, limits);
        context.progress = call.progress;
        context.placeholders_in_arguments = call.placeholders;
        let context = Arc::new(context);
        let exports = plugin.exports.clone();
        let called =
            self.0.sandbox.call(&plugin.guest, context.clone(), move |store| body(exports, argument, store)).await;
        match called {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(explained(&context, error)),
            Err(Fault::Busy) => Err(PluginError::Unavailable {
                message: Fault::Busy.to_string(),
                retry_after: Some(Duration::from_secs(1)),
            }),
            Err(Fault::Setup(why)) => Err(PluginError::Config(why)),
            Err(fault) => {
                tracing::warn!(target: "kaizen::plugin", plugin = manifest.name, connection = %binding.connection_id, %fault, "call ended");
                Err(PluginError::Fault(fault.to_string()))
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
