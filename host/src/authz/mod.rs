//! Who may do what: Cedar policies of the platform and of the tenant.
//!
//! [`Authz`] decides from what the request brings along, which is read anew each time; only compiled policies are
//! kept, and those are pure functions of an immutable text. `policies/README.md` tells tenants what to write.

mod action;
mod attributes;
mod engine;
mod entities;
mod explain;
mod filter;
mod index;
mod kind;
mod reads;
mod schema;
mod spelling;
mod tenant;
#[cfg(test)]
mod tests;
mod text;
mod validate;

use std::sync::Arc;

pub use action::Action;
pub use explain::{Deciding, Decision, Reason};
pub use filter::Distinction;
pub use index::{About, Origin};
pub use kind::{Context, Kind, Resource};
pub use schema::TEXT as SCHEMA;
pub use text::{MAX_POLICIES, MAX_TEXT, PolicyFault};
pub use validate::Validated;

use self::{
    engine::{Engine, Tenant},
    tenant::{Compiled, Tenants},
};
use crate::{
    clock::Clock,
    domain::principal::Principal,
    store::{Store, StoreError},
};

/// Decides. Cheap to clone.
#[derive(Clone)]
pub struct Authz(Arc<Parts>);

struct Parts {
    engine: Engine,
    tenants: Tenants,
    clock: Clock,
}

impl Authz {
    /// Reads and validates the platform's policies, which are part of the binary. The clock gives policies their
    /// `context.now`.
    ///
    /// # Errors
    /// If they do not hold up: a defect.
    pub fn new(clock: Clock) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Parts { engine: Engine::new()?, tenants: Tenants::new(), clock })))
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
        Ok(self.0.engine.decide(tenant(compiled.as_deref()), principal, action, resource, context, now))
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
        Ok(filter::filter(&self.0.engine, tenant(compiled.as_deref()), principal, action, resources, now))
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

    /// Validates a tenant's policy set strictly, without storing it. Takes milliseconds for a large one: call it from
    /// `spawn_blocking`.
    ///
    /// # Errors
    /// Every fault with line and column.
    pub fn validate(&self, text: &str) -> Result<Validated, Vec<PolicyFault>> {
        validate(&self.0.engine, text)
    }

    async fn tenant(&self, store: &Store, principal: &Principal) -> Result<Option<Arc<Compiled>>, StoreError> {
        let Some(version) = principal.policy_version else { return Ok(None) };
        let loaded = self.0.tenants.get(&self.0.engine.vocabulary, store, principal.organization_id, version).await;
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

fn validate(engine: &Engine, source: &str) -> Result<Validated, Vec<PolicyFault>> {
    let parsed = text::parse(source)?;
    validate::validate(&engine.vocabulary, source, &parsed)
}

/// Validates policy sets without a server: `kaizen policy check`.
pub struct Checker(Engine);

impl Checker {
    /// Reads the embedded schema.
    ///
    /// # Errors
    /// A defect.
    pub fn new() -> anyhow::Result<Self> {
        Engine::new().map(Self)
    }

    /// As [`Authz::validate`].
    ///
    /// # Errors
    /// As [`Authz::validate`].
    pub fn check(&self, text: &str) -> Result<Validated, Vec<PolicyFault>> {
        validate(&self.0, text)
    }
}
