//! Who may do what: Cedar policies of the platform and of the tenant.
//!
//! [`Authz`] decides from what the request brings along, which is read anew each time; only compiled policies are
//! kept, and those are pure functions of an immutable text. `policies/README.md` tells tenants what to write.

mod action;
mod attributes;
mod engine;
mod entities;
mod errors;
mod explain;
mod filter;
mod index;
mod kind;
mod parts;
mod reads;
mod required;
pub mod respell;
mod schema;
mod spelling;
mod tenant;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod validate;
mod workers;

use std::{sync::Arc, time::Duration};

pub use action::Action;
pub use explain::{Deciding, DecidingPolicy, Decision, Reason};
pub use filter::Distinction;
pub use index::{About, Origin};
pub use kind::{Context, Kind, Resource};
pub use schema::TEXT as SCHEMA;
pub use text::{Bounds, PolicyFault};
pub use validate::Validated;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    engine::{Engine, Tenant},
    errors::Errors,
    filter::Filter,
    tenant::{Compiled, Tenants},
    workers::{Undone, Workers},
};
use crate::{
    clock::Clock,
    config::limits::ServerLimits,
    domain::{id::OrganizationId, principal::Principal},
    queues::Queues,
    store::{Store, StoreError},
};

/// Changes when a text that was valid may be so no more, besides the schema: what is validated, and how.
const RULES: u32 = 3;

/// How long deciding for many resources keeps a thread that serves requests from others, and a decision more.
const SLICE: Duration = Duration::from_millis(1);

/// Decides. Cheap to clone.
#[derive(Clone)]
pub struct Authz(Arc<Parts>);

struct Parts {
    engine: Engine,
    tenants: Tenants,
    workers: Workers,
    /// Decisions for many resources that take longer than [`SLICE`].
    long: Queues,
    errors: Errors,
    bounds: Bounds,
    rules: String,
    clock: Clock,
}

impl AsRef<Errors> for Authz {
    fn as_ref(&self) -> &Errors {
        &self.0.errors
    }
}

/// Why a text was not found valid.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// It is not valid.
    #[error("{} faults", .0.len())]
    Faults(Vec<PolicyFault>),
    /// Too many of the organization's texts are being validated.
    #[error("too many of the organization's policy texts are being validated")]
    Busy,
    /// The machine has no thread or no memory for it now.
    #[error("{0}")]
    Unavailable(std::io::Error),
    /// A defect.
    #[error("validating policies panicked")]
    Defect,
}

