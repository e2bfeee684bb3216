//! The typed calls: each export of each kind, in the host's own terms.

use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    ACCESS_TOKEN, Attempt, Binding, CheckError, Exports, IdentityGrant, PluginError, Plugins, Progress, Protocol,
    ProviderIdentity, Registration, Release, Suspended, TargetState,
    call::{Call, unsuitable},
};
use crate::{
    clock::rfc3339,
    domain::{audit, connection::Kind},
    sandbox::bindings::{
        audit_sink::exports::kaizen::audit_sink::sink, deployment_target::exports::kaizen::deployment_target::target,
        identity_provider::exports::kaizen::identity_provider::provider,
    },
};

/// Bytes of an id or a text that are accepted from a plugin.
const TEXT: usize = 2000;
/// Groups and attributes that an identity may bring.
const ENTRIES: usize = 2000;

/// Instantiates the plugin afresh and calls one export of its kind's interface.
macro_rules! invoke {
    ($plugins:expr, $call:expr, $kind:ident, $interface:ident.$function:ident($($argument:expr),*)) => {
        $plugins
            .call($call, move |exports, call, mut store| async move {
                let called = async {
                    let Exports::$kind(pre) = exports else { return Ok(Err(unsuitable())) };
                    let instance = pre.instantiate_async(&mut store).await?;
                    instance.$interface().$function(&mut store, &call, $($argument),*).await
                };
                let called = called.await;
                (store, called)
            })
            .await
    };
}

impl Plugins {
    /// Asks the far side whether the connection works. A sentence for the operator. Asks also where calls are suspended,
    /// and says so; where it works, they go on.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn check(&self, kind: Kind, binding: &Binding, attempt: &Attempt) -> Result<String, CheckError> {
        let counted = self.0.shares.count_check(binding.organization_id);
        counted.map_err(|after| CheckError::TooOften { after })?;
        // The plugin may be unknown; only those that are there have shares.
        self.running(kind, &binding.plugin, &binding.wanted).await?;
        let lanes = self.0.shares.of(kind, &binding.plugin);
        let _checking = lanes.check(binding.connection_id).ok_or(CheckError::UnderWay)?;
        let before = self.suspension(kind, binding);
        let call = |export| Call::new(kind, binding, attempt, export).forced();
        let checked = match kind {
            Kind::IdentityProvider => self.begin_as(call("begin")).await.map(|protocol| match protocol {
                Protocol::Oidc { issuer, .. } => format!("Signs in with OpenID Connect at {issuer}."),
                Protocol::Oauth2 { authorization_endpoint, .. } => {
                    format!("Signs in with OAuth 2 at {authorization_endpoint}.")
                }
            }),
            Kind::DeploymentTarget => {
                invoke!(self, call("check"), DeploymentTarget, kaizen_deployment_target_target.call_check())
            }
            Kind::AuditSink => {
                invoke!(self, call("check"), AuditSink, kaizen_audit_sink_sink.call_check())
            }
        };
        let after = self.suspension(kind, binding);
        Ok(match (before, after) {
            (Some(before), None) => checked.map(|said| {
                let since = before.since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                format!("{said} Calls were suspended since {since} ({}); they go on now.", before.reason)
            }),
            (_, Some(after)) => checked.map_err(|error| {
                let until = after.until.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                error.with(&format!("calls are suspended until {until}, after {} failures in a row", after.failures))
            }),
            (None, None) => checked,
        }?)
    }

    /// Forgets what this host remembers of a connection that was deleted.
    pub fn forget(&self, kind: Kind, plugin: &str, connection: Uuid) {
        self.0.shares.forget(kind, plugin, connection);
    }

    /// Why a connection's calls are suspended on this host, where they are.
    pub fn suspension(&self, kind: Kind, binding: &Binding) -> Option<Suspended> {
        self.0.registry.load().find(kind, &binding.plugin, &binding.wanted).ok()?;
        self.0.shares.of(kind, &binding.plugin).suspension(binding.connection_id)
    }

    /// Which protocol to run to sign somebody in.
    ///
    /// # Errors
    /// As the plugin says, or a fault.
    pub async fn begin(&self, binding: &Binding, attempt: &Attempt) -> Result<Protocol, PluginError> {
        self.begin_as(Call::new(Kind::IdentityProvider, binding, attempt, "begin")).await
    }

    async fn begin_as(&self, call: Call<'_>) -> Result<Protocol, PluginError> {
        let protocol = invoke!(self, call, IdentityProvider, kaizen_identity_provider_provider.call_begin());
        Ok(match protocol? {
            provider::Protocol::Oidc(oidc) => {
                Protocol::Oidc { issuer: oidc.issuer, scopes: oidc.scopes, parameters: oidc.parameters }
            }
            provider::Protocol::Oauth2(oauth2) => Protocol::Oauth2 {
                authorization_endpoint: oauth2.authorization_endpoint,
                token_endpoint: oauth2.token_endpoint,
                scopes: oauth2.scopes,
                parameters: oauth2.parameters,
            },
        })
    }

    /// Turns a verified sign-in into an identity. Requests of the plugin can carry `access_token` as
    /// `{{secret:access-token}}`, if its manifest says where to.
    ///
    /// # Errors
    /// As the plugin says, or a fault; [`PluginError::Internal`] for an identity that makes no sense.
    pub async fn identify(
        &self,
        binding: &Binding,
        attempt: &Attempt,
        grant: IdentityGrant,
        access_token: Option<SecretString>,
    ) -> Result<ProviderIdentity, PluginError> {
        let grant = provider::Grant {
            claims: grant.claims.map(|claims| claims.to_string()),
            userinfo: grant.userinfo.map(|userinfo| userinfo.to_string()),
        };
        let texts = [grant.claims.as_deref().unwrap_or_default(), grant.userinfo.as_deref().unwrap_or_default()];
        let mut call = Call::new(Kind::IdentityProvider, binding, attempt, "identify").about(&texts);
        call.extra = access_token.map(|token| (ACCESS_TOKEN.to_owned(), token));
        let identity = invoke!(self, call, IdentityProvider, kaizen_identity_provider_provider.call_identify(&grant));
        identity_of(identity?).map_err(|why| PluginError::Internal(format!("it returned an identity {why}")))
    }

    /// Deploys. The same deployment again gives the same registration. Of progress only the latest may arrive.
    ///
    /// # Errors
    /// As the plugin says, or a fault.
    pub async fn deploy(
        &self,
        binding: &Binding,
        attempt: &Attempt,
        release: Release,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Registration, PluginError> {
        let release = target::Release {
            deployment_id: release.deployment_id.to_string(),
            agent_id: release.agent_id.to_string(),
            agent_name: release.agent_name,
            version: release.version,
            environment: release.environment,
            workflow: release.workflow,
            digest: release.digest,
        };
        let texts = [release.agent_name.as_str(), release.environment.as_str(), release.workflow.as_str()];
        let mut call = Call::new(Kind::DeploymentTarget, binding, attempt, "deploy").about(&texts);
        call.progress = Some(progress);
        call.deploys = true;
        let registration = invoke!(self, call, DeploymentTarget, kaizen_deployment_target_target.call_deploy(&release));
        let registration = registration?;
        Ok(Registration { id: registration.id, endpoint: registration.endpoint })
    }

    /// What became of a registration.
    ///
    /// # Errors
    /// As the plugin says, or a fault.
    pub async fn status(
        &self,
        binding: &Binding,
        attempt: &Attempt,
        registration: &str,
    ) -> Result<TargetState, PluginError> {
        let registration = registration.to_owned();
        let call = Call::new(Kind::DeploymentTarget, binding, attempt, "status");
        let state = invoke!(self, call, DeploymentTarget, kaizen_deployment_target_target.call_status(&registration));
        Ok(match state? {
            target::State::Pending(why) => TargetState::Pending(why),
            target::State::Active => TargetState::Active,
            target::State::Failed(why) => TargetState::Failed(why),
            target::State::Gone => TargetState::Gone,
        })
    }

    /// Removes a registration; removing what is gone succeeds.
    ///
    /// # Errors
    /// As the plugin says, or a fault.
    pub async fn undeploy(&self, binding: &Binding, attempt: &Attempt, registration: &str) -> Result<(), PluginError> {
        let registration = registration.to_owned();
        let call = Call::new(Kind::DeploymentTarget, binding, attempt, "undeploy");
        invoke!(self, call, DeploymentTarget, kaizen_deployment_target_target.call_undeploy(&registration))
    }

    /// Hands events to a sink, in order. Returns how many, from the first, are stored there.
    ///
    /// # Errors
    /// As the plugin says, or a fault.
    pub async fn deliver(
        &self,
        binding: &Binding,
        attempt: &Attempt,
        events: &[audit::Event],
    ) -> Result<u32, PluginError> {
        let texts: Vec<&str> = events
            .iter()
            .flat_map(|event| [event.details.as_str(), event.target.as_str(), event.actor.as_str()])
            .collect();
        let call = Call::new(Kind::AuditSink, binding, attempt, "deliver").about(&texts);
        let batch: Vec<sink::Event> = events.iter().map(event_of).collect();
        let stored = invoke!(self, call, AuditSink, kaizen_audit_sink_sink.call_deliver(&batch));
        let stored = stored?;
        if usize::try_from(stored).is_ok_and(|stored| stored <= events.len()) {
            return Ok(stored);
        }
        Err(PluginError::Internal(format!("it says that it stored {stored} of {} events", events.len())))
    }
}

