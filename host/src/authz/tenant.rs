//! Compiled policy sets of tenants, by version. A version never changes, so a compiled one never goes stale; which
//! version is in force is read with every request.

use std::sync::Arc;

use moka::{future::Cache, policy::EvictionPolicy};

use super::{
    index::{Index, Origin},
    schema::Shared,
    text,
    workers::{Undone, Workers},
};
use crate::{
    config::limits::ServerLimits,
    domain::id::{OrganizationId, PolicyVersionId},
    store::{self, Store, StoreError},
};

/// Organizations whose last version is remembered, so that an earlier one makes room for it.
const ORGANIZATIONS: u64 = 100_000;

/// One compiled version, or why there is none.
pub(super) struct Compiled {
    pub(super) index: Result<Index, String>,
}

impl Compiled {
    /// About how many bytes it takes.
    fn weight(&self) -> u32 {
        let weight = self.index.as_ref().map_or_else(String::len, Index::weight);
        u32::try_from(weight).unwrap_or(u32::MAX).saturating_add(1024)
    }
}

/// The cache.
pub(super) struct Tenants {
    cache: Cache<(OrganizationId, PolicyVersionId), Arc<Compiled>>,
    last: moka::sync::Cache<OrganizationId, PolicyVersionId>,
}

impl Tenants {
    pub(super) fn new(limits: &ServerLimits) -> Self {
        let weigher = |_: &_, compiled: &Arc<Compiled>| compiled.weight();
        // Whatever was asked for last is kept: a set that is turned away for others' sake would be compiled with every request.
        let cache = Cache::builder().max_capacity(limits.policy_cache_mib * 1024 * 1024).weigher(weigher);
        Self {
            cache: cache.eviction_policy(EvictionPolicy::lru()).build(),
            last: moka::sync::Cache::new(ORGANIZATIONS),
        }
    }

    /// The compiled version; read and compiled on a miss, once however many ask at the same time.
    ///
    /// # Errors
    /// If it cannot be read or compiled now; nothing is remembered then.
    pub(super) async fn get(
        &self,
        vocabulary: &Shared,
        workers: &Workers,
        store: &Store,
        organization: OrganizationId,
        version: PolicyVersionId,
    ) -> Result<Arc<Compiled>, Arc<StoreError>> {
        let key = (organization, version);
        if let Some(compiled) = self.cache.get(&key).await {
            return Ok(compiled);
        }
        let loading = load(vocabulary.clone(), workers, store.clone(), organization, version);
        let compiled = self.cache.try_get_with(key, loading).await?;
        // One version of an organization is in force: another one that is kept is of no more use.
        let before = self.last.get(&organization).filter(|before| *before != version);
        self.last.insert(organization, version);
        if let Some(before) = before {
            self.cache.invalidate(&(organization, before)).await;
        }
        Ok(compiled)
    }
}

#[cfg(test)]
impl Tenants {
    /// For the tests: how many versions are kept.
    pub(super) async fn kept(&self) -> u64 {
        self.cache.run_pending_tasks().await;
        self.cache.entry_count()
    }
}

async fn load(
    vocabulary: Shared,
    workers: &Workers,
    store: Store,
    organization: OrganizationId,
    version: PolicyVersionId,
) -> Result<Arc<Compiled>, StoreError> {
    let mut conn = store.read().await?;
    let text = store::policies::text(&mut conn, organization, version).await?;
    drop(conn);
    let Some(text) = text else {
        return Ok(Arc::new(Compiled { index: Err("the policy version in force is not there".to_owned()) }));
    };
    let index = match workers.load(move || compile(&vocabulary, &text)).await {
        Ok(index) => index,
        // The text decides this, every time.
        Err(Undone::Panicked) => Err("compiling the policy set in force failed".to_owned()),
        Err(trouble @ (Undone::Machine(_) | Undone::Busy)) => {
            tracing::error!(%organization, %version, %trouble, "a policy set in force cannot be compiled now");
            return Err(StoreError::Unavailable(sqlx::Error::Io(std::io::Error::other(trouble))));
        }
    };
    if let Err(why) = &index {
        tracing::error!(%organization, %version, why, "a policy set in force cannot be used");
    }
    Ok(Arc::new(Compiled { index }))
}

/// Reads and groups; what was validated when it was stored is not validated again. Needs a stack of [`text::STACK`] bytes.
pub(super) fn compile(vocabulary: &Shared, source: &str) -> Result<Index, String> {
    let told = |faults: Vec<text::PolicyFault>| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        format!("the policy set in force cannot be used: {}", faults.join("; "))
    };
    let parsed = text::read(source, None).map_err(told)?;
    Index::compile(vocabulary, Origin::Tenant, source, &parsed.policies)
        .map_err(|error| format!("the policy set in force cannot be compiled: {error}"))
}