impl Authz {
    /// Reads and validates the platform's policies, which are part of the binary. The clock gives policies their
    /// `context.now`.
    ///
    /// # Errors
    /// If they do not hold up: a defect.
    pub fn new(clock: Clock, limits: &ServerLimits) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts {
            engine: Engine::new()?,
            tenants: Tenants::new(limits),
            workers: Workers::new(limits),
            // Each is of a request, and those are bounded.
            long: Queues::new(usize::MAX),
            errors: Errors::new(limits),
            bounds: Bounds::of(limits),
            rules: hex::encode(Sha256::digest(format!("{RULES}\n{SCHEMA}"))),
            clock,
        })))
    }

    /// Begins to write down which policies could not be evaluated, on `tasks`; once more after `stopping`.
    pub fn start(&self, store: Store, stopping: CancellationToken, tasks: &TaskTracker) {
        errors::start(self.clone(), store, stopping, tasks);
    }

    /// Writes down at once which policies of an organization could not be evaluated on this host.
    ///
    /// # Errors
    /// As the database says.
    pub async fn write_errors(&self, store: &Store, organization: OrganizationId) -> Result<(), StoreError> {
        self.0.errors.write(store, Some(organization)).await
    }

    /// A digest of the rules that this server validates by: a text that was valid by the same ones is so still.
    pub fn rules(&self) -> &str {
        &self.0.rules
    }

    /// Decides one request.
    ///
    /// # Errors
    /// If the tenant's policies cannot be loaded now. A set that is in force and cannot be used is no error: it denies.
    pub async fn check(
        &self,
        store: &Store,
        principal: &Principal,
        action: Action,
        resource: &Resource,
        context: &Context,
    ) -> Result<Decision, StoreError> {
        let compiled = self.tenant(store, principal).await?;
        let now = self.0.clock.now();
        let decision = self.0.engine.decide(tenant(compiled.as_deref()), principal, action, resource, context, now);
        self.note(principal, &decision, now);
        Ok(decision)
    }

    /// Decides for many resources, in their order; the same as [`Authz::check`] of each without a context, and cheaper:
    /// resources that no policy can tell apart are decided once.
    ///
    /// # Errors
    /// As [`Authz::check`].
    pub async fn filter(
        &self,
        store: &Store,
        principal: &Principal,
        action: Action,
        resources: &[Resource],
    ) -> Result<Vec<bool>, StoreError> {
        let compiled = self.tenant(store, principal).await?;
        let now = self.0.clock.now();
        let seen = |decision: &Decision| self.note(principal, decision, now);
        let tenant = tenant(compiled.as_deref());
        let mut filter = Filter::new(&self.0.engine, tenant, (principal, action), resources, now);
        if !filter.proceed(SLICE, seen) {
            // Of what takes longer, one at a time for each organization, between what others ask for.
            let _turn = self.0.long.turn(principal.organization_id).await;
            loop {
                tokio::task::yield_now().await;
                if filter.proceed(SLICE, seen) {
                    break;
                }
            }
        }
        Ok(filter.allowed())
    }

    fn note(&self, principal: &Principal, decision: &Decision, now: DateTime<Utc>) {
        if let Some(version) = principal.policy_version {
            self.0.errors.note(principal.organization_id, version, decision.errors(), now);
        }
    }

    /// By what resources of one kind are decided differently: those that agree in it can be counted together.
    ///
    /// # Errors
    /// As [`Authz::check`].
    pub async fn distinction(
        &self,
        store: &Store,
        principal: &Principal,
        action: Action,
        kind: Kind,
    ) -> Result<Distinction, StoreError> {
        let compiled = self.tenant(store, principal).await?;
        Ok(Distinction::of(&self.0.engine, tenant(compiled.as_deref()), principal, action, kind))
    }

    /// Whether an action can be asked of this kind of thing at all.
    pub fn applies(&self, action: Action, kind: Kind) -> bool {
        self.0.engine.vocabulary.applies(action, kind)
    }

    /// Validates a tenant's policy set strictly, without storing it: one text of an organization at a time, and a few on a
    /// host. It ends soon after nobody waits for it any more.
    ///
    /// # Errors
    /// Every fault with line and column; or why it was not looked at.
    pub async fn validate(&self, organization: OrganizationId, text: String) -> Result<Validated, Invalid> {
        let authz = self.clone();
        let work = move |stop: &dyn Fn() -> bool| validate(&authz.0.engine, &text, &authz.0.bounds, stop);
        self.0
            .workers
            .validate(organization, work)
            .await
            .map_err(|undone| match undone {
                Undone::Machine(error) => Invalid::Unavailable(error),
                Undone::Panicked => Invalid::Defect,
                Undone::Busy => Invalid::Busy,
            })?
            .map_err(Invalid::Faults)
    }

    async fn tenant(&self, store: &Store, principal: &Principal) -> Result<Option<Arc<Compiled>>, StoreError> {
        let Some(version) = principal.policy_version else { return Ok(None) };
        let loaded = &self.0.tenants;
        let loaded =
            loaded.get(&self.0.engine.vocabulary, &self.0.workers, store, principal.organization_id, version).await;
        loaded.map(Some).map_err(StoreError::shared)
    }
}

fn tenant(compiled: Option<&Compiled>) -> Tenant<'_> {
    match compiled.map(|compiled| &compiled.index) {
        None => Tenant::None,
        Some(Ok(index)) => Tenant::Policies(index),
        Some(Err(why)) => Tenant::Unreadable(why),
    }
}

/// Needs a stack of [`text::STACK`] bytes.
fn validate(
    engine: &Engine,
    source: &str,
    bounds: &Bounds,
    stop: &dyn Fn() -> bool,
) -> Result<Validated, Vec<PolicyFault>> {
    let parsed = text::read(source, Some(bounds))?;
    validate::validate(&engine.vocabulary, source, &parsed, bounds, stop)
}

/// Validates policy sets without a server: `kaizen policy check`.
pub struct Checker(Engine, Bounds);

impl Checker {
    /// Reads the embedded schema.
    ///
    /// # Errors
    /// A defect.
    pub fn new(bounds: Bounds) -> anyhow::Result<Self> {
        Ok(Self(Engine::new()?, bounds))
    }

    /// As [`Authz::validate`], and waits for it.
    ///
    /// # Errors
    /// As [`Authz::validate`].
    pub fn check(&self, text: &str) -> Result<Validated, Invalid> {
        let checked = text::deep(|| validate(&self.0, text, &self.1, &|| false));
        checked.map_err(Invalid::Unavailable)?.map_err(Invalid::Faults)
    }
}

/// A policy text as it is kept: editors on Windows begin it with a byte order mark, which Cedar does not know.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