fn event_of(event: &audit::Event) -> sink::Event {
    sink::Event {
        id: event.id.to_string(),
        sequence: u64::try_from(event.sequence).unwrap_or_default(),
        occurred_at: rfc3339(event.occurred_at),
        organization_id: event.organization_id.to_string(),
        actor: event.actor.clone(),
        action: event.action.clone(),
        target: event.target.clone(),
        outcome: match event.outcome {
            audit::Outcome::Success => sink::Outcome::Success,
            audit::Outcome::Denied => sink::Outcome::Denied,
            audit::Outcome::Failure => sink::Outcome::Failure,
        },
        details: event.details.clone(),
        hash: event.hash.clone(),
    }
}

/// What a plugin says of a person is believed only where it makes sense.
fn identity_of(said: provider::Identity) -> Result<ProviderIdentity, String> {
    let texts = [Some(&said.subject), said.email.as_ref(), said.name.as_ref()];
    if said.subject.is_empty() || texts.into_iter().flatten().any(|text| text.len() > TEXT) {
        return Err("without a subject, or with a text that is too long".into());
    }
    if said.groups.len() > ENTRIES || said.attributes.len() > ENTRIES {
        return Err(format!("with more than {ENTRIES} groups or attributes"));
    }
    let mut attributes = Map::new();
    for (name, json) in said.attributes {
        let value: Value = serde_json::from_str(&json).map_err(|_| format!("whose attribute `{name}` is not JSON"))?;
        attributes.insert(name, value);
    }
    Ok(ProviderIdentity {
        subject: said.subject,
        email: said.email.filter(|email| !email.is_empty()),
        email_verified: said.email_verified,
        name: said.name.filter(|name| !name.is_empty()),
        groups: said.groups,
        attributes,
    })
}
